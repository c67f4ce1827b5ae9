"""Six labelled scans are too few for folds: what can be seen of them is, and chapter 4 says what it lacks."""

import cv2
import numpy as np
import pytest

from e2d_lib import io
from tests.conftest import ROOT
from tests.notebooks.conftest import Results, main

pytestmark = pytest.mark.notebook
FEW = "4 stratified folds need 4 train scans of each class, got 3 positive, 3 negative"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Results:
    folder, rng = tmp_path_factory.mktemp("six"), np.random.default_rng(0)
    for number in range(6):
        scan = folder / "data" / "train" / ("CAP", "COVID-19")[number % 2] / f"ct_{number}"
        scan.mkdir(parents=True)
        for k in range(8):
            image = rng.integers(20, size=(64, 64), dtype=np.uint8)
            image[8:56, 6:58] += 200
            image[20:44, 14 : 26 + k] = 20 + number
            cv2.imwrite(str(scan / f"{k}.png"), image)
    options = ["-p", "labels=CAP:0", "-p", "02.size=32", "-p", "03.n_boot=50", "-p", "n_jobs=1", "--quiet"]
    options += ["--only", "01,02,03,04", "--notebooks", str(ROOT / "notebooks")]
    assert main(["run", "--data-root", str(folder / "data"), "--out", str(folder / "run"), *options]) == 0
    return Results(folder / "run")


def test_chapters_1_to_3_run(run):
    assert run.cohort()["label"].tolist() == [0, 0, 0, 1, 1, 1] and run.cohort()["fold"].isna().all()
    assert run.values("01_data_exploration")["slices"] == 48
    assert f"- no folds: {FEW}" in run.said("01_data_exploration")[-1]
    assert set(run.scans()["status"]) == {"kept"}
    # a window keeps half of the slices
    assert run.values("03_reduction_statistics")["length_delta"] == pytest.approx(0.5)


def test_chapter_4_says_what_it_lacks(run):
    done = io.read_json(run.dir / "04_training" / "done.json")
    assert (done["status"], done["reason"]) == ("not applicable", f"no folds: {FEW}")
