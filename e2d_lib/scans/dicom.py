"""Scans as DICOM files: choosing a series, ordering its slices, reading their pixels."""

import contextlib
import os
import re
from collections import Counter
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, get_decoder

from e2d_lib.scans.findings import Notes, Reason, Scan, SliceError
from e2d_lib.scans.formats import listed, natural_key, split_series
from e2d_lib.scans.overheard import doubts, listening, short
from e2d_lib.scans.volume import hu_to_uint8, loaded_once, slice_count, slices_of

SAME_POSITION = 0.01  # mm; DICOM positions closer than this are one slice
PROBES = 8
"""Headers read to tell whether a folder of DICOM files holds one series; only if they disagree are all read."""


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


def open_dicom(notes: Notes, path: str, view: str) -> Scan:
    """A CT series, ordered by position from feet to head; names are file names (k for a coronal or sagittal view)."""
    path, series = split_series(path)
    if os.path.isdir(path):
        folder, names = path, listed(path, "dicom", notes)
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
        with listening() as said:
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
            found = [Reason.INVERTED] if ds.get("PhotometricInterpretation") == "MONOCHROME1" else []
            if ds.get("RescaleSlope") is None and "ModalityLUTSequence" not in ds:
                found.append(Reason.NO_RESCALE)
        return header._replace(doubts=(*map(str, found), *doubts(said)))
    except OSError as error:
        return _Header(name, f"{Reason.UNREADABLE}: {error.strerror or error}")
    except Exception as error:  # a broken file can make pydicom raise anything; whatever it is, it becomes a finding
        return _Header(name, f"{Reason.UNDECODABLE}: {short(error, path)}")


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


def _by_position(headers: list[_Header], notes: Notes) -> list[_Header]:
    """Headers by position along the slices' normal, pointing to the head (or left, or back); oddities are noted.

    Where positions are missing or all the same: by InstanceNumber, else in natural order of the names.
    """
    if len(headers) < 2:
        return headers
    headers = sorted(headers, key=lambda h: natural_key(h.name))
    placed = all(h.place and h.turn for h in headers)
    if placed:
        turns = {h.name: tuple(np.round(h.turn, 2)) for h in headers}
        ((main, _),) = Counter(turns.values()).most_common(1)
        for h in headers:
            if turns[h.name] != main:
                notes.add(h.name, "excluded", Reason.OTHER_ORIENTATION)
        headers = [h for h in headers if turns[h.name] == main]
        at = {h.name: float(np.dot(h.place, _normal(h))) for h in headers}
        placed = len(headers) == 1 or max(at.values()) - min(at.values()) > SAME_POSITION
    if not placed:
        return _by_number(headers, notes)
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


def _by_number(headers: list[_Header], notes: Notes) -> list[_Header]:
    """Headers by InstanceNumber, or as they come if one has none; instances that come twice are noted."""
    numbered = all(h.number is not None for h in headers)
    order = "InstanceNumber" if numbered else "file name"
    notes.add("", "warned", f"{Reason.NO_POSITION}: ordered by {order}")
    headers = sorted(headers, key=lambda h: h.number) if numbered else headers
    kept: dict[str, _Header] = {}
    for h in headers:
        if kept.setdefault(h.uid or h.name, h) is not h:
            notes.add(h.name, "excluded", f"{Reason.SAME_POSITION}: as {kept[h.uid].name}, same SOPInstanceUID")
    return list(kept.values())


def _normal(header: _Header) -> np.ndarray:
    """Unit normal of a slice, signed so that its largest part is positive: for an axial slice it points to the head."""
    normal = np.cross(header.turn[:3], header.turn[3:])
    return normal * np.sign(normal[np.abs(normal).argmax()])


def _read_dicom(path: str) -> tuple[np.ndarray, list[str]]:
    """A slice as displayed. Padding becomes 0; MONOCHROME1 is inverted after the window, as the standard shows it."""
    try:
        with listening() as said:
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
        text = short(said[0] if said else error, path)
        cut = isinstance(error, EOFError) or re.search("less than expected|no pixel data", str(error))
        raise SliceError(f"{Reason.TRUNCATED if cut else Reason.UNDECODABLE}: {text}") from None
    if hu.ndim != 2:
        raise SliceError(f"{Reason.UNDECODABLE}: pixels of shape {hu.shape}")
    image = hu_to_uint8(hu)
    if ds.get("PhotometricInterpretation") == "MONOCHROME1":
        np.subtract(255, image, out=image)
    if padding is not None:
        image[padding] = 0
    return image, doubts(said)


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
    turn = nib.io_orientation(affine)

    def read() -> np.ndarray:
        slices = []
        for i in range(len(axial)):
            with contextlib.suppress(SliceError):  # its finding says so; the other slices still make a volume
                slices.append(axial.read(i))
        if len({s.shape for s in slices}) != 1:
            raise SliceError(f"{Reason.NO_VIEW}: slices unreadable, or of several shapes")
        return slices_of(np.stack(slices).transpose(2, 1, 0), turn, view)  # (columns, rows, slices)

    shape = (*first.shape[::-1], len(headers))
    return Scan(notes, map(str, range(slice_count(shape, turn, view))), loaded_once(read))
