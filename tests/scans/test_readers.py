"""Opening scans of every format: golden slices, what cannot be opened, and memory given back."""

import csv
import gc
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from e2d_lib.scans.readers import CohortError, Reason, open_scan
from tests.make_scans import RAS, cut, opened, outcomes, read_all, series, write_images, write_nifti


def golden_measures(image) -> list[int]:
    """Crop box and lung areas (whole, inside the crop) by method/README.md §2-3, with SciPy."""

    def longest(marked):
        labels, count = ndimage.label(marked)
        runs = [np.flatnonzero(labels == i + 1) for i in range(count)]
        run = max(runs, key=len)
        return int(run[0]), int(run[-1]) + 1

    def area(part):
        body = ndimage.minimum_filter(part, 5, mode="reflect") >= 100
        return int((ndimage.binary_fill_holes(body) & ~body).sum())

    body = ndimage.minimum_filter(image, 10, mode="reflect") >= 100
    box = [0, image.shape[0], 0, image.shape[1]]
    if body.any():
        box = [*longest(body.any(axis=1)), *longest(body.any(axis=0))]
    return [*image.shape, *box, area(image), area(image[box[0] : box[1], box[2] : box[3]])]


def golden_rows(path: Path) -> dict[str, list[int]]:
    with open(path, newline="") as file:
        return {row.pop("slice"): [int(v) for v in row.values()] for row in csv.DictReader(file)}


@pytest.mark.shared
class TestGolden:
    def test_dicom(self, shared):
        golden = golden_rows(shared / "data" / "golden_slices_dicom.csv")
        assert len(golden) == 10
        for name, row in golden.items():
            scan = opened(shared / "data" / "tcia-covid-19-ny-sbu" / name)
            assert scan.names == (name,) and not scan.findings
            assert golden_measures(scan.read(0)) == row, name

    @pytest.mark.parametrize("name", ["A0001-lung-kernel", "A0002-lung-kernel", "A0002-soft-kernel"])
    def test_whole_series(self, shared, name):
        folder = shared / "data" / "lung-pet-ct-dx"
        with open(folder / "golden.csv", newline="") as file:
            golden = [row for row in csv.DictReader(file) if row["scan"] == name]
        scan = opened(folder / name)
        assert scan.names == tuple(row["file"] for row in golden)
        assert not any(finding.outcome != "kept" for finding in scan.findings)
        columns = ["row0", "row1", "col0", "col1", "lung_area_full", "lung_area_cropped"]
        for row, image in zip(golden, read_all(scan).values(), strict=True):
            assert golden_measures(image)[2:] == [int(row[column]) for column in columns], row["file"]

    def test_nifti(self, shared):
        golden = golden_rows(shared / "data" / "golden_slices_nifti_radiological.csv")
        scan = opened(shared / "data" / "totalsegmentator-example" / "example_ct.nii.gz")
        assert scan.names == tuple(golden) and len(golden) == 112
        for name, image in read_all(scan).items():
            assert golden_measures(image) == golden[name], name
        assert not scan.findings


@pytest.mark.parametrize("view", ["axial", "coronal"])
@pytest.mark.parametrize("kind", ["jpeg", "nifti", "broken nifti", "dicom"])
def test_a_closed_scan_leaves_memory_at_once(tmp_path, kind, view):
    """Without the garbage collector: a volume in a cycle would stay until it comes by."""
    path = {
        "jpeg": lambda: write_images(tmp_path, ["0.jpg"]),
        "nifti": lambda: write_nifti(tmp_path / "v.nii", RAS),
        "broken nifti": lambda: cut(8)(tmp_path / "v.nii"),
        "dicom": lambda: series(tmp_path, [0, 1]),
    }[kind]()
    gc.collect()
    gc.disable()
    try:
        scan = opened(path, view=view)
        read_all(scan)
        gone = weakref.ref(scan), weakref.ref(scan._load) if scan._load else lambda: None
        del scan
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


class TestWhatCannotBeOpened:
    def test_missing_and_unreadable_folder(self, tmp_path, monkeypatch):
        assert outcomes(opened(tmp_path / "gone")) == {("", "excluded", Reason.MISSING)}

        def refused(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", refused)
        scan = open_scan({"scan_id": "scan", "path": str(tmp_path), "format": "jpeg"})
        assert len(scan) == 0 and outcomes(scan) == {("", "excluded", Reason.UNREADABLE)}

    @pytest.mark.parametrize(
        ("row", "options", "message"),
        [
            ({}, {"view": "oblique"}, "view is 'oblique', expected"),
            ({"format": "mha"}, {}, "format is 'mha', expected"),
        ],
    )
    def test_bad_arguments(self, tmp_path, row, options, message):
        with pytest.raises(CohortError, match=message):
            open_scan({"scan_id": "scan", "path": str(tmp_path)} | row, **options)
