"""Figures of slices: each picture, mask and box is the one that the plain reference gives."""

import numpy as np
from matplotlib.patches import Rectangle

from e2d_lib.figures import images
from tests import reference


def overlay(image):
    """(drawn, value): where an overlay has colour, and its values there."""
    array = image.get_array()
    return ~np.ma.getmaskarray(array), np.ma.getdata(array)


def body(rows=64, cols=80):
    """A slice with a body off its middle and two unlike lungs, the table below it."""
    image = np.zeros((rows, cols), np.uint8)
    image[8:52, 12:70] = 160
    image[18:40, 20:36] = 20
    image[20:44, 44:60] = 30
    image[56:60, 2:78] = 140
    return image


def taken_for_lung(image):
    """The holes of the body, from the plain reference."""
    filtered = reference.foreground(image, 5)
    return reference.fill_holes_loops(filtered) & ~filtered


def box_of(axis):
    """(row0, row1, col0, col1) of the box drawn on a picture, in pixels."""
    (patch,) = (p for p in axis.patches if isinstance(p, Rectangle) and not p.get_fill())
    left, top = patch.get_x() + 0.5, patch.get_y() + 0.5
    return top, top + patch.get_height(), left, left + patch.get_width()


def test_slices_stand_in_order_with_their_titles():
    pictures = [np.full((4, 5), value, np.uint8) for value in (10, 20, 30)]
    figure = images.slices(pictures, ["a", "b", "c"], columns=2)
    panels = [axis for axis in figure.axes if axis.images]
    assert [(axis.images[0].get_array()[0, 0], axis.get_title()) for axis in panels] == [
        (10, "a"), (20, "b"), (30, "c")
    ]  # fmt: skip
    assert {axis.images[0].get_clim() for axis in panels} == {(0, 255)}  # the same grey means the same value
