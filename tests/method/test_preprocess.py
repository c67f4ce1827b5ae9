"""The cohort's cache against plain recomputation, on dirt, and after every kind of interruption."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import ndimage

from e2d_lib import io
from e2d_lib.method import preprocess, ssfl
from e2d_lib.method.preprocess import Params, PreprocessError, load, run
from e2d_lib.parallel import WorkersError
from e2d_lib.scans import readers

SMALL = Params(size=32)


def body(rng: np.random.Generator, shape: tuple[int, int] = (64, 72), lung: float = 1.0) -> np.ndarray:
    """A slice: bright body on dark air, with two dark lungs of relative size ``lung``."""
    image = np.zeros(shape, np.uint8)
    rows, cols = shape
    cv2.ellipse(image, (cols // 2, rows // 2), (cols * 2 // 5, rows * 2 // 5), 0, 0, 360, 180, -1)
    if lung:
        for col in (cols // 3, cols - cols // 3):
            cv2.circle(image, (col, rows // 2), max(1, int(lung * rows / 7)), 20, -1)
    return np.clip(image + rng.normal(0, 6, shape), 0, 255).astype(np.uint8)


def write_scan(folder: Path, n: int, rng: np.random.Generator, **options) -> Path:
    """``n`` JPEG slices 0.jpg …, lungs largest in the middle unless ``lung`` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(n):
        shown = {"lung": np.sin(np.pi * (index + 1) / (n + 1)), **options}
        cv2.imwrite(str(folder / f"{index}.jpg"), body(rng, **shown))
    return folder


@pytest.fixture
def data(tmp_path, rng) -> Path:
    """Three small scans of 9, 7 and 12 slices."""
    root = tmp_path / "data"
    for place, n in (
        ("train/positive/ct_scan_0", 9),
        ("train/negative/ct_scan_0", 7),
        ("valid/positive/ct_scan_0", 12),
    ):
        write_scan(root / place, n, rng)
    return root


def cohort_of(root: Path) -> pd.DataFrame:
    """The scans of a folder in the layout split/class/scan."""
    scans = sorted(root.glob("*/*/*"))
    return pd.DataFrame(
        {
            "scan_id": [p.relative_to(root).as_posix() for p in scans],
            "path": [str(p) for p in scans],
            "split": [p.parts[-3] for p in scans],
            "label": pd.array([int(p.parts[-2] == "positive") for p in scans], dtype="Int64"),
            "format": "jpeg",
        }
    )


def stored(cohort: pd.DataFrame, folder: Path) -> Path:
    """The cohort as a file, for another process."""
    cohort.to_parquet(folder / "cohort.parquet")
    return folder / "cohort.parquet"


def only(root: Path, folder: Path, **columns) -> pd.DataFrame:
    """A cohort of one scan."""
    row = {"scan_id": folder.relative_to(root).as_posix(), "path": str(folder), "format": "jpeg"}
    return pd.DataFrame([row | columns])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


# The method as plain as it can be written (method/README.md §2, §3).


def plain_box(image: np.ndarray) -> tuple[int, int, int, int]:
    foreground = ndimage.minimum_filter(image, size=10, mode="reflect") >= 100
    runs = []
    for marked in (foreground.any(axis=1), foreground.any(axis=0)):
        best = (0, 0)
        for start in range(len(marked)):
            stop = start
            while stop < len(marked) and marked[stop]:
                stop += 1
            if stop - start > best[1] - best[0]:
                best = (start, stop)
        runs.append(best)
    if any(start == stop for start, stop in runs):
        return 0, image.shape[0], 0, image.shape[1]
    return *runs[0], *runs[1]


def plain_area(image: np.ndarray) -> int:
    tissue = ndimage.minimum_filter(image, size=5, mode="reflect") >= 100
    return int((ndimage.binary_fill_holes(tissue) & ~tissue).sum())


def plain_window(areas: list[int], fraction: float) -> tuple[int, int]:
    width = int(np.ceil(fraction * len(areas)))
    sums = [sum(areas[start : start + width]) for start in range(len(areas) - width + 1)]
    start = sums.index(max(sums))
    return start, start + width


