"""Scans as DICOM files: choosing a series, ordering its slices, reading their pixels."""

import contextlib
import functools
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, get_decoder

from e2d_lib.scans.findings import Notes, Reason, Scan, SliceError, short
from e2d_lib.scans.formats import listed, listening, natural_key, reading, split_series
from e2d_lib.scans.volume import hu_to_uint8, loaded_once, slice_count, slices_of

SAME_POSITION = 0.01  # mm; DICOM positions closer than this are one slice
SAME_TURN = 0.02
"""Direction cosines that differ by less are of one orientation."""
PROBES = 8
"""Headers read to tell whether a folder of DICOM files holds one series; only if they disagree are all read."""
LPS = nib.orientations.axcodes2ornt("LPS")
CT_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.2{end}" for end in ("", ".1", ".2"))
"""SOP classes of CT images: plain, enhanced, converted from plain."""
CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
"""How the SOP classes of secondary captures begin: screens, but some converters write their slices so too."""
_KINDS = {
    Reason.LOCALIZER: re.compile(r"\b(locali[sz]er|scout|topogram|surview|scanogram)\b"),
    Reason.NO_CT_IMAGE: re.compile(r"\b(screen save|dose (info|report|record)|dosereport|patient protocol)\b"),
    Reason.PROJECTION: re.compile(r"\b(mip|minip|m(ax|in) ip|projection image|vrt|ssd|(volume|surface) render\w*)\b"),
}
"""What ImageType and SeriesDescription, in small letters and plain words, say of pictures that are no slices."""


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
    location: float | None = None  # SliceLocation, mm
    patient: str = ""
    study: str = ""
    frame: str = ""  # FrameOfReferenceUID
    kernel: str = ""
    acquisition: str = ""
    original: bool = True

    @property
    def axial(self) -> bool:
        """Whether the slices lie across the body, as far as the header says; tilted gantries are."""
        return not self.turn or bool(abs(_normal(self)[2]) > 0.7)


class Series(NamedTuple):
    """One series, for choosing among several and for telling patients apart. ``unfit``: why none of it is a slice."""

    path: str
    head: _Header
    uids: frozenset[str]  # SOPInstanceUIDs of the headers that were read
    count: int  # files
    unfit: str

    @property
    def rank(self) -> tuple[bool, bool, bool, int, bool]:
        """The series to take of a study has the highest: axial, original, most slices, lung kernel before soft."""
        return not self.unfit, self.head.axial, self.head.original, self.count, _is_sharp(self.head.kernel)


def open_dicom(notes: Notes, path: str, view: str) -> Scan:
    """A CT series, ordered by position from feet to head; names are file names (k for a coronal or sagittal view).

    Of several series in a folder, or below one without files of its own, that of the highest `Series.rank` is taken.
    """
    path, series = split_series(path)
    folder, names = (path, _names(path, notes)) if os.path.isdir(path) else os.path.split(path)
    headers = [_read_header(folder, name) for name in ([names] if isinstance(names, str) else names)]
    if series:
        headers = [h for h in headers if h.series == series]
    elif _one_each(headers):
        notes.doubt("", Reason.SERIES_EACH)
        headers = [h._replace(series="") for h in headers]
    members = _by_series(folder, [h for h in headers if not h.unfit])
    main = max(members, key=lambda uid: (members[uid].rank, uid), default="")
    for h in headers:
        if h.unfit or h.series != main:
            notes.add(h.name, "excluded", h.unfit or f"{Reason.OTHER_SERIES}: {h.series}")
    fit = [h for h in headers if not h.unfit and h.series == main]
    if fit and view == "axial" and not all(h.axial for h in fit) and not members[main].head.axial:
        raise SliceError(f"{Reason.NOT_AXIAL}: a coronal, sagittal or oblique series")
    for reason, count in Counter(reason for h in fit for reason in h.doubts).items():
        notes.doubt("", f"{reason}{',' if ': ' in reason else ':'} {count} of {len(fit)} slices")
    fit = _in_order(fit, notes)
    scan = Scan(notes, [h.name for h in fit], lambda i: _read_dicom(os.path.join(folder, fit[i].name)))
    return scan if view == "axial" or not fit else _across(scan, fit, view)


def _names(folder: str, notes: Notes) -> list[str]:
    """The DICOM files of a folder, or where it has none of its own, of the folders below it."""
    if names := listed(folder, "dicom", notes):
        return names
    below = sorted(top for top, _, _ in os.walk(folder))[1:]
    return [os.path.join(os.path.relpath(top, folder), name) for top in below for name in listed(top, "dicom", notes)]


