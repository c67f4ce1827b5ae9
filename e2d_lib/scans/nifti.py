"""Scans as NIfTI volumes."""

import gzip
import zlib
from typing import Any

import nibabel as nib
import numpy as np

from e2d_lib.scans.findings import Notes, Reason, Scan, SliceError, short
from e2d_lib.scans.formats import listening, only_file
from e2d_lib.scans.volume import axes_of, loaded_once, slice_count, slices_of, windowed

CHUNK = 1 << 20  # bytes read at once
_BROKEN = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    gzip.BadGzipFile,
    zlib.error,
    ValueError,
    TypeError,
    MemoryError,
)


def open_nifti(notes: Notes, path: str, view: str) -> Scan:
    """The slices of a volume's view, as `slices_of` turns them; slice k is named k.

    The header is read here, the values with the first slice.
    """
    if not (path := only_file(path, "nifti", notes, "NIfTI files")):
        return Scan(notes)
    try:
        with listening() as said:
            image = nib.load(path)
            if not isinstance(image, nib.Nifti1Pair):
                raise ValueError(f"{type(image).__name__}, not NIfTI")
            turn = _orientation(image.affine)
    except (EOFError, *_BROKEN) as error:
        cut = Reason.TRUNCATED if _gzip_is_cut(path) else ""
        notes.add("", "excluded", cut or f"{Reason.UNDECODABLE}: {short(error, path)}")
        return Scan(notes)
    shape, dtype = image.shape, image.dataobj.dtype
    for text in dict.fromkeys(said):
        notes.doubt("", f"{Reason.PARSER}: {short(text)}")
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
        notes.doubt("", f"{Reason.NO_ORIENTATION}: sform and qform codes are 0")
    turn = axes_of(turn, image.affine, shape, notes)
    names = map(str, range(slice_count((*shape, 1), turn, view)))
    return Scan(notes, names, loaded_once(lambda: _read_slices(image, turn, view, notes)))


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


def _read_slices(image: nib.Nifti1Pair, turn: np.ndarray, view: str, notes: Notes) -> np.ndarray:
    """All slices of a view, (n, rows, columns) uint8; beside them only the stored values are held, not HU as float."""
    header, path = image.dataobj, image.file_map["image"].filename
    shape = (*image.shape, 1)[:3]
    try:
        with listening(), nib.openers.ImageOpener(path) as file:
            stored = np.empty(np.prod(shape), header.dtype)
            _fill(stored, file, header.offset)
            while path.lower().endswith(".gz") and file.read(CHUNK):  # to the end, where gzip keeps its checksum
                pass
    except _BROKEN as error:
        raise SliceError(f"{Reason.UNDECODABLE}: {short(error, path)}") from None
    except EOFError as error:
        raise SliceError(f"{Reason.TRUNCATED}: {short(error, path)}") from None
    except OSError as error:
        raise SliceError(f"{Reason.UNREADABLE}: {short(error, path)}") from None
    return windowed(slices_of(stored.reshape(shape, order="F"), turn, view), notes, header.slope, header.inter)
