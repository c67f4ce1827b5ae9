"""SSFL++: what a CT slice shows beside the body, and what a scan shows beside the lungs, is redundant.

Spatial step, per slice: the body's bounding box (:func:`crop_box`). Slice step, per scan: the run of slices with
the most lung (:func:`slice_window`), found on their lung areas (:func:`lung_area`). Bit-equal to the released
algorithm, dozens of times as fast. Source: method.md §2-§3; arXiv:2404.01643, section on SSFL++.
"""

import math
from fractions import Fraction
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLD = 100
"""8-bit lung-window grey from which a pixel counts as body (method.md §2 and §3)."""

CROP_ERODE = 10
"""Side of the minimum filter before the crop, in pixels; at row r it covers r-5 ... r+4 (method.md §2)."""

AREA_ERODE = 5
"""Side of the minimum filter before the lung area, in pixels (method.md §3)."""

TRIM_HEAD, TRIM_TAIL, TRIM_TAIL_SHORT, TRIM_SHORT = 20, 45, 20, 60
"""The released cut of a scan: first 20 and last 45 slices, last 20 of a scan under 60 slices (method.md §3)."""

Box = tuple[int, int, int, int]


class Measurement(NamedTuple):
    """One slice, measured: ``box`` as :func:`crop_box` gives it, ``area`` as :func:`lung_area` does."""

    box: Box
    area: int


# Both filters only ever ask whether *all* pixels of a window reach the threshold, so minimum filter and threshold
# change places: one threshold, then binary erosions, many times cheaper than a rank filter. A border that repeats
# edge pixels adds no pixel to a window that it does not hold already, so ignoring what lies outside the image
# (OpenCV's default for erosions) gives the same minimum.
_AREA_KERNEL = np.ones((AREA_ERODE, AREA_ERODE), np.uint8)


def crop_box(image: NDArray[np.uint8]) -> Box:
    """The bounding box of the body on one slice.

    :param image: (rows, cols) uint8, grey.
    :returns: (row0, row1, col0, col1), half-open; the whole slice when no row or no column shows body.
    :raises TypeError: image is not a uint8 array.
    :raises ValueError: image is not 2-D, or holds no pixel.

    Rows that hold any pixel of the 10x10-filtered body are marked; the longest run of marked rows counts, the first
    one on ties; the same for columns (method.md §2).

    >>> image = np.zeros((64, 64), np.uint8)
    >>> image[10:40, 20:60] = 180
    >>> crop_box(image)
    (15, 36, 25, 56)
    """
    return _box(_body(_checked(image)))


def lung_area(image: NDArray[np.uint8]) -> int:
    """The lung area of one slice, in pixels: the holes of the body, where the air is.

    :param image: (rows, cols) uint8, grey.
    :returns: the number of pixels that filling the holes of the 5x5-filtered body adds. A hole is a 4-connected
        piece of background that does not reach the border of the image (method.md §3).
    :raises TypeError: image is not a uint8 array.
    :raises ValueError: image is not 2-D, or holds no pixel.

    >>> image = np.full((64, 64), 180, np.uint8)
    >>> image[20:30, 20:40] = 0
    >>> lung_area(image)  # 10 x 20, grown by 2 on each side
    336
    """
    return _hole_area(_body(_checked(image)))


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
    image = _checked(image)
    body = _body(image)
    if area_on == "full":
        return Measurement(area=_hole_area(body), box=_box(body))
    row0, row1, col0, col1 = box = _box(body)
    return Measurement(box, _hole_area(_body(image[row0:row1, col0:col1])))


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


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        received = f"dtype {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image is {received}; expected a uint8 array (readers.hu_to_uint8 windows Hounsfield units)")
    if image.ndim != 2:
        raise ValueError(f"image has shape {image.shape}; expected (rows, cols), one grey slice")
    if image.size == 0:
        raise ValueError(f"image has shape {image.shape}: it holds no pixel")
    return image


def _body(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(rows, cols) uint8, 1 where the 5x5 minimum filter reaches the threshold, 0 elsewhere."""
    _, bright = cv2.threshold(image, THRESHOLD - 1, 1, cv2.THRESH_BINARY)
    return cv2.erode(bright, _AREA_KERNEL, dst=bright)


def _box(body: NDArray[np.uint8]) -> Box:
    """The crop box from :func:`_body`'s image.

    The 10-pixel window r-5 ... r+4 is the union of two 5-pixel windows, centred on r-3 and r+2 (on the edge pixel
    where that lies outside). So the 10x10 filter at (r, c) is the 5x5 filter at four pixels: two ANDs, on rows
    packed 64 pixels to a word.
    """
    rows, cols = body.shape
    words = -(-(cols + 5) // 64)
    frame = np.zeros((rows + 5, 64 * words), np.uint8)  # beyond the repeated edge nothing is foreground
    cv2.copyMakeBorder(body, 3, 2, 3, 2, cv2.BORDER_REPLICATE, dst=frame[:, : cols + 5])
    packed = np.packbits(frame, axis=None, bitorder="little").view("<u8").reshape(rows + 5, words)
    pairs = np.ascontiguousarray((packed[:-5] & packed[5:]).T)  # (words, rows): both rows
    core = pairs >> 5  # pixel c+5 of the frame comes to c ...
    core[:-1] |= pairs[1:] << 59  # ... across words too
    core &= pairs
    row0, row1 = _longest_run(np.bitwise_or.reduce(core, axis=0) != 0)
    any_col = np.bitwise_or.reduce(core, axis=1).view(np.uint8)
    col0, col1 = _longest_run(np.unpackbits(any_col, count=cols, bitorder="little"))
    return (row0, row1, col0, col1) if row1 and col1 else (0, rows, 0, cols)


def _longest_run(marks: NDArray[Any]) -> tuple[int, int]:
    """[start, stop) of the longest run of ones in bytes 0 and 1, the first one on ties; (0, 0) without any."""
    text = marks.tobytes()
    run = max(text.strip(b"\0").split(b"\0"), key=len)  # max keeps the first of equals
    start = text.find(run)  # no run this long starts earlier, or that one would be the longest
    return start, start + len(run)


def _hole_area(body: NDArray[np.uint8]) -> int:
    """Pixels that filling the holes of a 0/1 image adds: what its outer contours enclose, less what is set already.

    Background is 4-connected, so foreground is 8-connected, as in OpenCV's contours. A contour that steps from pixel
    to pixel encloses, itself included, A + B/2 + 1 pixels (Pick's theorem; A its area, B its steps). A single pixel
    is listed as a contour of one point, but takes no step.
    """
    contours, _ = cv2.findContours(body, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    lengths = [len(contour) for contour in contours]
    area = sum(map(cv2.contourArea, contours))
    steps = sum(lengths) - lengths.count(1)
    return int(area + steps / 2) + len(contours) - cv2.countNonZero(body)
