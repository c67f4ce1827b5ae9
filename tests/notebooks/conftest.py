"""The study run once a session at ci size, through the runner; the tests read what it recorded.

The library is imported here alone: a chapter's tests recompute with pandas, numpy and scikit-learn. To develop them on
a finished run, name its folder in the environment variable E2D_TEST_RUN: it is then read as it is.
"""

import os
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn import metrics as sk

from e2d_lib import io
from e2d_lib.elsewhere import spoil
from e2d_lib.study import cli, runner
from e2d_lib.study.chapter import Chapter, RunFolder
from tests.conftest import ROOT

PUBLISHED = ROOT / "results" / "published"
phantom_volume = spoil.phantom_volume
read_json = io.read_json
main = cli.main


class Results:
    """Reads the artefacts of a run."""

    def __init__(self, folder):
        self.dir = folder
        self.drawn = {}

    def headline(self, chapter: str) -> dict:
        return read_json(self.dir / chapter / "headline.json")["headline"]

    def values(self, chapter: str) -> dict:
        """The headline's bare values by name."""
        return {name: entry["value"] for name, entry in self.headline(chapter).items()}

    def parameters(self, chapter: str) -> dict:
        return read_json(self.dir / chapter / "provenance.json")["parameters"]

    def table(self, chapter: str, name: str) -> pd.DataFrame:
        """A saved table; empty cells stay empty text."""
        return pd.read_csv(self.dir / chapter / "tables" / f"{name}.csv", keep_default_na=False, na_values=["nan"])

    def numbers(self, chapter: str, name: str) -> pd.DataFrame:
        """A saved table; empty cells are NaN."""
        return pd.read_csv(self.dir / chapter / "tables" / f"{name}.csv")

    def parquet(self, chapter: str, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.dir / chapter / f"{name}.parquet")

    def cohort(self) -> pd.DataFrame:
        return self.parquet("01_data_exploration", "cohort")

    def cached(self, name: str) -> pd.DataFrame:
        """``scans``, ``slices`` or ``findings`` of the cache that chapter 2 made."""
        return pd.read_parquet(RunFolder(self.dir).preprocessed().folder / f"{name}.parquet")

    def scans(self) -> pd.DataFrame:
        return self.cached("scans")

    def said(self, chapter: str) -> list[str]:
        """The prose that the chapter computed, in order: the Markdown that its cells put out."""
        cells = nbformat.read(self.dir / chapter / "notebook.ipynb", as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        return [o["data"]["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]

    def figures(self, chapter: str, scratch: Path) -> dict:
        """The chapter's cells run again here, on a copy of the run: its figures by name, before they are pictures."""
        if chapter not in self.drawn:
            copy = scratch / chapter / "run"
            shutil.copytree(self.dir, copy)
            parameters = self.parameters(chapter) | {"run_dir": str(copy)}
            kept, save = {}, Chapter.save_figure
            cells = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4).cells
            code = [cell.source for cell in cells if cell.cell_type == "code"]
            space = {"display": lambda *shown: None}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    Chapter,
                    "save_figure",
                    lambda own, name, figure, **o: kept.update({name: figure}) or save(own, name, figure, **o),
                )
                patch.setenv("E2D_PROGRESS", "off")
                patch.chdir(ROOT)
                for number, source in enumerate(code):
                    exec(compile(source, f"{chapter}, cell {number}", "exec"), space)
                    if number == 0:
                        space |= {k: v for k, v in parameters.items() if k in space}
            self.drawn[chapter] = kept
        return self.drawn[chapter]


@pytest.fixture(scope="session")
def ci_run(tmp_path_factory) -> Results:
    if "E2D_TEST_RUN" in os.environ:
        return Results(Path(os.environ["E2D_TEST_RUN"]))
    folder = tmp_path_factory.mktemp("study") / "ci"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["run", "--profile", "ci", "--out", str(folder), "--quiet"]) == 0
    return Results(folder)


@pytest.fixture(scope="session")
def chapters() -> list[str]:
    return [notebook.name for notebook in runner.notebooks(ROOT / "notebooks")]


def asked(chapter: str) -> dict:
    """The chapter's parameters as notebook and profile state them, read here without the library."""
    cells = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4).cells
    space: dict = {}
    exec(next(c.source for c in cells if c.cell_type == "code"), space)
    profile = yaml.safe_load((ROOT / "notebooks" / "profiles" / "ci.yaml").read_text())
    return {k: v for k, v in space.items() if not k.startswith("__")} | profile.get(chapter, {})


def tokens(text: str) -> list[str]:
    """The numbers in prose, as they are printed: with sign, thousands' commas, per cent."""
    return re.findall(r"(?<![\w.])[+-]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:e[+-]?\d+)?%?", text)


def in_order(text: str, *expected) -> bool:
    """Whether the text prints these numbers in this order; there may be others between them."""
    found = iter(tokens(text))
    return all(str(number) in found for number in expected)


def points(labels, probabilities, cut=0.5, weights=None) -> dict[str, float]:
    """All point metrics by scikit-learn and numpy; ECE over ten bins of equal width. ``cut``: one, or one a scan."""
    y, p = np.asarray(labels, int), np.asarray(probabilities, float)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, float)
    called = (p >= np.asarray(cut, float)).astype(int)
    bins = np.minimum((p * 10).astype(int), 9)
    both = len(set(y)) == 2
    off = [abs((w * (p - y))[bins == k].sum()) for k in range(10)]
    return {
        "macro_f1": sk.f1_score(y, called, average="macro", labels=[0, 1], sample_weight=w, zero_division=0),
        "roc_auc": sk.roc_auc_score(y, p, sample_weight=w) if both else np.nan,
        "pr_auc": sk.average_precision_score(y, p, sample_weight=w) if y.any() else np.nan,
        "sensitivity": (w * called)[y == 1].sum() / w[y == 1].sum() if y.any() else np.nan,
        "specificity": (w * (1 - called))[y == 0].sum() / w[y == 0].sum() if not y.all() else np.nan,
        "accuracy": (w * (called == y)).sum() / w.sum(),
        "brier": (w * (p - y) ** 2).sum() / w.sum(),
        "ece": sum(off) / w.sum(),
    }


def holm(p_values) -> np.ndarray:
    """Holm's step-down correction, as its definition has it; NaN is no test."""
    p = np.asarray(p_values, float)
    order = np.argsort(np.where(np.isnan(p), np.inf, p), kind="stable")[: int((~np.isnan(p)).sum())]
    result = np.full(len(p), np.nan)
    result[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return result