class TestParams:
    def test_key_is_the_same_in_another_process(self):
        code = "from e2d_lib.method.preprocess import Params; print(Params(fraction=0.4, trim=True).key)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert other.stdout.strip() == Params(fraction=0.4, trim=True).key

    @pytest.mark.parametrize(
        "change",
        [
            {"size": 256},
            {"crop": False},
            {"fraction": 0.4},
            {"trim": True},
            {"area_on": "crop"},
            {"variant": "released"},
            {"view": "coronal"},
            {"min_slices": 1},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_every_field_changes_the_key(self, change):
        assert replace(Params(), **change).key != Params().key

    def test_every_field_is_in_the_test_above(self):
        mark = next(m for m in self.test_every_field_changes_the_key.pytestmark if m.name == "parametrize")
        assert {name for change in mark.args[1] for name in change} == set(asdict(Params()))

    def test_whole_number_and_float_share_a_key(self):
        assert Params(fraction=1).key == Params(fraction=1.0).key

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"size": 0}, "size must be a whole number >= 1, not 0"),
            ({"size": True}, "size must"),
            ({"size": 384.0}, "size must"),
            ({"min_slices": 0}, "min_slices must"),
            ({"fraction": 0}, r"fraction must be a number in \(0, 1\], not 0"),
            ({"fraction": 1.5}, "fraction must"),
            ({"fraction": "half"}, "fraction must be a number"),
            ({"fraction": float("nan")}, "fraction must"),
            ({"crop": "yes"}, "crop must be true or false"),
            ({"trim": 1}, "trim must be true or false"),
            ({"area_on": "lung"}, "area_on must be one of full, crop, not 'lung'"),
            ({"variant": "mine"}, "variant must be one of"),
            ({"view": "oblique"}, "view must be one of"),
            ({"area_on": "crop", "crop": False}, "needs crop=True"),
        ],
    )
    def test_refuses(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            Params(**wrong)


class TestExact:
    @pytest.mark.parametrize("area_on", ["full", "crop"])
    @pytest.mark.parametrize("fraction", [0.5, 0.4, 1.0])
    def test_equals_the_plain_method(self, tmp_path, data, area_on, fraction):
        params = replace(SMALL, fraction=fraction, area_on=area_on)
        pre = run(cohort_of(data), tmp_path / "out", params, n_jobs=1)
        for scan in pre.scans.itertuples():
            images = [cv2.imread(str(data / scan.scan_id / f"{k}.jpg"), 0) for k in range(scan.n_slices)]
            boxes = [plain_box(image) for image in images]
            crops = [image[r0:r1, c0:c1] for image, (r0, r1, c0, c1) in zip(images, boxes, strict=True)]
            areas = [plain_area(image) for image in (images if area_on == "full" else crops)]
            start, stop = plain_window(areas, fraction)
            rows = pre.slices[pre.slices["scan_id"] == scan.scan_id]
            assert [tuple(box) for box in rows[["row0", "row1", "col0", "col1"]].to_numpy()] == boxes
            assert rows["area"].tolist() == areas and max(areas) > 0
            assert rows["area_crop"].tolist() == [plain_area(crop) for crop in crops]
            assert rows["index"].tolist() == list(range(len(images)))
            assert rows["name"].tolist() == [f"{k}.jpg" for k in range(len(images))]
            assert (scan.start, scan.stop) == (start, stop)
            assert pre.areas(scan.scan_id).tolist() == areas[start:stop]
            pixels = pre.pixels(scan.scan_id)
            assert pixels.shape == (stop - start, 32, 32) and pixels.dtype == np.uint8
            for image, crop in zip(pixels, crops[start:stop], strict=True):
                mode = cv2.INTER_AREA if min(crop.shape) >= 32 else cv2.INTER_LINEAR
                np.testing.assert_array_equal(image, cv2.resize(crop, (32, 32), interpolation=mode))

    def test_areas_on_the_crop_are_measured_in_the_same_pass(self, tmp_path, data):
        cohort = cohort_of(data)
        pre = run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        again = run(cohort, tmp_path / "again", replace(SMALL, area_on="crop"), n_jobs=1)
        assert pre.slices["area_crop"].tolist() == again.slices["area"].tolist()
        assert pre.slices["area_crop"].tolist() != pre.slices["area"].tolist()

    def test_without_the_spatial_step_whole_slices_are_kept(self, tmp_path, data):
        pre = run(cohort_of(data), tmp_path / "out", replace(SMALL, crop=False), n_jobs=1)
        assert (pre.slices[["row0", "row1", "col0", "col1"]].drop_duplicates().to_numpy() == [[0, 64, 0, 72]]).all()
        row = pre.scans.iloc[0]
        first = cv2.imread(str(data / row["scan_id"] / f"{row['start']}.jpg"), 0)
        whole = cv2.resize(first, (32, 32), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(pre.pixels(row["scan_id"])[0], whole)

    def test_resize_by_closed_forms(self):
        blocks = np.array([[10, 20, 100, 100], [30, 40, 100, 100], [0, 0, 7, 9], [0, 0, 11, 13]], np.uint8)
        assert preprocess.resize(blocks, 2).tolist() == [[25, 100], [0, 10]]  # means of blocks
        assert preprocess.resize(blocks, 4).tolist() == blocks.tolist()
        grown = preprocess.resize(np.array([[0, 100], [0, 100]], np.uint8), 4)  # linear between pixel centres
        assert grown.tolist() == [[0, 25, 75, 100]] * 4
        # One side grows and the other shrinks: linear, not a mean.
        assert preprocess.resize(np.array([[0], [0], [200], [200]], np.uint8), 2).tolist() == [[0, 0], [200, 200]]

    def test_tables_are_in_cohort_order_and_hold_no_path(self, tmp_path, data):
        cohort = cohort_of(data).iloc[::-1]
        cohort.attrs = {"root": str(data)}
        pre = run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        assert pre.scans["scan_id"].tolist() == cohort["scan_id"].tolist()
        assert pre.slices["scan_id"].unique().tolist() == cohort["scan_id"].tolist()
        assert pre.scans["label"].tolist() == cohort["label"].tolist()
        assert pre.scans["n_slices"].tolist() == [12, 9, 7]
        texts = [pre.scans.to_csv(), pre.slices.to_csv(), pre.findings.to_csv()]
        texts += [str(pq.read_metadata(path).metadata) for path in (tmp_path / "out").rglob("*.parquet")]
        texts += [path.read_text() for path in (tmp_path / "out").rglob("*.json")]
        assert not any(str(tmp_path) in text for text in texts)


def no_dirt(folder, rng):
    pass


def twins(folder, rng):
    (folder / "._1.jpg").write_bytes(b"\x00\x05\x16\x07Mac OS X")


def zero_byte(folder, rng):
    (folder / "2.jpg").write_bytes(b"")


def text_file(folder, rng):
    (folder / "2.jpg").write_text("not an image")


def truncated(folder, rng):
    (folder / "2.jpg").write_bytes((folder / "2.jpg").read_bytes()[:-200])


def odd_names(folder, rng):
    (folder / "2.jpg").rename(folder / "a.jpg")
    (folder / "7.jpg").rename(folder / "b.jpg")
    (folder / "6.jpg").rename(folder / "2.jpg")


def gap(folder, rng):
    (folder / "3.jpg").unlink()


def four_left(folder, rng):
    for index in range(4, 8):
        (folder / f"{index}.jpg").unlink()


def one_left(folder, rng):
    for index in range(1, 8):
        (folder / f"{index}.jpg").unlink()


def all_bad(folder, rng):
    for path in folder.glob("*.jpg"):
        path.write_bytes(b"")


def mixed(folder, rng):
    cv2.imwrite(str(folder / "7.jpg"), body(rng, (48, 40)))


def no_lung(folder, rng):
    write_scan(folder, 8, rng, lung=0)


def black(folder, rng):
    for path in folder.glob("*.jpg"):
        cv2.imwrite(str(path), np.zeros((64, 72), np.uint8))


@pytest.mark.parametrize(
    ("dirt", "change", "status", "n_slices", "window", "reason"),
    [
        (no_dirt, {}, "kept", 8, 4, ""),
        (twins, {}, "kept", 8, 4, ""),
        (zero_byte, {}, "warned", 7, 4, "slices excluded, empty file: 1"),
        (truncated, {}, "warned", 7, 4, "slices excluded, truncated file: 1"),
        (text_file, {}, "warned", 7, 4, "slices excluded, undecodable: 1"),
        (odd_names, {}, "warned", 8, 4, "slices warned, name not a number: 2"),
        (gap, {}, "warned", 7, 4, "gap in numbering: 1 missing, 3"),
        (four_left, {}, "excluded", 4, 0, "fewer than 5 slices: 4"),
        (four_left, {"min_slices": 4}, "kept", 4, 2, ""),
        (one_left, {"min_slices": 1}, "kept", 1, 1, ""),
        (all_bad, {}, "excluded", 0, 0, "fewer than 5 slices: 0"),
        (mixed, {}, "warned", 8, 4, "mixed shapes: 64x72 (7), 48x40 (1); each slice is cropped"),
        (mixed, {"variant": "paper"}, "warned", 8, 4, "mixed shapes"),
        (mixed, {"variant": "released"}, "excluded", 1, 0, "fewer than 5 slices: 1"),
        (mixed, {"variant": "released", "min_slices": 1}, "warned", 1, 1, "the last slice is kept, whole"),
        (no_lung, {}, "warned", 8, 4, "no lung"),
        (black, {}, "excluded", 8, 0, "no air beside tissue"),
        (no_dirt, {"trim": True}, "warned", 8, 0, "empty window"),
    ],
)
def test_dirt_has_a_stated_outcome(tmp_path, rng, dirt, change, status, n_slices, window, reason):
    root = tmp_path / "data"
    good, folder = write_scan(root / "good", 30, rng), write_scan(root / "dirty", 8, rng)
    dirt(folder, rng)
    cohort = pd.concat([only(root, folder), only(root, good)], ignore_index=True)
    pre = run(cohort, tmp_path / "out", replace(SMALL, **change), n_jobs=1)
    row = pre.scans.set_index("scan_id").loc["dirty"]
    assert row["status"] == status
    assert row["n_slices"] == n_slices == (pre.slices["scan_id"] == "dirty").sum()
    assert row["stop"] - row["start"] == window
    assert reason in row["reason"] and bool(reason) == bool(row["reason"])
    # Nothing is lost silently: whatever is not simply kept is in the excluded table and among the findings.
    assert ("dirty" in set(preprocess.excluded_table(pre)["scan_id"])) == (row["status"] != "kept")
    assert dirt is no_dirt or "dirty" in set(pre.findings["scan_id"]) or dirt in (four_left, one_left)
    assert row["status"] == "kept" or "dirty" in set(pre.findings["scan_id"])
    if row["status"] == "excluded":
        with pytest.raises(PreprocessError, match="'dirty' is excluded"):
            pre.pixels("dirty")
        with pytest.raises(PreprocessError, match="'dirty' is excluded"):
            pre.areas("dirty")
    else:
        assert pre.pixels("dirty").shape == (window, 32, 32)
        assert len(pre.areas("dirty")) == window


def test_bad_slices_are_named(tmp_path, rng):
    folder = write_scan(tmp_path / "data" / "scan", 8, rng)
    (folder / "2.jpg").write_bytes(b"")
    (folder / "5.jpg").write_text("text")
    pre = run(only(tmp_path / "data", folder), tmp_path / "out", SMALL, n_jobs=1)
    bad = pre.findings[pre.findings["outcome"] == "excluded"]
    assert bad["slice"].tolist() == ["2.jpg", "5.jpg"]
    assert pre.slices["name"].tolist() == [f"{k}.jpg" for k in (0, 1, 3, 4, 6, 7)]


def test_released_rule_keeps_the_last_slice_whole(tmp_path, rng):
    folder = write_scan(tmp_path / "data" / "scan", 8, rng)
    last = body(rng, (48, 40))
    cv2.imwrite(str(folder / "7.jpg"), last)
    params = replace(SMALL, variant="released", min_slices=1)
    pre = run(only(tmp_path / "data", folder), tmp_path / "out", params, n_jobs=1)
    (row,) = pre.slices.itertuples()
    assert (row.name, row.row0, row.row1, row.col0, row.col1) == ("7.jpg", 0, 48, 0, 40)
    image = cv2.imread(str(folder / "7.jpg"), 0)
    whole = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(pre.pixels("scan")[0], whole)


def test_volumes_beside_images(tmp_path, rng):
    """The same pass over NIfTI: a good volume, one cut short, and one seen from the front."""
    root = tmp_path / "data"
    hu = np.full((40, 30, 20), -1000, np.int16)  # right, front, head
    hu[5:35, 5:25] = 40
    hu[10:15, 10:20, 5:15] = -850
    hu[20:25, 10:20, 5:15] = -850
    image = nib.Nifti1Image(hu, np.eye(4))
    root.mkdir()
    for name in ("good", "cut"):
        nib.save(image, root / f"{name}.nii.gz")
    (root / "cut.nii.gz").write_bytes((root / "good.nii.gz").read_bytes()[:400])
    rows = [only(root, root / f"{name}.nii.gz", format="nifti") for name in ("good", "cut")]
    cohort = pd.concat([*rows, only(root, write_scan(root / "images", 8, rng))])
    pre = run(cohort, tmp_path / "out", SMALL, n_jobs=1)
    assert pre.scans["status"].tolist() == ["kept", "excluded", "kept"]
    assert pre.scans["reason"][1].startswith("truncated file")
    good = pre.scans.iloc[0]
    assert (good["n_slices"], good["height"], good["width"]) == (20, 30, 40)
    # The lungs fill slices 5 to 14: a window of 10 has to be there.
    assert (good["start"], good["stop"]) == (5, 15) and (pre.areas("good.nii.gz") > 0).all()

    front = run(cohort, tmp_path / "out", replace(SMALL, view="coronal"), n_jobs=1)
    assert front.scans["status"].tolist() == ["kept", "excluded", "excluded"]
    assert (front.scans["n_slices"][0], front.scans["height"][0], front.scans["width"][0]) == (30, 20, 40)
    assert "view needs a volume" in front.scans["reason"][2]


def test_missing_scan_is_excluded(tmp_path, data):
    gone = only(data, data / "gone")
    pre = run(pd.concat([gone, cohort_of(data)]), tmp_path / "out", SMALL, n_jobs=1)
    assert pre.scans["status"].tolist()[0] == "excluded" and "excluded" not in pre.scans["status"].tolist()[1:]
    assert str(tmp_path) not in pre.scans["reason"][0]


def test_originals_are_only_read(tmp_path, data):
    before = tree(data), stamps(data)
    run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
    assert (tree(data), stamps(data)) == before


class TestAgain:
    def test_second_run_does_nothing_twice(self, tmp_path, data):
        cohort = cohort_of(data)
        run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        bytes_before, stamps_before = tree(tmp_path / "out"), stamps(tmp_path / "out" / SMALL.key / "scans")
        run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        assert tree(tmp_path / "out") == bytes_before
        assert stamps(tmp_path / "out" / SMALL.key / "scans") == stamps_before

    def test_only_changed_and_new_scans_are_done(self, tmp_path, data, rng):
        run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        scans = tmp_path / "out" / SMALL.key / "scans"
        before = stamps(scans)
        changed, new = data / "train/positive/ct_scan_0", data / "valid/negative/ct_scan_0"
        (changed / "0.jpg").unlink()
        write_scan(new, 6, rng)
        pre = run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        touched = {name.rpartition(".")[0] for name, stamp in stamps(scans).items() if before.get(name) != stamp}
        assert touched == {preprocess.stem(p.relative_to(data).as_posix()) for p in (changed, new)}
        again = run(cohort_of(data), tmp_path / "fresh", SMALL, n_jobs=1)
        assert tree(again.folder) == tree(pre.folder)

    def test_input_that_turns_bad_loses_its_pixels(self, tmp_path, data):
        folder = data / "train/negative/ct_scan_0"
        run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        for index in range(4):
            (folder / f"{index}.jpg").unlink()
        run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        run(cohort_of(data), tmp_path / "fresh", SMALL, n_jobs=1)
        assert tree(tmp_path / "out") == tree(tmp_path / "fresh")

    def test_input_changed_and_changed_back_around_an_interruption(self, tmp_path, data, monkeypatch):
        """The pixels of the changed input were written, but not its record: the old record must not vouch for them."""
        cohort, image = cohort_of(data), data / "train/negative/ct_scan_0/3.jpg"
        before = tree(run(cohort, tmp_path / "out", SMALL, n_jobs=1).folder)
        content, stat = image.read_bytes(), image.stat()

        def full(path, table):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        cv2.imwrite(str(image), np.full((64, 72), 150, np.uint8))
        with monkeypatch.context() as patch:
            patch.setattr(io, "write_parquet", full)
            with pytest.raises(PreprocessError):
                run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        with pytest.raises(PreprocessError, match="unfinished"):  # the tables spoke of other pixels
            load(tmp_path / "out", SMALL)
        image.write_bytes(content)
        os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert tree(run(cohort, tmp_path / "out", SMALL, n_jobs=1).folder) == before

    @pytest.mark.parametrize("suffix", [".npy", ".parquet", ".json"])
    def test_lost_or_damaged_cache_files_are_made_again(self, tmp_path, data, suffix):
        cohort = cohort_of(data)
        pre = run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        before = tree(pre.folder)
        first, second, _ = sorted((pre.folder / "scans").glob(f"*{suffix}"))
        first.unlink()
        second.write_bytes(second.read_bytes()[:50])
        run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        assert tree(pre.folder) == before

    def test_parameters_live_side_by_side(self, tmp_path, data):
        cohort, other = cohort_of(data), replace(SMALL, variant="released", fraction=0.4)
        run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        before = tree(tmp_path / "out" / SMALL.key), stamps(tmp_path / "out" / SMALL.key)
        run(cohort, tmp_path / "out", other, n_jobs=1)
        assert (tree(tmp_path / "out" / SMALL.key), stamps(tmp_path / "out" / SMALL.key)) == before
        widths = [load(tmp_path / "out", p).scans.eval("stop - start").sum() for p in (SMALL, other)]
        assert widths[0] > widths[1]

    def test_scans_of_another_cohort_stay(self, tmp_path, data):
        cohort = cohort_of(data)
        run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        before = stamps(tmp_path / "out" / SMALL.key / "scans")
        part = run(cohort.iloc[1:2], tmp_path / "out", SMALL, n_jobs=1)
        assert part.scans["scan_id"].tolist() == cohort["scan_id"].tolist()[1:2]
        assert part.slices["scan_id"].unique().tolist() == cohort["scan_id"].tolist()[1:2]
        assert stamps(tmp_path / "out" / SMALL.key / "scans") == before

    def test_load_gives_what_run_gave(self, tmp_path, data):
        pre = run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        loaded = load(tmp_path / "out", SMALL)
        pd.testing.assert_frame_equal(loaded.scans, pre.scans)
        pd.testing.assert_frame_equal(loaded.slices, pre.slices)
        scan = pre.scans["scan_id"][0]
        np.testing.assert_array_equal(loaded.pixels(scan), pre.pixels(scan))
        assert isinstance(loaded.pixels(scan), np.memmap)

    def test_load_says_what_to_run(self, tmp_path, data):
        with pytest.raises(PreprocessError, match="is missing: run the chapter 02_ssflpp_preprocessing"):
            load(tmp_path / "out", SMALL)
        run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        (tmp_path / "out" / SMALL.key / "scans.parquet").unlink()
        with pytest.raises(PreprocessError, match="is unfinished: run the chapter"):
            load(tmp_path / "out", SMALL)

    def test_size_report_counts_the_bytes_on_disk(self, tmp_path, data):
        pre = run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        table = preprocess.size_report(pre).set_index("part")
        report = table["bytes"]
        assert report["originals"] == sum(p.stat().st_size for p in data.rglob("*.jpg"))
        assert report["cached pixels"] == sum(p.stat().st_size for p in pre.folder.rglob("*.npy"))
        assert report["tables"] == sum(p.stat().st_size for p in pre.folder.glob("*.parquet"))
        assert table.loc["originals", "share"] == 1
        assert (table["share"] * report["originals"]).to_numpy() == pytest.approx(report.to_numpy())


class TestFailures:
    def test_one_failing_scan_does_not_end_the_cohort(self, tmp_path, data, monkeypatch):
        cohort, measure = cohort_of(data), ssfl.measure_both
        run(cohort, tmp_path / "undisturbed", SMALL, n_jobs=1)
        calls = iter(range(1000))

        def fails_in_the_second_scan(image, **options):
            if next(calls) == 8:
                raise RuntimeError("boom")
            return measure(image, **options)

        with monkeypatch.context() as patch:
            patch.setattr(ssfl, "measure_both", fails_in_the_second_scan)
            pre = run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        assert sorted(pre.scans["status"]) == ["excluded", "kept", "kept"]
        (finding,) = pre.findings.itertuples()
        assert finding.reason.startswith("failed: RuntimeError: boom [preprocess.py:")
        assert "test_preprocess.py" in finding.reason and str(Path.cwd()) not in finding.reason
        run(cohort, tmp_path / "out", SMALL, n_jobs=1)  # a failure is tried again
        assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")

    def test_reasons_name_no_folder_of_this_machine(self, tmp_path, data, monkeypatch):
        def fails(row, *, view):
            if "negative" in row["path"]:
                raise OSError(errno.EIO, "Input/output error", row["path"])
            return open_scan(row, view=view)

        open_scan = readers.open_scan
        monkeypatch.setattr(readers, "open_scan", fails)
        pre = run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        reason = pre.scans.set_index("scan_id")["reason"]["train/negative/ct_scan_0"]
        assert reason.startswith("failed: OSError: [Errno 5] Input/output error: 'train/negative/ct_scan_0' [")
        assert str(tmp_path) not in reason

    def test_all_scans_failing_is_an_error(self, tmp_path, rng):
        root = tmp_path / "data"
        cohort = pd.concat([only(root, write_scan(root / name, 2, rng)) for name in "ab"])
        with pytest.raises(PreprocessError, match="all 2 scans are excluded, 2 of them as: fewer than 5 slices: 2"):
            run(cohort, tmp_path / "out", SMALL, n_jobs=1)

    def test_output_that_cannot_be_made(self, tmp_path, data):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(PreprocessError, match=r"cannot write to .*Not a directory"):
            run(cohort_of(data), tmp_path / "file" / "out", SMALL, n_jobs=1)

    @pytest.mark.parametrize("n_jobs", [1, 2])
    def test_scan_that_cannot_be_written(self, tmp_path, data, n_jobs, processes_at_once):
        scans = tmp_path / "out" / SMALL.key / "scans"
        (scans / f"{preprocess.stem('train/negative/ct_scan_0')}.npy").mkdir(parents=True)
        with pytest.raises(PreprocessError, match=r"cannot write to .*Is a directory.*run again"):
            run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=n_jobs)
        assert not list(scans.glob("*.tmp"))

    def test_full_disk_stops_with_one_line(self, tmp_path, data, monkeypatch):
        cohort, write = cohort_of(data), io.write_array
        run(cohort, tmp_path / "undisturbed", SMALL, n_jobs=1)
        written = []

        def full_at_the_second(path, array):
            if written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(path)
            write(path, array)

        with monkeypatch.context() as patch:
            patch.setattr(io, "write_array", full_at_the_second)
            with pytest.raises(PreprocessError, match=r"No space left on device.*run again") as caught:
                run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        assert "\n" not in str(caught.value)
        done = tree(tmp_path / "out" / SMALL.key / "scans")
        assert len(done) == 3 and not any(name.endswith(".tmp") for name in done)
        assert done.items() <= tree(tmp_path / "undisturbed" / SMALL.key / "scans").items()
        with pytest.raises(PreprocessError, match="unfinished"):
            load(tmp_path / "out", SMALL)
        run(cohort, tmp_path / "out", SMALL, n_jobs=1)
        assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")

    def test_write_that_breaks_off_half_way(self, tmp_path, data):
        """The kernel itself refuses to let a file grow past 3 KiB, in the middle of the pixels."""
        code = (
            "import resource, sys\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (3072, 3072))\n"
            "import pandas as pd\n"
            "from e2d_lib import preprocess\n"
            "cohort = pd.read_parquet(sys.argv[1])\n"
            "try:\n"
            "    preprocess.run(cohort, sys.argv[2], preprocess.Params(size=32), n_jobs=1)\n"
            "except preprocess.PreprocessError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, stored(cohort_of(data), tmp_path), tmp_path / "out"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("cannot write to ") and done.stdout.count("\n") == 1
        assert not list((tmp_path / "out").rglob("*.tmp")) and not list((tmp_path / "out").rglob("*.npy"))

    def test_one_run_at_a_time(self, tmp_path, data):
        pre = run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        with open(pre.folder / ".lock", "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(PreprocessError, match="another run is writing"):
                run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)

    def test_waiting_for_the_run_before(self, tmp_path, data):
        pre = run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        with ThreadPoolExecutor(2) as pool:
            with open(pre.folder / ".lock", "w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                waiting = pool.submit(run, cohort_of(data), tmp_path / "out", SMALL, n_jobs=1, wait=True)
                with pytest.raises(TimeoutError):
                    waiting.result(timeout=0.5)
                reading = pool.submit(load, tmp_path / "out", SMALL, wait=True)
            assert len(waiting.result(timeout=60).scans) == len(pre.scans)
            assert len(reading.result(timeout=60).scans) == len(pre.scans)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda cohort: cohort.drop(columns="path"), r"lacks the columns \['path'\]"),
            (lambda cohort: cohort.iloc[:0], "holds no scan"),
            (lambda cohort: pd.concat([cohort, cohort]), "scan_id must be unique"),
        ],
    )
    def test_bad_cohort(self, tmp_path, data, spoil, message):
        with pytest.raises(ValueError, match=message):
            run(spoil(cohort_of(data)), tmp_path / "out", SMALL, n_jobs=1)

    def test_unknown_scan(self, tmp_path, data):
        pre = run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        with pytest.raises(PreprocessError, match="no scan 'x' among the 3"):
            pre.pixels("x")


