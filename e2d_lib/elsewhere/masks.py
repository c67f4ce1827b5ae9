"""Lungs that someone drew: DICOM segmentations by highdicom (the extra ``open``), other masks by SimpleITK."""

import re
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

LUNG = re.compile(r"^(?!.*(nodule|lesion|tumou?r|mass|neoplas|cancer|gtv)).*lung", re.IGNORECASE)
"""What names a segment of lung, and of nothing in it."""


class MaskError(ValueError):
    """A mask that cannot be read or lies elsewhere than its volume; one line says why."""


def read_mask(path: str | Path, volume: str | Path) -> np.ndarray:
    """(x, y, z) bool, canonical axes: the lungs of a mask in the grid of ``volume``.

    path: a DICOM segmentation (``.dcm``) of the series in the folder ``volume``, of whose segments those called lung,
    by label or type, are taken together; or a volume that SimpleITK reads, in the CT's grid, where all that is not 0 is
    lung (LUNA16: 3 and 4, as 5 is the trachea). Raises MaskError.
    """
    try:
        return _segmentation(path, volume) if Path(path).suffix.lower() == ".dcm" else _image(path)
    except ImportError:
        raise MaskError("masks need more packages: pip install 'e2d-study[open,formats]'") from None
    except MaskError:
        raise
    except (InvalidDicomError, OSError, RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise MaskError(f"{path} is no mask of {volume}: {str(error).strip().splitlines()[-1]}") from None


def _image(path: str | Path) -> np.ndarray:
    import SimpleITK as sitk

    values = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS")).transpose(2, 1, 0)
    return np.isin(values, (3, 4)) if "seg-lungs-LUNA16" in Path(path).parts else values != 0


def _segmentation(path: str | Path, volume: str | Path) -> np.ndarray:
    import highdicom as hd

    seg = hd.seg.segread(str(path))
    described = {number: seg.get_segment_description(number) for number in seg.segment_numbers}
    names = {number: f"{it.segment_label} ({it.segmented_property_type.meaning})" for number, it in described.items()}
    lungs = [number for number, name in names.items() if LUNG.search(name)]
    if not lungs:
        raise MaskError(f"{path} has no segment named lung, only {', '.join(names.values())}")
    headers = [pydicom.dcmread(p, stop_before_pixels=True, force=True) for p in Path(volume).iterdir() if p.is_file()]
    of_series = {uid for _, _, uid in seg.get_source_image_uids()}
    headers = [header for header in headers if header.get("SOPInstanceUID") in of_series]
    spacing, order = hd.spatial.get_series_volume_positions(headers, rtol=0.02) if headers else (None, None)
    if spacing is None:
        raise MaskError(f"{path} is of another series than {volume}, or its slices are not evenly spaced")
    first = headers[order.index(0)]
    grid = hd.VolumeGeometry.from_attributes(
        image_position=first.ImagePositionPatient,
        image_orientation=first.ImageOrientationPatient,
        rows=first.Rows,
        columns=first.Columns,
        pixel_spacing=first.PixelSpacing,
        spacing_between_slices=spacing,
        number_of_frames=len(headers),
        coordinate_system="PATIENT",
    )
    drawn = seg.get_volume(segment_numbers=lungs, combine_segments=True, skip_overlap_checks=True, rtol=0.02)
    return drawn.match_geometry(grid, tol=0.05).to_patient_orientation("RAS").array > 0
