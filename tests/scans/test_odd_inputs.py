"""Inputs built after public bug reports: what comes out of each, against the plain phantom's right answer.

The scripts build one input each. Where nothing is wrong with it the window is that of the phantom's 20 slices, [7, 17).
"""

import contextlib
import io
import os
import runpy
import sys

import numpy as np
import pytest

from e2d_lib.method import preprocess
from e2d_lib.scans.cohort import CohortError, cohort_findings, read_cohort
from e2d_lib.scans.readers import open_scan

pytestmark = pytest.mark.shared
RIGHT = "7-17"
P = "train/positive/pat1"
CASES = {
    "01_coronal_mpr_series": ({f"{P}/SE0": f"kept {RIGHT}"}, f"other series: of the study {P}/SE0 was chosen"),
    "02_dose_report_series": ({"train/negative/pat1/SE0": f"kept {RIGHT}"}, "no CT image: screen save"),
    "05_series_split_in_two_folders": ({P: f"kept {RIGHT}"}, "one series in several folders, joined: A, B"),
    "07_nifti_zyx_identity": ({"a": f"warned {RIGHT}"}, "axes taken as z, y, x: identity affine"),
    "09_png_transparent_background": ({"s": f"kept {RIGHT}"}, "transparent parts taken as black"),
    "11_highbit15_bitsstored12": ({"s": f"kept {RIGHT}"}, ""),
    "12_enhanced_ct_single_frame": ({"s": f"kept {RIGHT}"}, ""),
    "13_raw_values_with_padding": ({"d/s": "excluded", "n/a": "excluded"}, "values not in Hounsfield units: no air"),
    "14_mask_beside_ct": (
        {
            "train/negative/p3/ct": f"kept {RIGHT}",
            "train/negative/p4": f"warned {RIGHT}",
            "train/positive/p1/ct": f"kept {RIGHT}",
            "train/positive/p2/ct": f"kept {RIGHT}",
        },
        "mask, not CT",
    ),
    "15_copies_and_two_series_of_images": (
        dict.fromkeys(("copies", "jpg_and_png", "two_series"), f"warned {RIGHT}"),
        "copy: of 0",
    ),
    "16_orientation_jitter": ({"s": f"kept {RIGHT}"}, ""),
    "18_half_a_rescale": (
        dict.fromkeys(("no_intercept", "no_slope", "other_units"), "excluded"),
        "half of the rescale tags: no RescaleIntercept",
    ),
    "19_png16_hu": (dict.fromkeys(("deeplesion", "hu1024"), f"warned {RIGHT}"), "16-bit image: read as HU + 1024"),
    "23_left_and_right_of_dicom_and_nifti": (dict.fromkeys(("d", "hfp", "v"), f"kept {RIGHT}"), ""),
    "24_series_uid_for_each_slice": (
        dict.fromkeys(("train/positive/p1", "train/positive/p2"), f"kept {RIGHT}"),
        "one series UID a slice, joined",
    ),
    "25_names_are_z_positions": ({"s": f"kept {RIGHT}"}, "name not a number: 20, ordered by the number in it"),
    "29_frame_and_inverted": (dict.fromkeys(("framed", "inverted"), "excluded"), "air all around the body counts"),
    "30_slice_location_without_position": ({"s": f"warned {RIGHT}"}, "no position: ordered by SliceLocation"),
}
"""Script -> its scans, each "status start-stop", and how one of the findings begins."""


def build(shared, name, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, str(folder)])
    with contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(shared / "data" / "odd-inputs" / f"{name}.py"))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_what_comes_out(shared, name, tmp_path, monkeypatch):
    scans, told = CASES[name]
    cohort = read_cohort(build(shared, name, tmp_path / "data", monkeypatch))
    made = [
        preprocess.preprocess_scan(row, tmp_path / "cache", preprocess.Params(size=32))
        for row in cohort.to_dict("records")
    ]
    found = {
        r["scan_id"]: r["status"] if r["status"] == "excluded" else f"{r['status']} {r['start']}-{r['stop']}"
        for r in made
    }
    assert found == scans
    reasons = [f.reason for f in cohort_findings(cohort)] + [f[3] for record in made for f in record["findings"]]
    assert any(reason.startswith(told) for reason in reasons) if told else not reasons


def test_classes_of_plain_names(shared, tmp_path, monkeypatch):
    cohort = read_cohort(build(shared, "03_class_folder_names", tmp_path, monkeypatch))
    assert cohort["label"].tolist() == [1, 1, 0, 0, 1]


def test_root_one_level_up(shared, tmp_path, monkeypatch):
    cohort = read_cohort(build(shared, "04_root_one_level_up", tmp_path, monkeypatch))
    assert cohort["split"].tolist() == ["train"] * 4 + ["valid"] * 4 and cohort["label"].tolist() == [0, 0, 1, 1] * 2


def test_one_scan_in_train_and_valid(shared, tmp_path, monkeypatch):
    build(shared, "06_same_scan_in_train_and_valid", tmp_path, monkeypatch)
    for root, first, second in (("m.csv", "p1", "p2"), ("layout", "train/positive/p1", "valid/positive/p9")):
        with pytest.raises(CohortError, match=f"in two splits: {first} .* and {second} "):
            read_cohort(tmp_path / root)


def test_pictures_of_one_volume_are_the_same(shared, tmp_path, monkeypatch):
    cohort = read_cohort(build(shared, "23_left_and_right_of_dicom_and_nifti", tmp_path, monkeypatch))
    series, prone, volume = (open_scan(row) for row in cohort.to_dict("records"))
    for k in range(20):
        np.testing.assert_array_equal(series.read(k), volume.read(k))
        np.testing.assert_array_equal(series.read(k), prone.read(k))


def test_each_script_is_here_or_with_the_runner(shared):
    """Kernels of other environments, braces in a folder's name and a kernel that dies are the runner's."""
    scripts = {name[:-3] for name in os.listdir(shared / "data" / "odd-inputs") if name.endswith(".py")}
    runner = {"21_kernelspec_of_another_env", "22_braces_in_out", "28_kernel_killed"}
    own = {"03_class_folder_names", "04_root_one_level_up", "06_same_scan_in_train_and_valid"}
    assert scripts == {*CASES, *runner, *own}
