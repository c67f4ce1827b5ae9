"""The run itself, end to end at ci size and on real CT; what each chapter found is in the chapter's own file."""

import nbformat
import numpy as np
import pandas as pd
import pytest

from e2d_lib import io
from e2d_lib.study import cli
from tests.conftest import ROOT
from tests.notebooks.conftest import Results

pytestmark = pytest.mark.notebook


def test_every_chapter_is_executed_and_leaves_its_record(ci_run, chapters):
    assert len(chapters) >= 5
    provenance = io.read_json(ci_run.dir / "provenance.json")
    for chapter in chapters:
        folder = ci_run.dir / chapter
        executed = nbformat.read(folder / "notebook.ipynb", as_version=4)
        code = [cell for cell in executed.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code), chapter
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
        assert provenance["chapters"][chapter]["status"] == "done"
        headline = io.read_json(folder / "headline.json")
        assert headline["data"] == "phantom" and headline["headline"]
        assert list((folder / "figures").glob("*.png")) and list((folder / "tables").glob("*.csv"))
    assert not list(ci_run.dir.rglob("*.tmp")) and not list(ci_run.dir.rglob("*.pkl"))


def test_the_tests_of_one_run_are_one_workers(ci_run, request):
    """Else each worker runs the study for itself."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@study")


def test_a_second_run_does_nothing(ci_run, chapters, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    ends = {"provenance.json", "report.html", "summary.json"}  # written at the end of every run
    before = {p: p.stat().st_mtime_ns for p in ci_run.dir.rglob("*") if p.is_file() and p.name not in ends}
    assert cli.main(["run", "--profile", "ci", "--out", str(ci_run.dir), "--quiet"]) == 0
    assert capsys.readouterr().out.count("up to date") == len(chapters)
    after = {p: p.stat().st_mtime_ns for p in ci_run.dir.rglob("*") if p.is_file() and p.name not in ends}
    assert before == after


@pytest.mark.shared
def test_real_ct_goes_through_exploration_preprocessing_and_reduction(shared, tmp_path, monkeypatch, capsys):
    """DICOM slices and a NIfTI volume from a manifest; the crops must average to what the golden values say."""
    data = shared / "data"
    dicom = pd.read_csv(data / "golden_slices_dicom.csv")
    nifti = pd.read_csv(data / "golden_slices_nifti_radiological.csv")
    rows = [{"scan_id": name, "path": data / "tcia-covid-19-ny-sbu" / name} for name in dicom["slice"]]
    rows.append({"scan_id": "volume", "path": data / "totalsegmentator-example" / "example_ct.nii.gz"})
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    monkeypatch.chdir(ROOT)
    out = tmp_path / "real"
    arguments = ["run", "--profile", "ci", "--data-root", str(tmp_path / "manifest.csv"), "--out", str(out), "--quiet"]
    assert cli.main([*arguments, "-p", "min_slices=1", "--only", "01,02,03,04,08"]) == 0
    assert capsys.readouterr().out.count("not applicable") == 2  # training, sources: no labels
    golden = pd.concat([dicom, nifti])
    delta = 1 - (golden["row1"] - golden["row0"]) * (golden["col1"] - golden["col0"]) / (
        golden["height"] * golden["width"]
    )
    headline = Results(out).headline("03_reduction_statistics")
    assert headline["area_delta"]["value"] == pytest.approx(delta.mean(), abs=1e-12)
    slices = Results(out).cached("slices")
    columns = ["row0", "row1", "col0", "col1"]
    np.testing.assert_array_equal(slices[columns], golden[columns])
    np.testing.assert_array_equal(slices["area"], golden["lung_area_full"])
