"""Scans as folders of JPEG or PNG images, ordered by the number in their names."""

import os
from itertools import pairwise

import cv2
import numpy as np

from e2d_lib.scans.findings import Notes, Reason, Scan, SliceError
from e2d_lib.scans.formats import listed
from e2d_lib.scans.overheard import decoder_lines, short


def open_images(notes: Notes, path: str, view: str) -> Scan:
    """The images of a folder, or one image; names are file names. Images have no view but the axial."""
    if view != "axial":
        notes.add("", "excluded", f"{Reason.NO_VIEW}: {view} of images")
        return Scan(notes)
    if not os.path.isdir(path):
        return Scan(notes, [os.path.basename(path)], lambda i: _read_image(path))
    names = _in_order(listed(path, "jpeg", notes), notes)
    return Scan(notes, names, lambda i: _read_image(os.path.join(path, names[i])))


def _in_order(found: list[str], notes: Notes) -> tuple[str, ...]:
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
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SliceError(f"{Reason.UNREADABLE}: {error.strerror}") from None
    if not data.size:
        raise SliceError(Reason.EMPTY_FILE)
    with decoder_lines() as said:
        try:
            image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
        except cv2.error:  # beyond OpenCV's size limits
            image = None
        if data[0] == 0xFF and not _ends(data):  # some OpenCV versions fill a truncated JPEG up with grey
            raise SliceError(Reason.TRUNCATED)
        if image is None:
            raise SliceError(Reason.UNDECODABLE)
    doubts = [f"{_doubt(line)}: {short(line)}" for line in said[:1]]
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
