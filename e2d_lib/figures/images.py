"""Figures of slices: the method's steps on them, what it finds, and what the network looks at."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from scipy import ndimage

from e2d_lib.figures.curves import area_curve
from e2d_lib.figures.style import ORANGE, grid, legend, subplots
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


def ssfl_steps(image: np.ndarray) -> Figure:
    """SSFL++ on one slice: `steps`, and what the crop leaves; a figure of the paper redone."""
    figure, axes = subplots(1, 4, figsize=(10.5, 3))
    steps(axes, image, f"slice, {image.shape[0]}×{image.shape[1]}")
    row0, row1, col0, col1 = ssfl.crop_box(image)
    show(axes[3], image[row0:row1, col0:col1], f"the crop, {row1 - row0}×{col1 - col0}")
    return figure


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


def view_steps(
    images: Mapping[str, np.ndarray],
    curves: Mapping[str, tuple[np.ndarray, int, int]],
    drawn: Mapping[str, np.ndarray],
) -> Figure:
    """The method's steps in each view; a figure of the paper redone for other views.

    ``images``: view -> one slice (rows, columns) uint8; ``curves``: view -> (areas (n,), start, stop); ``drawn``:
    view -> the slices that KDS draws, indices into the areas.
    """
    heights = [max(image.shape[0] / image.shape[1], 0.6) for image in images.values()]
    size = {"figsize": (12.5, 2.75 * sum(heights) + 0.8), "width_ratios": (1, 1, 1, 1.4), "height_ratios": heights}
    figure, axes = subplots(len(images), 4, squeeze=False, **size)
    for row, (view, image) in zip(axes, images.items(), strict=True):
        steps(row, image, view)
        areas, start, stop = curves[view]
        area_curve(row[3], areas, start, stop, drawn[view])
        row[3].set_title(f"window [{start}, {stop}) of {len(areas)}, {len(drawn[view])} slices drawn", fontsize=8)
        row[3].set_ylabel("lung area, pixels")
    axes[-1, 3].set_xlabel("slice")
    _legend(figure)
    return figure


def _legend(figure: Figure, **more: str) -> None:
    legend(figure, {"crop box": BOX, "taken for lung": FOUND, **more})


def found_and_true(
    images: Sequence[np.ndarray], lungs: Sequence[np.ndarray], titles: Sequence[str], *, columns: int = 6
) -> Figure:
    """Slices (rows, columns) uint8 with the crop box, what is taken for lung (filled), and the lung (outline)."""
    figure, axes = grid(len(images), columns, (1.7, 2))
    for axis, image, lung, title in zip(axes, images, lungs, titles, strict=True):
        show(axis, image, title)
        mark_lung(axis, image)
        if lung.any():
            axis.contour(lung, [0.5], colors=TRUE, linewidths=0.8)
        mark_box(axis, ssfl.crop_box(image))
    _legend(figure, lung=TRUE)
    return figure


def errors(pairs: Sequence[tuple[np.ndarray, np.ndarray]], titles: Sequence[str], *, columns: int = 5) -> Figure:
    """Wrongly called scans: a slice (S, S) uint8, and below it the same under its heat map (S, S) in [0, 1]."""
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = subplots(2 * rows, columns, figsize=(2.4 * columns, 5 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, ((image, heat), title) in enumerate(zip(pairs, titles, strict=True)):
        row, column = divmod(number, columns)
        show(axes[2 * row, column], image, title)
        show(axes[2 * row + 1, column], image)
        # The hotter the more opaque, so that the slice stays to be seen where the map is empty.
        shown = axes[2 * row + 1, column].imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * heat)
    bar = figure.colorbar(plt.cm.ScalarMappable(shown.norm, shown.cmap), ax=axes, shrink=0.5 / rows, pad=0.01)
    bar.set_label("Grad-CAM, each map scaled by itself", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure
