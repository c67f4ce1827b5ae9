"""SSFL++: what a CT slice shows beside the body, and what a scan shows beside the lungs, is redundant.

Spatial step, per slice: the body's bounding box (:func:`crop_box`). Slice step, per scan: the run of slices with
the most lung (:func:`slice_window`), found on their lung areas (:func:`lung_area`). Bit-equal to the released
algorithm, dozens of times as fast. Source: method/README.md §2-§3; arXiv:2404.01643, section on SSFL++.
"""

import math
from fractions import Fraction
from itertools import accumulate
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLD = 100
"""8-bit lung-window grey from which a pixel counts as body (method/README.md §2 and §3)."""

CROP_ERODE = 10
"""Side of the minimum filter before the crop, in pixels; at row r it covers r-5 ... r+4 (method/README.md §2)."""

AREA_ERODE = 5
"""Side of the minimum filter before the lung area, in pixels (method/README.md §3)."""

TRIM_HEAD, TRIM_TAIL, TRIM_TAIL_SHORT, TRIM_SHORT = 20, 45, 20, 60
"""The released cut of a scan: first 20 and last 45 slices, last 20 of a scan under 60 slices (method/README.md §3)."""

Box = tuple[int, int, int, int]


class Measurement(NamedTuple):
    """One slice, measured: ``box`` as :func:`crop_box` gives it, ``area`` as :func:`lung_area` does."""

    box: Box
    area: int


def crop_box(image: NDArray[np.uint8]) -> Box:
    """The bounding box of the body on one slice.

    :param image: (rows, cols) uint8, grey.
    :returns: (row0, row1, col0, col1), half-open; the whole slice when no row or no column shows body.
    :raises TypeError: image is not a uint8 array.
    :raises ValueError: image is not 2-D, or holds no pixel.

    Rows that hold any pixel of the 10x10-filtered body are marked; the longest run of marked rows counts, the first
    one on ties; the same for columns (method/README.md §2).

    >>> image = np.zeros((64, 64), np.uint8)
    >>> image[10:40, 20:60] = 180
    >>> crop_box(image)
    (15, 36, 25, 56)
    """
    _, air = _bitmaps(image)
    return _box(air, image.shape)


def lung_area(image: NDArray[np.uint8]) -> int:
    """The lung area of one slice, in pixels: the holes of the body, where the air is.

    :param image: (rows, cols) uint8, grey.
    :returns: the number of pixels that filling the holes of the 5x5-filtered body adds. A hole is a 4-connected
        piece of background that does not reach the border of the image (method/README.md §3).
    :raises TypeError: image is not a uint8 array.
    :raises ValueError: image is not 2-D, or holds no pixel.

    >>> image = np.full((64, 64), 180, np.uint8)
    >>> image[20:30, 20:40] = 0
    >>> lung_area(image)  # 10 x 20, grown by 2 on each side
    336
    """
    _, air = _bitmaps(image)
    return _bits().hole_area(air, image.shape[1])


def measure(image: NDArray[np.uint8], *, area_on: Literal["full", "crop"] = "full") -> Measurement:
    """Crop box and lung area of one slice in one pass, from one decoded image.

    :param image: (rows, cols) uint8, grey; left as it is.
    :param area_on: where the released code measures the area: "full", the uncropped slice (training, validation),
        or "crop", the slice inside its box (test). The 5x5 filter then sees nothing outside the box.
    :raises TypeError: image is not a uint8 array.
    :raises ValueError: image is not 2-D, or holds no pixel; area_on is neither of the two.
    """
    if area_on not in ("full", "crop"):
        raise ValueError(f"area_on is {area_on!r}; choose 'full' or 'crop'")
    if area_on == "crop":
        box, _, area = measure_both(image)
        return Measurement(box, area)
    _, air = _bitmaps(image)
    return Measurement(_box(air, image.shape), _bits().hole_area(air, image.shape[1]))


def measure_both(image: NDArray[np.uint8]) -> tuple[Box, int, int]:
    """:func:`measure` with both areas: the box, the area of the uncropped slice, the area of the slice inside its box.

    :param image: (rows, cols) uint8, grey; left as it is.
    :raises TypeError: image is not a uint8 array.
    :raises ValueError: image is not 2-D, or holds no pixel.
    """
    dark, air = _bitmaps(image)
    _, _, col0, col1 = box = _box(air, image.shape)
    cropped = _bits().grown(_bits().cropped(dark, *box), col1 - col0)
    return box, _bits().hole_area(air, image.shape[1]), _bits().hole_area(cropped, col1 - col0)


def slice_window(areas: ArrayLike, fraction: float = 0.5, trim: bool = False) -> tuple[int, int]:
    """The run of slices with the largest sum of lung areas, in O(n).

    :param areas: (n,) lung areas of a scan's slices in order, pixels; finite, not negative.
    :param fraction: the window's width as a share of the slices, in (0, 1]: ``ceil(fraction * n)`` slices, the
        product taken in floating point as the released code takes it (0.07 of 100 slices are 8).
    :param trim: cut the curve first, as the released training and validation code does: without its first 20 and
        last 45 slices (last 20 under 60 slices). Nothing is left of scans with n <= 40 or 60 <= n <= 65, whose
        window is the empty [20, 20), also where the scan has no slice 20.
    :returns: (start, stop), half-open; the first of equally good windows, so (0, width) when all areas are 0, and
        (0, 0) of no slices.
    :raises ValueError: areas is not 1-D, or holds a negative or non-finite value; fraction is outside (0, 1].

    >>> slice_window([0, 1, 5, 6, 5, 1])
    (2, 5)
    """
    areas = checked_areas(areas)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction!r}; the window's width must be a share in (0, 1]")
    first, last = 0, len(areas)
    if trim:
        first = TRIM_HEAD
        last -= TRIM_TAIL_SHORT if len(areas) < TRIM_SHORT else TRIM_TAIL
        if last <= first:
            return first, first
    width = math.ceil(float(fraction) * (last - first))
    # Sums in exact arithmetic: a running sum of floats would break ties by its rounding errors.
    exact = areas.tolist() if areas.dtype.kind in "iu" else map(Fraction, areas.tolist())
    before = list(accumulate(exact, initial=0))  # before[i]: sum of areas[:i]
    start = max(range(first, last - width + 1), key=lambda d: before[d + width] - before[d])
    return start, start + width


def checked_areas(areas: ArrayLike) -> NDArray[Any]:
    """``areas`` as a 1-D array of finite numbers that are not negative, or a ValueError that says what they are."""
    array = np.asarray(areas)
    if array.ndim != 1:
        raise ValueError(f"areas has shape {array.shape}; expected 1-D, one lung area for each slice")
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"areas has dtype {array.dtype}; expected numbers of pixels")
    if not np.isfinite(array).all() or array.min() < 0:
        raise ValueError("areas holds a negative or non-finite value; lung areas are numbers of pixels")
    return array


def _bits() -> ModuleType:
    """The compiled pixel work, loaded with the first slice: numba takes half a second and 100 MB."""
    from e2d_lib.method import bits

    return bits


def _bitmaps(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The bitmaps of the pixels under the threshold, and of those that the 5x5 minimum filter leaves under it.

    A minimum is under the threshold when any pixel of its window is, so minimum filter and threshold change places:
    one threshold, then binary work, many times cheaper than a rank filter. A border that repeats edge pixels adds no
    pixel to a window that it does not hold already, so what lies outside the image may be left out. Raises TypeError
    and ValueError for what is no slice.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        received = f"dtype {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image is {received}; expected a uint8 array (readers.hu_to_uint8 windows Hounsfield units)")
    if image.ndim != 2:
        raise ValueError(f"image has shape {image.shape}; expected (rows, cols), one grey slice")
    if image.size == 0:
        raise ValueError(f"image has shape {image.shape}: it holds no pixel")
    dark = _bits().below(np.ascontiguousarray(image), THRESHOLD)
    return dark, _bits().grown(dark, image.shape[1])


def _box(air: NDArray[np.uint64], shape: tuple[int, ...]) -> Box:
    row_marks, col_marks = _bits().body_marks(air, shape[1])
    row0, row1 = _longest_run(row_marks)
    col0, col1 = _longest_run(col_marks)
    return (row0, row1, col0, col1) if row1 and col1 else (0, shape[0], 0, shape[1])


def _longest_run(marks: NDArray[Any]) -> tuple[int, int]:
    """[start, stop) of the longest run of ones in bytes 0 and 1, the first one on ties; (0, 0) without any."""
    text = marks.tobytes()
    run = max(text.strip(b"\0").split(b"\0"), key=len)  # max keeps the first of equals
    start = text.find(run)  # no run this long starts earlier, or that one would be the longest
    return start, start + len(run)
