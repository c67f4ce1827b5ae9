"""Manifests of public collections, from tiny made-up copies of their documented layouts."""

import pandas as pd
import pytest

from e2d_lib.scans import layouts
from e2d_lib.scans.cohort import read_cohort
from e2d_lib.scans.layouts import LayoutError
from e2d_lib.scans.readers import open_scan
from e2d_lib.study.cli import main
from tests.make_scans import write_images

COLUMNS = ["scan_id", "patient", "path", "label", "split", "source", "licence", "mask"]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def written(folder) -> pd.DataFrame:
    table = pd.read_csv(folder / "manifest.csv", keep_default_na=False, dtype={"scan_id": str, "patient": str})
    assert list(table.columns) == COLUMNS and (table["split"].isin(["train", "valid", "test"])).all()
    assert all((folder / path).exists() and not path.startswith(("/", "..")) for path in table["path"])
    assert table["licence"].ne("").all() and table["source"].ne("").all()
    return table.set_index("scan_id")


def test_stoic(tmp_path, capsys):
    touch(tmp_path, *(f"data/mha/{k}.mha" for k in (10, 9, 8, 7, 6)))
    (tmp_path / "metadata").mkdir()
    rows = "PatientID,probCOVID,probSevere\n9,1,1\n10,0.0,0\n8,1.0,0\n7,0,0\n../../evil,1,0\n5,1,0\n"
    (tmp_path / "metadata" / "reference.csv").write_text(rows)
    assert main(["manifest", "stoic", str(tmp_path)]) == 0
    table = written(tmp_path)
    assert table["label"].to_dict() == {"7": 0, "8": 1, "9": 1, "10": 0}
    assert table["path"]["9"] == "data/mha/9.mha" and list(table["patient"]) == ["7", "8", "9", "10"]
    assert table.groupby("label")["split"].apply(sorted).tolist() == [["train", "valid"]] * 2
    said = capsys.readouterr().out
    assert "1 of 5 scans left out: no label" in said and "4 scans, 2 with COVID-19, CC BY-NC 4.0" in said


@pytest.mark.parametrize("top", ["studies/", ""])
def test_mosmed(tmp_path, top):
    touch(tmp_path, f"{top}CT-0/study_0001.nii.gz", f"{top}CT-1/study_0255.nii", f"{top}CT-4/study_1109.nii.gz")
    touch(tmp_path, "masks/study_0255_mask.nii.gz", f"{top}CT-5/study_9.nii.gz")
    layouts.manifest("mosmed", tmp_path)
    assert written(tmp_path)["label"].to_dict() == {"study_0001": 0, "study_0255": 1, "study_1109": 1}


def test_covid_ct_md(tmp_path):
    touch(
        tmp_path, "COVID-19 Cases/P001/IM0001.dcm", "Cap Cases/cap001/IM0001.dcm", "Normal cases/normal001/IM0001.dcm"
    )
    touch(tmp_path, "Index.csv", "Other/P9/IM0001.dcm")
    layouts.manifest("covid-ct-md", tmp_path)
    table = written(tmp_path)
    assert table["label"].to_dict() == {"cap001": 0, "normal001": 0, "P001": 1}
    assert table["path"]["P001"] == "COVID-19 Cases/P001"


def test_luna16(tmp_path):
    touch(tmp_path, "subset0/1.3.6.1.mhd", "subset0/1.3.6.1.raw", "subset9/1.3.6.2.mhd", "seg-lungs-LUNA16/1.3.6.1.mhd")
    layouts.manifest("luna16", tmp_path)
    table = written(tmp_path)
    assert table["mask"].to_dict() == {"1.3.6.1": "seg-lungs-LUNA16/1.3.6.1.mhd", "1.3.6.2": ""}
    assert (table["label"] == 0).all() and table["path"]["1.3.6.2"] == "subset9/1.3.6.2.mhd"


def test_covidx_ct_links_the_slices_of_each_scan(tmp_path):
    scans = {
        "train": {"NCP_96_1328_00": (2, 3), "NCP_96_1329_00": (2, 2), "COVIDCTMD-P7-IM00": (2, 2)},
        "val": {"CP_5_3000_00": (1, 2), "Normal_12_20_00": (0, 2)},
        "test": {"STOIC-77-00": (2, 2), "LIDC-IDRI-0001-00": (0, 1)},
    }
    names = {part: [f"{n}{k:02}.png" for n, (_, m) in group.items() for k in range(m)] for part, group in scans.items()}
    write_images(tmp_path / "2A_images", [file for files in names.values() for file in files])
    kinds = {name: kind for group in scans.values() for name, (kind, _) in group.items()}
    for part, files in names.items():
        lines = [f"{file} {kinds[file[:-6]]} 0 0 8 8" for file in files]
        lines += ["../../evil_0001.png 2 0 0 8 8"] if part == "train" else []
        (tmp_path / f"{part}_COVIDx_CT-2A.txt").write_text("\n".join(lines) + "\n")
    people = "patient id,source\nNCP_96,CNCB\nSTOIC-77,STOIC\n"
    (tmp_path / "metadata.csv").write_text(people)
    said = []
    layouts.manifest("covidx-ct", tmp_path, say=said.append)
    layouts.manifest("covidx-ct", tmp_path, say=said.append)  # again, over the links that are there
    table = written(tmp_path)
    assert table["label"].to_dict() == {
        "COVIDCTMD-P7": 1, "CP_5_3000": 0, "LIDC-IDRI-0001": 0, "NCP_96_1328": 1, "NCP_96_1329": 1,
        "Normal_12_20": 0, "STOIC-77": 1,
    }  # fmt: skip
    assert table["split"].value_counts().to_dict() == {"train": 3, "valid": 2, "test": 2}
    assert table["patient"]["NCP_96_1328"] == table["patient"]["NCP_96_1329"] == "NCP_96"
    assert table["source"][["NCP_96_1328", "STOIC-77", "CP_5_3000"]].tolist() == ["CNCB", "STOIC", "covidx-ct"]
    assert "1 of 8 scans left out" in said[0] and not (tmp_path.parent / "evil_0001.png").exists()
    cohort = read_cohort(tmp_path / "manifest.csv").set_index("scan_id")
    assert open_scan(cohort.loc["NCP_96_1328"]).names == ("0.png", "1.png", "2.png")
    assert (tmp_path / "scans" / "NCP_96_1328" / "2.png").resolve().name == "NCP_96_1328_0002.png"


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_a_wrong_layout_is_one_line_on_what_was_expected(name, tmp_path, capsys):
    touch(tmp_path, "a/b.nii", "train_COVIDx_CT.txt", "reference.csv")
    for folder in (tmp_path, tmp_path / "nothing"):
        assert main(["manifest", name, str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"is no {name}" in error and layouts.LAYOUTS[name]["expected"] in error
    assert not (tmp_path / "manifest.csv").exists()


def test_an_image_without_a_number(tmp_path):
    (tmp_path / "val_COVIDx_CT-3A.txt").write_text("odd.png 2 0 0 8 8\n")
    with pytest.raises(LayoutError, match=r"no slice number in 'odd.png' of val_COVIDx_CT-3A.txt; expected train_"):
        layouts.manifest("covidx-ct", tmp_path)


def test_no_such_layout():
    with pytest.raises(LayoutError, match="no layout 'lidc'; there are stoic, mosmed"):
        layouts.manifest("lidc", ".")
