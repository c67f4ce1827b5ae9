"""Scans as MetaImage, NRRD and Analyze volumes (.mha, .mhd, .nrrd, .nhdr, .hdr with .img), through SimpleITK."""

from typing import Any

import nibabel as nib
import numpy as np

from e2d_lib.scans.findings import Notes, Reason, Scan, SliceError, short
from e2d_lib.scans.formats import only_file
from e2d_lib.scans.volume import axes_of, loaded_once, slice_count, slices_of, windowed

INSTALL = 'pip install "e2d-study[formats]"'


def open_itk(notes: Notes, path: str, view: str) -> Scan:
    """The slices of a volume's view, as those of NIfTI; the header is read here, the values with the first slice."""
    if not (path := only_file(path, "itk", notes, "volumes")):
        return Scan(notes)
    try:
        import SimpleITK as sitk  # 262 MB, not in the light install
    except ImportError:
        notes.add("", "excluded", f"{Reason.NO_READER}: {INSTALL}")
        return Scan(notes)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what it has to say comes as an error, or is in the header
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        notes.add("", "excluded", f"{Reason.UNDECODABLE}: {_said(error, path)}")
        return Scan(notes)
    shape, n = reader.GetSize(), reader.GetDimension()
    if reader.GetNumberOfComponents() > 1 or n < 2 or min(shape) < 1:
        kind = Reason.NO_SLICES if n < 2 or min(shape) < 1 else Reason.NOT_HU
        notes.add("", "excluded", f"{kind}: shape {shape}, {reader.GetNumberOfComponents()} values a voxel")
        return Scan(notes)
    if any(count > 1 for count in shape[3:]):
        notes.add("", "warned", f"{Reason.SEVERAL_VOLUMES}: shape {shape}")
    shape = (*shape, 1)[:3]
    affine = np.eye(4)
    directions = np.array(reader.GetDirection()).reshape(n, n) * reader.GetSpacing()
    affine[: min(n, 3), : min(n, 3)] = directions[:3, :3]
    affine[:2] *= -1  # ITK points left and back, nibabel right and front
    turn = axes_of(nib.io_orientation(affine), affine, shape, notes)
    names = map(str, range(slice_count(shape, turn, view)))
    return Scan(notes, names, loaded_once(lambda: windowed(slices_of(_values(reader, path, shape), turn, view), notes)))


def _values(reader: Any, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The (first) volume's values in HU, (x, y, z)."""
    import SimpleITK as sitk

    try:
        values = sitk.GetArrayFromImage(reader.Execute())
    except (RuntimeError, MemoryError) as error:
        raise SliceError(f"{Reason.UNDECODABLE}: {_said(error, path)}") from None
    return values.reshape(-1, *shape[::-1])[0].transpose(2, 1, 0)


def _said(error: Exception, path: str) -> str:
    """What is behind SimpleITK's list of places in its code."""
    return short(str(error).rpartition("ERROR: ")[2].rpartition("): ")[2], path)
