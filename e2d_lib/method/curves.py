"""Lung-area curves of 2,481 real scans, released as numbers by the authors of the method, and what shape curves have.

Areas of all slices of 1,481 scans (test part of the 2025 four-hospital challenge) and of the slices inside the windows
of 1,000 scans (test part of the 2024 challenge), with the windows and the KDS draws released with them: COV19-CT-DB,
measured on the cropped slice. No image, no name, no label; credit and licence: ``results/published/real_areas``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from e2d_lib import io, ssfl

FULL_SLICE = 512 * 512
"""Pixels of a slice of COV19-CT-DB (mostly), to which real areas are set in relation."""

QUANTITIES: dict[str, str] = io.shipped("e2d_lib.method", "quantities.yaml")
"""What `shapes` measures of a curve, in words."""


class RealScans(NamedTuple):
    """``scans``: year, scan_id, n_slices (Int64, <NA> for 2024), start, stop (the released window), n_drawn, repeated
    (the draw holds a slice twice), equal_areas (the window does), drew_largest (the draw holds a slice of the window's
    largest area). ``curves``: scan_id -> areas (n,) of all slices, 2025. ``windows``: the areas inside the window, both
    years. ``draws``: the released draw, places in the window. Areas are int64 pixels."""

    scans: pd.DataFrame
    curves: dict[str, NDArray[np.int64]]
    windows: dict[str, NDArray[np.int64]]
    draws: dict[str, NDArray[np.int64]]

    def of(self, year: int, least: int = 0) -> list[str]:
        """scan_ids of one year whose window holds at least ``least`` slices."""
        return [scan for scan in self.scans.query("year == @year")["scan_id"] if len(self.windows[scan]) >= least]


def real(folder: str | Path) -> RealScans:
    """The released curves, windows and draws from ``folder`` (``results/published/real_areas``), checked.

    Raises ValueError where they contradict each other: slices out of order, a window outside its scan, another number
    of areas than there are slices, a negative area, a draw outside the window.
    """
    folder, rows, curves, windows, draws = Path(folder), [], {}, {}, {}
    for year, areas_of, scans_of in ((2025, "areas_2025", "scans_2025"), (2024, "window_areas_2024", "windows_2024")):
        areas, scans = (pd.read_parquet(folder / f"{name}.parquet") for name in (areas_of, scans_of))
        ids, first_row = np.unique(areas["scan"].to_numpy(), return_index=True)
        if not np.array_equal(ids, scans["scan"]) or (areas["scan"].diff() < 0).any():
            raise ValueError(f"{areas_of} and {scans_of} are not of the same scans, each in order")
        numbers, values = (np.split(areas[name].to_numpy(dtype=np.int64), first_row[1:]) for name in ("slice", "area"))
        for scan, number, curve in zip(scans.itertuples(), numbers, values, strict=True):
            scan_id, start, stop = f"{year}/{scan.scan:04d}", int(scan.start), int(scan.stop)
            first, last = (0, int(scan.n_slices)) if year == 2025 else (start, stop)
            # Three scans of 2025 lack slices: numbers have gaps there, and windows and draws count places.
            if (np.diff(number) < 1).any() or len(curve) != last - first or not first <= start < stop <= last:
                raise ValueError(f"{scan_id}: window [{start}, {stop}) and {len(curve)} areas do not agree")
            window, drawn = curve[start - first : stop - first], np.asarray(scan.released_draw, np.int64) - start
            if curve.min() < 0 or drawn.min() < 0 or drawn.max() >= stop - start:
                raise ValueError(f"{scan_id}: a negative area, or a slice drawn outside the window")
            windows[scan_id], draws[scan_id] = window, drawn
            if year == 2025:
                curves[scan_id] = curve
            length = last if year == 2025 else None
            repeated, equal = len(set(drawn.tolist())) < len(drawn), len(set(window.tolist())) < len(window)
            largest = bool((window[drawn] == window.max()).any())
            rows.append((year, scan_id, length, start, stop, len(drawn), repeated, equal, largest))
    names = ["year", "scan_id", "n_slices", "start", "stop", "n_drawn", "repeated", "equal_areas", "drew_largest"]
    return RealScans(pd.DataFrame(rows, columns=names).astype({"n_slices": "Int64"}), curves, windows, draws)


def rules(curves: Mapping[str, ArrayLike]) -> pd.DataFrame:
    """Both released rules for the window on whole curves: one row a scan.

    scan_id, n_slices, start and stop of the uncut rule, cut_start and cut_stop of the rule that first drops 20 slices
    at the head and 45 (or 20) at the tail, removed and cut_removed (shares of the slices), overlap (intersection over
    union of the two windows) and lost (share of the uncut window's lung area that the cut one does not hold).
    """
    rows = []
    for scan_id, areas in curves.items():
        areas = np.asarray(areas)
        whole, cut = ssfl.slice_window(areas, 0.5, False), ssfl.slice_window(areas, 0.5, True)
        area, held = areas[slice(*whole)].sum(), areas[slice(*cut)].sum()
        removed = [1 - (stop - start) / len(areas) for start, stop in (whole, cut)]
        lost = 1 - held / area if area else np.nan
        rows.append((scan_id, len(areas), *whole, *cut, *removed, overlap(whole, cut), lost))
    names = ["scan_id", "n_slices", "start", "stop", "cut_start", "cut_stop", "removed", "cut_removed"]
    return pd.DataFrame(rows, columns=[*names, "overlap", "lost"])


def overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Intersection over union of two windows; 0 where both are empty.

    >>> overlap((0, 4), (2, 6))
    0.3333333333333333
    """
    both = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return both / max((a[1] - a[0]) + (b[1] - b[0]) - both, 1)


def thinned(areas: ArrayLike, n: int) -> NDArray[np.int64]:
    """``n`` evenly spaced slices of a curve, the first and the last among them; the curve itself where it is shorter.

    >>> thinned([0, 1, 2, 3, 4, 5, 6], 3)
    array([0, 3, 6])
    """
    areas = np.asarray(areas)
    return areas if len(areas) <= n else areas[np.rint(np.linspace(0, len(areas) - 1, n)).astype(int)]


def humps(areas: ArrayLike) -> int:
    """How many humps a curve has: peaks that rise by a tenth of the largest area over the valleys beside them.

    Of the curve smoothed by a Gaussian with an SD of 2 % of the scan's slices (at least half a slice).

    >>> humps([0, 1, 5, 9, 5, 1, 0]), humps([0, 9, 9, 1, 1, 8, 8, 0])
    (1, 2)
    """
    smooth = _smooth(np.asarray(areas, dtype=float))
    smooth = smooth * np.linspace(1, 1 - 1e-9, len(smooth))  # of two equal peaks neither would see the valley between
    return len(find_peaks(np.r_[0, smooth, 0], prominence=max(0.1 * smooth.max(), 1e-12))[0])


def shapes(curves: Mapping[str, ArrayLike], pixels: int = FULL_SLICE, *, least: int = 8) -> pd.DataFrame:
    """Shape of each curve: scan_id and `QUANTITIES`, of scans with at least ``least`` slices and some lung.

    ``pixels``: of a slice. Nothing here depends on whether slices run up or down, which the real curves do not tell.
    """
    return pd.DataFrame(
        [
            {"scan_id": scan_id, **_shape(np.asarray(areas, dtype=float), pixels)}
            for scan_id, areas in curves.items()
            if len(areas) >= least and np.max(areas) > 0
        ],
        columns=["scan_id", *QUANTITIES],
    )


def compared(
    groups: Mapping[str, pd.DataFrame], to: str, quantities: Iterable[str] = tuple(QUANTITIES)
) -> pd.DataFrame:
    """Groups of `shapes` side by side: quantity, group, n, median, low and high (5th and 95th percentile), ks.

    ks: two-sample Kolmogorov distance to the group ``to``; 0 would be the same distribution. A group without values
    of a quantity has no row for it.
    """
    from scipy.stats import ks_2samp

    rows = []
    for name in quantities:
        for group, table in groups.items():
            values = table[name].dropna()
            if values.empty:
                continue
            low, median, high = np.percentile(values, [5, 50, 95])
            distance = ks_2samp(values, groups[to][name].dropna()).statistic if group != to else 0.0
            rows.append((name, group, len(values), median, low, high, float(distance)))
    return pd.DataFrame(rows, columns=["quantity", "group", "n", "median", "low", "high", "ks"])


def window_shape(window: NDArray[np.float64]) -> dict[str, float]:
    """Of a window's areas: spread (SD, share of the mean) and neighbours' correlation, NaN where areas do not vary."""
    flat = len(window) < 3 or np.ptp(window[:-1]) == 0 or np.ptp(window[1:]) == 0
    neighbours = np.nan if flat else np.corrcoef(window[:-1], window[1:])[0, 1]
    return {"spread": window.std() / window.mean(), "neighbours": neighbours}


def _smooth(areas: NDArray[np.float64]) -> NDArray[np.float64]:
    return gaussian_filter1d(areas, max(len(areas) / 50, 0.5), mode="nearest")


def _shape(areas: NDArray[np.float64], pixels: int) -> dict[str, float]:
    n, smooth, place = len(areas), _smooth(areas), np.arange(len(areas))
    centre = np.average(place, weights=areas)
    second, third = (np.average((place - centre) ** power, weights=areas) for power in (2, 3))
    window = areas[slice(*ssfl.slice_window(areas.astype(np.int64), 0.5))]
    return {
        "n_slices": n,
        "largest": areas.max() / pixels,
        "width": np.mean(smooth > 0.5 * smooth.max()),
        "beyond": np.mean(smooth < 0.1 * smooth.max()),
        "zero": np.mean(areas == 0),
        "humps": humps(areas),
        "skew": abs(third) / second**1.5 if second > 0 else 0.0,
        "in_window": window.sum() / areas.sum(),
        **window_shape(window),
    }
