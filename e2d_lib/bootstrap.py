"""The resampling and the exact interval that every layer takes its uncertainty from."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
"""Of every interval of the study."""

BLOCK = 4_000_000
"""Resamples are drawn in blocks of at most this many counts, so that memory stays flat for any cohort."""


def counts(
    rng: np.random.Generator, n_boot: int, n: int, *, strata: ArrayLike | None = None, groups: ArrayLike | None = None
) -> Iterator[NDArray[Any]]:
    """How often each of n things is drawn, with replacement, in each of n_boot resamples.

    strata: (n,), such as the class; as many as it has are drawn from each. groups: (n,), such as the patient; whole
    groups are drawn, since the scans of one patient are not independent, and then a stratum is all groups whose things
    have the same set of strata. Gives blocks (some of n_boot, n) of whole numbers, in order.

    Raises ValueError for n_boot below 1.

    >>> blocks = counts(np.random.default_rng(0), 3, 4, strata=[0, 0, 1, 1])
    >>> [row.reshape(2, 2).sum(axis=1).tolist() for row in next(blocks)]
    [[2, 2], [2, 2], [2, 2]]
    """
    if n_boot < 1:
        raise ValueError(f"n_boot={n_boot}, expected 1 or more")
    if groups is not None:
        of_group, names = pd.factorize(np.asarray(groups))
        if strata is not None:
            table = pd.DataFrame({"group": of_group, "stratum": np.asarray(strata)})
            strata = table.groupby("group")["stratum"].agg(lambda part: repr(sorted(set(part))))
        for block in counts(rng, n_boot, len(names), strata=strata):
            yield block[:, of_group]
        return
    step = max(1, BLOCK // max(1, n))
    for start in range(0, n_boot, step):
        size = min(step, n_boot - start)
        if strata is None:
            yield rng.multinomial(n, np.full(n, 1 / n), size=size)
            continue
        drawn = np.zeros((size, n), np.int64)
        for value in np.unique(strata):
            members = np.flatnonzero(np.asarray(strata) == value)
            m = len(members)
            index = rng.integers(m, size=(size, m)) + np.arange(size)[:, None] * m
            drawn[:, members] = np.bincount(index.ravel(), minlength=size * m).reshape(size, m)
        yield drawn


def percentiles(replicates: ArrayLike) -> tuple[float, float]:
    """The two-sided 95 % percentile interval."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(
    values: ArrayLike, rng: np.random.Generator, *, n_boot: int = 2000, groups: ArrayLike | None = None
) -> tuple[float, float]:
    """`percentiles` of the mean of values, (n,); NaN of fewer than two, or of one of ``groups`` (as of `counts`)."""
    values = np.asarray(values, dtype=float)
    if len(values if groups is None else np.unique(groups)) < 2:
        return np.nan, np.nan
    blocks = counts(rng, n_boot, len(values), groups=groups)
    return percentiles(np.concatenate([block @ values / block.sum(axis=1) for block in blocks]))


def clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper & Pearson, Biometrika 26 (1934) 404-413).

    >>> [round(edge, 3) for edge in clopper_pearson(3, 5)]
    [0.147, 0.947]
    """
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="beta")
    return float(low), float(high)
