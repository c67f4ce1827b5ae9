"""What the greys of a scan show: whether they can be a chest CT in the lung window at all, whatever the tags say."""

import cv2
import numpy as np

from e2d_lib.scans.findings import Reason

SAMPLES = 12
"""Slices looked at, spread over the scan: a few tell as much as all."""
AIR = slice(38, 111)
"""Greys of the lung window for -1125 to -700 HU: air, and lung that is full of it."""
TISSUE = slice(202, 255)
"""Greys of the lung window for -160 to 149 HU: fat, water, muscle, organs."""
BODY = 100
"""Grey from which the method takes a pixel for body (method/README.md §2)."""
LEAST = 0.02
"""Share of the pixels that air, tissue, dark or bright must have at least; real scans have 0.15 and more of each."""
ISLAND = 0.08
"""Share of a slice that body inside a hole of the body must not reach. On real scans vessels and tumours reach 0.01;
the bound is far above: a consolidation that lung surrounds is disease, and must not cost the scan."""
ALIKE = 0.4
"""Correlation that neighbouring pixels have at least: on real slices 0.94, cut into the lungs 0.65; in noise 0."""
BLACK, GREY, WHITE = 0.25, 0.04, 0.7
"""Share of the body's middle that is black where the window is too narrow for lung, or, if less than `WHITE` of the
body is brighter than grey 150, too high. Real slices in lung windows from -1100 HU have no black there, in one from
-900 up to 0.13, and 0.88 white; for the mediastinum, where there is lung at all, 0.09 to 0.5, and 0.16 to 0.69 white;
for bone 0.03 to 0.4, and 0.02 to 0.48 white; for the brain 0.28 to 0.7."""


def doubtful(images: list[np.ndarray], *, hounsfield: bool) -> str:
    """Why slices, (rows, columns) uint8 each, can be no CT in the lung window; "" if they can.

    ``hounsfield``: they were windowed from values said to be in HU (volumes, DICOM). Then air must lie near -1000 and
    tissue near 0 to 80, black padding left aside. Slices that came as 8-bit images must show both dark and bright, and
    more than two greys, and what is bright around must not be far brighter than the middle, where spine and heart are,
    as in inverted greys; neighbouring pixels must be alike, and the lungs not black, as they are in the windows for
    mediastinum, bone and brain. In neither may the body lie in a hole of what is bright around it, as it does where the
    background is white or a bright frame was drawn.
    """
    some = _some(images)
    counts = [np.bincount(image[::2, ::2].ravel(), minlength=256) for image in some]
    if why := _no_hounsfield(sum(counts)) if hounsfield else _no_window(counts):
        return why
    inverted = sum(_corner(image) >= BODY and _middle(image) < 0.6 * _corner(image) for image in some)
    if not hounsfield and 2 * inverted > len(some):
        return f"{Reason.ALL_LUNG}: inverted greys"
    if not hounsfield and np.median([_alike(image) for image in some]) < ALIKE:
        return f"{Reason.NOISE}: neighbouring pixels have nothing in common"
    if not hounsfield and (black := np.mean([_black(image) for image in some])) > GREY:
        body = sum(counts)[BODY:]
        if black > BLACK or body[150 - BODY :].sum() < WHITE * body.sum():
            return f"{Reason.OTHER_WINDOW}: {black:.0%} of the body's middle is black"
    inside = sum(_island(image) > ISLAND for image in some)
    return f"{Reason.ALL_LUNG}: white background or frame" if 4 * inside >= len(some) else ""


def _no_hounsfield(counts: np.ndarray) -> str:
    total = max(counts[1:].sum(), 1)
    if counts[AIR].sum() < LEAST * total:
        return f"{Reason.NOT_HU}: no air near -1000"
    return f"{Reason.NOT_HU}: no tissue near 0 to 80" if counts[TISSUE].sum() < LEAST * total else ""


def shows_hounsfield(grey: np.ndarray) -> bool:
    """Whether uint8 greys of the lung window, any shape, show both air and tissue where HU have them."""
    return not _no_hounsfield(np.bincount(grey.ravel(), minlength=256))


def _no_window(counts: list[np.ndarray]) -> str:
    varied = [c for c in counts if np.count_nonzero(c) > 1]
    if varied and sum(c[16:240].sum() < 0.005 * c.sum() for c in varied) > 0.9 * len(varied):
        return f"{Reason.MASK}: two greys"
    total = sum(counts)
    bright = total[BODY:].sum() / total.sum()
    if bright < LEAST or bright > 1 - LEAST:
        return f"{Reason.NO_CONTRAST}: {bright:.0%} of the pixels are as bright as tissue"
    return ""


def bright_around(images: list[np.ndarray]) -> bool:
    """Whether most slices are bright to their corners, which the crop then keeps: no air is around the body."""
    some = _some(images)
    return 2 * sum(_corner(image) >= BODY for image in some) > len(some)


def _some(images: list[np.ndarray]) -> list[np.ndarray]:
    return [images[i] for i in sorted({round(k * (len(images) - 1) / (SAMPLES - 1)) for k in range(SAMPLES)})]


def _corner(image: np.ndarray) -> float:
    """The mean grey of the darkest corner but one."""
    side = max(1, min(image.shape) // 16)
    ends = np.s_[:side], np.s_[-side:]
    return sorted(image[row, column].mean() for row in ends for column in ends)[1]


def _middle(image: np.ndarray) -> float:
    """The mean grey of the middle column's half, where spine and heart are. On real scans, also cut to the body or
    into the lungs, it has 0.8 of bright corners' grey or more; of inverted ones at most 0.5."""
    rows, columns = image.shape
    middle, width = columns // 2, columns // 20
    return image[rows // 4 : rows - rows // 4, middle - width : middle + width + 1].mean()


def _alike(image: np.ndarray) -> float:
    """The correlation of neighbours in a row; 1 where all pixels are equal."""
    left, right = (image[::16, part].astype(np.float32) for part in (np.s_[:-1], np.s_[1:]))
    return 1 - np.var(left - right) / max(np.var(left) + np.var(right), 1e-9)


def _black(image: np.ndarray) -> float:
    """The share of black, JPEG's included, in the middle half of the rows and columns that hold body."""
    column, row, columns, rows = cv2.boundingRect((image >= BODY).view(np.uint8))
    middle = image[row + rows // 4 : row + rows - rows // 4, column + columns // 4 : column + columns - columns // 4]
    return np.count_nonzero(middle <= 2) / max(middle.size, 1)


def _island(image: np.ndarray) -> float:
    """The largest piece of body that lies in a hole of the body, as a share of the slice."""
    body = (cv2.erode(image, np.ones((5, 5), np.uint8)) >= BODY).view(np.uint8)
    outlines, tree = cv2.findContours(body, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    if tree is None:
        return 0.0
    parents = tree[0][:, 3]
    inner = [line for line, up in zip(outlines, parents, strict=True) if up >= 0 and parents[up] >= 0]
    return max(map(cv2.contourArea, inner), default=0.0) / image.size
