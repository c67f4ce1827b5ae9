"""SSFL++ against the plain reference, on any image, and against the golden values of the released algorithm."""

import csv
import json
from fractions import Fraction

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from e2d_lib.method import bits, ssfl
from tests import reference

BRIGHT, DARK = 180, 20
SIDES = st.one_of(st.integers(1, 14), st.integers(1, 90))
thorough = settings(max_examples=300, deadline=None, derandomize=True)


def _canvas(shape, *patches, ground=DARK):
    """An even image with rectangles on it: (row0, row1, col0, col1, value), painted in turn."""
    image = np.full(shape, ground, np.uint8)
    for row0, row1, col0, col1, value in patches:
        image[row0:row1, col0:col1] = value
    return image


@st.composite
def _rectangles(draw):
    """Bodies, holes in bodies, blobs in holes, holes in blobs ...: bright and dark rectangles over each other."""
    rows, cols = draw(SIDES), draw(SIDES)
    image = np.full((rows, cols), draw(st.sampled_from([0, 99, 100, 255])), np.uint8)
    for _ in range(draw(st.integers(0, 12))):
        r, c = draw(st.integers(0, rows - 1)), draw(st.integers(0, cols - 1))
        h, w = draw(st.integers(1, rows)), draw(st.integers(1, cols))
        image[r : r + h, c : c + w] = draw(st.sampled_from([0, 99, 100, 255]))
    return image


@st.composite
def _speckled(draw):
    """A bright image with few dark pixels, or a dark one with few bright: thin bridges between square holes."""
    shape = draw(SIDES), draw(SIDES)
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).random(shape)
    share = draw(st.sampled_from([0.003, 0.01, 0.02, 0.04, 0.3]))
    dark, bright = draw(st.sampled_from([(0, 255), (99, 100), (255, 0)]))
    return np.where(noise < share, np.uint8(dark), np.uint8(bright))


images = st.one_of(
    _rectangles(),
    _speckled(),
    hnp.arrays(np.uint8, st.tuples(SIDES, SIDES), elements=st.sampled_from([0, 99, 100, 101, 255])),
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)),
)


