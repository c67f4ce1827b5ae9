"""Figures of slices: each picture, mask and box is the one that the plain reference gives."""

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from e2d_lib.figures import images
from tests import reference
from tests.figures import artists
from tests.figures.artists import APART


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


def test_ssfl_steps():
    image = body()
    boxed, foreground, lung, cropped = images.ssfl_steps(image).axes
    row0, row1, col0, col1 = reference.crop_box(image)
    np.testing.assert_array_equal(boxed.images[0].get_array(), image)
    assert box_of(boxed) == (row0, row1, col0, col1)
    np.testing.assert_array_equal(foreground.images[0].get_array() > 0, reference.foreground(image, 10))
    np.testing.assert_array_equal(cropped.images[0].get_array(), image[row0:row1, col0:col1])
    drawn, values = overlay(lung.images[1])
    np.testing.assert_array_equal(drawn, taken_for_lung(image))
    assert values[drawn].all()
    removed = 1 - (row1 - row0) * (col1 - col0) / image.size
    assert boxed.get_title() == f"slice, 64×80: {removed:.0%} of the area removed"
    assert lung.get_title() == f"lung area: {reference.lung_area(image):,} pixels"
    assert cropped.get_title() == f"the crop, {row1 - row0}×{col1 - col0}"
    assert foreground.get_title() == "10×10 minimum filter ≥ 100"


def test_errors_show_the_slice_and_its_map(rng):
    pairs = [(rng.integers(0, 256, (6, 6), dtype=np.uint8), rng.random((6, 6))) for _ in range(3)]
    figure = images.errors(pairs, ["scan 1", "scan 2", "scan 3"], columns=2)
    panels = [axis for axis in figure.axes if axis.images]
    plain = {axis.get_title(): axis for axis in panels if len(axis.images) == 1}
    mapped = [axis for axis in panels if len(axis.images) == 2]
    assert list(plain) == ["scan 1", "scan 2", "scan 3"]
    for (image, heat), above, below in zip(pairs, plain.values(), mapped, strict=True):
        np.testing.assert_array_equal(above.images[0].get_array(), image)
        np.testing.assert_array_equal(below.images[0].get_array(), image)
        np.testing.assert_array_equal(below.images[1].get_array(), heat)
        opacity = below.images[1].get_alpha()
        assert (np.argsort(opacity.ravel()) == np.argsort(heat.ravel())).all()  # the hotter the more opaque
        assert below.images[1].get_clim() == (0, 1)
        assert above.get_position().y0 > below.get_position().y0
        assert abs(above.get_position().x0 - below.get_position().x0) < 1e-6
    (bar,) = (axis for axis in figure.axes if "Grad-CAM" in axis.get_ylabel())
    assert bar.get_ylim() == (0, 1)


def test_view_steps():
    pictures = {"axial": body(), "coronal": body(48, 90)}
    curves = {"axial": (np.array([1, 5, 9, 4, 2]), 1, 4), "coronal": (np.array([3, 2, 8, 7]), 2, 4)}
    drawn = {"axial": np.array([1, 3]), "coronal": np.array([2])}
    figure = images.view_steps(pictures, curves, drawn)
    axes = np.reshape(figure.axes, (2, 4))
    for (picture, mask, lung, curve), view in zip(axes, pictures, strict=True):
        image, (areas, start, stop) = pictures[view], curves[view]
        row0, row1, col0, col1 = reference.crop_box(image)
        np.testing.assert_array_equal(picture.images[0].get_array(), image)
        assert box_of(picture) == (row0, row1, col0, col1)
        assert f"{view}: {1 - (row1 - row0) * (col1 - col0) / image.size:.0%}" in picture.get_title()
        np.testing.assert_array_equal(mask.images[0].get_array() > 0, reference.foreground(image, 10))
        np.testing.assert_array_equal(overlay(lung.images[1])[0], taken_for_lung(image))
        assert f"{reference.lung_area(image):,} pixels" in lung.get_title()
        ((x, y, *_),) = [line for line in artists.lines(curve) if len(line[0]) == len(areas)]
        np.testing.assert_array_equal([x, y], [range(len(areas)), areas])
        assert [mark[:2] for mark in artists.marks(curve)] == [(k, areas[k]) for k in drawn[view]]
        ((left, _, width, *_),) = artists.bars(curve)
        assert (left, left + width) == (start - 0.5, stop - 0.5)
        assert f"[{start}, {stop}) of {len(areas)}, {len(drawn[view])} slices" in curve.get_title()
        assert curve.get_ylabel() == "lung area, pixels"
    assert axes[-1, 3].get_xlabel() == "slice"
    assert artists.legend_colours(figure) == {"crop box": images.BOX, "taken for lung": images.FOUND}
    assert artists.told_apart([images.BOX, images.FOUND, images.TRUE]) > APART


def test_found_and_true():
    pictures = [body(), body()[:, ::-1].copy()]
    lungs = [np.zeros((64, 80), bool), np.zeros((64, 80), bool)]
    lungs[0][20:38, 22:34] = True  # what is known, not what is found; the other has none
    figure = images.found_and_true(pictures, lungs, ["one", "two"], columns=2)
    for axis, image, title in zip(figure.axes, pictures, ["one", "two"], strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
        np.testing.assert_array_equal(overlay(axis.images[1])[0], taken_for_lung(image))
        assert box_of(axis) == reference.crop_box(image) and axis.get_title() == title
    outline = np.vstack([path.vertices for path in figure.axes[0].collections[0].get_paths()])
    assert outline.min(axis=0).tolist() == [21.5, 19.5] and outline.max(axis=0).tolist() == [33.5, 37.5]
    assert not figure.axes[1].collections
    assert artists.legend_colours(figure)["lung"] == to_hex(figure.axes[0].collections[0].get_edgecolor()[0])
