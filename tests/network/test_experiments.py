"""Jobs over folds, fractions and seeds, and the submission file that their checkpoints give."""

import cv2
import numpy as np
import pandas as pd
import pytest

from e2d_lib import io
from e2d_lib.method import preprocess
from e2d_lib.network import experiments, prediction, training
from e2d_lib.network.model import ModelConfig
from e2d_lib.network.slices import ScanSlices
from e2d_lib.scans.cohort import assign_folds, read_cohort
from e2d_lib.study import cli

PARAMS = preprocess.Params(size=32)


def body(rng: np.random.Generator, bright: bool) -> np.ndarray:
    """A slice: a body with one lung; positives have something bright in it."""
    image = np.zeros((64, 64), np.uint8)
    image[6:58, 6:58] = 200
    image[16:48, 14:44] = 40
    if bright:
        image[36:46, 18:40] = 160
    return image + rng.integers(0, 8, image.shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A cohort on disk: 8 training scans of each class and 4 validation scans, of 12 slices."""
    root = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("valid", 4)):
        for label in ("positive", "negative"):
            for number in range(count):
                folder = root / split / label / f"ct_scan_{number}"
                folder.mkdir(parents=True)
                for k in range(12):
                    cv2.imwrite(str(folder / f"{k}.jpg"), body(rng, label == "positive"))
    return root


@pytest.fixture(scope="module")
def cohort(data):
    return assign_folds(read_cohort(data))


@pytest.fixture(scope="module")
def slices(cohort, tmp_path_factory):
    done = preprocess.run(cohort, tmp_path_factory.mktemp("cache"), PARAMS, n_jobs=1)
    return ScanSlices.from_preprocessed(done, cohort)


def test_jobs_are_every_combination_the_whole_first():
    found = experiments.jobs([1, 5], [0.1, 1.0], [0, 1])
    assert [(j.fraction, j.fold, j.seed) for j in found[:4]] == [(1.0, 1, 0), (1.0, 1, 1), (1.0, 5, 0), (1.0, 5, 1)]
    assert len({j.folder for j in found}) == len(found) == 8


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_a_job_trains_on_the_other_folds_and_never_on_its_own(slices, cohort, fold):
    train, valid = experiments.parts(slices, cohort, experiments.Job(fold, 1.0, 0))
    held = set(cohort.loc[cohort["fold"] == fold, "scan_id"])
    assert set(valid.scan_ids) == held
    assert set(train.scan_ids) == set(cohort["scan_id"]) - held


def test_fractions_are_nested_and_stratified(slices, cohort):
    seen = None
    for fraction, expected in ((1.0, 8), (0.5, 4), (0.25, 2)):
        train, _ = experiments.parts(slices, cohort, experiments.Job(5, fraction, 3))
        assert (train.labels == 1).sum() == (train.labels == 0).sum() == expected
        assert seen is None or set(train.scan_ids) < seen
        seen = set(train.scan_ids)


def test_an_unknown_fold_is_told(slices, cohort):
    with pytest.raises(training.TrainingError, match="no scans in fold 7"):
        experiments.parts(slices, cohort, experiments.Job(7, 1.0, 0))


@pytest.mark.slow
def test_checkpoints_score_unlabeled_scans_and_give_a_bad_one_a_reason(slices, cohort, data, tmp_path, capsys):
    recipe = training.Recipe.corrected(epochs=2, scans_per_step=4, lr=3e-3, device="cpu", augment=False, inner_least=2)
    outcome = experiments.run(
        experiments.jobs([1, 5], [1.0], [0]),
        slices,
        cohort,
        model=ModelConfig(backbone="test_efficientnet", pretrained=False),
        recipe=recipe,
        out_dir=tmp_path / "runs",
        preprocessing=vars(PARAMS),
        data="phantom",
    )
    assert set(outcome.predictions["part"]) == {"valid", "inner"}
    assert list(outcome.runs["valid"]) == [4, 8]

    unlabeled = tmp_path / "new"
    for number, scan in enumerate(sorted((data / "valid").glob("*/*"))):
        (unlabeled / f"scan_{number}").mkdir(parents=True)
        for path in scan.iterdir():
            (unlabeled / f"scan_{number}" / path.name).write_bytes(path.read_bytes())
    (unlabeled / "scan_bad").mkdir()
    (unlabeled / "scan_bad" / "0.jpg").write_text("not a picture")
    checkpoints = list(outcome.runs["checkpoint"])
    arguments = ["--data", str(unlabeled), "--out", str(tmp_path / "p.csv"), "--device", "cpu", "--jobs", "1"]
    assert cli.main(["predict", "--checkpoint", *checkpoints, *arguments]) == 0
    table = pd.read_csv(tmp_path / "p.csv", dtype={"prediction": "Int64"}).set_index("scan_id")
    assert len(table) == 9 and table["probability"].notna().sum() == 8
    bad = table.loc["scan_bad"]
    assert pd.isna(bad["prediction"]) and "undecodable" in bad["reason"]
    scored = table.drop("scan_bad")
    assert (scored["n_checkpoints"] == 2).all()
    assert (scored["prediction"] == (scored["probability"] >= 0.5)).all()
    assert (table["trained_on"] == "phantom").all()
    assert "trained on the phantom, computed images: these predictions mean nothing" in capsys.readouterr().out

    capsys.readouterr()
    assert cli.main(["predict", "--checkpoint", str(tmp_path / "none.safetensors"), *arguments]) == 2
    assert cli.main(["predict", "--checkpoint", checkpoints[0], "--data", str(tmp_path / "x"), *arguments[2:]]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_what_checkpoints_were_trained_on_is_told(tmp_path):
    paths = [tmp_path / name / "model.safetensors" for name in "abc"]
    for path, record in zip(paths, ({"data": "ricord"}, {"data": "phantom"}, None), strict=True):
        path.parent.mkdir()
        if record:
            io.write_json(path.parent / "trained_on.json", record)
    told = {n: prediction.trained_on(paths[:n]) for n in (1, 2, 3)}
    assert told == {1: "ricord", 2: "phantom, ricord", 3: "not recorded, phantom, ricord"}
    assert "mean nothing for patients" in prediction.caution(told[2]) and "not a" not in prediction.caution(told[2])
    assert "is not recorded" in prediction.caution(prediction.trained_on(paths[2:]))
    assert "no prediction here is a diagnosis" in prediction.caution(told[1])


def test_preprocess_command_names_an_unknown_parameter(data, tmp_path, capsys):
    assert cli.main(["preprocess", str(data), str(tmp_path), "-p", "sise=3"]) == 2
    assert "'sise'" in capsys.readouterr().err
    assert cli.main(["preprocess", str(data), str(tmp_path), "-p", "size=0"]) == 2
    assert cli.main(["preprocess", str(data), str(tmp_path), "-p", "size=16", "--jobs", "1"]) == 0
    assert "kept" in capsys.readouterr().out
