"""Fetched from a real S3 server, the study runs on patients: the two commands of the README, on a few real series."""

import io
import json

import numpy as np
import pandas as pd
import pydicom
import pytest

from e2d_lib.study.cli import main
from tests.conftest import ROOT
from tests.scans.test_open_cohorts import s3  # noqa: F401

pytestmark = [pytest.mark.notebook, pytest.mark.slow, pytest.mark.shared]
PATIENTS = 12


def parts_of(folder) -> list[list]:
    """Files of three real series as twelve scans of 20 to 22 slices."""
    long, lung, soft = (
        sorted((folder / name).glob("*.dcm"))
        for name in ("A0001-lung-kernel", "A0002-lung-kernel", "A0002-soft-kernel")
    )
    return [long[k::3] for k in range(3)] + [s[k : k + 20] for s in (long, lung, soft) for k in (0, 5, 10)]


@pytest.fixture(scope="module")
def bucket(shared, s3, tmp_path_factory):  # noqa: F811
    """The server's address and an index in which those scans are RICORD's, half of them positive."""
    client, url = s3
    client.create_bucket(Bucket="patients", ACL="public-read")
    rng, rows = np.random.default_rng(0), []
    for number, paths in enumerate(parts_of(shared / "data" / "lung-pet-ct-dx")):
        size = 0
        for k, path in enumerate(paths):
            image = pydicom.dcmread(path)
            pixels = image.pixel_array[::2, ::2].astype(np.int16)
            image.decompress()
            image.Rows, image.Columns = pixels.shape
            image.PixelSpacing = [2 * float(side) for side in image.PixelSpacing]
            image.PixelData = (pixels + rng.integers(-9, 10, pixels.shape, dtype=np.int16)).tobytes()
            image.PatientID = f"MIDRC-RICORD-1{'AB'[number % 2]}-4190{number % 3:02}-{number:06}"
            image.SeriesInstanceUID, image.SOPInstanceUID = f"1.2.{number}", f"1.2.{number}.{k}"
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            body = io.BytesIO()
            image.save_as(body)
            size += body.tell()
            key = f"series-{number}/{k:03}.dcm"
            client.put_object(Bucket="patients", Key=key, Body=body.getvalue(), ACL="public-read")
        rows.append(
            {"collection_id": f"midrc_ricord_1{'ab'[number % 2]}", "PatientID": image.PatientID, "Modality": "CT"}
            | {"StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": image.SeriesInstanceUID}
            | {"sop_class_name": "CT Image Storage", "SeriesDescription": "CHEST", "instanceCount": len(paths)}
            | {"series_size_MB": size / 1e6, "license_short_name": "CC BY-NC 4.0", "source_DOI": "10.7937/x"}
            | {"series_aws_url": f"s3://patients/series-{number}/*"}
        )
    index = tmp_path_factory.mktemp("index") / "index.parquet"
    pd.DataFrame(rows).to_parquet(index)
    return url, index


def test_two_commands_from_nothing_to_scores_of_patients(bucket, tmp_path, monkeypatch, capsys):
    url, index = bucket
    monkeypatch.chdir(ROOT)
    data, run = tmp_path / "ricord", tmp_path / "run"
    where = ["--endpoint-url", url, "--index", str(index), "--jobs", "1"]
    assert main(["fetch", "ricord", str(data), "--accept-licence", *where]) == 0
    small = ["04.epochs=1", "04.fractions=[1.0]", "04.folds=[5]", "n_jobs=1", "02.size=48"]
    options = [part for item in small for part in ("-p", item)]
    options += ["--data-root", str(data / "manifest.csv"), "--out", str(run), "--only", "01,02,04", "--quiet"]
    assert main(["run", "--profile", "open-cpu", *options]) == 0
    cohort = pd.read_parquet(run / "01_data_exploration" / "cohort.parquet")
    assert len(cohort) == PATIENTS and cohort["label"].sum() == PATIENTS / 2 and set(cohort["source"]) == {
        "419000", "419001", "419002"
    }  # fmt: skip
    scores = pd.read_parquet(run / "04_training" / "predictions.parquet").query("part == 'valid'")
    manifest = pd.read_csv(data / "manifest.csv")
    assert set(scores["scan_id"]) == set(manifest.loc[manifest["split"] == "valid", "scan_id"])
    assert json.loads((run / "04_training" / "headline.json").read_text())["data"] == "ricord"
    (checkpoint,) = (run / "04_training" / "runs").glob("*/model.safetensors")
    card = (checkpoint.parent / "model_card.md").read_text()
    assert "trained on ricord" in card and "phantom" not in card
    capsys.readouterr()
    out = tmp_path / "predictions.csv"
    predict = ["--data", str(data / "manifest.csv"), "--out", str(out), "--device", "cpu", "--jobs", "1"]
    assert main(["predict", "--checkpoint", str(checkpoint), *predict]) == 0
    assert (
        set(pd.read_csv(out)["trained_on"]) == {"ricord"} and "no prediction here is a diag" in capsys.readouterr().out
    )
