"""Figures of curves: lung areas along a scan."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from e2d_lib.figures.style import BLUE, ORANGE, grid, legend


def area_curve(axis, areas: np.ndarray, start: int, stop: int, drawn: Sequence[int] = ()) -> None:
    """Lung area against slice, the kept window, and the slices drawn from it (indices into the areas)."""
    axis.plot(areas, color="0.25", linewidth=1)
    axis.axvspan(start - 0.5, stop - 0.5, color=BLUE, alpha=0.15, linewidth=0)
    if len(drawn):
        axis.plot(drawn, np.asarray(areas)[drawn], "o", color=ORANGE, markersize=4)
    axis.set_ylim(bottom=0)


def area_curves(curves: Mapping[str, tuple[np.ndarray, int, int]], *, columns: int = 3) -> Figure:
    """Lung area against slice with the kept window. ``curves``: title -> (areas (n,), start, stop)."""
    figure, axes = grid(len(curves), columns, (3.2, 2.2))
    for axis, (title, (areas, start, stop)) in zip(axes, curves.items(), strict=True):
        area_curve(axis, areas, start, stop)
        axis.set_title(f"{title}: [{start}, {stop}) of {len(areas)}", fontsize=9)
    for axis in axes[::columns]:
        axis.set_ylabel("lung area, pixels")
    for axis in axes[-columns:]:
        axis.set_xlabel("slice")
    legend(figure, {"lung area": {"color": "0.25"}, "kept window": "#d9eaf4"})
    return figure
