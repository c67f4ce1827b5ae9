"""One CT volume whose lungs are known or estimated, and the ways to spoil it on purpose.

Arrays are (right, front, head): the axes grow to the patient's right, front and head, as in canonical NIfTI. The mask
of the lungs goes with the volume through whatever is done to it, so that what a method keeps of them can be counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from scipy import ndimage

from e2d_lib import io
from e2d_lib.elsewhere.masks import read_mask
from e2d_lib.method import ssfl
from e2d_lib.phantom import phantom
from e2d_lib.scans.formats import guess_format
from e2d_lib.scans.readers import SliceError, hu_to_uint8, open_scan
from e2d_lib.scans.volume import HU_LOW, HU_WIDTH, slices_of

CANONICAL = nib.orientations.axcodes2ornt("RAS")
PADDING, METAL = -1024, 8000
"""HU of what lies outside the field of view, and of titanium."""

BAR = 0.045  # radius of a metal bar, in widths of the lungs
RIM = 3  # pixels taken off the body to part it from the table

WATER = 0.019  # attenuation, 1/mm
LUNG_WIDTH = 260
"""mm, of both lungs of a usual chest: what a pixel is taken to be where streaks need it."""


class VolumeError(ValueError):
    """A volume that cannot be used here; one line says why."""


@dataclass(frozen=True)
class Volume:
    """One CT volume and where its lungs are.

    hu: (x, y, z) int16, HU, canonical axes. lung: (x, y, z) bool. name: "phantom", or the file's. known: whether
    ``lung`` is the truth, or `estimate_lung`'s.
    """

    hu: np.ndarray
    lung: np.ndarray
    name: str = "phantom"
    known: bool = True

    def slices(self, view: str) -> np.ndarray:
        """(n, rows, columns) uint8: what a reader gives for this view."""
        return hu_to_uint8(slices_of(self.hu, CANONICAL, view))

    def lung_slices(self, view: str) -> np.ndarray:
        """(n, rows, columns) bool, beside ``slices``."""
        return slices_of(self.lung, CANONICAL, view)

    def part(self, *index: slice) -> "Volume":
        return replace(self, hu=self.hu[index], lung=self.lung[index])


# ---------------------------------------------------------------------------------------------- where volumes are from


def phantom_volume(seed: int, *, matrix: int = 192, n_slices: int = 96) -> Volume:
    """A phantom patient as a volume of (matrix, matrix, n_slices), its lungs known.

    >>> phantom_volume(0, matrix=32, n_slices=4).hu.shape
    (32, 32, 4)
    """
    patient = phantom.patient(seed, matrix=matrix, n_slices=n_slices)
    order = range(n_slices) if patient.scanner.feet_first else reversed(range(n_slices))
    rendered = [patient.render(k) for k in order]
    # rows go to the back, columns to the left
    hu, mask = (np.stack(part)[:, ::-1, ::-1].transpose(2, 1, 0) for part in zip(*rendered, strict=True))
    return Volume(np.rint(np.clip(hu, phantom.OUTSIDE_FOV, 3071)).astype(np.int16), mask > 0)


def read_volume(path: str | Path, mask: str | Path = "") -> Volume:
    """A NIfTI file or a DICOM series, through the readers; its lungs are the ``mask``'s, or estimated without one.

    HU are those of the readers' 8-bit lung window, -1350 to 150 in steps of 6: the method sees no more, and windowed
    again they give the same slices.
    Raises VolumeError where it cannot be read as one volume, or the mask's grid is another; MaskError for no mask.
    """
    # coronal slices, as only one volume has them
    scan = open_scan({"path": str(path), "format": guess_format(str(path))}, view="coronal")
    try:
        images = [scan.read(k) for k in range(len(scan))]
    except SliceError as error:
        raise VolumeError(f"{path} is no volume: {error.reason}") from None
    if not images:
        why = "; ".join(finding.reason for finding in scan.findings if finding.outcome == "excluded")
        raise VolumeError(f"{path} is no volume: {why}")
    grey = np.stack(images)[:, ::-1, ::-1].transpose(2, 0, 1)  # (front, head down, left) -> canonical
    hu = unwindowed(grey)
    lung = read_mask(mask, path) if mask else estimate_lung(hu)
    if lung.shape != hu.shape:
        raise VolumeError(f"{mask} has {lung.shape} voxels, {path} {hu.shape}: not its mask, or slices are missing")
    return Volume(hu, lung, Path(path).name, known=bool(mask))


def unwindowed(grey: np.ndarray, low: float = HU_LOW, width: float = HU_WIDTH) -> np.ndarray:
    """uint8 of a window -> HU, int16: the middle of each grey value's step, so that windowing gives it back.

    >>> unwindowed(np.uint8([0, 100, 255])).tolist()
    [-1347, -759, 153]
    """
    return np.rint((grey.astype(np.float64) + 0.5) * (width / 255) + low).astype(np.int16)


def estimate_lung(hu: np.ndarray) -> np.ndarray:
    """(x, y, z) bool: lungs by Hounsfield units in three dimensions, for volumes without a mask.

    Connected air (below -500 HU) that reaches no side of the picture (feet and head may be reached), is at least
    a 2000th of the volume, and is tissue rather than gas (median above -930 HU). Vessels inside are filled.
    """
    labels, n = ndimage.label(hu < -500)
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    outside = np.unique(np.concatenate([side.ravel() for side in sides]))
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    large = [k for k in np.flatnonzero(sizes >= hu.size / 2000) if k and k not in outside]
    lungs = [k for k in large if np.median(hu[labels == k]) > -930]
    found = np.isin(labels, lungs)
    return found | ndimage.binary_closing(found, iterations=2)  # which alone would take off what reaches the ends


# ---------------------------------------------------------------------------------------------- failures, constructed


def prone(volume: Volume, rng: np.random.Generator) -> Volume:
    """Turned half round the long axis, the table with it."""
    return volume.part(np.s_[::-1], np.s_[::-1])


def upside_down(volume: Volume, rng: np.random.Generator) -> Volume:
    """Axial slices from head to feet."""
    return volume.part(np.s_[:], np.s_[:], np.s_[::-1])


def thick_table(volume: Volume, rng: np.random.Generator) -> Volume:
    """A plate as bright as tissue under the back, as wide as the picture, up to twice as thick as the crop's filter."""
    hu = volume.hu.copy()
    top = max(int(np.flatnonzero(_body(hu).any((0, 2)))[0]) - RIM - 1, 0)
    plate = hu[:, max(top - 2 * ssfl.CROP_ERODE, 0) : top]
    np.maximum(plate, 60, out=plate)
    return replace(volume, hu=hu)


