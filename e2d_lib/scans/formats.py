"""Which format a file or folder is in, told by names and, where they tell nothing, by the first bytes."""

import contextlib
import gzip
import logging
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from e2d_lib.scans.findings import Notes, Reason, SliceError, short

SUFFIXES = {
    "jpeg": (".jpg", ".jpeg", ".png"),
    "nifti": (".nii", ".nii.gz"),
    "dicom": (".dcm", ".dicom", ".ima"),
    "itk": (".mha", ".mhd", ".nrrd", ".nhdr", ".hdr"),
}
"""Format -> how the names of its files end. "itk" is what SimpleITK reads."""
PARTS = {".raw": (".mhd", ".nhdr"), ".zraw": (".mhd",), ".raw.gz": (".nhdr",), ".img": (".hdr",), ".img.gz": (".hdr",)}
"""Ending of a file of values -> the endings of the header that may lie beside it and name it."""
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "dicomdir"})
TEXTS = (".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".rst", ".pdf", ".doc", ".docx", ".xls", ".xlsx")
TEXTS += (".html", ".htm", ".log", ".yaml", ".yml", ".py", ".ipynb", ".parquet")
"""Endings of files that go with scans and are none."""
_MASK = re.compile(
    r"(^|[^a-z])(\w*masks?|segs?|segmentations?|labels?(tr|ts|map)?|annotations?|gt|groundtruth|rois?)([^a-z]|$)", re.I
)
_LOCK = threading.RLock()  # warnings filters and loggers are the process's: one listener at a time


def natural_key(name: str) -> tuple[Any, ...]:
    """Sorting key under which numbers inside a name count as numbers; equal only for equal names.

    >>> sorted(["s10", "s9", "s09"], key=natural_key)
    ['s09', 's9', 's10']
    """
    parts = re.split(r"(\d+)", name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def file_kind(name: str) -> str:
    """Format that a file's name tells: "jpeg" (PNG too), "nifti", "dicom", "itk" or ""; capitals don't matter."""
    name = name.lower()
    for kind, suffixes in SUFFIXES.items():  # a generator would take longer, and all files go through here
        if name.endswith(suffixes):
            return kind
    return ""


def format_of(path: str) -> str:
    """`file_kind`, or "dicom" where the name tells nothing and the first bytes do."""
    return file_kind(path) or ("dicom" if looks_like_dicom(path) else "")


def names_mask(name: str) -> bool:
    """Whether a file's or folder's name says that it holds masks.

    >>> [names_mask(n) for n in ("ct_mask.nii.gz", "Lung_Mask", "labelsTr", "segment 3.png", "unmasked.nii")]
    [True, True, True, False, False]
    """
    return bool(_MASK.search(re.sub(r"(?i)unmasked", "", name)))


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
    if (suffix and not suffix.isdecimal()) or is_hidden(os.path.basename(path)) or not os.path.isfile(path):
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
        return format_of(folder) or "jpeg"
    with contextlib.suppress(OSError):
        # images beside a volume are its previews, and don't end the search
        return next((kind for kind in formats_in(folder) if kind != "jpeg"), "jpeg")
    return "jpeg"


def formats_in(folder: str) -> Iterator[str]:
    """The format of each of a folder's files that has one."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_hidden(entry.name) and not is_folder(entry) and (kind := format_of(entry.path)):
                yield kind


def split_series(path: str) -> tuple[str, str]:
    """``folder#UID`` as (folder, UID); any path that exists as it stands as (path, "")."""
    path = on_disk(path)
    folder, mark, series = path.rpartition("#")
    return (path, "") if not mark or os.path.exists(path) else (folder, series)


def on_disk(path: str) -> str:
    r"""The path that `printable` made ``path`` of, where the disk has that one: its \xNN are bytes again."""
    if "\\x" not in path or os.path.exists(path):
        return path
    return os.fsdecode(re.sub(rb"\\x([89a-f][0-9a-f])", lambda m: bytes([int(m[1], 16)]), os.fsencode(path)))


def strangers(names: Iterable[str]) -> list[tuple[str, str]]:
    """(name, reason) of the files among a folder's that no reader takes, natural order; parts of others are left out.

    Many files of one unknown ending are one entry.
    """
    names = sorted(names, key=natural_key)
    lower = {name.lower() for name in names}
    found, unknown = [], Counter()
    for name in names:
        stem, ending = _ending(name)
        if is_hidden(name):
            found.append((name, Reason.TWIN if name.startswith("._") else Reason.SYSTEM_FILE))
        elif file_kind(name) or ending in TEXTS or not ending or ending[1:].isdecimal():
            found.append((name, Reason.OTHER_FILE))
        elif not any(stem.lower() + head in lower for head in PARTS.get(ending, ())):
            unknown[ending] += 1
            found.append((name, f"{Reason.UNKNOWN_FORMAT}: {ending}"))
    many = {ending for ending, count in unknown.items() if count > 3}
    kept = [(name, reason) for name, reason in found if _ending(name)[1] not in many]
    return kept + [
        (f"*{ending}", f"{Reason.UNKNOWN_FORMAT}: {unknown[ending]} files {ending}") for ending in sorted(many)
    ]


def _ending(name: str) -> tuple[str, str]:
    """(stem, ending in small letters); of a packed file both of its endings."""
    stem, ending = os.path.splitext(name)
    if ending.lower() in (".gz", ".bz2", ".zst", ".xz"):
        stem, inner = os.path.splitext(stem)
        ending = inner + ending
    return stem, ending.lower()


def listed(folder: str, kind: str, notes: Notes) -> list[str]:
    """The names of a kind in a folder, in natural order; other files are noted, folders are none of the scan's."""
    names, others = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            found = not is_hidden(entry.name) and format_of(entry.path) == kind
            if found or not is_folder(entry):
                (names if found else others).append(entry.name)
    for name, reason in strangers(others):
        notes.add(name, "excluded", reason)
    return sorted(names, key=natural_key)


def only_file(path: str, kind: str, called: str) -> str:
    """The file itself, or the one of the kind in a folder, masks beside it left aside. ``called``: what such files are.

    Raises `SliceError` where the folder holds another number of them, or the file is empty.
    """
    if os.path.isdir(path):
        inside = [n for n in os.listdir(path) if not is_hidden(n) and file_kind(n) == kind and not names_mask(n)]
        if len(inside) != 1:
            raise SliceError(f"{Reason.NO_SLICES}: {len(inside)} {called} in the folder, expected 1")
        path = os.path.join(path, inside[0])
    if not os.path.getsize(path):
        raise SliceError(Reason.EMPTY_FILE)
    return path


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """What reading a file raises, as a `SliceError`: broken files make parsers raise anything."""
    try:
        yield
    except SliceError:
        raise
    except Exception as error:
        reason = f"{Reason.UNDECODABLE}: {short(error, path)}"
        if isinstance(error, EOFError) or re.search("less than expected|no pixel data", str(error)):
            reason = f"{Reason.TRUNCATED}: {short(error, path)}"
        elif isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            reason = f"{Reason.UNREADABLE}: {error.strerror or short(error, path)}"
        raise SliceError(reason) from None


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Collect what pydicom and nibabel say beside their result: Python warnings and log records, as short lines."""
    said: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            said.append(record.getMessage())
        return False

    with _LOCK, warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as after:
        warnings.simplefilter("always")
        for logger in (logging.getLogger("pydicom"), logging.getLogger("nibabel.global")):
            logger.addFilter(take)
            after.callback(logger.removeFilter, take)
        yield said
        said.extend(str(w.message) for w in caught)
