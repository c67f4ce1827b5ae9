"""Volumes in Hounsfield units: the 8-bit lung window, and the slices of a view."""

from collections.abc import Callable

import nibabel as nib
import numpy as np

from e2d_lib.scans.findings import Load, SliceError

VIEWS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""View -> the axis of a right-anterior-superior volume that counts its slices."""
HU_LOW, HU_WIDTH = -1350.0, 1500.0
"""Lower end and width of the lung window, HU (centre -600; method.md §7)."""


def hu_to_uint8(hu: np.ndarray) -> np.ndarray:
    """Hounsfield units to the 8-bit lung window (centre -600, width 1500), truncated; any shape, NaN gives 0.

    Computed in float64 whatever comes in, so that float32 and integer HU give the same grey values. Source: method.md
    §7.

    >>> hu_to_uint8(np.array([-2000, -1350, -600, 149, 150, 3000])).tolist()
    [0, 0, 127, 254, 255, 255]
    """
    grey = np.array(hu, dtype=np.float64, ndmin=1)
    grey -= HU_LOW
    grey /= HU_WIDTH
    grey *= 255
    # fmax and fmin, unlike clip, take the number where the other is NaN
    np.fmax(grey, 0, out=grey)
    np.fmin(grey, 255, out=grey)
    return grey.astype(np.uint8).reshape(np.shape(hu))


def slice_count(shape: tuple[int, ...], turn: np.ndarray, view: str) -> int:
    """Number of slices in a view of an array whose axes lie as ``turn``, a (3, 2) nibabel orientation, says."""
    return shape[int(np.flatnonzero(turn[:, 0] == VIEWS[view])[0])]


def slices_of(volume: np.ndarray, turn: np.ndarray, view: str) -> np.ndarray:
    """The slices of a view, (n, rows, columns): brought to closest canonical axes and turned by ``numpy.rot90``.

    So axial slices run feet to head with the front up, and coronal and sagittal ones have the head up. ``turn`` is the
    (3, 2) nibabel orientation of the volume's axes; the result is a view of ``volume``.
    """
    return np.rot90(np.moveaxis(nib.apply_orientation(volume, turn), VIEWS[view], 0), axes=(1, 2))


def loaded_once(read: Callable[[], np.ndarray]) -> Load:
    """The `Load` of a scan whose slices, (n, rows, columns), are read together, with the first one asked for.

    A `SliceError` of ``read`` is one of all slices; ``read`` is not tried again.
    """
    slices, failure = None, ""

    def load(k: int) -> tuple[np.ndarray, list[str]]:
        nonlocal slices, failure
        if slices is None and not failure:
            try:
                slices = read()
            except SliceError as error:
                failure = error.reason
        if failure:
            raise SliceError(failure, whole=True)
        return np.ascontiguousarray(slices[k]), []

    return load