class TestAgainstReference:
    @thorough
    @given(images)
    @example(np.zeros((1, 1), np.uint8))
    @example(np.full((1, 1), 100, np.uint8))
    @example(np.full((7, 3), 255, np.uint8))
    @example(np.full((64, 64), 255, np.uint8))
    @example(_canvas((65, 63), (31, 32, 31, 32, BRIGHT)))
    @example(_canvas((40, 50), (5, 35, 5, 45, BRIGHT), (12, 28, 5, 45, DARK)))  # hole open to both sides
    @example(_canvas((60, 60), (0, 60, 0, 60, BRIGHT), (0, 20, 20, 40, DARK)))  # hole at the border
    @example(
        _canvas((80, 80), (2, 78, 2, 78, 255), (10, 70, 10, 70, 0), (18, 62, 18, 62, 255), (30, 50, 30, 50, 0))
    )  # blob in a hole, hole in the blob
    @example(_canvas((50, 90), (5, 45, 5, 40, BRIGHT), (5, 45, 50, 85, BRIGHT), (20, 25, 15, 20, DARK)))
    def test_any_image(self, image):
        assert ssfl.crop_box(image) == reference.crop_box(image)
        assert ssfl.lung_area(image) == reference.lung_area(image)

    @thorough
    @given(images, st.sampled_from(["full", "crop"]))
    def test_measure_is_both_in_one(self, image, area_on):
        before = image.copy()
        row0, row1, col0, col1 = box = reference.crop_box(image)
        area = reference.lung_area(image if area_on == "full" else image[row0:row1, col0:col1])
        assert ssfl.measure(image, area_on=area_on) == (box, area)
        assert ssfl.measure_both(image)[["full", "crop"].index(area_on) + 1] == area
        np.testing.assert_array_equal(image, before)

    @thorough
    @given(st.data())
    def test_cropped_bitmap_is_the_crops_own(self, data):
        sides = [data.draw(st.integers(1, 200)) for _ in range(2)]
        (row0, row1), (col0, col1) = (sorted(data.draw(st.integers(0, side)) for _ in range(2)) for side in sides)
        image = np.random.default_rng(sides).integers(0, 255, sides, np.uint8)
        if row0 < row1 and col0 < col1:
            part = np.ascontiguousarray(image[row0:row1, col0:col1])
            of_part = bits.cropped(bits.below(image, 128), row0, row1, col0, col1)
            np.testing.assert_array_equal(of_part, bits.below(part, 128))

    @pytest.mark.parametrize("size", [ssfl.AREA_ERODE, ssfl.CROP_ERODE])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 30), (3, 4), (9, 10), (23, 17)])
    def test_the_references_filter_is_the_one_described(self, rng, size, shape):
        image = rng.integers(0, 256, shape, np.uint8)
        expected = reference.minimum_filter_loops(image, size)
        np.testing.assert_array_equal(reference.foreground(image, size), expected >= 100)
        np.testing.assert_array_equal(reference.foreground(np.stack([image] * 3, -1), size), expected >= 100)

    @settings(max_examples=500, deadline=None, derandomize=True)
    @given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1)))
    @example(np.eye(9, dtype=np.uint8))
    @example(np.ones((1, 1), np.uint8))
    def test_holes_of_any_binary_image(self, body):
        filled = reference.fill_holes_loops(body.astype(bool))
        np.testing.assert_array_equal(reference.binary_fill_holes(body), filled)
        assert bits.hole_area(bits.below(body, 1), body.shape[1]) == filled.sum() - body.sum()

    @pytest.mark.parametrize("seed", range(4))
    def test_a_slice_of_full_size(self, seed):
        # a body with noisy lungs and a table, 512 x 512 and not square, with odd sides too
        rng = np.random.default_rng(seed)
        rows, cols = [(512, 512), (512, 630), (401, 333), (768, 512)][seed]
        y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : cols * 1j]
        image = np.where(x**2 / 0.8 + y**2 / 0.4 < 1, 170.0, 5.0)
        image[((np.abs(x) - 0.4) / 0.25) ** 2 + (y / 0.4) ** 2 < 1] = 30
        image[int(rows * 0.9) : int(rows * 0.93), cols // 8 : -cols // 8] = 140
        image = np.clip(image + rng.normal(0, 25, image.shape), 0, 255).astype(np.uint8)
        assert ssfl.measure(image) == (reference.crop_box(image), reference.lung_area(image))


class TestBox:
    def test_thresholds_and_window(self):
        assert ssfl.crop_box(_canvas((40, 40), (10, 30, 10, 30, 100))) == (15, 26, 15, 26)
        assert ssfl.crop_box(_canvas((40, 40), (10, 30, 10, 30, 99))) == (0, 40, 0, 40)
        assert ssfl.crop_box(_canvas((40, 40), (10, 19, 10, 30, BRIGHT))) == (0, 40, 0, 40)  # nine rows are too few

    def test_first_of_equally_long_runs(self):
        image = _canvas((60, 30), (0, 20, 0, 30, BRIGHT), (30, 45, 0, 30, BRIGHT))
        assert ssfl.crop_box(image) == (0, 16, 0, 30)
        image = _canvas((61, 30), (2, 20, 0, 30, BRIGHT), (30, 48, 0, 30, BRIGHT))
        assert ssfl.crop_box(image) == (7, 16, 0, 30)

    def test_one_empty_run_keeps_the_whole_slice(self):
        assert ssfl.crop_box(np.zeros((30, 20), np.uint8)) == (0, 30, 0, 20)

    @thorough
    @given(images)
    def test_transposed_slice_gives_the_transposed_box(self, image):
        row0, row1, col0, col1 = ssfl.crop_box(image)
        assert ssfl.crop_box(image.T) == (col0, col1, row0, row1)
        assert ssfl.lung_area(image.T) == ssfl.lung_area(image)

    def test_values_are_plain_ints(self):
        box, area = ssfl.measure(_canvas((40, 40), (5, 35, 5, 35, BRIGHT), (15, 20, 15, 20, DARK)))
        assert {type(value) for value in (*box, area)} == {int}


class TestArea:
    def test_diagonal_contact_closes_a_hole(self):
        # two blocks that touch at a corner only, after the filter: 8-connected body, 4-connected background
        body = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]], np.uint8)
        assert bits.hole_area(bits.below(body, 1), body.shape[1]) == 4
        body[3, 2] = 0
        assert bits.hole_area(bits.below(body, 1), body.shape[1]) == 0

    def test_area_on_the_crop_sees_nothing_outside(self):
        # two bodies, each around a lung; only the taller one is inside the box
        image = _canvas((100, 200), (10, 90, 10, 90, 255), (40, 60, 30, 70, 0), (20, 80, 110, 190, 255))
        image[45:55, 130:150] = 0
        full, crop = ssfl.measure(image), ssfl.measure(image, area_on="crop")
        assert full.box == crop.box
        assert full.area == reference.lung_area(image)
        assert 0 < crop.area < full.area


