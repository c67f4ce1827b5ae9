"""A run goes on from whatever folder its notebooks are opened in, and a copy of it stands on its own."""

import shutil

import papermill
import pytest

from e2d_lib import io
from e2d_lib.study.chapter import RunFolder
from tests.conftest import ROOT
from tests.notebooks.conftest import Results

pytestmark = pytest.mark.notebook
CHAPTERS = ("02_ssflpp_preprocessing", "03_reduction_statistics")


def run(chapter: str, cwd, run_dir) -> None:
    parameters = {"run_dir": str(run_dir), **io.read_json(run_dir / chapter / "done.json")["parameters"]}
    parameters["run_dir"] = str(run_dir)
    path = ROOT / "notebooks" / f"{chapter}.ipynb"
    papermill.execute_notebook(str(path), None, parameters=parameters, cwd=str(cwd), progress_bar=False)


@pytest.mark.parametrize("folder", ["notebooks", "elsewhere"])
def test_notebooks_run_by_hand_give_the_same_numbers_on_a_copy_of_their_own(ci_run, tmp_path, folder):
    copy = tmp_path / "copy"
    shutil.copytree(ci_run.dir, copy)  # times of change are kept
    before = {p: p.stat().st_mtime_ns for p in ci_run.dir.rglob("*")}
    cwd = ROOT / "notebooks" if folder == "notebooks" else tmp_path
    for chapter in CHAPTERS:
        run(chapter, cwd, copy)
        assert Results(copy).headline(chapter) == ci_run.headline(chapter)
        done, theirs = (io.read_json(d / chapter / "done.json") for d in (copy, ci_run.dir))
        assert done["result"] == theirs["result"] and done["by_hand"] and not theirs["by_hand"]
    assert RunFolder(copy).preprocessed().folder.is_relative_to(copy)
    assert {p: p.stat().st_mtime_ns for p in ci_run.dir.rglob("*")} == before
    assert not (ROOT / "notebooks" / "results").exists() and not (tmp_path / "results").exists()