def _by_series(folder: str, headers: Sequence[_Header]) -> dict[str, Series]:
    """SeriesInstanceUID -> series; its path is the file's, if it has but one, else ``folder#UID``."""
    parts: dict[str, list[_Header]] = {}
    for h in headers:
        parts.setdefault(h.series, []).append(h)
    return {
        uid: _series(os.path.join(folder, part[0].name) if len(part) == 1 else f"{folder}#{uid}", part, len(part))
        for uid, part in parts.items()
    }


def _series(path: str, headers: Sequence[_Header], count: int) -> Series:
    fit = [h for h in headers if not h.unfit]
    head = (fit or headers)[len(fit or headers) // 2]
    uids = frozenset(h.uid for h in headers if h.uid)
    return Series(path, head, uids, count, "" if fit else headers[0].unfit)


def dicom_scans(folder: str, names: list[str]) -> tuple[list[Series], list[tuple[str, str]]]:
    """The scans among a folder's DICOM files, their paths for `open_scan`, and (name, reason) of the files in none.

    One CT series: the folder. Several: for each its file if it has one, else ``folder#SeriesInstanceUID``. A few
    headers spread over the folder are read; only if they tell of several series, or of other files, are all.
    """
    names = sorted(names, key=natural_key)
    some = sorted({round(i * (len(names) - 1) / (PROBES - 1)) for i in range(PROBES)})
    headers, series = [_read_header(folder, names[i]) for i in some], {}
    if len({h.series for h in headers}) > 1:
        headers = [_read_header(folder, name) for name in names]
        series = _by_series(folder, headers)
    fit = [one for one in series.values() if not one.unfit]
    if len(fit) < 2 or _one_each(headers):
        return [_series(folder, headers, len(names))], []  # opening the folder reports what else is in it
    return fit, [(h.name, h.unfit) for h in headers if series[h.series].unfit]


def series_at(path: str) -> Series | None:
    """The series of a file, a folder or ``folder#UID``, by few headers; None where there is none."""
    folder, uid = split_series(path)
    if os.path.isfile(folder):
        return _series(path, [_read_header(*os.path.split(folder))], 1)
    with contextlib.suppress(OSError):
        for name in _names(folder, Notes("")):
            header = _read_header(folder, name)
            if not uid or header.series == uid:
                return _series(path, [header], 0)
    return None


def _one_each(headers: Sequence[_Header]) -> bool:
    """Whether files of different series are the slices of one scan: one study, one orientation, even steps."""
    if len(headers) < 3 or len({h.series for h in headers}) < len(headers):
        return False
    first = headers[0]
    same = {(h.study, h.frame, h.shape, h.unfit) for h in headers} == {(first.study, first.frame, first.shape, "")}
    if not same or not first.study or not all(h.place and _turned_alike(h, first) for h in headers):
        return False
    steps = np.diff(np.sort([_position(h) for h in headers]))
    return bool(steps.min() > SAME_POSITION and steps.max() < 2 * np.median(steps))


def _is_sharp(kernel: str) -> bool:
    """Whether a ConvolutionKernel is one for lungs or bones: by name, or by number (Siemens from 50, FC50 to FC59)."""
    kernel = kernel.upper()
    number = re.match(r"[A-Z]+(\d+)", kernel)
    if kernel.startswith("FC"):
        return bool(number) and 50 <= int(number[1]) < 60
    named = re.search("LUNG|BONE|EDGE|SHARP", kernel) or kernel in ("L", "YB", "YC", "D")
    return bool(named or (number and int(number[1]) >= 50))


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


def _words(value: Any) -> list[str]:
    """The parts of a text tag, which may have one, several or no value."""
    return [str(value)] if isinstance(value, str) else [str(part) for part in value or ()]


def _load(path: str, **options: Any) -> pydicom.Dataset:
    """A data set; of an enhanced image the functional groups' tags lie where those of a plain image do."""
    ds = pydicom.dcmread(path, force=True, **options)
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for macro in next(iter(ds.get(name) or ()), ()):
            for element in macro.value[0] if macro.VR == "SQ" and macro.value else ():
                ds[element.tag] = element
    return ds


def _read_header(folder: str, name: str) -> _Header:
    path = os.path.join(folder, name)
    try:
        with reading(path), listening() as said:
            if not os.path.getsize(path):
                raise SliceError(Reason.EMPTY_FILE)
            ds = _load(path, stop_before_pixels=True)
            number, location = (_floats([_value(ds, tag)], 1) for tag in ("InstanceNumber", "SliceLocation"))
            header = _Header(
                name,
                _unfit(ds),
                str(ds.get("SeriesInstanceUID") or "none"),
                str(ds.get("SOPInstanceUID") or ""),
                int(number[0]) if number else None,
                _floats(_value(ds, "ImagePositionPatient"), 3),
                _floats(_value(ds, "ImageOrientationPatient"), 6),
                (int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)),
                location=location[0] if location else None,
                patient=str(ds.get("PatientID") or "").strip(),
                study=str(ds.get("StudyInstanceUID") or ""),
                frame=str(ds.get("FrameOfReferenceUID") or ""),
                kernel=next(iter(_words(_value(ds, "ConvolutionKernel"))), ""),
                acquisition=str(_value(ds, "AcquisitionNumber") or ""),
                original=_words(ds.get("ImageType"))[:1] in ([], ["ORIGINAL"]),
                doubts=_header_doubts(ds),
            )
        return header._replace(doubts=header.doubts + tuple(f"{Reason.PARSER}: {short(text)}" for text in said))
    except SliceError as error:
        return _Header(name, error.reason)


