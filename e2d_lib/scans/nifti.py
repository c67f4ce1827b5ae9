"""Scans as NIfTI volumes."""

import nibabel as nib
import numpy as np

from e2d_lib.scans.findings import Notes, Reason, Scan, SliceError, short
from e2d_lib.scans.formats import listening, only_file, reading
from e2d_lib.scans.volume import volume_scan

CHUNK = 1 << 20  # bytes read at once
SNIFF = 1024  # bytes in which nibabel looks for the header


def open_nifti(notes: Notes, path: str, view: str) -> Scan:
    """The slices of a volume's view, as `slices_of` turns them; slice k is named k.

    The header is read here, the values with the first slice.
    """
    path = only_file(path, "nifti", "NIfTI files")
    with reading(path), listening() as said:
        with nib.openers.ImageOpener(path) as file:
            file.read(SNIFF)  # raises where gzip's data are cut, of which nibabel would only say that it is no image
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise SliceError(f"{Reason.UNDECODABLE}: {type(image).__name__}, not NIfTI")
    header = image.dataobj
    for text in dict.fromkeys(said):
        notes.doubt("", f"{Reason.PARSER}: {short(text)}")
    if header.dtype.names or header.dtype.kind == "c":
        raise SliceError(f"{Reason.NOT_HU}: {'complex' if header.dtype.kind == 'c' else 'RGB'} volume")
    if not (image.header["sform_code"] > 0 or image.header["qform_code"] > 0):
        notes.doubt("", f"{Reason.NO_ORIENTATION}: sform and qform codes are 0")
    return volume_scan(
        notes, image.shape, image.affine, view, lambda shape: _values(header, path, shape), header.slope, header.inter
    )


def _values(header: nib.arrayproxy.ArrayProxy, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The (first) volume's stored values, (x, y, z); nibabel's own way takes up to three times the memory."""
    with reading(path), listening(), nib.openers.ImageOpener(path) as file:
        stored = np.empty(np.prod(shape), header.dtype)
        file.seek(header.offset)
        room, filled = memoryview(stored.view(np.uint8)), 0
        while filled < len(room):
            count = file.readinto(room[filled : filled + CHUNK])
            if not count:
                raise EOFError(f"{filled} of {len(room)} bytes")
            filled += count
        while path.lower().endswith(".gz") and file.read(CHUNK):  # to the end, where gzip keeps its checksum
            pass
    return stored.reshape(shape, order="F")
