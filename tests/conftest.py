"""What tests share: a fresh generator, the real data beside the checkout, matplotlib without a screen."""

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("E2D_PROGRESS", "off")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the checkout: real CT slices and golden values, never part of the repository."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("../shared/data (real CT and golden values) is not beside this checkout")
    return path


@pytest.fixture
def processes_at_once(monkeypatch) -> None:
    """Small jobs go to processes too, as large ones do after a while."""
    monkeypatch.setattr("e2d_lib.parallel.ALONE", 0.0)