def _header_doubts(ds: pydicom.Dataset) -> tuple[str, ...]:
    found = [Reason.INVERTED] if ds.get("PhotometricInterpretation") == "MONOCHROME1" else []
    missing = [tag for tag in ("RescaleSlope", "RescaleIntercept") if ds.get(tag) is None]
    units = ds.get("RescaleType") or "HU"
    if "ModalityLUTSequence" not in ds and missing:
        found.append(Reason.NO_RESCALE if missing[1:] else f"{Reason.HALF_RESCALE}: no {missing[0]}")
    if not str(units).upper().startswith("HU"):
        found.append(f"{Reason.OTHER_UNITS}: {units}")
    return tuple(map(str, found))


def _unfit(ds: pydicom.Dataset) -> str:
    """Why a file is no slice of a CT series; "" if it is one. A file that states no modality passes for CT."""
    if (modality := ds.get("Modality") or "CT") != "CT":
        return f"{Reason.OTHER_MODALITY}: {modality}"
    if not ds.get("Rows") or not ds.get("Columns"):
        return f"{Reason.UNDECODABLE}: no DICOM, or no image"
    said = " ".join([*_words(ds.get("ImageType")), *_words(_value(ds, "SeriesDescription"))])
    said = re.sub("[^a-z0-9]+", " ", said.lower())
    for reason, pattern in _KINDS.items():
        if word := pattern.search(said):
            return f"{reason}: {word[0]}" if word[0] != reason else reason
    sop = str(ds.get("SOPClassUID") or CT_CLASSES[0])
    placed = _floats(_value(ds, "ImagePositionPatient"), 3)
    if sop not in CT_CLASSES and not (sop.startswith(CAPTURES) and placed):
        return f"{Reason.NO_CT_IMAGE}: {pydicom.uid.UID(sop).name}"
    if int(ds.get("NumberOfFrames") or 1) > 1:
        return f"{Reason.MULTI_FRAME}: {ds.NumberOfFrames} frames; convert it to NIfTI"
    if ds.get("SamplesPerPixel", 1) != 1 or not str(ds.get("PhotometricInterpretation")).startswith("MONOCHROME"):
        return f"{Reason.COLOUR}: {ds.get('PhotometricInterpretation')}"
    return ""


# --- order -----------------------------------------------------------------------------------------------------------


def _in_order(headers: list[_Header], notes: Notes) -> list[_Header]:
    """Headers by position along the slices' normal, pointing to the head (or left, or back); oddities are noted.

    Where positions are missing or all the same: by SliceLocation, else InstanceNumber, else in natural order of names.
    """
    if len(headers) < 2:
        return headers
    headers = sorted(headers, key=lambda h: natural_key(h.name))
    if not all(h.place and h.turn for h in headers):
        return _by_number(headers, notes)
    ((main, _),) = Counter(tuple(np.round(h.turn, 1)) for h in headers).most_common(1)
    like = next(h for h in headers if tuple(np.round(h.turn, 1)) == main)
    for h in headers:
        if not _turned_alike(h, like):
            notes.add(h.name, "excluded", Reason.OTHER_ORIENTATION)
    headers = [h for h in headers if _turned_alike(h, like)]
    at = [_position(h) for h in headers]
    if len(headers) > 1 and max(at) - min(at) < SAME_POSITION:
        return _by_number(headers, notes)
    headers = _one_stack(headers, notes)
    ordered: list[_Header] = []
    for h in sorted(headers, key=lambda h: (_position(h), h.number or 0)):
        if ordered and _position(h) - _position(ordered[-1]) < SAME_POSITION:
            notes.add(h.name, "excluded", f"{Reason.SAME_POSITION}: as {ordered[-1].name}")
        else:
            ordered.append(h)
    steps = np.diff([_position(h) for h in ordered])
    step = float(np.median(steps)) if steps.size else 0.0
    wide = steps[steps > 1.5 * step]
    if wide.size:
        missing = int(np.round(wide / step - 1).sum())
        notes.add(
            "", "warned", f"{Reason.POSITION_GAP}: about {missing} missing at {wide.size} places, step {step:g} mm"
        )
    return ordered


