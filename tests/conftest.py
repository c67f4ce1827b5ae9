"""What tests share: a fresh generator, the real data beside the checkout, matplotlib without a screen."""

import os
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("E2D_PROGRESS", "off")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core a worker: threads that wait for a core take many times as long
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def stored_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook as git would store it: through the filter that ``make env`` sets up, where it did."""
    asked = subprocess.run(["git", "config", "filter.notebooks.clean"], cwd=ROOT, capture_output=True, text=True)
    command = asked.stdout.strip() or "cat"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, input=path.read_text(), capture_output=True, text=True, check=True
    )
    return nbformat.reads(done.stdout, as_version=4)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What reads the one run of the study goes to one worker, and first, with all that takes long."""
    for item in items:
        if "ci_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("study"))
    items.sort(key=lambda item: "notebooks" not in item.path.parts and not item.get_closest_marker("slow"))


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
