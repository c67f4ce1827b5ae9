"""Scans as 8-bit slices, from folders of images, NIfTI volumes and DICOM series, with a report of the dirt.

Nothing that lies on disk makes opening a scan raise: a scan that cannot be read has no slices, and a finding that says
why. A slice that cannot be read raises `SliceError`, and leaves a finding. Nothing is skipped without one.
"""

import os
from collections.abc import Mapping
from typing import Any

from e2d_lib.scans.dicom import open_dicom
from e2d_lib.scans.findings import Finding, Notes, Reason, Scan, SliceError
from e2d_lib.scans.formats import guess_format, on_disk, split_series
from e2d_lib.scans.images import open_images
from e2d_lib.scans.itk import open_itk
from e2d_lib.scans.nifti import open_nifti
from e2d_lib.scans.patients import CohortError
from e2d_lib.scans.volume import VIEWS, hu_to_uint8

__all__ = ["VIEWS", "CohortError", "Finding", "Reason", "Scan", "SliceError"]
__all__ += ["hu_to_uint8", "open_scan", "split_series"]
OPENERS = {"jpeg": open_images, "nifti": open_nifti, "dicom": open_dicom, "itk": open_itk}


def open_scan(row: Mapping[str, Any], *, view: str = "axial") -> Scan:
    """The scan of a cohort row (or any mapping with ``path``, and perhaps ``scan_id`` and ``format``).

    ``path`` is a folder of images, an image, a NIfTI, MetaImage, NRRD or Analyze file, a folder of DICOM files, one
    DICOM file, or ``folder#UID``, the series of that SeriesInstanceUID in a folder of several. ``view`` is axial,
    coronal or sagittal; the last two need a volume (one file, or an axial DICOM series). Raises `CohortError` for an
    unknown view or format, and nothing for what lies on disk.
    """
    if view not in VIEWS:
        raise CohortError(f"view is {view!r}, expected one of {', '.join(VIEWS)}")
    path = on_disk(os.fspath(row["path"]))
    scan_id = str(row.get("scan_id", row["path"]))
    kind = row.get("format") or guess_format(path)
    if kind not in OPENERS:
        raise CohortError(f"scan {scan_id}: format is {kind!r}, expected one of {', '.join(OPENERS)}")
    notes = Notes(scan_id)
    try:
        if not os.path.exists(split_series(path)[0]):
            raise SliceError(Reason.MISSING)
        scan = OPENERS[kind](notes, path, view)
    except (OSError, SliceError) as error:
        told = isinstance(error, SliceError)
        notes.add("", "excluded", error.reason if told else f"{Reason.UNREADABLE}: {error.strerror or error}")
        scan = Scan(notes)
    if not scan.names and not any(f.slice == "" and f.outcome == "excluded" for f in notes):
        notes.add("", "excluded", Reason.NO_SLICES)
    return scan
