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

from e2d_lib import bootstrap, io
from e2d_lib.audit.fits import score_fits
from e2d_lib.method import curves, kds, reduction, ssfl
from e2d_lib.method.preprocess import Preprocessed

N_SAMPLES = 8
DRAWS, DRAWN_SCANS = 20, 200
"""Monte Carlo: draws from each window, and windows drawn from (a random choice where there are more)."""
EPOCHS = 24


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

    published: the folder of published tables. cohort: preprocessed scans, or None. cropped: the same scans with lung
    areas on the crop (B3), or None. rng: for Monte Carlo and resampling.
    """

    published: Path
    cohort: Preprocessed | None
    cropped: Preprocessed | None
    rng: np.random.Generator

    @cached_property
    def table(self) -> pd.DataFrame:
        return reduction.published(self.published / "reduction_table.csv").set_index("row")

    @cached_property
    def outputs(self) -> pd.DataFrame:
        return reduction.released_outputs(self.published / "released_outputs.csv").set_index("group")

    @cached_property
    def windows(self) -> pd.DataFrame:
        return pd.read_csv(self.published / "saved_windows.csv")

    @cached_property
    def fits(self) -> pd.DataFrame:
        return score_fits(self.published)

    @cached_property
    def real(self) -> curves.RealScans:
        return curves.real(self.published / "real_areas")

    @cached_property
    def curves(self) -> dict[str, np.ndarray]:
        """scan_id -> lung areas of all its slices, of the scans that preprocessing did not exclude."""
        return curves_of(self.cohort)

    @cached_property
    def positive(self) -> dict[str, bool]:
        """scan_id -> class, of the labelled scans among `curves`."""
        scans = self.cohort.scans
        labels = scans["label"] if "label" in scans else pd.Series(pd.NA, index=scans.index)
        known = dict(zip(scans["scan_id"], labels, strict=True))
        return {scan: bool(known[scan] == 1) for scan in self.curves if not pd.isna(known[scan])}

    @cached_property
    def uncut(self) -> dict[str, tuple[int, int]]:
        return {scan: ssfl.slice_window(areas, 0.5, False) for scan, areas in self.curves.items()}

    @cached_property
    def cut(self) -> dict[str, tuple[int, int]]:
        return {scan: ssfl.slice_window(areas, 0.5, True) for scan, areas in self.curves.items()}

    @cached_property
    def cut_widths(self) -> np.ndarray:
        return np.array([stop - start for start, stop in self.cut.values()], dtype=np.int64)

    @cached_property
    def drawn(self) -> list[tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]]:
        """Areas, released draws and corrected draws of windows of 8 and more: the cohort's, or random ones."""
        if self.cohort is None:
            windows = [self.rng.integers(0, 30_000, self.rng.integers(N_SAMPLES, 200)) for _ in range(20)]
        else:
            windows = [areas[slice(*self.uncut[scan])] for scan, areas in self.curves.items()]
            windows = [areas for areas in windows if len(areas) >= N_SAMPLES and np.ptp(areas) > 0]
        if len(windows) > DRAWN_SCANS:
            windows = [windows[k] for k in np.sort(self.rng.choice(len(windows), DRAWN_SCANS, replace=False))]

        def draws(areas: np.ndarray, variant: str, times: int) -> list[np.ndarray]:
            return [kds.sample(areas, N_SAMPLES, variant=variant, rng=self.rng) for _ in range(times)]

        return [(areas, draws(areas, "released", DRAWS), draws(areas, "corrected", EPOCHS)) for areas in windows]

    def saved(self, split: str, label: int | None = None) -> pd.DataFrame:
        """Saved windows of a split (and class): width, scans, and those of them that are not dropped."""
        table = self.windows[self.windows["split"] == split]
        table = table if label is None else table[table["label"] == label]
        return table.assign(left=table["scans"] - table["dropped"])


CheckFunction = Callable[[Inputs], tuple[bool | None, str, list[Effect]]]
CHECKS: dict[str, CheckFunction] = {}


def check(id: str) -> Callable[[Callable[[Inputs], Iterator]], Callable]:
    """Enter a generator as the check of an entry: first it gives the verdict and what was found, then its effects.

    What was found is text, or the facts that ``found.yaml`` puts into words: a mapping, or several, joined. Effects
    are asked for only where there is a cohort.
    """

    def keep(function: Callable[[Inputs], Iterator]) -> Callable:
        def run(given: Inputs) -> tuple[bool | None, str, list[Effect]]:
            steps = function(given)
            holds, facts = next(steps)
            several = [facts] if isinstance(facts, Mapping) else facts
            found = facts if isinstance(facts, str) else "; ".join(_texts()[id].format(**one) for one in several)
            return holds, found, list(steps) if given.cohort is not None else []

        CHECKS[id] = run
        return function

    return keep


@functools.cache
def _texts() -> dict[str, str]:
    return io.shipped("e2d_lib.audit", "found.yaml")


def curves_of(cohort: Preprocessed) -> dict[str, np.ndarray]:
    kept = cohort.scans.loc[cohort.scans["status"] != "excluded", "scan_id"]
    areas = cohort.slices.sort_values(["scan_id", "index"], kind="stable").groupby("scan_id")["area"]
    by_scan = {scan: values.to_numpy() for scan, values in areas}
    return {scan: by_scan[scan] for scan in kept}


def half_of(n: int) -> int:
    return -(-n // 2)


def share_of(metric: str, successes: int, n: int) -> Effect:
    """A share of n, with Clopper-Pearson's 95 % interval."""
    if n == 0:
        return Effect(metric, math.nan, unit="share")
    low, high = bootstrap.clopper_pearson(int(successes), int(n))
    return Effect(metric, successes / n, low, high, int(n), "share")


def mean_of(metric: str, values: Sequence[float], rng: np.random.Generator, unit: str = "") -> Effect:
    """A mean over scans, with the 95 % percentile interval of 2,000 resamples of scans."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean()) if values.size else math.nan
    return Effect(metric, mean, *bootstrap.mean_interval(values, rng), values.size, unit)