def _one_stack(headers: list[_Header], notes: Notes) -> list[_Header]:
    """The largest of several stacks of one series that lie over each other: kernels, acquisitions, or passes."""
    stacks: dict[Any, list[_Header]] = {}
    for h in headers:
        stacks.setdefault((h.kernel, h.acquisition), []).append(h)
    if len(stacks) == 1:
        stacks = dict(enumerate(_passes(headers)))
    main = max(stacks.values(), key=lambda stack: (len(stack), _is_sharp(stack[0].kernel)))
    ends, kept = [_position(h) for h in main], []
    for stack in stacks.values():
        inside = sum(min(ends) <= _position(h) <= max(ends) for h in stack)
        if stack is main or len(main) < 3 or 2 * inside <= len(stack):
            kept += stack
            continue
        for h in stack:
            notes.add(h.name, "excluded", f"{Reason.OTHER_STACK}: beside that of {main[0].name}")
    return kept


def _passes(headers: list[_Header]) -> list[list[_Header]]:
    """Runs of headers, by InstanceNumber, in which the position rises or falls throughout; one unless all are long."""
    order = sorted(headers, key=lambda h: h.number or 0)
    steps = np.sign(np.diff([_position(h) for h in order]))
    turns = np.flatnonzero(steps == -steps[:1]) + 1
    runs = [order[a:b] for a, b in zip([0, *turns], [*turns, len(order)], strict=True)]
    return runs if all(len(run) >= 5 for run in runs) else [headers]


def _by_number(headers: list[_Header], notes: Notes) -> list[_Header]:
    """Headers by SliceLocation or InstanceNumber, or as they come; instances that come twice are noted."""
    kept: dict[str, _Header] = {}
    for h in headers:
        if kept.setdefault(h.uid or h.name, h) is not h:
            notes.add(h.name, "excluded", f"{Reason.SAME_POSITION}: as {kept[h.uid].name}, same SOPInstanceUID")
    headers = list(kept.values())
    order, places, numbers = "file name", {h.location for h in headers}, {h.number for h in headers}
    if None not in places and len(places) == len(headers):
        order, headers = "SliceLocation", sorted(headers, key=lambda h: h.location)
    elif None not in numbers:
        order, headers = "InstanceNumber", sorted(headers, key=lambda h: h.number)
    notes.add("", "warned", f"{Reason.NO_POSITION}: ordered by {order}")
    return headers


def _turned_alike(header: _Header, other: _Header) -> bool:
    return bool(header.turn and np.abs(np.subtract(header.turn, other.turn)).max() < SAME_TURN)


def _position(header: _Header) -> float:
    return float(np.dot(header.place, _normal(header)))


def _normal(header: _Header) -> np.ndarray:
    """Unit normal of a slice, signed so that its largest part is positive: for an axial slice it points to the head."""
    a, b = header.turn[:3], header.turn[3:]  # np.cross takes ten times as long
    normal = np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])
    return normal * np.sign(normal[np.abs(normal).argmax()])


# --- pixels ----------------------------------------------------------------------------------------------------------


