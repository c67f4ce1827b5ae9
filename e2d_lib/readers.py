"""Scans as 8-bit slices, from folders of images, NIfTI volumes and DICOM series, with a report of the dirt.

Nothing that lies on disk makes opening a scan raise: a scan that cannot be read has no slices, and a finding that says
why. A slice that cannot be read raises `SliceError`, and leaves a finding. Nothing is skipped without one.
"""

import contextlib
import gzip
import logging
import os
import re
import tempfile
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import nibabel as nib
import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, get_decoder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
VIEWS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""View -> the axis of a right-anterior-superior volume that counts its slices."""
HU_LOW, HU_WIDTH = -1350.0, 1500.0
"""Lower end and width of the lung window, HU (centre -600; method.md §7)."""
NO_AIR = -300.0
"""A CT volume whose lowest value, in HU, is above this shows no air: it is hardly in HU."""
SAME_POSITION = 0.01  # mm; DICOM positions closer than this are one slice
CHUNK = 1 << 20  # bytes read at once
PROBES = 8
"""Headers read to tell whether a folder of DICOM files holds one series; only if they disagree are all read."""


class Reason(StrEnum):
    """The vocabulary of `Finding.reason`; a detail may follow it after a colon."""

    # a file that is no slice
    TWIN = "macOS ._ twin"
    SYSTEM_FILE = "hidden or system file"
    OTHER_FILE = "not a slice"
    # a slice or volume that cannot be read
    EMPTY_FILE = "empty file"
    TRUNCATED = "truncated file"
    UNDECODABLE = "undecodable"
    UNREADABLE = "unreadable"
    NO_DECODER = "no decoder for transfer syntax"
    BAD_RESCALE = "bad rescale"
    # an image read with a doubt
    CORRUPT = "corrupt data, decoded in part"
    SIXTEEN_BIT = "16-bit image, high byte kept"
    NOT_HU = "values not in Hounsfield units"
    NOT_FINITE = "values not finite, taken as air"
    NO_RESCALE = "no rescale tags, values taken as HU"
    INVERTED = "MONOCHROME1, inverted"
    PARSER = "reader's warning"
    # numbering and order
    NOT_A_NUMBER = "name not a number"
    SAME_NUMBER = "duplicate slice number"
    NUMBER_GAP = "gap in numbering"
    NO_POSITION = "no position"
    SAME_POSITION = "duplicate position"
    POSITION_GAP = "gap in positions"
    # volumes
    SEVERAL_VOLUMES = "several volumes, first kept"
    BAD_AFFINE = "degenerate affine, axes as stored"
    NO_ORIENTATION = "orientation not stated"
    NO_VIEW = "view needs a volume"
    # DICOM files that are not the scan's slices
    OTHER_MODALITY = "other modality"
    LOCALIZER = "localizer"
    OTHER_SERIES = "other series"
    OTHER_ORIENTATION = "other orientation"
    MULTI_FRAME = "multi-frame"
    COLOUR = "colour"
    # the scan or the cohort
    NO_SLICES = "no slices"
    MISSING = "missing path"
    LINK_LOOP = "link loop"
    OUTSIDE = "outside the manifest's folder"
    OUTSIDE_LAYOUT = "outside the layout"
    LOOSE_IMAGES = "loose images"
    UNKNOWN_COLUMN = "unknown column"
    UNKNOWN_SCAN = "unknown scan"


class Finding(NamedTuple):
    """One piece of dirt and what was done with it.

    ``slice`` is "" where the finding is about the whole scan; ``outcome`` is "kept", "warned" (kept, with a doubt) or
    "excluded"; ``reason`` is a `Reason`, or one followed by ": " and a detail.
    """

    scan_id: str
    slice: str
    outcome: str
    reason: str


class CohortError(ValueError):
    """A data root, manifest or cohort row that cannot be used; the message is one line and says what to do."""


class SliceError(ValueError):
    """A slice that cannot be read; ``reason`` as in `Finding`, ``whole`` true where the scan's other slices fail."""

    def __init__(self, reason: str, *, whole: bool = False):
        super().__init__(reason)
        self.reason = str(reason)
        self.whole = whole


