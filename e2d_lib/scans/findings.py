"""A scan: its slices in order, and findings, which say what dirt was met and what was done with it."""

import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

import numpy as np


class Reason(StrEnum):
    """The vocabulary of `Finding.reason`; a detail may follow it after a colon."""

    # a file that is no slice
    TWIN = "macOS ._ twin"
    SYSTEM_FILE = "hidden or system file"
    OTHER_FILE = "not a slice"
    UNKNOWN_FORMAT = "unknown format"
    NO_READER = "reader not installed"
    MASK = "mask, not CT"
    # a slice or volume that cannot be read
    EMPTY_FILE = "empty file"
    TRUNCATED = "truncated file"
    UNDECODABLE = "undecodable"
    UNREADABLE = "unreadable"
    NO_DECODER = "no decoder for transfer syntax"
    BAD_RESCALE = "bad rescale"
    # an image read with a doubt
    CORRUPT = "corrupt data"
    NO_END = "no end marker, all pixels there"
    SIXTEEN_BIT = "16-bit image"
    TRANSPARENT = "transparent parts taken as black"
    BITS = "values beyond the stated bits"
    NOT_HU = "values not in Hounsfield units"
    NOT_FINITE = "values not finite, taken as air"
    NO_RESCALE = "no rescale tags, values taken as HU"
    HALF_RESCALE = "half of the rescale tags"
    OTHER_UNITS = "rescale to other units than HU"
    INVERTED = "MONOCHROME1, inverted"
    PARSER = "reader's warning"
    # numbering and order
    NOT_A_NUMBER = "name not a number"
    SAME_NUMBER = "duplicate slice number"
    COPY = "copy"
    OTHER_RUN = "other run of numbers"
    NUMBER_GAP = "gap in numbering"
    NO_POSITION = "no position"
    SAME_POSITION = "duplicate position"
    POSITION_GAP = "gap in positions"
    # volumes
    SEVERAL_VOLUMES = "several volumes, first kept"
    BAD_AFFINE = "degenerate affine, axes as stored"
    NO_ORIENTATION = "orientation not stated"
    AXES = "axes taken as z, y, x"
    NO_VIEW = "view needs a volume"
    # DICOM files that are not the scan's slices
    OTHER_MODALITY = "other modality"
    LOCALIZER = "localizer"
    NO_CT_IMAGE = "no CT image"
    PROJECTION = "projection or rendering"
    OTHER_SERIES = "other series"
    OTHER_STACK = "other stack of the series"
    SERIES_EACH = "one series UID a slice, joined"
    JOINED = "one series in several folders, joined"
    OTHER_ORIENTATION = "other orientation"
    NOT_AXIAL = "not axial"
    MULTI_FRAME = "multi-frame"
    COLOUR = "colour"
    # what the greys show
    NO_CONTRAST = "no air beside tissue"
    NOISE = "noise"
    OTHER_WINDOW = "not the lung window"
    NO_AIR = "bright to the corners"
    ALL_LUNG = "air all around the body counts as lung"
    # the scan or the cohort
    NO_SLICES = "no slices"
    MISSING = "missing path"
    LINK_LOOP = "link loop"
    OUTSIDE = "outside the manifest's folder"
    OUTSIDE_LAYOUT = "outside the layout"
    LOOSE_IMAGES = "loose images"
    UNKNOWN_CLASS = "unknown class folder"
    LAYOUT_BELOW = "layout found below the root"
    SAME_BYTES = "same file as another scan's"
    SPLIT_PATIENT = "patient in several splits"
    NO_FOLDS = "no folds"
    UNKNOWN_COLUMN = "unknown column"
    UNKNOWN_SCAN = "unknown scan"


class Finding(NamedTuple):
    """One piece of dirt and what was done with it.

    ``slice`` is "" where the finding is about the whole scan; ``outcome`` is "kept" (a note: pixels, order and label
    are not in doubt), "warned" (used, with a doubt) or "excluded"; ``reason`` is a `Reason`, or one followed by ": "
    and a detail.
    """

    scan_id: str
    slice: str
    outcome: str
    reason: str


NOTES = frozenset(
    {Reason.NO_END, Reason.TRANSPARENT, Reason.PARSER, Reason.NO_ORIENTATION, Reason.OTHER_UNITS}
    | {Reason.SERIES_EACH, Reason.JOINED}
)
"""Reasons that are no doubt about pixels, order or label."""


def kind(reason: str) -> str:
    """A finding's reason without its detail."""
    return reason.partition(": ")[0]


def printable(name: str) -> str:
    r"""A name that tables and terminals can hold: bytes that are no UTF-8 (old Latin-1 names) are written as \xNN.

    >>> print(printable("caf\udce9"))
    caf\xe9
    """
    return name if name.isascii() else os.fsencode(name).decode(errors="backslashreplace")


def short(text: object, path: str = "") -> str:
    """The first sentence, in one line of whole words and at most 100 characters; it names no folder of this machine."""
    text = str(text) or type(text).__name__
    text = text.replace(path, os.path.basename(path)) if path else text
    text = re.split(r"(?<=[a-z)])[.:;]\s", " ".join(text.split()), maxsplit=1)[0]
    return textwrap.shorten(printable(text).rstrip("."), 100, placeholder=" …")


class SliceError(ValueError):
    """A slice that cannot be read; ``reason`` as in `Finding`, ``whole`` true where the scan's other slices fail."""

    def __init__(self, reason: str, *, whole: bool = False):
        super().__init__(reason)
        self.reason = str(reason)
        self.whole = whole


class Notes(list[Finding]):
    """A scan's findings, each once."""

    def __init__(self, scan_id: str):
        self.scan_id = scan_id

    def add(self, name: str, outcome: str, reason: str) -> None:
        finding = Finding(self.scan_id, printable(name), outcome, printable(str(reason)))
        if finding not in self:
            self.append(finding)

    def doubt(self, name: str, reason: str) -> None:
        """A finding about what is used all the same: a note or a warning, by its kind."""
        self.add(name, "kept" if kind(reason) in NOTES else "warned", reason)


Load = Callable[[int], tuple[np.ndarray, list[str]]]
"""Slice index -> the slice, and the reasons for doubt found while it was read. Must not hold the scan: in a cycle, a
volume would stay in memory until the garbage collector comes by."""


class Scan:
    """The slices of one scan, in order; made by `open_scan`.

    ``names`` holds one name for each slice that is there, readable or not; ``findings`` what was found when the scan
    was listed, to which reading adds.
    """

    def __init__(self, notes: Notes, names: Iterable[str] = (), load: Load | None = None):
        self.scan_id = notes.scan_id
        self.names = tuple(map(printable, names))
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
            self.findings.doubt(name, doubt)
        return image

    def readable(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and pixels, as `read` gives them, of each slice that can be read; the findings say why others cannot."""
        for i, name in enumerate(self.names):
            try:
                yield name, self.read(i)
            except SliceError:
                continue
