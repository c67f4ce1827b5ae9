"""Figures of slices: the method's steps on them, and what it finds."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from scipy import ndimage

from e2d_lib.figures.style import ORANGE, grid
from e2d_lib.method import ssfl

BOX, FOUND, TRUE = "#f0e442", ORANGE, "#56d3f0"


def show(axis, image: np.ndarray, title: str = "") -> None:
    """A picture (rows, columns) of 0 to 255, the same grey for the same value in every one."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=8)
    axis.axis("off")


def slices(images: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, columns: int = 6) -> Figure:
    """A contact sheet: 2-D uint8 images of any shapes, each with its title."""
    figure, axes = grid(len(images), columns, (1.7, 1.9))
    for axis, image, title in zip(axes, images, titles or [""] * len(images), strict=True):
        show(axis, image, title)
    return figure


def steps(axes: Sequence, image: np.ndarray, name: str) -> None:
    """SSFL++ on one slice in three panels: crop box, filtered foreground, lung area (method/README.md §2, §3).

    The masks are drawn with SciPy's filters from the text; the box and the area in the titles are the library's.
    """
    box, area = ssfl.measure(image)
    removed = 1 - (box[1] - box[0]) * (box[3] - box[2]) / image.size
    foreground = ndimage.minimum_filter(image, ssfl.CROP_ERODE) >= ssfl.THRESHOLD
    show(axes[0], image, f"{name}: {removed:.0%} of the area removed")
    show(axes[1], foreground * 255, f"{ssfl.CROP_ERODE}×{ssfl.CROP_ERODE} minimum filter ≥ {ssfl.THRESHOLD}")
    show(axes[2], image, f"lung area: {area:,} pixels")
    mark_box(axes[0], box)
    mark_lung(axes[2], image)


def mark_box(axis, box: tuple[int, int, int, int]) -> None:
    row0, row1, col0, col1 = box
    axis.add_patch(
        plt.Rectangle((col0 - 0.5, row0 - 0.5), col1 - col0, row1 - row0, fill=False, color=BOX, linewidth=1.6)
    )


def mark_lung(axis, image: np.ndarray) -> None:
    """What the method takes for lung: the holes of the body (method/README.md §3)."""
    body = ndimage.minimum_filter(image, ssfl.AREA_ERODE) >= ssfl.THRESHOLD
    holes = ndimage.binary_fill_holes(body) & ~body
    axis.imshow(np.ma.masked_where(~holes, holes), cmap=ListedColormap([FOUND]), alpha=0.5, interpolation="nearest")
