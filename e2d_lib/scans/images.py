"""Scans as folders of JPEG or PNG images, ordered by the number in their names."""

import functools
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
import simplejpeg

from e2d_lib.scans.findings import Notes, Reason, Scan, SliceError, short
from e2d_lib.scans.formats import listed, names_mask, natural_key, reading
from e2d_lib.scans.plausible import shows_hounsfield
from e2d_lib.scans.volume import hu_to_uint8

OFFSETS = (32768, 1024, 1000, 0)
"""What 16-bit images have been seen to add to HU, so that they are not negative; 0: two's complement."""
_COPY = re.compile(r"([ _-]*\(\d+\)|[ _-]+copy([ _-]*\(?\d+\)?)?|~)$", re.I)
_Numbered = tuple[str, tuple[str, ...], float | None]
"""A name; its run, which is the name without its number: names of one stack share it; its number."""
_POSITION = re.compile(r"((?:.*[^\d.]\.?)??)([-+]?\d+(?:\.\d+)?)(\D*)")


def open_images(notes: Notes, path: str, view: str) -> Scan:
    """The images of a folder, or one image; names are file names. Images have no view but the axial."""
    if view != "axial":
        raise SliceError(f"{Reason.NO_VIEW}: {view} of images")
    if os.path.isdir(path):
        names = _in_order(listed(path, "jpeg", notes), notes)
    else:
        path, names = os.path.dirname(path), (os.path.basename(path),)
    paths = [os.path.join(path, name) for name in names]
    told = functools.cache(lambda: _told(paths[len(paths) // 2]))
    return Scan(notes, names, lambda i: _read_image(paths[i], told))


# --- order -----------------------------------------------------------------------------------------------------------


def _in_order(found: list[str], notes: Notes) -> tuple[str, ...]:
    """Names by number (method/README.md §1); those without a number go last. What is no slice of the stack is noted.

    Copies, masks beside the slices, and the smaller ones of several runs of the same numbers are left out.
    """
    stems = [name.rpartition(".")[0] for name in found]
    if all(map(str.isdecimal, stems)) and len(numbers := dict(zip(map(int, stems), found, strict=True))) == len(found):
        _note_gaps(sorted(numbers), notes)  # the released layout, and cheap
        return tuple(numbers[n] for n in sorted(numbers))
    names = _without_extras(found, notes)
    runs = _runs(names, notes)
    if not runs:
        return ()
    main = max(runs, key=lambda run: (len(runs[run]), bool(run[0] == "".join(run)), [-len(part) for part in run]))
    numbers = runs.pop(main)
    others = []
    for part in runs.values():
        again = sum(number in numbers for number in part)
        if again >= max(3, len(part) / 2):
            for name in part.values():
                notes.add(name, "excluded", f"{Reason.OTHER_RUN}: beside {numbers[min(numbers)]} …")
        else:
            others += part.values()
    order = [numbers[n] for n in sorted(numbers)]
    _note_gaps(sorted(numbers), notes)
    if all(os.path.splitext(name)[0].isdecimal() for name in order):
        for name in others:
            notes.add(name, "warned", f"{Reason.NOT_A_NUMBER}: put last")
        return (*order, *sorted(others, key=natural_key))
    notes.add("", "kept", f"{Reason.NOT_A_NUMBER}: {len(names)}, ordered by the number in it")
    return tuple(order) if not others else tuple(sorted([*order, *others], key=natural_key))


def _without_extras(found: list[str], notes: Notes) -> list[str]:
    """Names less copies ("3 (1).jpg" beside "3.jpg") and masks ("3_mask.png") of others."""
    stems = {os.path.splitext(name)[0] for name in found}
    masks = {name for name in found if names_mask(name)}
    kept = []
    for name in sorted(found, key=lambda name: (len(name), natural_key(name))):  # 1.jpg before 01.jpg and 1.jpeg
        stem = os.path.splitext(name)[0]
        bare = _COPY.sub("", stem)
        if bare != stem and bare in stems:
            notes.add(name, "excluded", f"{Reason.COPY}: of {bare}")
        elif name in masks and len(masks) < len(found):
            notes.add(name, "excluded", Reason.MASK)
        else:
            kept.append(name)
    return kept


def _runs(names: list[str], notes: Notes) -> dict[tuple[str, ...], dict[float, str]]:
    """Run -> number -> name; a second name of one number is noted. Names without number have runs of their own."""
    runs: dict[tuple[str, ...], dict[float, str]] = defaultdict(dict)
    for name, run, number in _by_position(names) or _by_counter(names):
        if number is None:
            runs[(*run, name)][0.0] = name
        elif number in runs[run]:
            notes.add(name, "excluded", f"{Reason.SAME_NUMBER}: as {runs[run][number]}")
        else:
            runs[run][number] = name
    return runs


def _by_position(names: list[str]) -> list[_Numbered]:
    """Names that hold a signed or broken number, as positions along z do; [] where they do not all."""
    matched = [_POSITION.fullmatch(os.path.splitext(name)[0]) for name in names]
    if not matched or not all(matched):
        return []
    found = [(name, (m[1], m[3]), float(m[2])) for name, m in zip(names, matched, strict=True)]
    signs = {m[1]: {m[2][0] == "-" for m in matched} for m in matched}
    broken = any("." in m[2] for m in matched)
    signed = any(len(kinds) == 2 or (head == "" and True in kinds) for head, kinds in signs.items())
    twice = len({(os.path.splitext(f[0])[1], *f[1:]) for f in found}) < len(found)  # 3.1 and 3.10: no fractions
    return found if (broken or signed) and not twice else []


def _by_counter(names: list[str]) -> list[_Numbered]:
    """The number that counts, of several in a name, is the one with the most values over the names."""
    shapes: dict[int, list[tuple[str, list[str]]]] = defaultdict(list)
    for name in names:
        parts = re.split(r"(\d+)", os.path.splitext(name)[0])
        shapes[len(parts)].append((name, parts))
    found = {}
    for count, named in shapes.items():
        fields = range(1, count, 2)
        field = max(fields, key=lambda i: (len({parts[i] for _, parts in named}), i), default=None)
        for name, parts in named:
            number = None if field is None else int(parts[field])
            found[name] = name, tuple(p for i, p in enumerate(parts) if i != field), number
    return [found[name] for name in names]


def _note_gaps(order: list[float], notes: Notes) -> None:
    steps = [b - a for a, b in pairwise(order)]
    if not steps or any(step != int(step) for step in steps):
        return
    step = math.gcd(*map(int, steps))
    gaps = [(int(a + step), int(b - step)) for a, b in pairwise(order) if b - a > step]
    if gaps:
        missing = sum((b - a) // step + 1 for a, b in gaps)
        text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in gaps[:5]) + (", …" if gaps[5:] else "")
        notes.add("", "warned", f"{Reason.NUMBER_GAP}: {missing} missing, {text}")


# --- pixels ----------------------------------------------------------------------------------------------------------


def _read_image(path: str, told: Callable[[], tuple[bool, int | None]]) -> tuple[np.ndarray, list[str]]:
    """A grey image; of a colour JPEG its luma, which is the channel itself where the three are equal.

    ``told`` is what `_told` found in one image of the scan.
    """
    if told()[0]:
        raise SliceError(f"{Reason.COLOUR}: greys cannot be told from colours", whole=True)
    data = _bytes(path)
    if data[:2] == b"\xff\xd8":
        return _read_jpeg(data)
    if data[:4] != b"\x89PNG":
        return _decoded(data, cv2.IMREAD_GRAYSCALE), []
    deep, clear = data[24] == 16, data[25] in (4, 6) or b"tRNS" in data[:2048]
    image, doubts = _decoded(data, cv2.IMREAD_UNCHANGED if deep or clear else cv2.IMREAD_GRAYSCALE), []
    alpha = image[..., 3] if image.ndim == 3 and image.shape[2] == 4 else None
    if image.ndim == 3:
        image = cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2GRAY)
    if image.dtype == np.uint16:
        offset = told()[1]
        image = (image >> 8).astype(np.uint8) if offset is None else hu_to_uint8(_hounsfield(image, offset))
        doubts.append(f"{Reason.SIXTEEN_BIT}: {'high byte kept' if offset is None else f'read as HU + {offset}'}")
    if alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        image = (image * (alpha / np.iinfo(alpha.dtype).max)).astype(np.uint8)
        doubts.append(Reason.TRANSPARENT)
    return image, doubts


def _bytes(path: str) -> bytes:
    with reading(path), open(path, "rb") as file:
        data = file.read()
    if not data:
        raise SliceError(Reason.EMPTY_FILE)
    if data[:4] == b"\x89PNG" and b"IEND" not in data[-64:] and b"IEND" not in data:
        raise SliceError(Reason.TRUNCATED)
    return data


def _read_jpeg(data: bytes) -> tuple[np.ndarray, list[str]]:
    """Strictly decoded: a JPEG that is cut short or corrupt is refused, one that lacks its end marker alone is not."""
    doubts = []
    try:
        image = simplejpeg.decode_jpeg(data, "GRAY")[..., 0]
    except ValueError as error:
        text = str(error)
        if text.startswith("Premature end"):
            try:
                image = simplejpeg.decode_jpeg(data + b"\xff\xd9", "GRAY")[..., 0]
            except ValueError:
                raise SliceError(Reason.TRUNCATED) from None
            doubts = [Reason.NO_END]
        elif "extraneous bytes before marker 0xd9" in text:  # behind the last pixel
            image, doubts = simplejpeg.decode_jpeg(data, "GRAY", strict=False)[..., 0], [f"{Reason.PARSER}: {text}"]
        elif text.startswith("Corrupt"):
            raise SliceError(f"{Reason.CORRUPT}: {short(text.partition(': ')[2])}") from None
        else:  # of a kind that simplejpeg does not know, such as CMYK
            return _decoded(data, cv2.IMREAD_GRAYSCALE), []
    if b"Exif\0\0" in data[:65536]:  # may say that the picture is to be turned
        image = _decoded(data, cv2.IMREAD_GRAYSCALE)
    return image, doubts


def _decoded(data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # beyond OpenCV's size limits
        image = None
    if image is None:
        raise SliceError(Reason.UNDECODABLE)
    return image


def _hounsfield(image: np.ndarray, offset: int) -> np.ndarray:
    return image.view(np.int16) if offset == 0 else image.astype(np.int32) - offset


def _told(path: str) -> tuple[bool, int | None]:
    """Of one image whether it is in colours, more than a mark in it, and what a 16-bit one has added to HU.

    That is the first of `OFFSETS` which puts air and tissue where HU have them; None where none does.
    """
    try:
        data = _bytes(path)
        jpeg = data[:2] == b"\xff\xd8"  # OpenCV prints what is wrong with one
        if simplejpeg.decode_jpeg_header(data)[2] == "Gray" if jpeg else data[:4] + data[24:26] == b"\x89PNG\x08\x00":
            return False, None
        image = simplejpeg.decode_jpeg(data, "BGR") if jpeg else _decoded(data, cv2.IMREAD_UNCHANGED)
    except ValueError:  # reading that slice says why
        return False, None
    if image.dtype != np.uint16:
        return image.ndim == 3 and np.mean(np.ptp(image[..., :3], axis=2) > 48) > 0.25, None
    image = np.ascontiguousarray(image if image.ndim == 2 else image[..., 0])
    for n in OFFSETS:
        hu = _hounsfield(image, n)
        if np.mean((hu > -3100) & (hu < 4100)) > 0.99 and shows_hounsfield(hu_to_uint8(hu)):
            return False, n
    return False, None