class TestInput:
    @pytest.mark.parametrize("function", [ssfl.crop_box, ssfl.lung_area, ssfl.measure])
    @pytest.mark.parametrize(
        ("image", "error", "message"),
        [
            (np.zeros((4, 4)), TypeError, "dtype float64"),
            (np.zeros((4, 4), np.int8), TypeError, "dtype int8"),
            (np.zeros((4, 4), np.uint16), TypeError, "dtype uint16"),
            (np.zeros((4, 4), bool), TypeError, "dtype bool"),
            ([[1, 2], [3, 4]], TypeError, "list"),
            (None, TypeError, "NoneType"),
            (np.zeros((4, 4, 3), np.uint8), ValueError, r"\(4, 4, 3\)"),
            (np.zeros(4, np.uint8), ValueError, r"\(4,\)"),
            (np.zeros((0, 4), np.uint8), ValueError, r"\(0, 4\)"),
            (np.zeros((4, 0), np.uint8), ValueError, r"\(4, 0\)"),
        ],
    )
    def test_says_what_it_received(self, function, image, error, message):
        with pytest.raises(error, match=message):
            function(image)

    def test_unknown_place_of_the_area(self):
        with pytest.raises(ValueError, match=r"'box'.*'full' or 'crop'"):
            ssfl.measure(np.zeros((4, 4), np.uint8), area_on="box")

    def test_any_memory_layout(self, rng, tmp_path):
        image = rng.integers(90, 256, (2 * 60, 3 * 50), np.uint8)
        np.save(tmp_path / "image.npy", image)
        views = [
            image[::2, ::3],
            image[::-1, ::-1],
            image.T,
            np.asfortranarray(image),
            np.load(tmp_path / "image.npy", mmap_mode="r")[3:, 5:],
        ]
        for view in views:
            copy = np.array(view, order="C")
            assert ssfl.measure(view) == (reference.crop_box(copy), reference.lung_area(copy))


class TestWindow:
    @settings(max_examples=500, deadline=None, derandomize=True)
    @given(
        st.lists(st.one_of(st.integers(0, 3), st.integers(0, 300_000)), max_size=130),
        st.one_of(st.sampled_from([0.5, 0.4, 0.07, 0.1, 1.0, 1]), st.floats(1e-6, 1)),
        st.booleans(),
    )
    def test_any_curve(self, areas, fraction, trim):
        expected = reference.slice_window(areas, fraction, trim)
        assert ssfl.slice_window(np.array(areas, np.int64), fraction, trim) == expected
        assert ssfl.slice_window(np.array(areas, np.float64), fraction=fraction, trim=trim) == expected

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.floats(0.1, 1))
    @settings(deadline=None, derandomize=True)
    def test_ties_of_fractional_areas(self, tenths, fraction):
        # in floats 0.1 + 0.2 + 0.3 is not 0.6: the first best window must not depend on rounding of running sums
        areas = np.array(tenths) / 10
        expected = reference.slice_window([Fraction(a) for a in areas.tolist()], fraction)
        assert ssfl.slice_window(areas, fraction) == expected

    def test_width_is_the_ceiling_of_the_float_product(self):
        assert ssfl.slice_window(np.ones(100), 0.07) == (0, 8)  # 0.07 * 100 is 7.000000000000001
        assert ssfl.slice_window(np.ones(10), 0.3) == (0, 3)
        assert ssfl.slice_window(np.ones(5)) == (0, 3)

    def test_no_lung_and_no_slices(self):
        assert ssfl.slice_window(np.zeros(9, int)) == (0, 5)
        assert ssfl.slice_window([]) == (0, 0)

    @pytest.mark.parametrize("n", [0, 1, 19, 20, 40, 60, 65])
    def test_the_cut_leaves_nothing(self, n):
        assert ssfl.slice_window(np.arange(n), trim=True) == (20, 20)

    @pytest.mark.parametrize(("n", "width"), [(41, 1), (59, 10), (66, 1), (81, 8), (285, 110)])
    def test_width_after_the_cut(self, n, width):
        assert ssfl.slice_window(np.zeros(n, int), trim=True) == (20, 20 + width)

    def test_small_types_do_not_overflow(self):
        areas = np.array([200, 100, 100, 250], np.uint8)
        assert ssfl.slice_window(areas) == (2, 4)
        assert ssfl.slice_window(np.array([1, 2**63, 2**63, 1], np.uint64)) == (1, 3)

    @pytest.mark.parametrize("areas", [[1, -1], [1.0, np.nan], [np.inf, 1.0], [[1, 2]], 5, ["a"], [None, 1]])
    def test_bad_areas(self, areas):
        with pytest.raises(ValueError, match="areas"):
            ssfl.slice_window(areas)

    @pytest.mark.parametrize("fraction", [0, -0.5, 1.01, np.nan, np.inf])
    def test_bad_fraction(self, fraction):
        with pytest.raises(ValueError, match="fraction is"):
            ssfl.slice_window([1, 2, 3], fraction)


