"""Other views, parts and spoilt copies of a volume: a body of boxes whose areas and crops are known in closed form."""

import cv2
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from e2d_lib import io
from e2d_lib.elsewhere import measure, spoil
from e2d_lib.elsewhere.spoil import Volume, VolumeError
from e2d_lib.phantom import phantom
from e2d_lib.scans.readers import open_scan
from e2d_lib.study import cli
from tests import cells
from tests.conftest import ROOT
from tests.make_scans import NOISE, RAS, expected_slice, opened, series, window, write_images, write_nifti

CHAPTER = "07_generalizability"
VIEWS = ("axial", "coronal", "sagittal")
TISSUE, LUNG = 40, -850
SHAPE = (80, 64, 60)  # x, y, z
BODY = np.s_[8:72, 8:56, 4:56]
LUNGS = (np.s_[20:34, 20:44, 16:44], np.s_[46:60, 20:44, 16:44])
AREAS = {"axial": 2 * 18 * 28, "coronal": 2 * 18 * 32, "sagittal": 28 * 32}  # each side grows by 2 + 2
LEVELS = {"axial": (16, 44), "coronal": (20, 44), "sagittal": (20, 60)}  # slices with lung; sagittal: less a gap


def box_body() -> Volume:
    """Walls of 12 voxels, more than the 10 of the crop's filter, around two lungs."""
    hu, lung = np.full(SHAPE, -1000, np.int16), np.zeros(SHAPE, bool)
    hu[BODY] = TISSUE
    for part in LUNGS:
        hu[part], lung[part] = LUNG, True
    return Volume(hu, lung)


def measured(volume: Volume, views=VIEWS, **options) -> pd.DataFrame:
    return measure.measure({"it": volume}, views, size=8, **options).table.set_index("view")


class TestMeasure:
    def test_areas_of_every_view_in_closed_form(self):
        result = measure.measure({"it": box_body()}, VIEWS, size=8)
        for view in VIEWS:
            row, slices = result.of("it", view)
            lungs = np.flatnonzero(box_body().lung_slices(view).any((1, 2)))
            assert (lungs[0], lungs[-1] + 1) == LEVELS[view]
            expected = np.zeros(row["n_slices"], int)
            expected[lungs] = AREAS[view]
            np.testing.assert_array_equal(slices["area"], expected)
            assert row["area_r"] == pytest.approx(1) and row["breaks"] == "" and row["warning"] == ""

    def test_reductions_of_every_view_in_closed_form(self):
        table = measured(box_body())
        sides, body = dict(zip("xyz", SHAPE, strict=True)), {"x": 64, "y": 48, "z": 52}
        for view, (across, first, second) in {"axial": "zxy", "coronal": "yxz", "sagittal": "xyz"}.items():
            crop = (body[first] - 9) * (body[second] - 9) / (sides[first] * sides[second])  # a 10x10 filter takes 9 off
            with_body = body[across] / sides[across]
            assert table.loc[view, "area_delta"] == pytest.approx(with_body * (1 - crop))
            assert table.loc[view, "uncropped"] == pytest.approx(1 - with_body)
            assert table.loc[view, "length_delta"] == 0.5
            assert table.loc[view, ["lung_in_crop", "lung_in_window", "of_best", "lung_kept"]].eq(1).all()
        assert list(table["start"]) == [14, 12, 20]  # the first windows of 30, 32 and 40 that hold all lung

    def test_a_crop_that_takes_the_other_body_loses_its_lung(self):
        body = box_body()
        wide = Volume(np.pad(body.hu, ((0, 100), (0, 0), (0, 0)), constant_values=-1000),
                      np.pad(body.lung, ((0, 100), (0, 0), (0, 0))))  # fmt: skip
        wide.hu[85:175, 8:56, 4:56] = TISSUE  # wider, and without lung
        row = measured(wide, ["axial"]).loc["axial"]
        assert row["lung_in_crop"] == 0 and row["lung_in_window"] == 1 and row["lung_kept"] == 0
        assert row["breaks"] == "crop loses lung" and row["warning"] == ""

    def test_a_window_drawn_to_gas_is_beside_the_lung(self):
        body = box_body()
        hu = np.concatenate([body.hu] * 2, axis=2)
        hu[14:66, 14:50, 16:44] = -990  # gas, more than lung
        lung = np.concatenate([np.zeros_like(body.lung), body.lung], axis=2)
        row = measured(Volume(hu, lung), ["axial"], fraction=0.25).loc["axial"]
        assert row["stop"] <= 60 and row["of_best"] == 0 and row["lung_in_crop"] == 1
        assert "window beside the lung" in row["breaks"] and "areas not of the lung" in row["breaks"]

    def test_without_lung_there_are_no_shares_and_gas_is_a_finding(self):
        body = box_body()
        gas = measured(Volume(body.hu, np.zeros_like(body.lung)), ["axial"]).loc["axial"]
        assert gas[["lung_in_crop", "lung_in_window", "of_best", "lung_kept", "area_r"]].isna().all()
        assert gas["breaks"] == "finds lung where there is none"

    def test_rows_come_in_the_order_of_volumes_then_views(self):
        body = box_body()
        table = measure.measure({"b": body, "a": body}, ["sagittal", "axial"], size=8).table
        rows = [("b", "sagittal"), ("b", "axial"), ("a", "sagittal"), ("a", "axial")]
        assert list(zip(table["volume"], table["view"], strict=True)) == rows

    def test_an_excluded_volume_is_an_error_that_says_why(self):
        with pytest.raises(VolumeError, match="few, axial: fewer than 5 slices: 4"):
            volumes = {"it": box_body(), "few": box_body().part(np.s_[:], np.s_[:], np.s_[:4])}
            measure.measure(volumes, ["axial"], size=8)