def _read_dicom(path: str) -> tuple[np.ndarray, list[str]]:
    """A slice in radiological view. Padding becomes 0; MONOCHROME1 is inverted after the window."""
    with reading(path), listening() as said:
        ds = _load(path)
        if "TransferSyntaxUID" not in ds.file_meta:  # no preamble: pydicom has found the encoding out by itself
            implicit = ds.original_encoding[0]
            uid = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
            ds.file_meta.TransferSyntaxUID = uid
        syntax = ds.file_meta.TransferSyntaxUID
        if syntax.is_compressed and not _decodes(syntax):
            raise SliceError(f"{Reason.NO_DECODER}: {syntax.name}")
        stored, doubts = _stored(ds)
        slope = 1.0 if ds.get("RescaleSlope") is None else float(ds.RescaleSlope)
        intercept = float(ds.get("RescaleIntercept") or 0)
        if not slope or not np.isfinite([slope, intercept]).all():
            raise SliceError(f"{Reason.BAD_RESCALE}: slope {slope:g}, intercept {intercept:g}")
        hu = apply_modality_lut(stored, ds) if "ModalityLUTSequence" in ds else stored * slope + intercept
        padding = _padding(ds, stored)
    if hu.ndim != 2:
        raise SliceError(f"{Reason.UNDECODABLE}: pixels of shape {hu.shape}")
    image = hu_to_uint8(hu)
    if ds.get("PhotometricInterpretation") == "MONOCHROME1":
        np.subtract(255, image, out=image)
    if padding is not None:
        image[padding] = 0
    doubts += [f"{Reason.PARSER}: {short(text)}" for text in said]
    return _radiological(image, _floats(_value(ds, "ImageOrientationPatient"), 6)), doubts


def _stored(ds: pydicom.Dataset) -> tuple[np.ndarray, list[str]]:
    """Stored values, of the bits that HighBit and BitsStored tell, and a doubt where the values need more of them.

    Bits above the stated ones may hold an overlay, and then are none of the picture; or values that a writer did not
    foresee, such as padding of -2000 in 12 bits, and then to cut them makes jumps where the picture has none.
    """
    unused = int(ds.BitsAllocated) - int(ds.get("BitsStored") or ds.BitsAllocated)
    if not unused or ds.file_meta.TransferSyntaxUID.is_compressed:
        return ds.pixel_array, []
    ds.pixel_array_options(correct_unused_bits=False)
    raw = ds.pixel_array
    low = int(ds.get("HighBit") or ds.BitsStored - 1) + 1 - int(ds.BitsStored)
    if 0 < low <= unused:
        return raw >> low, []
    cut = (raw << unused) >> unused
    if np.array_equal(raw, cut):
        return raw, []
    rough = [np.abs(np.diff(values.astype(np.int32), axis=-1)).mean() for values in (raw, cut)]
    return (raw, [Reason.BITS]) if rough[0] < rough[1] else (cut, [])


def _radiological(image: np.ndarray, turn: tuple[float, ...]) -> np.ndarray:
    """An axial slice, rows from front to back, columns from the patient's right to the left (method/README.md §7)."""
    if not turn:
        return image
    across, down = (int(np.abs(part).argmax()) for part in (turn[:3], turn[3:]))
    if {across, down} != {0, 1}:
        return image
    if across == 1:
        image, turn = image.T, (*turn[3:], *turn[:3])
    return image[:: 1 if turn[4] > 0 else -1, :: 1 if turn[0] > 0 else -1]


@functools.cache
def _decodes(syntax: pydicom.uid.UID) -> bool:
    with contextlib.suppress(ImportError):
        import gdcm

        gdcm.Trace.ErrorOff()  # pydicom raises what failed; GDCM would also write it to the terminal
        gdcm.Trace.WarningOff()
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _padding(ds: pydicom.Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Mask of the padded pixels; the tag is compared as the stored type, as some writers give -2000 as 63536."""
    if ds.get("PixelPaddingValue") is None:
        return None
    limit = ds.get("PixelPaddingRangeLimit")
    ends = [int(ds.PixelPaddingValue), int(ds.PixelPaddingValue if limit is None else limit)]
    low, high = sorted(np.array(ends).astype(stored.dtype))
    return (stored >= low) & (stored <= high)


def _across(axial: Scan, headers: list[_Header], view: str) -> Scan:
    """Coronal or sagittal slices of an axial series: its slices stacked, turned as a NIfTI volume would be."""
    notes, first = axial.findings, headers[0]
    if not all(h.place and h.turn for h in headers) or abs(_normal(first)[2]) < 0.9:
        raise SliceError(f"{Reason.NO_VIEW}: {view} of a series that is not axial")

    def read() -> np.ndarray:
        slices = [image for _, image in axial.readable()]  # the others' findings say why; these still make a volume
        if len({s.shape for s in slices}) != 1:
            raise SliceError(f"{Reason.NO_VIEW}: slices unreadable, or of several shapes")
        return slices_of(np.stack(slices).transpose(2, 1, 0), LPS, view)  # (left, back, head)

    rows, columns = first.shape if np.abs(first.turn[:3]).argmax() == 0 else first.shape[::-1]
    return Scan(notes, map(str, range(slice_count((columns, rows, len(headers)), LPS, view))), loaded_once(read))
