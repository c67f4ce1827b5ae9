"""Which format a file or folder is in, told by names and, where they tell nothing, by the first bytes."""

import contextlib
import os
import re
from typing import Any

from e2d_lib.scans.findings import Notes, Reason

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})


def natural_key(name: str) -> tuple[Any, ...]:
    """Sorting key under which numbers inside a name count as numbers; equal only for equal names.

    >>> sorted(["s10", "s9", "s09"], key=natural_key)
    ['s09', 's9', 's10']
    """
    parts = re.split(r"(\d+)", name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def file_kind(name: str) -> str:
    """Format that a file's name tells: "jpeg" (PNG too), "nifti", "dicom" or ""; capitals don't matter."""
    name = name.lower()
    if name.endswith(IMAGE_SUFFIXES):
        return "jpeg"
    if name.endswith(NIFTI_SUFFIXES):
        return "nifti"
    return "dicom" if name.endswith(DICOM_SUFFIXES) else ""


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def is_folder(entry: os.DirEntry) -> bool:
    """`DirEntry.is_dir`, false also for a link that leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def looks_like_dicom(path: str) -> bool:
    """Whether a file without a telling suffix is DICOM: "DICM" after the preamble, or a first element of group 0008.

    Only names without a suffix or with a number for one (exports are often named by UID) are opened at all.
    """
    suffix = os.path.splitext(path)[1][1:]
    if (suffix and not suffix.isdecimal()) or os.path.basename(path).upper() == "DICOMDIR" or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or (start[:2] == b"\x08\x00" and start[3:4] == b"\x00")


def guess_format(path: str) -> str:
    """Format of a scan at ``path``: the file's, or that of a folder's files; "jpeg" if nothing tells."""
    folder, series = split_series(path)
    if series:
        return "dicom"
    if not os.path.isdir(folder):
        return file_kind(folder) or ("dicom" if looks_like_dicom(folder) else "jpeg")
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name) or is_folder(entry):
                continue
            kind = file_kind(entry.name) or ("dicom" if looks_like_dicom(entry.path) else "")
            if kind in ("nifti", "dicom"):  # images beside a volume are its previews, so that they don't end the search
                return kind
    return "jpeg"


def split_series(path: str) -> tuple[str, str]:
    """``folder#UID`` as (folder, UID); any path that exists as it stands as (path, "")."""
    folder, mark, series = path.rpartition("#")
    return (path, "") if not mark or os.path.exists(path) else (folder, series)


def listed(folder: str, kind: str, notes: Notes) -> list[str]:
    """The names of a kind in a folder, in natural order; other files are noted, folders are none of the scan's."""
    names, others = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            hidden = is_hidden(entry.name)
            if not hidden and file_kind(entry.name) == kind:
                names.append(entry.name)
            elif not is_folder(entry):
                found = not hidden and kind == "dicom" and looks_like_dicom(entry.path)
                (names if found else others).append(entry.name)
    for name in sorted(others, key=natural_key):
        notes.add(name, "excluded", _no_slice(name))
    return sorted(names, key=natural_key)


def _no_slice(name: str) -> str:
    """Why a file that is no slice is none."""
    if name.startswith("._"):
        return Reason.TWIN
    return Reason.SYSTEM_FILE if is_hidden(name) or name.upper() == "DICOMDIR" else Reason.OTHER_FILE