class _Notes(list[Finding]):
    """A scan's findings, each once."""

    def __init__(self, scan_id: str):
        self.scan_id = scan_id

    def add(self, name: str, outcome: str, reason: str) -> None:
        finding = Finding(self.scan_id, name, outcome, str(reason))
        if finding not in self:
            self.append(finding)


Load = Callable[[int], tuple[np.ndarray, list[str]]]
"""Slice index -> the slice, and the reasons for doubt found while it was read. Must not hold the scan: in a cycle, a
volume would stay in memory until the garbage collector comes by."""


class Scan:
    """The slices of one scan, in order; made by `open_scan`.

    ``names`` holds one name for each slice that is there, readable or not; ``findings`` what was found when the scan
    was listed, to which reading adds.
    """

    def __init__(self, notes: _Notes, names: Iterable[str] = (), load: Load | None = None):
        self.scan_id = notes.scan_id
        self.names = tuple(names)
        self.findings = notes
        self._load = load

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Scan({self.scan_id!r}, {len(self)} slices, {len(self.findings)} findings)"

    def read(self, i: int) -> np.ndarray:
        """Slice ``i``: (rows, columns) uint8, grey, C-contiguous.

        Raises `SliceError` if it cannot be read; the finding is added here, not by the caller.
        """
        name = self.names[i]
        try:
            image, doubts = self._load(range(len(self))[i])
        except SliceError as error:
            self.findings.add("" if error.whole else name, "excluded", error.reason)
            raise
        for doubt in doubts:
            self.findings.add(name, "warned", doubt)
        return image


def open_scan(row: Mapping[str, Any], *, view: str = "axial") -> Scan:
    """The scan of a cohort row (or any mapping with ``path``, and perhaps ``scan_id`` and ``format``).

    ``path`` is a folder of images, an image, a NIfTI file, a folder of DICOM files, one DICOM file, or ``folder#UID``,
    the series of that SeriesInstanceUID in a folder of several. ``view`` is axial, coronal or sagittal; the last two
    need a volume (NIfTI, or an axial DICOM series). Raises `CohortError` for an unknown view or format, and nothing for
    what lies on disk.
    """
    if view not in VIEWS:
        raise CohortError(f"view is {view!r}, expected one of {', '.join(VIEWS)}")
    path = os.fspath(row["path"])
    scan_id = str(row.get("scan_id", path))
    kind = row.get("format") or guess_format(path)
    openers = {"jpeg": _open_images, "nifti": _open_nifti, "dicom": _open_dicom}
    if kind not in openers:
        raise CohortError(f"scan {scan_id}: format is {kind!r}, expected one of {', '.join(openers)}")
    notes = _Notes(scan_id)
    try:
        os.stat(split_series(path)[0])
        scan = openers[kind](notes, path, view)
    except FileNotFoundError:
        notes.add("", "excluded", Reason.MISSING)
        return Scan(notes)
    except OSError as error:
        notes.add("", "excluded", f"{Reason.UNREADABLE}: {error.strerror or error}")
        return Scan(notes)
    if not scan.names and not any(f.slice == "" and f.outcome == "excluded" for f in notes):
        notes.add("", "excluded", Reason.NO_SLICES)
    return scan


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


# --- what decoders say -----------------------------------------------------------------------------------------------

_LOCK = threading.RLock()  # stderr, warnings filters and loggers are the process's: one listener at a time
_sink: tuple[int, int] | None = None
# how the warnings of libjpeg, libpng, OpenCV and GDCM begin; a progress bar's line, written meanwhile, is none
_DECODER_LINE = re.compile(
    r"(Corrupt|Premature end of) JPEG|(libpng )?(warning|error): |\[ *(WARN|ERROR)|Invalid SOS|Inconsistent|Unknown Ad",
    re.IGNORECASE,
)


def _sink_file() -> int:
    """Descriptor of this process's nameless file for stderr; a forked child makes its own, lest it share the offset."""
    global _sink
    if _sink is None or _sink[0] != os.getpid():
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("stderr")
        else:
            file, name = tempfile.mkstemp()
            os.unlink(name)
        _sink = (os.getpid(), file)
    return _sink[1]


