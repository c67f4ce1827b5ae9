"""KDS: which slices of the window the network sees, drawn by the density of their lung areas.

Slices with similar lung areas show similar things. KDS estimates the density of the areas inside the window,
cuts their range into intervals of equal probability, and draws some slices from each, so that the sample covers
the whole range: :func:`density` -> :func:`edges` -> :func:`quotas` -> :func:`strata` -> :func:`sample`. Beside it the
two samplers that the paper compares it with. Source: method/README.md §4; arXiv:2404.01643, section on KDS.
"""

import operator
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import cumulative_trapezoid
from scipy.stats import gaussian_kde

from e2d_lib.method.ssfl import checked_areas

Method = Literal["kds", "systematic", "random"]
Variant = Literal["released", "paper", "corrected"]
Rng = np.random.Generator | np.random.RandomState | int | None

GRID_POINTS = 100
"""Points on which the density is evaluated (method/README.md §4)."""


def sample(
    areas: ArrayLike,
    n_samples: int = 8,
    n_intervals: int = 4,
    method: Method = "kds",
    variant: Variant = "corrected",
    rng: Rng = None,
) -> NDArray[np.int64]:
    """Draw slices from a window.

    :param areas: (n,) lung areas of the slices inside the window, pixels; finite, not negative.
    :param n_samples: slices wanted.
    :param n_intervals: intervals of the areas' range; "random" has none.
    :param method: "kds", intervals of equal probability under the density of the areas; "systematic", intervals of
        equal width in area; "random", uniform over the window.
    :param variant: "released", what the released code does, draw for draw; "paper", what the paper states;
        "corrected", our own. See below.
    :param rng: a Generator, a legacy RandomState, or a seed for a new Generator. None is the seed 0: there is no
        hidden state, so two such calls draw the same slices.
    :returns: sorted int64 indices into ``areas``.
    :raises ValueError: unknown method or variant; areas is not 1-D, or holds negative or non-finite values, or
        holds no slice (except for "released"); a count below 1; more intervals than samples (except for
        "corrected", which then uses n_samples intervals).
    :raises TypeError: a count is no integer, or rng is none of the above.

    corrected
        Exactly n_samples distinct indices where the window holds that many, and every slice can be drawn. A shorter
        window gives all its slices, repeated as evenly as n_samples allows, since a batch has a fixed size.
    paper
        Each interval draws its quota without replacement, or all its slices where it holds fewer: fewer than
        n_samples can come back.
    released
        As paper, except that the largest area is never drawn (the last interval is half-open too), that a slice
        stands for the first one of equal area (so an index can repeat), that a window under n_samples slices draws
        n_samples of them with repetition, and that a window of one slice, or none, gives index 0 n_samples times.
        Interval by interval it calls ``rng.choice(slices, quota, replace=False)`` (no call for an interval that
        holds fewer), short windows ``rng.choice(n, n_samples)``: with RandomState(0) these are the released draws.

    Slices of one and the same area have no density, and no interval tells them apart (the released code stops with
    an error there): min(n, n_samples) of them are drawn at random, in every variant.

    >>> sample([40, 10, 30, 20], n_samples=8, rng=0)
    array([0, 0, 1, 1, 2, 2, 3, 3])
    >>> len(set(sample(range(100), rng=0).tolist()))
    8
    """
    areas, n_samples, n_intervals = _checked(areas, n_samples, n_intervals, method, variant)
    if not isinstance(rng, np.random.Generator | np.random.RandomState):
        rng = np.random.default_rng(0 if rng is None else operator.index(rng))
    n = len(areas)
    if n == 0 and variant != "released":
        raise ValueError("areas is empty: the window holds no slice to draw")
    if n < n_samples and variant == "corrected":
        return np.arange(n_samples, dtype=np.int64) * n // n_samples
    if n < n_samples and variant == "released":
        return np.sort(rng.choice(n, n_samples) if n > 1 else np.zeros(n_samples)).astype(np.int64)
    drawn = [
        rng.choice(slices, quota, replace=False) if len(slices) >= quota else slices
        for slices, quota in _strata(areas, n_samples, n_intervals, method, variant)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def strata(
    areas: ArrayLike, n_samples: int = 8, n_intervals: int = 4, method: Method = "kds", variant: Variant = "corrected"
) -> list[tuple[NDArray[np.int64], int]]:
    """What :func:`sample` draws from: groups of slices, and how many are drawn of each, without replacement.

    :param areas: (n,) as :func:`sample` takes them; so are the other arguments.
    :returns: for each interval (slices, quota): (m,) int64 indices into ``areas``, and how many of them are drawn, all
        m where the quota is larger. "released" has a slice's place taken by the first one of equal area, so an index
        can be there repeatedly. "random", and slices of one and the same area, are one group.
    :raises ValueError: as :func:`sample`; and for a window that is not divided: no slices, or, except for "paper",
        fewer than n_samples.

    >>> [(slices.tolist(), quota) for slices, quota in strata([0, 1, 2, 10, 9], 3, 2, "systematic")]
    [([0, 1, 2], 2), ([3, 4], 1)]
    """
    areas, n_samples, n_intervals = _checked(areas, n_samples, n_intervals, method, variant)
    n = len(areas)
    if n == 0 or (n < n_samples and variant != "paper"):
        raise ValueError(f"a window of {n} slices is not divided into intervals to draw {n_samples} samples")
    return _strata(areas, n_samples, n_intervals, method, variant)


def _strata(
    areas: NDArray[Any], n_samples: int, n_intervals: int, method: Method, variant: Variant
) -> list[tuple[NDArray[np.int64], int]]:
    n = len(areas)
    if method == "random" or areas.min() == areas.max():
        return [(np.arange(n), min(n, n_samples))]
    if variant == "corrected":
        n_intervals = min(n_intervals, n_samples)
    bounds, returned = edges(areas, n_intervals, method), np.arange(n)
    interval = np.searchsorted(bounds[1:-1], areas, side="right")  # [bounds[i], bounds[i + 1]), the last one closed
    if variant == "released":  # the last one half-open too
        interval[areas >= bounds[-1]] = -1
        _, first, inverse = np.unique(areas, return_index=True, return_inverse=True)
        returned = first[inverse]
    counts = np.bincount(interval[interval >= 0], minlength=n_intervals)
    shares = quotas(counts, n_samples, variant).tolist()
    return [(returned[interval == i], quota) for i, quota in enumerate(shares)]


def density(areas: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Gaussian KDE of the areas, with Scott's bandwidth.

    :param areas: (n,) lung areas inside the window, pixels, of which at least two differ.
    :returns: (100,) areas evenly spaced from the smallest to the largest, (100,) density there (per pixel), (100,)
        cumulative distribution (trapezoid), scaled to end at 1.
    :raises ValueError: the areas are all equal: they have no density.
    """
    areas = checked_areas(areas).astype(np.float64)
    if len(areas) == 0 or areas.min() == areas.max():
        raise ValueError(f"{len(areas)} slices whose areas do not differ have no density")
    grid = np.linspace(areas.min(), areas.max(), GRID_POINTS)
    pdf = gaussian_kde(areas)(grid)
    cdf = cumulative_trapezoid(pdf, grid, initial=0)
    return grid, pdf, cdf / cdf[-1]


def edges(areas: ArrayLike, n_intervals: int = 4, method: Method = "kds") -> NDArray[np.float64]:
    """The intervals' edges: (n_intervals + 1,) areas in pixels, from the smallest to the largest area.

    "kds": the CDF's inverse, linearly interpolated, at 0, 1/k, ..., 1. "systematic": evenly spaced areas.

    >>> edges([0, 10, 40], 4, "systematic")
    array([ 0., 10., 20., 30., 40.])
    """
    n_intervals = _count("n_intervals", n_intervals)
    if method == "systematic":
        areas = checked_areas(areas)
        if len(areas) == 0:
            raise ValueError("areas is empty: there is no range to divide")
        return np.linspace(areas.min(), areas.max(), n_intervals + 1)
    if method != "kds":
        raise ValueError(f"method is {method!r}; edges are those of 'kds' or 'systematic'")
    grid, cdf = _cdf(checked_areas(areas).astype(np.float64).tobytes())
    return np.interp(np.linspace(0, 1, n_intervals + 1), cdf, grid)


@lru_cache(maxsize=4096)
def _cdf(areas: bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Kept for as many scans as a cohort has: training draws from the same windows in every epoch.
    grid, _, cdf = density(np.frombuffer(areas))
    return grid, cdf


def quotas(counts: ArrayLike, n_samples: int = 8, variant: Variant = "corrected") -> NDArray[np.int64]:
    """How many slices each interval is to give; the sum is n_samples.

    :param counts: (k,) slices in each interval, k <= n_samples, at least one slice in all.
    :returns: (k,) one for each interval; then of the other n_samples - k each interval's share by its count,
        floored; then one each to the fullest intervals (of equally full ones the last) until none is left.
        "corrected" gives an empty interval nothing, no interval more than it holds, and goes round the fullest
        intervals again until all are given away.
    :raises ValueError: more intervals than n_samples, no slices, or, for "corrected", fewer than n_samples.

    >>> quotas([45, 37, 28, 100])
    array([2, 2, 1, 3])
    >>> quotas([40, 0, 1, 0]), quotas([40, 0, 1, 0], variant="paper")
    (array([7, 0, 1, 0]), array([5, 1, 1, 1]))
    """
    _choice("variant", variant, Variant)
    counts = np.asarray(counts, np.int64)
    k, total = len(counts), int(counts.sum())
    if k > n_samples:
        raise ValueError(f"{k} intervals cannot give one slice each to {n_samples} samples; use fewer intervals")
    if total < (n_samples if variant == "corrected" else 1):
        raise ValueError(f"the intervals hold {total} slices, too few for {n_samples} samples")
    room = counts if variant == "corrected" else np.full(k, n_samples)
    quota = np.minimum(1, room)
    left = n_samples - int(quota.sum())
    quota = np.minimum(quota + left * counts // total, room)
    fullest_first = np.argsort(counts, kind="stable")[::-1]
    while (left := n_samples - int(quota.sum())) > 0:
        open_ = fullest_first[(quota < room)[fullest_first]]
        quota[open_[:left]] += 1
    return quota


def _checked(
    areas: ArrayLike, n_samples: int, n_intervals: int, method: str, variant: str
) -> tuple[NDArray[Any], int, int]:
    areas = checked_areas(areas)
    _choice("method", method, Method)
    _choice("variant", variant, Variant)
    return areas, _count("n_samples", n_samples), _count("n_intervals", n_intervals)


def _choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, get_args(choices)))}")


def _count(name: str, value: Any) -> int:
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{name} is {number}; expected at least 1")
    return number