def metal(volume: Volume, rng: np.random.Generator) -> Volume:
    """Two titanium bars in the chest wall, right and left, as long as the lungs, and the streaks that they cast."""
    (x0, x1), (y0, y1), (z0, z1) = ((side.start, side.stop) for side in _lung_box(volume))
    width, hu = x1 - x0, volume.hu.copy()
    x, y = np.ogrid[: hu.shape[0], : hu.shape[1]]
    bars = np.zeros(hu.shape[:2], bool)
    for middle in (x0 - 1.5 * BAR * width, x1 - 1 + 1.5 * BAR * width):
        bars |= (x - middle) ** 2 + (y - (y0 + y1) / 2) ** 2 <= (BAR * width) ** 2
    hu[bars, z0:z1] = METAL
    streaks = _streaks(bars, LUNG_WIDTH / width)
    hu[:, :, z0:z1] = np.clip(hu[:, :, z0:z1] + streaks[:, :, None], PADDING, 3071)
    return replace(volume, hu=hu)


def small_circle(volume: Volume, rng: np.random.Generator) -> Volume:
    """A circular field of view of 80 % of the lungs' width, with air for what is outside."""
    sides = _lung_box(volume)[:2]
    middle = [(side.start + side.stop - 1) / 2 for side in sides]
    x, y = np.ogrid[: volume.hu.shape[0], : volume.hu.shape[1]]
    radius = 0.4 * (sides[0].stop - sides[0].start)
    inside = ((x - middle[0]) ** 2 + (y - middle[1]) ** 2 <= radius**2)[:, :, None]
    return replace(volume, hu=np.where(inside, volume.hu, PADDING).astype(np.int16), lung=volume.lung & inside)


