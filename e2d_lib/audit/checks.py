"""What every check of the audit takes and gives; the checks are in `table`, `slices`, `scores` and `follow_up`.

A check takes `Inputs` and gives whether the register's statement holds (None where it cannot be decided), what was
found in words (the sentences are ``found.yaml``), and its effects on the cohort, if there is one. The published tables
are data; nothing is read from the released code.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from e2d_lib import bootstrap, io
from e2d_lib.audit.fits import score_fits
from e2d_lib.method import curves, kds, reduction, ssfl
from e2d_lib.method.preprocess import Preprocessed

N_SAMPLES = 8
DRAWS, DRAWN_SCANS = 20, 200
"""Monte Carlo: draws from each window, and windows drawn from (a random choice where there are more)."""
EPOCHS = 24
SPLITS = {"train": "training", "valid": "validation"}
FOUND: dict[str, str] = io.shipped("e2d_lib.audit", "found.yaml")


class Effect(NamedTuple):
    """Size of a discrepancy on the cohort at hand, with a 95 % interval where there is one."""

    metric: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """what the value speaks of: scans, unless the metric says otherwise"""
    unit: str = ""
    """"share" is shown in per cent"""


@dataclass(frozen=True)
class Inputs:
    """What checks may use; tables are read, windows chosen and slices drawn when first asked for.

    published: the folder of published tables. cohort: preprocessed scans, or None. rng: for Monte Carlo and resampling.
    """

    published: Path
    cohort: Preprocessed | None
    rng: np.random.Generator

    @cached_property
    def table(self) -> pd.DataFrame:
        return reduction.published(self.published / "reduction_table.csv").set_index("row")

    @cached_property
    def outputs(self) -> pd.DataFrame:
        return reduction.released_outputs(self.published / "released_outputs.csv").set_index("group")

    @cached_property
    def windows(self) -> pd.DataFrame:
        """Saved windows of each split, label and width: scans, those left of them that are not dropped, and draws."""
        return pd.read_csv(self.published / "saved_windows.csv").eval("left = scans - dropped")

    def saved(self, where: str = "width >= 0", column: str = "scans") -> dict[str, int]:
        """How many ``column`` counts in each split, over the saved windows for which ``where`` holds."""
        table = self.windows.query(where)
        return {split: int(table.loc[table["split"] == split, column].sum()) for split in SPLITS}

    @cached_property
    def fits(self) -> pd.DataFrame:
        return score_fits(self.published)

    @cached_property
    def real(self) -> curves.RealScans:
        return curves.real(self.published / "real_areas")

    @cached_property
    def scans(self) -> pd.DataFrame:
        """The cohort's scans that are not excluded, by scan_id.

        label; areas of all its slices; n; the windows of the whole curve (uncut) and of the cut one; the areas inside
        the former (kept); the latter's width (cut_width).
        """
        table = self.cohort.scans.set_index("scan_id")[["label"]].join(areas_of(self.cohort), how="right")
        table["n"] = table["areas"].map(len)
        table["uncut"], table["cut"] = (
            [ssfl.slice_window(areas, 0.5, trim) for areas in table["areas"]] for trim in (False, True)
        )
        table["kept"] = [areas[slice(*window)] for areas, window in zip(table["areas"], table["uncut"], strict=True)]
        return table.assign(cut_width=[stop - start for start, stop in table["cut"]])

    @cached_property
    def drawn(self) -> list[tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]]:
        """Areas, released draws and corrected draws of windows of 8 and more: the cohort's, or random ones."""
        if self.cohort is None:
            windows = [self.rng.integers(0, 30_000, self.rng.integers(N_SAMPLES, 200)) for _ in range(20)]
        else:
            windows = [areas for areas in self.scans["kept"] if len(areas) >= N_SAMPLES and np.ptp(areas) > 0]
        if len(windows) > DRAWN_SCANS:
            windows = [windows[k] for k in np.sort(self.rng.choice(len(windows), DRAWN_SCANS, replace=False))]

        def draws(areas: np.ndarray, variant: str, times: int) -> list[np.ndarray]:
            return [kds.sample(areas, N_SAMPLES, variant=variant, rng=self.rng) for _ in range(times)]

        return [(areas, draws(areas, "released", DRAWS), draws(areas, "corrected", EPOCHS)) for areas in windows]


CHECKS: dict[str, Callable[[Inputs], Iterator]] = {}


def check(id: str) -> Callable[[Callable[[Inputs], Iterator]], Callable]:
    """Enter a generator as the check of an entry: first it gives the verdict and what was found, then its effects.

    What was found is text, or the facts that ``found.yaml`` puts into words: a mapping, or several, joined.
    """
    return functools.partial(CHECKS.setdefault, id)


def done(id: str, given: Inputs) -> tuple[bool | None, str, list[Effect]]:
    """The check of an entry done: its verdict, what was found in words, and its effects where there is a cohort."""
    steps = CHECKS[id](given)
    holds, facts = next(steps)
    several = [facts] if isinstance(facts, Mapping) else facts
    found = facts if isinstance(facts, str) else "; ".join(FOUND[id].format(**one) for one in several)
    return holds, found, list(steps) if given.cohort is not None else []


def areas_of(cohort: Preprocessed, column: str = "area") -> pd.Series:
    """scan_id -> lung areas of all its slices, of the scans that preprocessing did not exclude."""
    kept = cohort.scans.loc[cohort.scans["status"] != "excluded", "scan_id"]
    by_scan = cohort.slices.sort_values(["scan_id", "index"], kind="stable").groupby("scan_id")[column]
    return pd.Series({scan: by_scan.get_group(scan).to_numpy() for scan in kept}, name="areas")


def share_of(metric: str, flags: ArrayLike) -> Effect:
    """A share of the flags that are set, with Clopper-Pearson's 95 % interval."""
    flags = np.asarray(flags, dtype=bool)
    low, high = bootstrap.clopper_pearson(int(flags.sum()), flags.size)
    return Effect(metric, float(flags.mean()), low, high, flags.size, "share")


def mean_of(metric: str, values: Sequence[float], rng: np.random.Generator, unit: str = "") -> Effect:
    """A mean over scans, with the 95 % percentile interval of 2,000 resamples of scans."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean()) if values.size else math.nan
    return Effect(metric, mean, *bootstrap.mean_interval(values, rng), values.size, unit)
