"""How well drawn slices stand for their window, measured without training.

KDS promises that a few slices, drawn by the density of the lung areas, speak for the whole scan, and do so in every
draw (method/README.md §4; arXiv:2404.01643, section on KDS). Here each sampler is asked, scan by scan: how closely do
the areas of its slices follow the window's (`quality`: ks, wasserstein), how much of the window do they cover
(coverage, fill), do they meet the lesions and the largest area (lesion, largest_area, expected_lesion_slices), and how
much does one draw differ from the next (mean_area_sd, position_sd, lesion_share_sd). `summary` gives means over scans
with intervals, `paired` the samplers' differences on the same scans. Both go by patient where `quality`'s table has
been given a column ``patient``.

Every sampler draws independent simple random samples without replacement, one from each group of slices (`design`).
From this the measures in `EXACT` follow in closed form; those in `ESTIMATED` are means over redraws (`draws`).
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from e2d_lib import bootstrap, io
from e2d_lib.evaluation import metrics
from e2d_lib.method import kds
from e2d_lib.method.ssfl import checked_areas
from e2d_lib.scans.patients import patient_of

if TYPE_CHECKING:
    from e2d_lib.method.preprocess import Preprocessed

MEASURES: dict[str, str] = io.shipped("e2d_lib.evaluation", "measures.yaml")
"""What `quality` measures, and the names in figures."""

ESTIMATED = ("ks", "wasserstein", "coverage", "fill")
"""The measures that are means over redraws."""

EXACT = tuple(name for name in MEASURES if name not in ESTIMATED)
"""The measures in closed form: they do not depend on the number of redraws, nor on its generator."""

WITHOUT_INTERVALS = ("random", "spaced")
SETTING = ["method", "n_samples", "n_intervals"]


class SamplingError(ValueError):
    """Samplers that cannot be measured or compared as asked."""


# Settings ----------------------------------------------------------------------------------------------------------


def settings(
    methods: Sequence[str] = ("random", "systematic", "kds"),
    n_samples: Sequence[int] = (4, 8, 16),
    n_intervals: Sequence[int] = (4, 8),
) -> list[dict[str, Any]]:
    """All samplers to compare: dicts of method, n_samples, n_intervals (None for a method without intervals).

    methods: of `design`. Combinations of more intervals than samples are left out.

    >>> settings(("random", "kds"), n_samples=(4,), n_intervals=(4, 8))  # doctest: +NORMALIZE_WHITESPACE
    [{'method': 'random', 'n_samples': 4, 'n_intervals': None},
     {'method': 'kds', 'n_samples': 4, 'n_intervals': 4}]
    """
    return [
        {"method": method, "n_samples": samples, "n_intervals": intervals}
        for samples in n_samples
        for method in methods
        for intervals in ((None,) if method in WITHOUT_INTERVALS else n_intervals)
        if intervals is None or intervals <= samples
    ]


# Drawing -----------------------------------------------------------------------------------------------------------


def design(
    areas: ArrayLike,
    n_samples: int = 8,
    n_intervals: int | None = 4,
    method: str = "kds",
) -> list[tuple[NDArray[np.int64], int]]:
    """What one draw consists of: groups (slices, quota), of each quota slices at random, without replacement.

    areas: (n,) lung areas of a window, pixels. n_samples, method: of `kds.sample`, which draws just so ("corrected");
    also the method "spaced", n_samples runs of neighbouring slices, as equally long as can be, and one slice of each.
    n_intervals: None for methods without intervals.

    Gives (m,) int64 indices into ``areas`` and 1 <= quota <= m of each group. Groups are drawn independently. An index
    is in several where a window is shorter than n_samples.

    Raises ValueError as `kds.sample` does.
    """
    areas = checked_areas(areas)
    if len(areas) < n_samples:  # all of them, without chance
        drawn = kds.sample(areas, n_samples, method="random" if method == "spaced" else method)
        return [(entry, 1) for entry in drawn.reshape(-1, 1)]
    if method == "spaced":
        return [(part, 1) for part in np.array_split(np.arange(len(areas)), n_samples)]
    groups = kds.strata(areas, n_samples, 1 if n_intervals is None else n_intervals, method)
    return [(slices, min(quota, len(slices))) for slices, quota in groups if quota and len(slices)]


def draws(
    groups: list[tuple[NDArray[np.int64], int]], *, redraws: int = 50, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Many draws from one window at once: (redraws, n_samples) sorted indices into its areas, each as `kds.sample`'s.

    groups: of `design`. The rows' distribution is that of `kds.sample`; the random numbers are not.
    """
    parts = []
    for slices, quota in groups:
        if quota == 1:
            parts.append(slices[rng.integers(len(slices), size=(redraws, 1))])
        else:
            every = np.broadcast_to(slices, (redraws, len(slices)))
            parts.append(every if quota == len(slices) else rng.permuted(every, axis=1)[:, :quota])
    return np.sort(np.concatenate(parts, axis=1), axis=1)