HOLDS = {"area_delta": 0.4, "lung_in_crop": 1.0, "of_best": 1.0, "area_r": 1.0, "area": 5}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, ""),
        ({"area_delta": 0.0}, "crop removes nothing"),
        ({"lung_in_crop": 0.94}, "crop loses lung"),
        ({"of_best": 0.89}, "window beside the lung"),
        ({"area_r": 0.79}, "areas not of the lung"),
        ({"area": 0, "of_best": 0.2, "area_r": np.nan}, "no lung found"),
        ({"lung_in_crop": np.nan, "of_best": np.nan, "area_r": np.nan}, "finds lung where there is none"),
        ({"lung_in_crop": np.nan, "of_best": np.nan, "area_r": np.nan, "area": 0}, ""),
        ({"lung_in_crop": 0.2, "area_r": -0.5}, "crop loses lung; areas not of the lung"),
    ],
)
def test_what_breaks(change, verdict):
    assert measure.breaks(HOLDS | change) == verdict


def test_verdicts_are_silent_where_something_breaks_and_nothing_warns():
    columns = ["volume", "view", "breaks", "warning"]
    rows = [
        ("whole scan", "axial", "", ""), ("whole scan", "coronal", "", ""),
        ("prone", "axial", "", ""), ("prone", "coronal", "crop loses lung", ""),
        ("metal", "axial", "no lung found", ""), ("metal", "coronal", "", "no lung: every lung area is 0"),
    ]  # fmt: skip
    table = pd.DataFrame([*rows, ("thorax", "axial", "no lung found", "")], columns=columns)
    given = {"table": table, "shown": ["whole scan", "prone", "metal"], "views": ["axial", "coronal"]}
    table = cells.run(CHAPTER, 'save_table("verdicts"', **given).verdicts.set_index("volume")
    assert list(table.index) == ["whole scan", "prone", "metal"]
    assert table["silent"].to_dict() == {"whole scan": False, "prone": True, "metal": False}
    assert table["warned"].to_dict() == {"whole scan": False, "prone": False, "metal": True}
    assert table.loc["prone", "coronal"] == "crop loses lung" and table.loc["prone", "why"]


def regions(volume, **given):
    return cells.run(CHAPTER, "levels = np.flatnonzero", subject=volume, **given).parts


def test_regions_are_cut_at_the_lowest_lung():
    body = box_body()
    body.hu[0, 0] = np.arange(60)  # says which slice is which
    parts = regions(body)
    assert list(parts) == ["whole scan", "thorax", "abdomen"]
    np.testing.assert_array_equal(parts["abdomen"].hu[0, 0], np.arange(16))
    np.testing.assert_array_equal(parts["thorax"].hu[0, 0], np.arange(13, 60))  # 28 slices of lung, 3 more
    assert not parts["abdomen"].lung.any() and parts["thorax"].lung.sum() == body.lung.sum()
    assert len(regions(body, abdomen_below=30)["abdomen"].hu[0, 0]) == 30
    assert list(regions(body, abdomen_below=9)) == ["whole scan", "thorax"]
    body.lung[:] = False
    assert list(regions(body)) == ["whole scan", "abdomen"]