KILLED = """
import os, signal, sys
import pandas as pd
from e2d_lib.method import preprocess
cohort, replace = pd.read_parquet(sys.argv[1]), os.replace
def run(out, k, when):  # until the middle of the k-th file, or until it was just renamed into place
    left = k
    def dies(source, target):
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = dies
    preprocess.run(cohort, out, preprocess.Params(size=32), n_jobs=1)
for argument in sys.argv[2:]:
    out, k, when = argument.split(":")
    pid = os.fork()
    if pid == 0:
        run(out, int(k), when)
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(pid, 0)[1]))
"""


class TestKilled:
    @pytest.fixture
    def undisturbed(self, tmp_path, data) -> dict[str, bytes]:
        return tree(run(cohort_of(data), tmp_path / "undisturbed", SMALL, n_jobs=1).folder)

    def test_at_any_file_then_again_gives_the_same_bytes(self, tmp_path, data, undisturbed):
        """A run renames 13 files into place; it dies in the middle of each, or right after it, but the last."""
        moments = [(k, when) for k in range(1, 14) for when in ("before", "after")][:-1]
        code = [f"{tmp_path / f'out_{k}_{when}'}:{k}:{when}" for k, when in moments]
        command = [sys.executable, "-c", KILLED, stored(cohort_of(data), tmp_path), *code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert [int(line) for line in done.stdout.split()] == [signal.SIGKILL] * len(moments)
        for k, when in moments:
            out = tmp_path / f"out_{k}_{when}"
            assert tree(out / SMALL.key) != undisturbed
            assert tree(run(cohort_of(data), out, SMALL, n_jobs=1).folder) == undisturbed

    @pytest.mark.slow
    def test_at_random_moments_with_and_without_its_workers(self, tmp_path, rng):
        root, out = tmp_path / "data", tmp_path / "out"
        for index in range(16):
            write_scan(root / "train/positive" / f"ct_scan_{index}", 10, rng, shape=(128, 128))
        undisturbed = tree(run(cohort_of(root), tmp_path / "undisturbed", SMALL, n_jobs=1).folder)
        code = (
            "import sys; import pandas as pd; from e2d_lib import parallel, preprocess; parallel.ALONE = 0.0\n"
            "preprocess.run(pd.read_parquet(sys.argv[1]), sys.argv[2], preprocess.Params(size=32), n_jobs=2)"
        )

        cohort = stored(cohort_of(root), tmp_path)

        def records() -> int:
            return len(list((out / SMALL.key / "scans").glob("*.json")))

        groups = []
        for kill in (os.kill, os.killpg):  # the first leaves its workers behind, still writing
            process = subprocess.Popen([sys.executable, "-c", code, cohort, out], start_new_session=True)
            groups.append(process.pid)
            before, deadline = records(), time.monotonic() + 60
            while records() <= before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            with contextlib.suppress(ProcessLookupError):
                kill(process.pid, signal.SIGKILL)
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(groups[0], signal.SIGKILL)
        assert tree(run(cohort_of(root), out, SMALL, n_jobs=1).folder) == undisturbed

    def test_leftovers_are_cleared_away(self, tmp_path, data, undisturbed):
        pre = run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        (pre.folder / "scans" / ".x.npy.abc.tmp").write_bytes(b"half")
        (pre.folder / ".slices.parquet.abc.tmp").write_bytes(b"half")
        run(cohort_of(data), tmp_path / "out", SMALL, n_jobs=1)
        assert tree(pre.folder) == undisturbed


class TestExecutors:
    def test_two_processes_give_the_same_bytes(self, tmp_path, data, processes_at_once):
        cohort = cohort_of(data)
        one = run(cohort, tmp_path / "one", SMALL, n_jobs=1)
        two = run(cohort, tmp_path / "two", SMALL, n_jobs=2)
        assert tree(one.folder) == tree(two.folder)

    @pytest.mark.slow
    def test_dask_with_a_worker_killed_gives_the_same_bytes(self, tmp_path, rng):
        distributed = pytest.importorskip("distributed", reason="the cluster extra is not installed")
        root = tmp_path / "data"
        for index in range(20):
            write_scan(root / "train/positive" / f"ct_scan_{index}", 12, rng, shape=(256, 256))
        cohort = cohort_of(root)
        one = run(cohort, tmp_path / "one", SMALL, n_jobs=1)
        done_at_kill = []

        def kill(pid: int) -> None:
            scans = tmp_path / "two" / SMALL.key / "scans"
            while (done := len(list(scans.glob("*.json")))) < 3:
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            done_at_kill.append(done)

        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
        with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
            pid = next(iter(client.run(os.getpid).values()))
            killer = threading.Thread(target=kill, args=(pid,), daemon=True)
            killer.start()
            two = run(cohort, tmp_path / "two", SMALL, scheduler=cluster.scheduler_address)
            killer.join(10)
        assert done_at_kill and done_at_kill[0] < 20
        assert tree(one.folder) == tree(two.folder)

    def test_scheduler_that_does_not_answer(self, tmp_path, data):
        pytest.importorskip("distributed", reason="the cluster extra is not installed")
        with pytest.raises(WorkersError, match="no Dask scheduler answers at 'nowhere'"):
            run(cohort_of(data), tmp_path / "out", SMALL, scheduler="nowhere")

    def test_without_dask_says_what_to_install(self, tmp_path, data, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        with pytest.raises(WorkersError, match=r"pip install 'e2d-study\[cluster\]'"):
            run(cohort_of(data), tmp_path / "out", SMALL, scheduler="tcp://127.0.0.1:1")

    def test_the_light_install_is_enough(self):
        heavy = ("torch", "matplotlib", "sklearn", "papermill", "distributed")
        code = f"import sys, e2d_lib.method.preprocess; print([m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


def test_file_names_of_scans_are_safe_and_distinct():
    ids = ["a/b", "a_b", "../a/b", "", "ä/ö", "x" * 300, "x" * 301, "a\nb"]
    names = [preprocess.stem(scan_id) for scan_id in ids]
    assert len({name.lower() for name in names}) == len(ids)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and len(name) < 90 for name in names)


class TestWhatIsThereIsNotMadeWorse:
    def test_no_scan_to_be_found_changes_nothing(self, tmp_path, data):
        done = run(cohort_of(data), tmp_path / "cache", SMALL, n_jobs=1)
        before = tree(done.folder)
        cohort = cohort_of(data)
        data.rename(tmp_path / "moved")
        with pytest.raises(PreprocessError, match="missing path"):
            run(cohort, tmp_path / "cache", SMALL, n_jobs=1)
        assert tree(done.folder) == before
        assert list(load(tmp_path / "cache", SMALL).scans["status"]) == list(done.scans["status"])

    def test_one_scan_gone_is_excluded_and_its_slices_stay_for_when_it_is_back(self, tmp_path, data):
        cohort = cohort_of(data)
        first = run(cohort, tmp_path / "cache", SMALL, n_jobs=1)
        gone = Path(cohort.loc[1, "path"])
        gone.rename(tmp_path / "gone")
        second = run(cohort, tmp_path / "cache", SMALL, n_jobs=1)
        assert second.scans.loc[1, "status"] == "excluded" and "missing" in second.scans.loc[1, "reason"]
        assert second.slices["scan_id"].nunique() == len(cohort) - 1
        assert "1 missing now" in second.history and "0 of 3 scans preprocessed now" in second.history
        (tmp_path / "gone").rename(gone)
        third = run(cohort, tmp_path / "cache", SMALL, n_jobs=1)
        assert "0 of 3 scans preprocessed now, 3 found done" in third.history
        pd.testing.assert_frame_equal(third.scans, first.scans)
        pd.testing.assert_frame_equal(third.slices, first.slices)

    def test_a_cache_that_was_rebuilt_says_so(self, tmp_path, data):
        cohort = cohort_of(data)
        assert run(cohort, tmp_path / "cache", SMALL, n_jobs=1).history.startswith("3 of 3 scans preprocessed now, 0 f")
        next(Path(cohort.loc[0, "path"]).iterdir()).unlink()
        again = run(cohort, tmp_path / "cache", SMALL, n_jobs=1).history
        assert again.startswith("1 of 3 scans preprocessed now, 2 found done; 1 of them anew")