# Measures of one window --------------------------------------------------------------------------------------------


def distances(areas: ArrayLike, drawn: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kolmogorov and 1-Wasserstein distance between the drawn slices' areas and the window's, for each draw.

    areas: (n,) lung areas of a window, pixels. drawn: (redraws, s) indices into them, repeats counting as often as they
    come. Gives (redraws,) the largest difference of the two empirical distribution functions, in [0, 1], and
    (redraws,) the area between them, pixels.

    >>> ks, wasserstein = distances([0, 10, 20, 30], [[0, 3], [0, 0]])
    >>> ks.tolist(), wasserstein.tolist()
    ([0.25, 0.75], [5.0, 15.0])
    """
    values, place = np.unique(checked_areas(areas), return_inverse=True)
    redraws, count = np.shape(drawn)
    cells = place[np.asarray(drawn)] + len(values) * np.arange(redraws)[:, None]
    drawn_up_to = np.bincount(cells.ravel(), minlength=redraws * len(values)).reshape(redraws, -1).cumsum(axis=1)
    gap = np.abs(drawn_up_to / count - np.bincount(place).cumsum() / len(place))
    return gap.max(axis=1), gap[:, :-1] @ np.diff(values)


def cover(n: int, drawn: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and largest distance, in slices, from the n slices of a window to the nearest drawn one, for each draw.

    drawn: (redraws, s) ascending indices in [0, n). The largest distance is the fill distance (covering radius), the
    mean one the quantisation error of order 1. Gives two arrays (redraws,).

    >>> [distance.tolist() for distance in cover(5, [[0, 4], [2, 2]])]
    [[0.8, 1.2], [2.0, 2.0]]
    """
    drawn = np.asarray(drawn)
    first, last = drawn[:, 0], n - 1 - drawn[:, -1]
    step = np.diff(drawn, axis=1)
    total = first * (first + 1) // 2 + last * (last + 1) // 2 + (step * step // 4).sum(axis=1)
    largest = np.maximum(np.maximum(first, last), (step // 2).max(axis=1, initial=0))
    return total / n, largest.astype(np.float64)


def _moments(
    groups: list[tuple[NDArray[np.int64], int]], values: NDArray[np.float64]
) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """How many slices a draw gives, and expectation and SD over redraws of their mean of each column of values (n, c).

    Stratified sampling without replacement: Cochran, Sampling Techniques (1977), theorems 5.1 and 5.3.
    """
    size = np.array([len(slices) for slices, _ in groups])
    quota = np.array([quota for _, quota in groups])
    entries = values[np.concatenate([slices for slices, _ in groups])]
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    mean = np.add.reduceat(entries, starts, axis=0) / size[:, None]
    squares = np.add.reduceat((entries - np.repeat(mean, size, axis=0)) ** 2, starts, axis=0)
    drawn = int(quota.sum())
    # A group of one slice, or one that is drawn whole, varies by nothing: its finite population correction is 0.
    weight = quota * (1 - quota / size) / np.maximum(size - 1, 1)
    return drawn, quota @ mean / drawn, np.sqrt(weight @ squares) / drawn


def _hit(groups: list[tuple[NDArray[np.int64], int]], wanted: NDArray[np.bool_]) -> float:
    """Probability that at least one of the wanted slices, (n,) bool, is drawn: of each group hypergeometric."""
    missed = 1.0
    for slices, quota in groups:
        count = int(np.count_nonzero(wanted[slices]))
        if count:
            missed *= math.comb(len(slices) - count, quota) / math.comb(len(slices), quota)
    return 1.0 - missed


# Many windows ------------------------------------------------------------------------------------------------------


@threadpool_limits.wrap(limits=1, user_api="blas")  # densities of some hundred points: threads only cost time
def quality(
    windows: Mapping[str, ArrayLike],
    settings: Iterable[Mapping[str, Any]],
    *,
    lesions: Mapping[str, ArrayLike] | None = None,
    redraws: int = 50,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """How well each sampler's draws stand for each window: one row a scan and setting, scan by scan.

    windows: scan_id -> (n,) lung areas inside the window, pixels, n >= 1 (`windows`). settings: as of `settings`.
    lesions: scan_id -> (n,) bool, whether a slice of the window bears a lesion (`lesions.of_windows`); scans that are
    missing are unknown. redraws: draws that the measures in `ESTIMATED` are the mean of.

    Columns scan_id, method, n_samples, n_intervals (<NA> for methods without), window (n), and:

    ks, wasserstein
        Mean Kolmogorov and 1-Wasserstein distance between the areas drawn and the window's; the latter in SDs of the
        window's areas.
    coverage, fill
        Mean over redraws of the mean and the largest distance (fill distance) from a slice of the window to the nearest
        drawn one, as shares of the window's n slices.
    largest_area, lesion
        Probability that a slice of the largest area, and one that bears a lesion, is drawn. Exact. lesion and the next
        two are NaN where lesions are unknown, or the window has none.
    expected_lesion_slices, lesion_share_sd
        Expected number of lesion-bearing slices among those drawn (counted as often as they come), and SD over redraws
        of their share. Exact.
    mean_area_bias, mean_area_sd, mean_area_error
        Expectation of the drawn slices' mean area less the window's mean, its SD over redraws, and the root of the sum
        of their squares; in SDs of the window's areas. Exact.
    position_sd
        SD over redraws of the drawn slices' mean position, as a share of n. Exact.

    Where all areas are equal, what is measured in their SDs is 0. Raises SamplingError for an empty window, lesions of
    another length than the window, and redraws below 1; what `design` raises otherwise.
    """
    redraws = operator.index(redraws)
    if redraws < 1:
        raise SamplingError(f"redraws is {redraws}; expected at least 1")
    settings, lesions = list(settings), lesions or {}
    rows = []
    for scan_id, areas in windows.items():
        areas = checked_areas(areas)
        n = len(areas)
        if n == 0:
            raise SamplingError(f"the window of scan {scan_id!r} is empty; leave such scans out")
        bearing = np.asarray(lesions.get(scan_id, np.zeros(n, bool)), dtype=bool)
        if bearing.shape != (n,):
            raise SamplingError(
                f"lesions of scan {scan_id!r} have shape {bearing.shape}, its window {n} slices; "
                "cut them with phantom.lesions.of_windows"
            )
        sd = float(areas.std()) or 1.0
        largest, known = areas == areas.max(), bool(bearing.any())
        marked = bearing if known else np.full(n, np.nan)
        # The mean is taken off before squares are summed: areas are large beside their differences.
        values = np.column_stack([(areas - areas.mean()) / sd, np.arange(n) / n, marked])
        for setting in settings:
            key = {name: setting[name] for name in SETTING}
            groups = design(areas, **key)
            drawn = draws(groups, redraws=redraws, rng=rng)
            estimated = np.mean([*distances(areas, drawn), *cover(n, drawn)], axis=1) / [1, sd, n, n]
            count, mean, spread = _moments(groups, values)
            hits = _hit(groups, largest), _hit(groups, bearing) if known else np.nan
            lesion = count * mean[2], spread[2]
            area = mean[0], spread[0], math.hypot(mean[0], spread[0])
            rows.append((scan_id, *key.values(), n, *estimated, *hits, *lesion, *area, spread[1]))
    table = pd.DataFrame(rows, columns=["scan_id", *SETTING, "window", *MEASURES])
    types = {"n_samples": "int64", "n_intervals": "Int64", "window": "int64"}
    return table.astype(types | dict.fromkeys(MEASURES, "float64"))


def summary(
    quality: pd.DataFrame,
    *,
    rng: np.random.Generator,
    measures: Sequence[str] = tuple(MEASURES),
    n_boot: int = 2000,
) -> pd.DataFrame:
    """Each measure's mean over scans: method, n_samples, n_intervals, measure, value, low, high, n.

    quality: of `quality`. low, high: percentile interval of n_boot bootstrap samples of the patients, NaN of fewer than
    two. n: scans that have the measure; a measure that no scan has is left out.
    """
    boot = _intervals(rng, n_boot)
    rows = [(*key, values.mean(), *boot(values, of), len(values)) for key, values, of in _known(quality, measures)]
    table = pd.DataFrame(rows, columns=[*SETTING, "measure", "value", "low", "high", "n"])
    return table.astype({"n_intervals": "Int64"})


def paired(
    quality: pd.DataFrame,
    *,
    rng: np.random.Generator,
    baseline: str = "random",
    measures: Sequence[str] = tuple(MEASURES),
    n_boot: int = 2000,
) -> pd.DataFrame:
    """Each sampler against the baseline method on the same scans, at equal n_samples.

    quality: of `quality`. Where both methods have intervals, they are compared at equal n_intervals; where one has
    none, that column is the other's. Columns method, baseline, n_samples, n_intervals, measure, difference (mean over
    scans of the method's less the baseline's), low, high (bootstrap of the patients, as in `summary`), p_value
    (Wilcoxon signed-rank test of the patients' means, two-sided, those that do not differ left out; 1 where none
    differs), p_holm (corrected for all tests of the table), detectable (the smallest mean difference found with 80 %
    power, by its error), n (scans that have the measure), n_differ (patients that differ, by more than rounding).

    mean_area_bias has a sign: nearer to the baseline is not nearer to 0; mean_area_error says which is better.
    Raises SamplingError when the table has no such baseline, or nothing to compare with it.
    """
    from scipy.stats import wilcoxon

    base, others = (quality[(quality["method"] == baseline) == own] for own in (True, False))
    if base.empty or others.empty:
        found = ", ".join(map(repr, quality["method"].unique()))
        raise SamplingError(f"nothing to compare with baseline {baseline!r} among the methods {found}")
    both = others.merge(base, on=["scan_id", "n_samples"], suffixes=("", "_base"), validate="many_to_many")
    own, theirs = both["n_intervals"], both["n_intervals_base"]
    both = both[own.isna() | theirs.isna() | own.eq(theirs).fillna(False)]
    less = {measure: both[measure] - both[f"{measure}_base"] for measure in measures}
    both = both.assign(n_intervals=both["n_intervals"].fillna(both["n_intervals_base"]), **less)
    boot = _intervals(rng, n_boot)
    rows = []
    for key, values, of in _known(both, measures):
        values = np.where(np.abs(values) > 1e-12, values, 0.0)  # equal probabilities, rounded along other ways
        own = np.bincount(of, values) / np.bincount(of)
        differ = own[np.abs(own) > 1e-12]
        p_value = float(wilcoxon(differ).pvalue) if len(differ) else 1.0
        seen = metrics.detectable(_error(values, of))
        rows.append((*key, values.mean(), *boot(values, of), p_value, seen, len(values), len(differ)))
    columns = [*SETTING, "measure", "difference", "low", "high", "p_value", "detectable", "n", "n_differ"]
    table = pd.DataFrame(rows, columns=columns).astype({"n_intervals": "Int64"})
    table.insert(1, "baseline", baseline)
    table.insert(table.columns.get_loc("p_value") + 1, "p_holm", metrics.adjust(table["p_value"]))
    return table


def _known(
    table: pd.DataFrame, measures: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], NDArray[np.float64], NDArray[np.int64]]]:
    """Of each setting and measure: both, the scans' values that are there, (n,), and the number of each one's patient.

    A measure that no scan has is left out.
    """
    for key, part in table.groupby(SETTING, sort=False, dropna=False):
        patients = patient_of(part)
        for measure in measures:
            known = part[measure].notna().to_numpy()
            if known.any():
                yield (*key, measure), part[measure].to_numpy()[known], pd.factorize(patients[known])[0]


def _error(values: NDArray[np.float64], of: NDArray[np.int64]) -> float:
    """Standard error of the mean of the scans' values, of which those of a patient may depend in any way."""
    count = int(of.max()) + 1
    parts = np.bincount(of, values - values.mean()) * (count / len(values))
    return np.sqrt(np.sum(parts**2) / (count - 1)) / np.sqrt(count) if count > 1 else np.nan


def _intervals(
    rng: np.random.Generator, n_boot: int
) -> Callable[[NDArray[np.float64], NDArray[np.int64]], tuple[float, float]]:
    """values (n,), patients (n,) -> percentile interval of their mean; the same resamples for the same patients."""
    drawn: dict[bytes, NDArray[np.float64]] = {}

    def interval(values: NDArray[np.float64], of: NDArray[np.int64]) -> tuple[float, float]:
        if of.max() < 1:
            return np.nan, np.nan
        if (key := of.tobytes()) not in drawn:
            counts = np.concatenate(list(bootstrap.counts(rng, n_boot, len(of), groups=of)))
            drawn[key] = np.divide(counts, counts.sum(axis=1, keepdims=True), order="C")  # (n_boot, n)
        return bootstrap.percentiles(drawn[key] @ values)

    return interval


# From the cohort ---------------------------------------------------------------------------------------------------


def windows(done: "Preprocessed", scan_ids: Iterable[str] | None = None) -> dict[str, NDArray[np.int64]]:
    """scan_id -> (n,) lung areas inside the window, pixels, of the preprocessed scans that a sampler can draw from.

    scan_ids: all by default. Left out are excluded scans and empty windows.
    """
    scans = done.scans[(done.scans["status"] != "excluded") & (done.scans["stop"] > done.scans["start"])]
    usable = set(scans["scan_id"])
    asked = scans["scan_id"] if scan_ids is None else scan_ids
    return {scan_id: done.areas(scan_id) for scan_id in asked if scan_id in usable}
