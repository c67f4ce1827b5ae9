"""Figures of curves: the lines and bars hold the numbers, and the words say which."""

import numpy as np

from e2d_lib.figures import curves
from tests.figures import artists


def test_area_curves():
    areas_of = {"scan 1": (np.array([0, 4, 9, 3]), 1, 3), "scan 2": (np.array([7, 5, 1]), 0, 2)}
    figure = curves.area_curves(areas_of)
    axes = [axis for axis in figure.axes if axis.lines]
    for axis, (title, (areas, start, stop)) in zip(axes, areas_of.items(), strict=True):
        ((x, y, *_),) = artists.lines(axis)
        np.testing.assert_array_equal([x, y], [range(len(areas)), areas])
        ((left, _, width, *_),) = artists.bars(axis)
        assert (left, left + width) == (start - 0.5, stop - 0.5)
        assert axis.get_title() == f"{title}: [{start}, {stop}) of {len(areas)}"
        assert axis.get_xlabel() == "slice" and axis.get_ylim()[0] == 0
    assert axes[0].get_ylabel() == "lung area, pixels"
    assert list(artists.legend_colours(figure)) == ["lung area", "kept window"]