def _windowed(hu):
    """method/README.md §7: centre -600, width 1500, truncated."""
    return np.clip((hu + 1350) / 1500 * 255, 0, 255).astype(np.uint8)


def _golden_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _assert_golden(image, row):
    box = tuple(int(row[name]) for name in ("row0", "row1", "col0", "col1"))
    full, crop = int(row["lung_area_full"]), int(row["lung_area_cropped"])
    assert image.shape == (int(row["height"]), int(row["width"])), row["slice"]
    assert (ssfl.crop_box(image), ssfl.lung_area(image)) == (box, full), row["slice"]
    assert ssfl.measure(image) == (box, full), row["slice"]
    assert ssfl.measure(image, area_on="crop") == (box, crop), row["slice"]
    assert ssfl.measure_both(image)[2] == crop, row["slice"]
    assert (reference.crop_box(image), reference.lung_area(image)) == (box, full), row["slice"]


@pytest.mark.shared
class TestGolden:
    def test_every_dicom_row(self, shared):
        rows = _golden_rows(shared / "data" / "golden_slices_dicom.csv")
        assert len(rows) == 10
        for row in rows:
            ds = pydicom.dcmread(shared / "data" / "tcia-covid-19-ny-sbu" / row["slice"])
            hu = ds.pixel_array.astype(np.float64) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
            _assert_golden(_windowed(hu), row)

    def test_every_nifti_row(self, shared):
        rows = _golden_rows(shared / "data" / "golden_slices_nifti.csv")
        volume = nibabel.load(shared / "data" / "totalsegmentator-example" / "example_ct.nii.gz")
        hu = nibabel.as_closest_canonical(volume).get_fdata()
        assert len(rows) == hu.shape[2]
        for row in rows:
            _assert_golden(_windowed(np.rot90(hu[:, :, int(row["slice"])])), row)

    def test_every_window(self, shared):
        curves = json.loads((shared / "data" / "golden_slice_curves.json").read_text())
        assert len(curves) == 8
        for curve in curves:
            assert ssfl.slice_window(curve["areas"], 0.5) == tuple(curve["window_w0_5"])
            assert ssfl.slice_window(curve["areas"], 0.4) == tuple(curve["window_w0_4"])
            assert ssfl.slice_window(curve["areas"], 0.5, True) == tuple(curve["window_trimmed_w0_5"])

    def test_colour_reading_changes_nothing(self, shared, tmp_path):
        # the reference as released: a grey JPEG read as three equal channels, the filter run across them too
        ds = pydicom.dcmread(sorted((shared / "data" / "tcia-covid-19-ny-sbu").glob("*.dcm"))[0])
        path = str(tmp_path / "1.jpg")
        cv2.imwrite(path, _windowed(ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)))
        colour = cv2.imread(path, cv2.IMREAD_COLOR)
        expected = reference.crop_box(colour), reference.lung_area(colour)
        assert ssfl.measure(cv2.imread(path, cv2.IMREAD_GRAYSCALE)) == expected