def test_the_fullest_slice_and_its_lung_belong_together():
    body, empty = box_body(), box_body()
    body.hu[20:34, 20:44, 30], body.lung[2:78, 20:44, 30] = 0, True
    empty.lung[:] = False
    volumes = {"whole scan": body, "thorax": None, "empty": empty}
    figure = cells.run(CHAPTER, 'save_figure("failures"', volumes=volumes).chapter.figures["failures"]
    for axis, volume, level in zip(figure.axes, (body, empty), (30, 30), strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), expected_slice(volume.hu, "axial", level))
    outline = np.vstack([path.vertices for path in figure.axes[0].collections[0].get_paths()])
    assert np.ptp(outline, axis=0).tolist() == [76, 24] and not figure.axes[1].collections


class TestVolumes:
    @pytest.mark.parametrize("view", VIEWS)
    def test_slices_are_those_that_loops_and_the_reader_give(self, tmp_path, view):
        volume = Volume(RAS, RAS > 0)
        scan = opened(write_nifti(tmp_path / "v.nii", RAS), view=view)
        assert len(volume.slices(view)) == len(volume.lung_slices(view)) == len(scan)
        for k, (image, lung) in enumerate(zip(volume.slices(view), volume.lung_slices(view), strict=True)):
            np.testing.assert_array_equal(image, expected_slice(RAS, view, k))
            np.testing.assert_array_equal(image, scan.read(k))
            np.testing.assert_array_equal(lung, expected_slice(np.where(RAS > 0, 500, -2000), view, k) > 0)

    @pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA", "PIL"])
    def test_a_nifti_file_in_any_orientation_is_the_same_volume(self, tmp_path, axes):
        turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(axes))
        data = nib.orientations.apply_orientation(NOISE, turn)
        affine = np.eye(4) @ nib.orientations.inv_ornt_aff(turn, NOISE.shape)
        volume = spoil.read_volume(write_nifti(tmp_path / "v.nii.gz", data, affine))
        assert volume.hu.shape == NOISE.shape and volume.hu.dtype == np.int16 and volume.name == "v.nii.gz"
        np.testing.assert_array_equal(window(volume.hu), window(NOISE))
        assert not volume.known

    @pytest.mark.parametrize("view", VIEWS)
    def test_a_dicom_series_gives_the_readers_slices_in_every_view(self, tmp_path, view):
        path = series(tmp_path / "s", [0.0, 2.0, 4.0, 6.0], ["c.dcm", "a.dcm", "d.dcm", "b.dcm"])
        scan = open_scan({"path": str(path), "format": "dicom"}, view=view)
        slices = spoil.read_volume(path).slices(view)
        assert len(slices) == len(scan)
        for k in range(len(scan)):
            np.testing.assert_array_equal(slices[k], scan.read(k))

    def test_what_is_no_volume_is_refused_in_one_line(self, tmp_path):
        write_images(tmp_path / "pictures", ["0.png", "1.png"])
        with pytest.raises(VolumeError, match="no volume: view needs a volume"):
            spoil.read_volume(tmp_path / "pictures")
        with pytest.raises(VolumeError, match="no volume: missing path"):
            spoil.read_volume(tmp_path / "none.nii")
        (tmp_path / "cut.nii").write_bytes(write_nifti(tmp_path / "v.nii", NOISE).read_bytes()[:-9])
        with pytest.raises(VolumeError, match="truncated"):
            spoil.read_volume(tmp_path / "cut.nii")

    @pytest.mark.parametrize(("low", "width"), [(-1350, 1500), (-160, 400)])
    def test_unwindowing_inverts_every_grey_value(self, low, width):
        hu = spoil.unwindowed(np.arange(256, dtype=np.uint8), low, width)
        back = [min(255, max(0, (int(v) - low) * 255 // width)) for v in hu]
        assert back == list(range(256))

    def test_the_phantom_lies_feet_first_back_down_and_its_lungs_are_lung(self):
        volume = spoil.phantom_volume(9, matrix=64, n_slices=24)
        patient = phantom.patient(9, matrix=64, n_slices=24)
        for k in (0, 11, 23):
            hu, mask = patient.render(23 - k)  # this scanner goes from head to feet
            np.testing.assert_array_equal(volume.slices("axial")[k], window(np.rint(hu)))
            np.testing.assert_array_equal(volume.lung_slices("axial")[k], mask > 0)
        _, y, z = np.nonzero(volume.lung)
        assert np.median(volume.hu[volume.lung]) < -700 and z.mean() > 12
        spine = np.nonzero(volume.hu[:, :, :6] > 300)  # below the ribs
        assert spine[1].mean() < y.mean()
        other = spoil.phantom_volume(4, matrix=64, n_slices=24)
        assert (other.hu != volume.hu).any()


class TestEstimatedLung:
    def test_it_is_the_air_that_the_body_closes_in(self):
        body = box_body()
        np.testing.assert_array_equal(spoil.estimate_lung(body.hu), body.lung)

    def test_lungs_may_reach_the_ends_of_the_scan_but_not_its_sides(self):
        body = box_body()
        cut = body.part(np.s_[:], np.s_[:], np.s_[:30])
        np.testing.assert_array_equal(spoil.estimate_lung(cut.hu), cut.lung)
        body.hu[30:40, :25, 20:30] = LUNG  # one lung opened to the back
        np.testing.assert_array_equal(spoil.estimate_lung(body.hu)[40:], body.lung[40:])
        assert not spoil.estimate_lung(body.hu)[:40].any()

    def test_gas_and_specks_are_no_lung(self):
        body = box_body()
        body.hu[LUNGS[0]] = -985
        body.hu[38:41, 30:33, 30:33] = LUNG
        found = spoil.estimate_lung(body.hu)
        assert found[LUNGS[1]].all() and found.sum() == body.lung.sum() / 2
        assert not spoil.estimate_lung(np.full((20, 20, 20), TISSUE, np.int16)).any()


@pytest.fixture(scope="module")
def spoilt() -> dict[str, Volume]:
    return spoil.spoilt(box_body(), seed=0)


@pytest.fixture(scope="module")
def spoilt_rows(spoilt) -> pd.DataFrame:
    table = measure.measure({"whole scan": box_body()} | spoilt, VIEWS, size=8).table
    return table.set_index(["volume", "view"])


class TestFailures:
    def test_every_one_changes_the_volume_and_says_why(self, spoilt):
        body = box_body()
        assert spoilt.keys() == spoil.FAILURES.keys() == spoil.WHY.keys() and all(spoil.WHY.values())
        for name, volume in spoilt.items():
            assert volume.hu.dtype == np.int16 and volume.lung.shape == volume.hu.shape
            symmetric = name in ("prone", "upside down")  # as this body is
            assert symmetric or volume.hu.shape != SHAPE or (volume.hu != body.hu).any()

    def test_the_input_is_left_alone_and_the_seed_decides(self, spoilt):
        body = box_body()
        again = spoil.spoilt(body, seed=0)
        np.testing.assert_array_equal(body.hu, box_body().hu)
        assert all((again[name].hu == volume.hu).all() for name, volume in spoilt.items())
        assert (spoil.spoilt(body, seed=1)["low dose"].hu != again["low dose"].hu).any()

    def test_turns_keep_the_lung_with_the_picture(self, rng):
        volume = Volume(RAS, RAS > 0)
        prone, reversed_ = spoil.prone(volume, rng), spoil.upside_down(volume, rng)
        for k in range(RAS.shape[2]):
            np.testing.assert_array_equal(
                prone.slices("axial")[k], cv2.rotate(volume.slices("axial")[k], cv2.ROTATE_180)
            )
            np.testing.assert_array_equal(reversed_.slices("axial")[k], volume.slices("axial")[-1 - k])
        for turned in (prone, reversed_):
            np.testing.assert_array_equal(turned.lung, turned.hu > 0)

    def test_what_turns_change_is_nothing_the_lung_notices(self, spoilt_rows):
        columns = ["lung_in_crop", "lung_in_window", "area", "length_delta"]
        for name in ("prone", "upside down"):
            for view in VIEWS:
                pd.testing.assert_series_equal(
                    spoilt_rows.loc[(name, view), columns], spoilt_rows.loc[("whole scan", view), columns],
                    check_names=False,
                )  # fmt: skip

    def test_the_table_lies_under_the_back_and_touches_nobody(self, spoilt):
        body, table = box_body(), spoilt["thick table"]
        changed = np.flatnonzero((table.hu != body.hu).any((0, 2)))
        assert changed.tolist() == list(range(7))  # the body begins at 8
        assert (table.hu[:, :7] == 60).all()

    def test_streaks_are_dark_between_bars_and_none_without_hardening(self):
        bars = np.zeros((96, 90), bool)
        bars[28:32, 43:47] = bars[64:68, 43:47] = True
        np.testing.assert_array_equal(spoil._streaks(bars, 2.0, hardening=0), 0)
        streaks = spoil._streaks(bars, 2.0)
        assert streaks.shape == bars.shape and streaks[40:56, 44:46].mean() < -100
        assert -8000 < streaks[bars].mean() < -2000  # the bars themselves come out too dark, but as metal
        assert abs(streaks[46:50, 7:11].mean()) < 40  # far from both, at right angles
        np.testing.assert_allclose(streaks, streaks[::-1], atol=60)  # as the bars lie

    def test_metal_is_as_long_as_the_lungs_and_outside_them(self, spoilt):
        body, hu = box_body(), spoilt["metal"].hu
        changed = np.flatnonzero((hu != body.hu).any((0, 1)))
        assert (changed[0], changed[-1] + 1) == LEVELS["axial"]
        x, y = np.nonzero(hu[:, :, 30] > 1500)
        assert x.size and not body.lung[x, y].any() and {x.min() < 20, x.max() > 59, 30 < y.mean() < 33} == {True}
        assert hu[40, 32, 30] < TISSUE - 50  # between the bars

    def test_a_small_circle_opens_the_lungs(self, spoilt, spoilt_rows):
        volume = spoilt["small circle"]
        x, y = np.mgrid[:80, :64]
        outside = (x - 39.5) ** 2 + (y - 31.5) ** 2 > 16**2
        assert (volume.hu[outside] == -1024).all() and not volume.lung[outside].any()
        np.testing.assert_array_equal(volume.hu[~outside], box_body().hu[~outside])
        row = spoilt_rows.loc[("small circle", "axial")]
        assert row["area"] == 0 and "no lung found" in row["breaks"] and row["warning"].startswith("no lung")

    def test_a_close_crop_leaves_nothing_to_remove(self, spoilt, spoilt_rows):
        assert spoilt["close crop"].hu.shape == (36, 22, 60)
        assert spoilt_rows.loc[("close crop", "axial"), "area"] == 0  # both lungs reach the border

    def test_the_soft_tissue_window_is_one(self, rng):
        hu = np.arange(-1100, 1100, dtype=np.int16).reshape(2, -1, 1)
        seen = spoil.soft_tissue_window(Volume(hu, hu > 0), rng)
        expected = [min(255, max(0, (int(v) + 160) * 255 // 400)) for v in hu.ravel()]
        np.testing.assert_array_equal(window(seen.hu).ravel(), expected)

    def test_stored_values_are_told_of(self, spoilt, spoilt_rows):
        np.testing.assert_array_equal(spoilt["not hounsfield"].hu, box_body().hu + 1024)
        for view in VIEWS:
            row = spoilt_rows.loc[("not hounsfield", view)]
            assert row["warning"].startswith("values not in Hounsfield units") and row["area_delta"] == 0

    def test_low_dose_noise_has_the_strength_it_says(self, spoilt):
        noise = spoilt["low dose"].hu[BODY].astype(float) - box_body().hu[BODY]
        assert noise.std() == pytest.approx(200, rel=0.01) and abs(noise.mean()) < 3

    def test_a_white_lung_halves_the_area_and_stays_lung(self, spoilt, spoilt_rows):
        assert (spoilt["white lung"].lung == box_body().lung).all()
        for view in ("axial", "coronal"):
            half = spoilt_rows.loc[("whole scan", view), "area"] / 2
            assert spoilt_rows.loc[("white lung", view), "area"] == half
        x, _, _ = np.nonzero(spoilt["white lung"].hu == LUNG)
        assert x.min() == 46

    def test_lungs_denser_than_the_threshold_are_body(self, spoilt, spoilt_rows):
        body = box_body()
        np.testing.assert_array_equal(spoilt["dense lungs"].hu, np.where(body.lung, -650, body.hu))
        assert all("no lung found" in spoilt_rows.loc[("dense lungs", view), "breaks"] for view in VIEWS)

    def test_filters_reach_as_many_pixels_however_large_they_are(self, spoilt, spoilt_rows):
        assert spoilt["thick slices"].hu.shape == (80, 64, 15) and spoilt["coarse pixels"].hu.shape == (40, 32, 60)
        lung = spoilt_rows.loc[("coarse pixels", "axial"), "area"] / 28  # slices of lung
        assert lung == 2 * (7 + 4) * (12 + 4)
        assert spoilt_rows.loc[("thick slices", "axial"), "breaks"] == ""

    def test_lungs_cut_through_are_holes_in_axial_slices_only(self, spoilt, spoilt_rows):
        assert spoilt["cut through lungs"].hu.shape == (80, 64, 30)
        assert spoilt_rows.loc[("cut through lungs", "axial"), "area"] == 14 * AREAS["axial"]
        for view in ("coronal", "sagittal"):
            assert spoilt_rows.loc[("cut through lungs", view), "breaks"] == "no lung found"

    def test_without_lung_they_are_built_around_the_body(self):
        body = box_body()
        body.hu[body.lung], body.lung[:] = TISSUE, False
        spoilt = spoil.spoilt(body)
        assert len(spoilt) == len(spoil.FAILURES) and (spoilt["small circle"].hu == -1024).any()


@pytest.mark.shared
def test_a_real_abdomen_in_every_view(shared):
    """Axial as in the golden values; the lungs' bases are in the uppermost of its 112 slices."""
    path = shared / "data" / "totalsegmentator-example" / "example_ct.nii.gz"
    volume = spoil.read_volume(path)
    levels = np.flatnonzero(volume.lung.any((0, 1)))
    assert volume.hu.shape == (122, 101, 112) and levels[0] > 90 and levels[-1] == 111
    assert 20 < volume.lung.sum() * 0.027 < 200  # ml
    result = measure.measure(regions(volume), VIEWS, size=8)
    golden = pd.read_csv(shared / "data" / "golden_slices_nifti_radiological.csv")
    _, axial = result.of("whole scan", "axial")
    columns = ["height", "width", "row0", "row1", "col0", "col1"]
    np.testing.assert_array_equal(axial[columns], golden[columns])
    np.testing.assert_array_equal(axial["area"], golden["lung_area_full"])
    deltas = result.table[["area_delta", "length_delta", "total_delta"]]
    assert len(deltas) == 9 and np.isfinite(deltas).all(axis=None) and ((deltas > 0) & (deltas < 1)).all(axis=None)
    assert dict(zip(VIEWS, result.table["n_slices"], strict=False)) == {"axial": 112, "coronal": 101, "sagittal": 122}


@pytest.mark.notebook
def test_the_chapter_runs_alone_and_says_what_its_table_says(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    small = ["-p", "07.matrix=96", "-p", "07.n_slices=52", "-p", "07.size=16"]
    assert cli.main(["run", "--only", "07", "--out", str(tmp_path), "--quiet", *small]) == 0
    folder = tmp_path / "07_generalizability"
    record = io.read_json(folder / "headline.json")
    table = pd.read_csv(folder / "tables" / "measured.csv", keep_default_na=False).set_index(["volume", "view"])
    assert record["data"] == "phantom" and io.read_json(folder / "provenance.json")["inputs"] == []
    for view in VIEWS:
        row = table.loc[("whole scan", view)]
        assert record["headline"][f"{view}_total_delta"]["value"] == pytest.approx(float(row["total_delta"]))
        assert float(row["lung_in_crop"]) > 0.9 and 0.3 < float(row["total_delta"]) < 0.95
    broken = table[table["breaks"].ne("")].index.get_level_values(0)
    cases = set(table.index.get_level_values(0)) - {"whole scan", "thorax"}
    assert record["headline"]["cases"]["value"] == len(cases) == len(spoil.FAILURES) + 1
    assert record["headline"]["cases_that_hold"]["value"] == len(cases - set(broken))
    assert {"soft tissue window", "small circle", "not hounsfield"} <= set(broken)
