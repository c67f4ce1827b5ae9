"""A scan: its slices in order, and findings, which say what dirt was met and what was done with it."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

import numpy as np


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

    def __init__(self, notes: Notes, names: Iterable[str] = (), load: Load | None = None):
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