def close_crop(volume: Volume, rng: np.random.Generator) -> Volume:
    """A picture cut out around the lungs, a twentieth of their extent inside."""
    sides = _lung_box(volume)[:2]
    return volume.part(*(np.s_[s.start + (s.stop - s.start) // 20 : s.stop - (s.stop - s.start) // 20] for s in sides))


def soft_tissue_window(volume: Volume, rng: np.random.Generator) -> Volume:
    """Exported in a soft-tissue window (centre 40, width 400), and those grey values taken for a lung window's."""
    low, width = 40 - 400 / 2, 400
    grey = np.clip((volume.hu.astype(np.float64) - low) / width * 255, 0, 255).astype(np.uint8)
    return replace(volume, hu=unwindowed(grey))


def not_hounsfield(volume: Volume, rng: np.random.Generator) -> Volume:
    """Stored values without their rescale intercept: all of them 1024 too high."""
    return replace(volume, hu=(np.maximum(volume.hu, PADDING) - PADDING).astype(np.int16))


def low_dose(volume: Volume, rng: np.random.Generator) -> Volume:
    """Noise of 200 HU in every voxel, some ten times that of a usual scan."""
    noise = rng.standard_normal(volume.hu.shape, np.float32) * np.float32(200)
    return replace(volume, hu=np.rint(np.clip(volume.hu + noise, -2048, 3071)).astype(np.int16))


def white_lung(volume: Volume, rng: np.random.Generator) -> Volume:
    """One lung without air: about 30 HU, as collapsed or in a severe pneumonia. It is lung all the same."""
    x = _lung_box(volume)[0]
    side = np.arange(volume.hu.shape[0])[:, None, None] < (x.start + x.stop) // 2
    opaque = ndimage.binary_dilation(volume.lung, iterations=2) & side
    noise = rng.normal(30, 15, volume.hu.shape)
    return replace(volume, hu=np.where(opaque, np.maximum(volume.hu, noise), volume.hu).astype(np.int16))


def dense_lungs(volume: Volume, rng: np.random.Generator) -> Volume:
    """Both lungs 200 HU denser, as in expiration or oedema."""
    return replace(volume, hu=(volume.hu + np.int16(200) * volume.lung).astype(np.int16))


def thick_slices(volume: Volume, rng: np.random.Generator) -> Volume:
    """Every fourth axial slice."""
    return volume.part(np.s_[:], np.s_[:], np.s_[::4])


def coarse_pixels(volume: Volume, rng: np.random.Generator) -> Volume:
    """Every second row and column of the axial slices."""
    return volume.part(np.s_[::2], np.s_[::2])


def cut_through_lungs(volume: Volume, rng: np.random.Generator) -> Volume:
    """A scan that ends half-way up the lungs, as one of the heart or of the abdomen does."""
    z = _lung_box(volume)[2]
    return volume.part(np.s_[:], np.s_[:], np.s_[: (z.start + z.stop) // 2])


FAILURES: dict[str, Callable[[Volume, np.random.Generator], Volume]] = {
    make.__name__.replace("_", " "): make
    for make in (
        *(prone, upside_down, thick_table, metal, small_circle, close_crop, soft_tissue_window, not_hounsfield),
        *(low_dose, white_lung, dense_lungs, thick_slices, coarse_pixels, cut_through_lungs),
    )
}
"""What could go wrong, by name; the lungs go with the volume."""

WHY = {name.replace("_", " "): why for name, why in io.shipped("e2d_lib.elsewhere", "failures.yaml").items()}
"""What of the method should then act."""


def spoilt(volume: Volume, *, seed: int = 0) -> dict[str, Volume]:
    """The volume spoilt in every way of ``FAILURES``, by name; the same seed gives the same volumes."""
    rng = np.random.default_rng(seed)
    return {name: make(volume, rng) for name, make in FAILURES.items()}


def _lung_box(volume: Volume) -> tuple[slice, ...]:
    """The lungs' extent along the three axes, or the body's where there is no lung."""
    return ndimage.find_objects((volume.lung if volume.lung.any() else _body(volume.hu)).astype(np.uint8))[0]


def _body(hu: np.ndarray) -> np.ndarray:
    """The largest connected piece of tissue once a rim is taken off, so that a table hangs on it no more."""
    labels, n = ndimage.label(ndimage.binary_erosion(hu > -300, iterations=RIM))
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if n else hu > -300


def _streaks(bars: np.ndarray, pixel: float, *, hardening: float = 1.0, angles: int = 180) -> np.ndarray:
    """(x, y) HU that metal ``bars`` (x, y) bool add to a slice by beam hardening; ``pixel`` in mm.

    A ray that metal weakens by p (natural logarithm) reads p / (1 + hardening p). What is missing is filtered and
    projected back, as reconstruction does: dark between bars, where rays cross both.
    """
    size = max(bars.shape)
    pad = [((size - n) // 2, size - n - (size - n) // 2) for n in bars.shape]
    metal = np.pad(bars, pad).astype(np.float32) * np.float32((METAL + 1000) / 1000 * WATER * pixel)
    ramp = np.abs(np.fft.rfftfreq(2 * size))
    centre, error = ((size - 1) / 2, (size - 1) / 2), np.zeros((size, size), np.float32)
    for angle in np.arange(angles) * (180 / angles):
        line = cv2.warpAffine(metal, cv2.getRotationMatrix2D(centre, angle, 1), (size, size)).sum(0)
        missing = line / (1 + hardening * line) - line
        filtered = np.fft.irfft(np.fft.rfft(missing, 2 * size) * ramp)[:size].astype(np.float32)
        back = cv2.getRotationMatrix2D(centre, -angle, 1)
        error += cv2.warpAffine(np.tile(filtered, (size, 1)), back, (size, size))
    (left, _), (low, _) = pad
    hu = error * np.float32(np.pi / angles * 1000 / (WATER * pixel))
    return hu[left : left + bars.shape[0], low : low + bars.shape[1]]
