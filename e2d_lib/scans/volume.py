"""Volumes in Hounsfield units: the 8-bit lung window, and the slices of a view."""

import functools
from collections.abc import Callable

import nibabel as nib
import numpy as np

from e2d_lib.scans.findings import Load, Notes, Reason, Scan, SliceError

VIEWS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""View -> the axis of a right-anterior-superior volume that counts its slices."""
HU_LOW, HU_WIDTH = -1350.0, 1500.0
"""Lower end and width of the lung window, HU (centre -600; method/README.md §7)."""


def hu_to_uint8(hu: np.ndarray) -> np.ndarray:
    """Hounsfield units to the 8-bit lung window (centre -600, width 1500), truncated; any shape, NaN gives 0.

    Computed in float64 whatever comes in, so that float32 and integer HU give the same grey values. Source:
    method/README.md §7.

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
    """The slices of a view, (n, rows, columns), as a radiologist looks at them (method/README.md §7).

    Axial slices run feet to head, seen from the feet: front up, the patient's right at the left. Coronal ones run back
    to front, seen from the front: head up, right at the left. Sagittal ones run left to right, seen from the left: head
    up, front at the left. ``turn`` is the (3, 2) nibabel orientation of the volume's axes; the result is a view of
    ``volume``.
    """
    return np.rot90(np.moveaxis(nib.apply_orientation(volume, turn), VIEWS[view], 0), axes=(1, 2))[..., ::-1]


def volume_scan(
    notes: Notes,
    shape: tuple[int, ...],
    affine: np.ndarray,
    view: str,
    values: Callable[[tuple[int, ...]], np.ndarray],
    slope: float = 1.0,
    intercept: float = 0.0,
) -> Scan:
    """A view of a volume of that shape, or of the first of several; slice k is named k.

    ``values`` is given the shape's first three parts and gives the stored values, (x, y, z), with the first slice read.
    Raises `SliceError` where there is no slice.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise SliceError(f"{Reason.NO_SLICES}: shape {shape}")
    if any(count > 1 for count in shape[3:]):
        notes.add("", "warned", f"{Reason.SEVERAL_VOLUMES}: shape {shape}")
    shape = (*shape, 1)[:3]
    turn = _axes(affine, shape, notes)
    names = map(str, range(slice_count(shape, turn, view)))
    return Scan(
        notes, names, loaded_once(lambda: _windowed(slices_of(values(shape), turn, view), notes, slope, intercept))
    )


def _axes(affine: np.ndarray, shape: tuple[int, ...], notes: Notes) -> np.ndarray:
    """(3, 2) nibabel orientation of a volume's axes; what the affine does not tell is noted.

    An identity affine is what saving a bare array gives, and bare arrays of ITK and PyTorch users begin with z. Axial
    slices have square pixels: others are doubted.
    """
    sound = np.isfinite(affine).all() and np.linalg.det(affine[:3, :3])
    turn = nib.io_orientation(affine) if sound else np.full((3, 2), np.nan)
    if not np.isfinite(turn).all():
        notes.add("", "warned", Reason.BAD_AFFINE)
        turn = nib.orientations.axcodes2ornt("RAS")
    bare = np.array_equal(np.abs(affine), np.eye(4)) and shape[1] == shape[2] != shape[0]
    if bare:
        notes.add("", "warned", f"{Reason.AXES}: identity affine, shape {shape[0]} x {shape[1]} x {shape[2]}")
    spacing = np.sqrt(np.square(affine[:3, :3]).sum(axis=0))[np.argsort(turn[:, 0])]
    if not bare and max(spacing[:2]) > 1.5 * min(spacing[:2]):
        notes.add("", "warned", f"{Reason.NOT_AXIAL}: pixels of {spacing[0]:.2g} x {spacing[1]:.2g} mm")
    return nib.orientations.axcodes2ornt("SPL") if bare else turn


def _windowed(planes: np.ndarray, notes: Notes, slope: float = 1.0, intercept: float = 0.0) -> np.ndarray:
    """(n, rows, columns) stored values -> uint8 of the lung window; no more than one plane is held as float."""
    slices, odd = np.empty(planes.shape, np.uint8), 0
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float64 are not finite, and counted
        for k, plane in enumerate(planes):
            hu = plane.astype(np.float64)
            hu *= slope
            hu += intercept
            finite = np.isfinite(hu)
            odd += hu.size - np.count_nonzero(finite)
            hu[~finite] = -np.inf
            slices[k] = hu_to_uint8(hu)
    if odd:
        notes.add("", "warned", f"{Reason.NOT_FINITE}: {odd} voxels")
    return slices


def loaded_once(read: Callable[[], np.ndarray]) -> Load:
    """The `Load` of a scan whose slices, (n, rows, columns), are read together, with the first one asked for.

    A `SliceError` of ``read`` is one of all slices; ``read`` is not tried again.
    """

    @functools.cache
    def slices() -> np.ndarray | str:
        try:
            return read()
        except SliceError as error:
            return error.reason

    def load(k: int) -> tuple[np.ndarray, list[str]]:
        if isinstance(found := slices(), str):
            raise SliceError(found, whole=True)
        return np.ascontiguousarray(found[k]), []

    return load
