"""A small cohort on disk, preprocessed."""

import cv2
import numpy as np
import pytest

from e2d_lib.method import preprocess
from e2d_lib.network.slices import ScanSlices
from e2d_lib.scans.cohort import assign_folds, read_cohort

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
