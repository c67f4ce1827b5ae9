"""Scans as MetaImage, NRRD and Analyze volumes (.mha, .mhd, .nrrd, .nhdr, .hdr with .img), through SimpleITK."""

import numpy as np

from e2d_lib.scans.findings import Notes, Reason, Scan, SliceError, printable, short
from e2d_lib.scans.formats import only_file
from e2d_lib.scans.volume import volume_scan

INSTALL = 'pip install "e2d-study[formats]"'


def open_itk(notes: Notes, path: str, view: str) -> Scan:
    """The slices of a volume's view, as those of NIfTI; the header is read here, the values with the first slice."""
    path = only_file(path, "itk", "volumes")
    try:
        import SimpleITK as sitk  # 262 MB, not in the light install
    except ImportError:
        raise SliceError(f"{Reason.NO_READER}: {INSTALL}") from None
    if printable(path) != path:  # SimpleITK would end the process
        raise SliceError(f"{Reason.UNREADABLE}: a path that is not UTF-8, which SimpleITK does not take; rename it")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what it has to say comes as an error, or is in the header
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise SliceError(f"{Reason.UNDECODABLE}: {_said(error, path)}") from None
    if (values := reader.GetNumberOfComponents()) > 1:
        raise SliceError(f"{Reason.NOT_HU}: {values} values a voxel")
    shape, n = reader.GetSize(), reader.GetDimension()
    affine = np.eye(4)
    directions = np.array(reader.GetDirection()).reshape(n, n) * reader.GetSpacing()
    affine[: min(n, 3), : min(n, 3)] = directions[:3, :3]
    affine[:2] *= -1  # ITK points left and back, nibabel right and front

    def values(shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except (RuntimeError, MemoryError) as error:
            raise SliceError(f"{Reason.UNDECODABLE}: {_said(error, path)}") from None
        return array.reshape(-1, *shape[::-1])[0].transpose(2, 1, 0)

    return volume_scan(notes, shape, affine, view, values)


def _said(error: Exception, path: str) -> str:
    """What is behind SimpleITK's list of places in its code."""
    return short(str(error).rpartition("ERROR: ")[2].rpartition("): ")[2], path)
