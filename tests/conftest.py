"""What tests share: a fresh generator, the real data beside the checkout, matplotlib without a screen."""

import os
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("E2D_PROGRESS", "off")

ROOT = Path(__file__).resolve().parents[1]


def stored_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook as git would store it: through the filter that ``make env`` sets up, where it did."""
    asked = subprocess.run(["git", "config", "filter.notebooks.clean"], cwd=ROOT, capture_output=True, text=True)
    command = asked.stdout.strip() or "cat"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, input=path.read_text(), capture_output=True, text=True, check=True
    )
    return nbformat.reads(done.stdout, as_version=4)


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