@contextlib.contextmanager
def _stderr(said: list[str]) -> Iterator[None]:
    """Collect the lines that C libraries write to file descriptor 2 (libjpeg's only report of corrupt data).

    Lines that are no decoder's are written on, unless decoding failed. Costs a few microseconds. Threads take turns
    in here, since descriptor 2 is the process's: decode in parallel by processes.
    """
    with _LOCK:
        try:
            sink = _sink_file()
            terminal = os.dup(2)
        except OSError:  # no stderr, or no room: then nothing is collected
            yield
            return
        os.dup2(sink, 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            os.dup2(terminal, 2)
            if size := os.lseek(sink, 0, os.SEEK_CUR):
                for line in os.pread(sink, size, 0).splitlines(keepends=True):
                    text = line.decode(errors="replace").strip()
                    if failed or _DECODER_LINE.match(text):
                        said.append(text)
                    else:
                        with contextlib.suppress(OSError):
                            os.write(terminal, line)
                os.lseek(sink, 0, os.SEEK_SET)
                os.ftruncate(sink, 0)
            os.close(terminal)


class _Collect(logging.Filter):
    """Takes this thread's records off a logger before its handlers see them."""

    def __init__(self, said: list[str]):
        super().__init__()
        self.said = said
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self.thread:
            return True
        if record.levelno >= logging.WARNING:
            self.said.append(record.getMessage())
        return False


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect what pydicom, nibabel and their decoders say: Python warnings, log records, stderr."""
    said: list[str] = []
    loggers = [logging.getLogger("pydicom"), logging.getLogger("nibabel.global")]
    with _LOCK, _stderr(said), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        collect = _Collect(said)
        for logger in loggers:
            logger.addFilter(collect)
        try:
            yield said
        finally:
            for logger in loggers:
                logger.removeFilter(collect)
            said.extend(str(w.message) for w in caught)


def _short(text: object, path: str = "") -> str:
    """One line of at most 120 characters, which names no folder of this machine."""
    text = str(text) or type(text).__name__
    text = text.replace(path, os.path.basename(path)) if path else text
    return " ".join(text.split())[:120]


# --- folders of images -----------------------------------------------------------------------------------------------


def _open_images(notes: _Notes, path: str, view: str) -> Scan:
    if view != "axial":
        notes.add("", "excluded", f"{Reason.NO_VIEW}: {view} of images")
        return Scan(notes)
    if not os.path.isdir(path):
        return Scan(notes, [os.path.basename(path)], lambda i: _read_image(path))
    names = _in_order(_listed(path, "jpeg", notes), notes)
    return Scan(notes, names, lambda i: _read_image(os.path.join(path, names[i])))


def _listed(folder: str, kind: str, notes: _Notes) -> list[str]:
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


def _in_order(found: list[str], notes: _Notes) -> tuple[str, ...]:
    """Names by number (method.md §1), those that are no number after them in natural order; oddities are noted."""
    numbers: dict[int, str] = {}
    others = []
    for name in sorted(found, key=len):  # 1.jpg before 01.jpg and 1.jpeg
        stem = os.path.splitext(name)[0]
        if not stem.isdecimal():
            others.append(name)
        elif int(stem) in numbers:
            notes.add(name, "excluded", f"{Reason.SAME_NUMBER}: as {numbers[int(stem)]}")
        else:
            numbers[int(stem)] = name
    order = sorted(numbers)
    if order and order[-1] - order[0] >= len(order):
        gaps = [(a + 1, b - 1) for a, b in pairwise(order) if b > a + 1]
        shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in gaps[:5]) + (", …" if gaps[5:] else "")
        notes.add("", "warned", f"{Reason.NUMBER_GAP}: {sum(b - a + 1 for a, b in gaps)} missing, {shown}")
    if others and not order:
        notes.add("", "warned", f"{Reason.NOT_A_NUMBER}: all {len(others)}, in natural order")
    elif others:
        for name in others:
            notes.add(name, "warned", f"{Reason.NOT_A_NUMBER}: put last")
    return (*(numbers[n] for n in order), *others)


def _read_image(path: str) -> tuple[np.ndarray, list[str]]:
    """A grey image; of a colour JPEG its luma, which is the channel itself where the three are equal."""
    said: list[str] = []
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SliceError(f"{Reason.UNREADABLE}: {error.strerror}") from None
    if not data.size:
        raise SliceError(Reason.EMPTY_FILE)
    with _stderr(said):
        try:
            image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
        except cv2.error:  # beyond OpenCV's size limits
            image = None
        if data[0] == 0xFF and not _ends(data):  # some OpenCV versions fill a truncated JPEG up with grey
            raise SliceError(Reason.TRUNCATED)
        if image is None:
            raise SliceError(Reason.UNDECODABLE)
    doubts = [f"{_doubt(line)}: {_short(line)}" for line in said[:1]]
    if data[0] == 0x89 and data[24] == 16:  # PNG, bit depth in its header
        doubts.append(Reason.SIXTEEN_BIT)
    return image, doubts


def _doubt(line: str) -> Reason:
    return Reason.CORRUPT if line.startswith(("Corrupt", "Premature")) else Reason.PARSER


def _ends(data: np.ndarray) -> bool:
    """Whether a JPEG has its end marker, after the last start of scan (an embedded preview has both of its own)."""
    if data[-2:].tobytes() == b"\xff\xd9":
        return True
    if data[:2].tobytes() != b"\xff\xd8":
        return True  # no JPEG at all: undecodable, not truncated
    whole = data.tobytes()
    return whole.rfind(b"\xff\xd9") > whole.rfind(b"\xff\xda")


# --- NIfTI -----------------------------------------------------------------------------------------------------------

_BROKEN = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    gzip.BadGzipFile,
    zlib.error,
    ValueError,
    TypeError,
    MemoryError,
)


def _open_nifti(notes: _Notes, path: str, view: str) -> Scan:
    """A volume in its closest canonical orientation; slice k along the view's axis, turned by ``numpy.rot90``.

    So axial slices run feet to head with the front up, and coronal and sagittal ones have the head up. Names are k.
    The header is read here, the values with the first slice.
    """
    if os.path.isdir(path):
        inside = [n for n in os.listdir(path) if not is_hidden(n) and file_kind(n) == "nifti"]
        if len(inside) != 1:
            notes.add("", "excluded", f"{Reason.NO_SLICES}: {len(inside)} NIfTI files in the folder, expected 1")
            return Scan(notes)
        path = os.path.join(path, inside[0])
    if not os.path.getsize(path):
        notes.add("", "excluded", Reason.EMPTY_FILE)
        return Scan(notes)
    try:
        with _listening() as said:
            image = nib.load(path)
            if not isinstance(image, nib.Nifti1Pair):
                raise ValueError(f"{type(image).__name__}, not NIfTI")
            turn = _orientation(image.affine)
    except (EOFError, *_BROKEN) as error:
        cut = Reason.TRUNCATED if _gzip_is_cut(path) else ""
        notes.add("", "excluded", cut or f"{Reason.UNDECODABLE}: {_short(error, path)}")
        return Scan(notes)
    shape, dtype = image.shape, image.dataobj.dtype
    for text in dict.fromkeys(said):
        notes.add("", "warned", f"{Reason.PARSER}: {_short(text)}")
    if dtype.names or dtype.kind == "c":
        notes.add("", "excluded", f"{Reason.NOT_HU}: {'complex' if dtype.kind == 'c' else 'RGB'} volume")
        return Scan(notes)
    if len(shape) < 2 or min(shape) < 1:
        notes.add("", "excluded", f"{Reason.NO_SLICES}: shape {shape}")
        return Scan(notes)
    if any(n > 1 for n in shape[3:]):
        notes.add("", "warned", f"{Reason.SEVERAL_VOLUMES}: shape {shape}")
    if turn is None:
        notes.add("", "warned", Reason.BAD_AFFINE)
        turn = nib.orientations.axcodes2ornt("RAS")
    elif not (image.header["sform_code"] > 0 or image.header["qform_code"] > 0):
        notes.add("", "warned", f"{Reason.NO_ORIENTATION}: sform and qform codes are 0")
    axis = VIEWS[view]
    slices, failure = None, ""

    def load(k: int) -> tuple[np.ndarray, list[str]]:
        nonlocal slices, failure
        if slices is None and not failure:
            try:
                slices = _nifti_slices(image, turn, axis, notes)
            except SliceError as error:
                failure = error.reason
        if failure:
            raise SliceError(failure, whole=True)
        return slices[k], []

    return Scan(notes, map(str, range(_count((*shape, 1), turn, axis))), load)


def _count(shape: tuple[int, ...], turn: np.ndarray, axis: int) -> int:
    """Size, along an axis of the patient, of an array whose axes lie as ``turn`` says."""
    return shape[int(np.flatnonzero(turn[:, 0] == axis)[0])]


def _orientation(affine: np.ndarray) -> np.ndarray | None:
    """(3, 2) nibabel orientation of the volume's axes; None where the affine does not give one."""
    if not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
        return None
    turn = nib.io_orientation(affine)
    return turn if np.isfinite(turn).all() else None


def _gzip_is_cut(path: str) -> bool:
    """Whether a file is gzip without its end; only asked once nibabel could make nothing of it."""
    try:
        with gzip.open(path) as file:
            while file.read(CHUNK):
                pass
    except EOFError:
        return True
    except (OSError, zlib.error):
        pass
    return False


def _fill(array: np.ndarray, file: Any, offset: int) -> None:
    """Read a 1-D array from an opened file; nibabel's own way takes up to three times the memory. Raises EOFError."""
    file.seek(offset)
    room, filled = memoryview(array.view(np.uint8)), 0
    while filled < len(room):
        count = file.readinto(room[filled : filled + CHUNK])
        if not count:
            raise EOFError(f"{filled} of {len(room)} bytes")
        filled += count


def _nifti_slices(image: nib.Nifti1Pair, turn: np.ndarray, axis: int, notes: _Notes) -> np.ndarray:
    """All slices of a view, (n, rows, columns) uint8; beside them only the stored values are held, not HU as float."""
    header, path = image.dataobj, image.file_map["image"].filename
    shape = (*image.shape, 1)[:3]
    try:
        with _listening(), nib.openers.ImageOpener(path) as file:
            stored = np.empty(np.prod(shape), header.dtype)
            _fill(stored, file, header.offset)
            while path.lower().endswith(".gz") and file.read(CHUNK):  # to the end, where gzip keeps its checksum
                pass
    except _BROKEN as error:
        raise SliceError(f"{Reason.UNDECODABLE}: {_short(error, path)}", whole=True) from None
    except EOFError as error:
        raise SliceError(f"{Reason.TRUNCATED}: {_short(error, path)}", whole=True) from None
    except OSError as error:
        raise SliceError(f"{Reason.UNREADABLE}: {_short(error, path)}", whole=True) from None
    stored = stored.reshape(shape, order="F")
    planes = np.moveaxis(nib.apply_orientation(stored, turn), axis, 0)  # a view of the stored values
    slices = np.empty((len(planes), planes.shape[2], planes.shape[1]), np.uint8)
    odd, lowest = 0, np.inf
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float64 are not finite, and counted
        for k, plane in enumerate(planes):
            hu = plane.astype(np.float64)
            hu *= header.slope  # 1 and 0 where the header gives none
            hu += header.inter
            finite = np.isfinite(hu)
            odd += hu.size - np.count_nonzero(finite)
            lowest = min(lowest, hu.min(where=finite, initial=np.inf))
            hu[~finite] = -np.inf
            slices[k] = np.rot90(hu_to_uint8(hu))
    if odd:
        notes.add("", "warned", f"{Reason.NOT_FINITE}: {odd} voxels")
    if lowest > NO_AIR:
        notes.add("", "warned", f"{Reason.NOT_HU}: lowest value {lowest:g}")
    return slices


# --- DICOM -----------------------------------------------------------------------------------------------------------


class _Header(NamedTuple):
    """What ordering and choosing need of a DICOM file. ``unfit`` says why it is no CT slice, "" if it is one."""

    name: str
    unfit: str
    series: str = ""
    uid: str = ""
    number: int | None = None
    place: tuple[float, ...] = ()  # ImagePositionPatient, mm
    turn: tuple[float, ...] = ()  # ImageOrientationPatient
    shape: tuple[int, int] = (0, 0)  # rows, columns
    doubts: tuple[str, ...] = ()  # reasons for doubt that the header gives


def _open_dicom(notes: _Notes, path: str, view: str) -> Scan:
    """A CT series, ordered by position from feet to head; names are file names (k for a coronal or sagittal view)."""
    path, series = split_series(path)
    if os.path.isdir(path):
        folder, names = path, _listed(path, "dicom", notes)
    else:
        folder, names = os.path.dirname(path), [os.path.basename(path)]
    headers = [_read_header(folder, name) for name in names]
    if series:
        headers = [h for h in headers if h.series == series]
    kept = Counter(h.series for h in headers if not h.unfit)
    main = max(kept, key=lambda uid: (kept[uid], uid), default="")
    for h in headers:
        if h.unfit or h.series != main:
            notes.add(h.name, "excluded", h.unfit or f"{Reason.OTHER_SERIES}: {h.series}")
    fit = [h for h in headers if not h.unfit and h.series == main]
    for reason, count in Counter(reason for h in fit for reason in h.doubts).items():
        notes.add("", "warned", f"{reason}{',' if ': ' in reason else ':'} {count} of {len(fit)} slices")
    fit = _by_position(fit, notes)
    scan = Scan(notes, [h.name for h in fit], lambda i: _read_dicom(os.path.join(folder, fit[i].name)))
    return scan if view == "axial" or not fit else _across(scan, fit, view)


def dicom_scans(folder: str, names: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The scans among a folder's DICOM files: paths for `open_scan`, and (name, reason) of the files in none of them.

    One CT series: the folder. Several: for each its file if it has one, else ``folder#SeriesInstanceUID``. A few
    headers spread over the folder are read; only if they tell of several series, or of other files, are all.
    """
    names = sorted(names, key=natural_key)
    some = sorted({round(i * (len(names) - 1) / (PROBES - 1)) for i in range(PROBES)})
    headers = [_read_header(folder, names[i]) for i in some]
    if len({h.series for h in headers}) == 1:
        return [folder], []
    series: dict[str, list[_Header]] = {}
    for name in names:
        header = _read_header(folder, name)
        series.setdefault(header.series, []).append(header)
    strange = {uid for uid, headers in series.items() if all(h.unfit for h in headers)}
    if len(series) - len(strange) < 2:
        return [folder], []  # opening the folder reports what else is in it
    paths = [
        os.path.join(folder, headers[0].name) if len(headers) == 1 else f"{folder}#{uid}"
        for uid, headers in series.items()
        if uid not in strange
    ]
    return paths, [(h.name, h.unfit) for uid in strange for h in series[uid]]


def _floats(value: Any, count: int) -> tuple[float, ...]:
    """``count`` finite floats, or () where the tag holds anything else."""
    try:
        numbers = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


def _value(ds: pydicom.Dataset, tag: str) -> Any:
    """A tag's value, None where it is missing or cannot be parsed."""
    try:
        return ds.get(tag)
    except (TypeError, ValueError, OverflowError):
        return None


def _read_header(folder: str, name: str) -> _Header:
    path = os.path.join(folder, name)
    try:
        if not os.path.getsize(path):
            return _Header(name, Reason.EMPTY_FILE)
        with _listening() as said:
            ds = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            number = _floats([_value(ds, "InstanceNumber")], 1)
            header = _Header(
                name,
                _unfit(ds),
                str(ds.get("SeriesInstanceUID") or "none"),
                str(ds.get("SOPInstanceUID") or ""),
                int(number[0]) if number else None,
                _floats(_value(ds, "ImagePositionPatient"), 3),
                _floats(_value(ds, "ImageOrientationPatient"), 6),
                (int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)),
            )
            doubts = [Reason.INVERTED] if ds.get("PhotometricInterpretation") == "MONOCHROME1" else []
            if ds.get("RescaleSlope") is None and "ModalityLUTSequence" not in ds:
                doubts.append(Reason.NO_RESCALE)
        doubts += [f"{Reason.PARSER}: {_short(text)}" for text in dict.fromkeys(said)]
        return header._replace(doubts=tuple(map(str, doubts)))
    except OSError as error:
        return _Header(name, f"{Reason.UNREADABLE}: {error.strerror or error}")
    except Exception as error:  # a broken file can make pydicom raise anything; whatever it is, it becomes a finding
        return _Header(name, f"{Reason.UNDECODABLE}: {_short(error, path)}")


def _unfit(ds: pydicom.Dataset) -> str:
    """Why a file is no slice of a CT series; "" if it is one. A file that states no modality passes for CT."""
    modality = ds.get("Modality") or "CT"
    if not ds.get("Rows") or not ds.get("Columns"):
        known = modality != "CT"
        return f"{Reason.OTHER_MODALITY}: {modality}" if known else f"{Reason.UNDECODABLE}: no DICOM, or no image"
    if modality != "CT":
        return f"{Reason.OTHER_MODALITY}: {modality}"
    if "LOCALIZER" in (ds.get("ImageType") or ()):
        return Reason.LOCALIZER
    if int(ds.get("NumberOfFrames") or 1) > 1:
        return f"{Reason.MULTI_FRAME}: {ds.NumberOfFrames} frames; convert it to NIfTI"
    if ds.get("SamplesPerPixel", 1) != 1 or not str(ds.get("PhotometricInterpretation")).startswith("MONOCHROME"):
        return f"{Reason.COLOUR}: {ds.get('PhotometricInterpretation')}"
    return ""


def _by_position(headers: list[_Header], notes: _Notes) -> list[_Header]:
    """Headers by position along the slices' normal, pointing to the head (or left, or back); oddities are noted.

    Where positions are missing or all the same: by InstanceNumber, else in natural order of the names.
    """
    if len(headers) < 2:
        return headers
    headers = sorted(headers, key=lambda h: natural_key(h.name))
    placed = all(h.place and h.turn for h in headers)
    if placed:
        turns = Counter(tuple(np.round(h.turn, 2)) for h in headers)
        main = max(turns, key=turns.__getitem__)
        for h in headers:
            if tuple(np.round(h.turn, 2)) != main:
                notes.add(h.name, "excluded", Reason.OTHER_ORIENTATION)
        headers = [h for h in headers if tuple(np.round(h.turn, 2)) == main]
        at = {h.name: float(np.dot(h.place, _normal(h))) for h in headers}
        placed = len(headers) == 1 or max(at.values()) - min(at.values()) > SAME_POSITION
    if not placed:
        numbered = all(h.number is not None for h in headers)
        order = "InstanceNumber" if numbered else "file name"
        notes.add("", "warned", f"{Reason.NO_POSITION}: ordered by {order}")
        headers = sorted(headers, key=lambda h: h.number) if numbered else headers
        kept: dict[str, _Header] = {}
        for h in headers:
            if kept.setdefault(h.uid or h.name, h) is not h:
                notes.add(h.name, "excluded", f"{Reason.SAME_POSITION}: as {kept[h.uid].name}, same SOPInstanceUID")
        return list(kept.values())
    ordered: list[_Header] = []
    for h in sorted(headers, key=lambda h: (at[h.name], h.number or 0)):
        if ordered and at[h.name] - at[ordered[-1].name] < SAME_POSITION:
            notes.add(h.name, "excluded", f"{Reason.SAME_POSITION}: as {ordered[-1].name}")
        else:
            ordered.append(h)
    steps = np.diff([at[h.name] for h in ordered])
    step = float(np.median(steps)) if steps.size else 0.0
    wide = steps[steps > 1.5 * step]
    if wide.size:
        missing = int(np.round(wide / step - 1).sum())
        notes.add(
            "", "warned", f"{Reason.POSITION_GAP}: about {missing} missing at {wide.size} places, step {step:g} mm"
        )
    return ordered


def _normal(header: _Header) -> np.ndarray:
    """Unit normal of a slice, signed so that its largest part is positive: for an axial slice it points to the head."""
    normal = np.cross(header.turn[:3], header.turn[3:])
    return normal * np.sign(normal[np.abs(normal).argmax()])


def _read_dicom(path: str) -> tuple[np.ndarray, list[str]]:
    """A slice as displayed. Padding becomes 0; MONOCHROME1 is inverted after the window, as the standard shows it."""
    try:
        with _listening() as said:
            ds = pydicom.dcmread(path, force=True)
            if "TransferSyntaxUID" not in ds.file_meta:  # no preamble: pydicom has found the encoding out by itself
                implicit = ds.original_encoding[0]
                uid = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
                ds.file_meta.TransferSyntaxUID = uid
            syntax = ds.file_meta.TransferSyntaxUID
            if syntax.is_compressed and not _decodes(syntax):
                raise SliceError(f"{Reason.NO_DECODER}: {syntax.name}")
            stored = ds.pixel_array
            slope = 1.0 if ds.get("RescaleSlope") is None else float(ds.RescaleSlope)
            intercept = float(ds.get("RescaleIntercept") or 0)
            if not slope or not np.isfinite([slope, intercept]).all():
                raise SliceError(f"{Reason.BAD_RESCALE}: slope {slope:g}, intercept {intercept:g}")
            lut = "ModalityLUTSequence" in ds
            hu = apply_modality_lut(stored, ds) if lut else stored * slope + intercept
            padding = _padding(ds, stored)
    except SliceError:
        raise
    except OSError as error:
        raise SliceError(f"{Reason.UNREADABLE}: {error.strerror or error}") from None
    except Exception as error:  # as for headers
        # a decoder's own line tells more than pydicom's list of failed plugins
        text = _short(said[0] if said else error, path)
        short = isinstance(error, EOFError) or re.search("less than expected|no pixel data", str(error))
        raise SliceError(f"{Reason.TRUNCATED if short else Reason.UNDECODABLE}: {text}") from None
    if hu.ndim != 2:
        raise SliceError(f"{Reason.UNDECODABLE}: pixels of shape {hu.shape}")
    image = hu_to_uint8(hu)
    if ds.get("PhotometricInterpretation") == "MONOCHROME1":
        np.subtract(255, image, out=image)
    if padding is not None:
        image[padding] = 0
    return image, [f"{Reason.PARSER}: {_short(text)}" for text in dict.fromkeys(said)]


def _decodes(syntax: pydicom.uid.UID) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _padding(ds: pydicom.Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Mask of the padded pixels; the tag is compared as the stored type, as some writers give -2000 as 63536."""
    if ds.get("PixelPaddingValue") is None:
        return None
    low = np.asarray(int(ds.PixelPaddingValue)).astype(stored.dtype)
    limit = ds.get("PixelPaddingRangeLimit")
    if limit is None:
        return stored == low
    high = np.asarray(int(limit)).astype(stored.dtype)
    return (stored >= min(low, high)) & (stored <= max(low, high))


def _across(axial: Scan, headers: list[_Header], view: str) -> Scan:
    """Coronal or sagittal slices of an axial series: its slices stacked, turned as a NIfTI volume would be."""
    notes, first = axial.findings, headers[0]
    if not all(h.place and h.turn for h in headers) or abs(_normal(first)[2]) < 0.9:
        notes.add("", "excluded", f"{Reason.NO_VIEW}: {view} of a series that is not axial")
        return Scan(notes)
    # the stack's columns, rows and slices along the patient's axes; DICOM points left and back, NIfTI right and front
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([first.turn[:3], first.turn[3:], _normal(first)]) * [[-1], [-1], [1]]
    turn, axis = nib.io_orientation(affine), VIEWS[view]
    volume = None

    def load(k: int) -> tuple[np.ndarray, list[str]]:
        nonlocal volume
        if volume is None:
            slices = []
            for i in range(len(axial)):
                with contextlib.suppress(SliceError):  # its finding says so; the other slices still make a volume
                    slices.append(axial.read(i))
            if len({s.shape for s in slices}) != 1:
                raise SliceError(f"{Reason.NO_VIEW}: slices unreadable, or of several shapes", whole=True)
            stack = np.stack(slices).transpose(2, 1, 0)  # (columns, rows, slices)
            volume = np.moveaxis(nib.apply_orientation(stack, turn), axis, 0)
        return np.ascontiguousarray(np.rot90(volume[k])), []

    shape = (*first.shape[::-1], len(headers))
    return Scan(notes, map(str, range(_count(shape, turn, axis))), load)
