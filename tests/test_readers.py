"""Reading scans: grey values and order against independent truths, and a stated outcome for each kind of dirt."""

import csv
import gc
import gzip
import os
import struct
import threading
import time
import tracemalloc
import weakref
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from scipy import ndimage

from e2d_lib import readers
from e2d_lib.readers import CohortError, Reason, SliceError, hu_to_uint8, open_scan


def window(hu) -> np.ndarray:
    """method.md §7 in whole numbers: floor of 255 (HU + 1350) / 1500."""
    return np.clip((np.asarray(hu, dtype=np.int64) + 1350) * 255 // 1500, 0, 255).astype(np.uint8)


def opened(path, **options) -> readers.Scan:
    return open_scan({"scan_id": "scan", "path": str(path)}, **options)


def outcomes(scan) -> set[tuple[str, str, str]]:
    """Findings with their reason cut to the vocabulary."""
    for finding in scan.findings:
        assert finding.scan_id == "scan"
        assert finding.reason.split(": ")[0] in set(Reason), finding
        assert finding.outcome in ("kept", "warned", "excluded")
    return {(f.slice, f.outcome, f.reason.split(": ")[0]) for f in scan.findings}


def read_all(scan) -> dict[str, np.ndarray | None]:
    """Name -> slice, None where it cannot be read; what is refused must have left a finding."""
    images = {}
    for i, name in enumerate(scan.names):
        try:
            image = scan.read(i)
        except SliceError as error:
            assert error.reason in [f.reason for f in scan.findings if f.slice in ("", name)]
            images[name] = None
        else:
            assert image.ndim == 2 and image.dtype == np.uint8 and image.flags.c_contiguous
            images[name] = image
    return images


class TestWindow:
    def test_whole_numbers(self):
        hu = np.arange(-4000, 4001)
        for dtype in (np.int16, np.int32, np.float32, np.float64):
            np.testing.assert_array_equal(hu_to_uint8(hu.astype(dtype)), window(hu))

    def test_truncates_and_keeps_the_shape(self):
        one = 1500 / 255
        assert hu_to_uint8(np.array([[-1350 + 0.99 * one, -1350 + 1.01 * one]])).tolist() == [[0, 1]]
        assert hu_to_uint8(np.float32(0)).shape == ()
        assert hu_to_uint8(np.array([np.nan, np.inf, -np.inf])).tolist() == [0, 255, 0]

    def test_leaves_its_input_alone(self):
        hu = np.zeros((2, 2))
        hu_to_uint8(hu)
        assert not hu.any()


def golden_measures(image) -> list[int]:
    """Crop box and lung areas (whole, inside the crop) by method.md §2-3, with SciPy."""

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

    def test_nifti(self, shared):
        golden = golden_rows(shared / "data" / "golden_slices_nifti.csv")
        scan = opened(shared / "data" / "totalsegmentator-example" / "example_ct.nii.gz")
        assert scan.names == tuple(golden) and len(golden) == 112
        for name, image in read_all(scan).items():
            assert golden_measures(image) == golden[name], name
        assert not scan.findings


# --- folders of images -----------------------------------------------------------------------------------------------


def picture(seed: int = 0, shape=(40, 48)) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return cv2.GaussianBlur(noise, (7, 7), 0)


def encoded(image, suffix=".jpg") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def write_images(folder: Path, names, images=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        image = picture(i) if images is None else images[i]
        (folder / name).write_bytes(encoded(image, Path(name).suffix.lower()))
    return folder


class TestImages:
    def test_png_is_exact(self, tmp_path):
        images = [picture(i) for i in range(3)]
        scan = opened(write_images(tmp_path, ["0.png", "1.png", "2.png"], images))
        for got, expected in zip(read_all(scan).values(), images, strict=True):
            np.testing.assert_array_equal(got, expected)

    def test_jpeg_is_what_another_decoder_gives(self, tmp_path):
        scan = opened(write_images(tmp_path, ["0.jpg"]))
        with Image.open(tmp_path / "0.jpg") as image:
            np.testing.assert_array_equal(scan.read(0), np.asarray(image))

    def test_three_equal_channels_give_the_channel(self, tmp_path):
        """Colour reading, as the released code does, gives three times the grey that we read."""
        write_images(tmp_path, ["0.jpg", "0.png"], [np.dstack([picture()] * 3)] * 2)
        for name in ("0.jpg", "0.png"):
            colour = cv2.imread(str(tmp_path / name), cv2.IMREAD_COLOR)
            scan = opened(tmp_path / name)
            for channel in range(3):
                np.testing.assert_array_equal(scan.read(0), colour[..., channel])
            assert not scan.findings

    def test_colour_gives_the_luma(self, tmp_path):
        colour = np.dstack([picture(1), picture(2), picture(3)])
        scan = opened(write_images(tmp_path, ["0.png"], [colour]) / "0.png")
        luma = colour @ [0.114, 0.587, 0.299]  # BGR, ITU-R BT.601
        assert np.abs(scan.read(0) - luma).max() <= 1

    def test_order_is_by_number(self, tmp_path):
        names = [f"{i}.jpg" for i in range(12)]
        assert opened(write_images(tmp_path, sorted(names))).names == tuple(names)

    def test_suffixes_and_unicode(self, tmp_path):
        scan = opened(write_images(tmp_path / "écho 肺", ["0.JPG", "1.jpeg", "2.PNG"]))
        assert scan.names == ("0.JPG", "1.jpeg", "2.PNG")
        assert all(image is not None for image in read_all(scan).values()) and not scan.findings

    def test_index_beyond_the_end(self, tmp_path):
        scan = opened(write_images(tmp_path, ["0.jpg", "1.jpg"]))
        np.testing.assert_array_equal(scan.read(-1), scan.read(1))
        with pytest.raises(IndexError):
            scan.read(2)

    def test_reading_twice_notes_once(self, tmp_path):
        (tmp_path / "0.jpg").write_bytes(b"")
        scan = opened(tmp_path)
        for _ in range(2):
            with pytest.raises(SliceError, match="empty file"):
                scan.read(0)
        assert len(scan.findings) == 1

    def test_mixed_shapes_are_read_as_they_are(self, tmp_path):
        images = [picture(0), picture(1, (30, 20)), picture(2)]
        scan = opened(write_images(tmp_path, ["0.png", "1.png", "2.png"], images))
        assert [image.shape for image in read_all(scan).values()] == [(40, 48), (30, 20), (40, 48)]

    def test_nothing_is_written(self, tmp_path):
        folder = write_images(tmp_path, [f"{i}.jpg" for i in range(3)])
        before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
        try:
            read_all(opened(folder))
            assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()} == before
        finally:
            folder.chmod(0o755)


def corrupted(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + b"\xff\xfe\x00\x12" * 5 + data[middle + 20 :]


JPEG = encoded(picture())
SIXTEEN = encoded(picture().astype(np.uint16) * 256 + 17, ".png")
EXIF_PREVIEW = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(JPEG) + 2) + JPEG + JPEG[2:]
SCAN_OF_THREE = {"0.jpg": JPEG, "1.jpg": JPEG, "2.jpg": JPEG}

# case: files; names in order; names that cannot be read; findings
IMAGE_DIRT = {
    "twins": (
        SCAN_OF_THREE | {"._1.jpg": b"\0\5\x16\7Mac OS X"},
        ["0.jpg", "1.jpg", "2.jpg"],
        [],
        {("._1.jpg", "excluded", Reason.TWIN)},
    ),
    "system files": (
        SCAN_OF_THREE | {".DS_Store": b"x", "Thumbs.db": b"x", ".3.jpg": JPEG},
        ["0.jpg", "1.jpg", "2.jpg"],
        [],
        {(name, "excluded", Reason.SYSTEM_FILE) for name in (".DS_Store", "Thumbs.db", ".3.jpg")},
    ),
    "other files": (
        SCAN_OF_THREE | {"notes.txt": b"x"},
        ["0.jpg", "1.jpg", "2.jpg"],
        [],
        {("notes.txt", "excluded", Reason.OTHER_FILE)},
    ),
    "undecodable": (
        SCAN_OF_THREE | {"1.jpg": b"\xff\xd8" + bytes(200) + b"\xff\xd9"},
        ["0.jpg", "1.jpg", "2.jpg"],
        ["1.jpg"],
        {("1.jpg", "excluded", Reason.UNDECODABLE)},
    ),
    "truncated": (
        SCAN_OF_THREE | {"1.jpg": JPEG[: len(JPEG) // 2]},
        ["0.jpg", "1.jpg", "2.jpg"],
        ["1.jpg"],
        {("1.jpg", "excluded", Reason.TRUNCATED)},
    ),
    "truncated by its end marker": (
        SCAN_OF_THREE | {"1.jpg": JPEG[:-2]},
        ["0.jpg", "1.jpg", "2.jpg"],
        ["1.jpg"],
        {("1.jpg", "excluded", Reason.TRUNCATED)},
    ),
    "truncated behind a whole preview": (
        SCAN_OF_THREE | {"1.jpg": EXIF_PREVIEW[:-50]},
        ["0.jpg", "1.jpg", "2.jpg"],
        ["1.jpg"],
        {("1.jpg", "excluded", Reason.TRUNCATED)},
    ),
    "padded behind the end marker": (
        SCAN_OF_THREE | {"1.jpg": JPEG + bytes(64)},
        ["0.jpg", "1.jpg", "2.jpg"],
        [],
        set(),
    ),
    "corrupt in the middle": (
        SCAN_OF_THREE | {"1.jpg": corrupted(JPEG)},
        ["0.jpg", "1.jpg", "2.jpg"],
        [],
        {("1.jpg", "warned", Reason.CORRUPT)},
    ),
    "truncated png": (
        {"0.png": encoded(picture(), ".png")[:-200]},
        ["0.png"],
        ["0.png"],
        {("0.png", "excluded", Reason.UNDECODABLE)},
    ),
    "zero bytes": (
        SCAN_OF_THREE | {"1.jpg": b""},
        ["0.jpg", "1.jpg", "2.jpg"],
        ["1.jpg"],
        {("1.jpg", "excluded", Reason.EMPTY_FILE)},
    ),
    "one byte": (
        SCAN_OF_THREE | {"1.jpg": b"\x89"},
        ["0.jpg", "1.jpg", "2.jpg"],
        ["1.jpg"],
        {("1.jpg", "excluded", Reason.UNDECODABLE)},
    ),
    "text named .jpg": (
        SCAN_OF_THREE | {"1.jpg": b"not an image"},
        ["0.jpg", "1.jpg", "2.jpg"],
        ["1.jpg"],
        {("1.jpg", "excluded", Reason.UNDECODABLE)},
    ),
    "name not a number": (
        SCAN_OF_THREE | {"b10.jpg": JPEG, "b9.jpg": JPEG},
        ["0.jpg", "1.jpg", "2.jpg", "b9.jpg", "b10.jpg"],
        [],
        {("b9.jpg", "warned", Reason.NOT_A_NUMBER), ("b10.jpg", "warned", Reason.NOT_A_NUMBER)},
    ),
    "no name a number": (
        {"IM_9.jpg": JPEG, "IM_10.jpg": JPEG, "IM_1.jpg": JPEG},
        ["IM_1.jpg", "IM_9.jpg", "IM_10.jpg"],
        [],
        {("", "warned", Reason.NOT_A_NUMBER)},
    ),
    "gap in numbering": (
        {"3.jpg": JPEG, "4.jpg": JPEG, "6.jpg": JPEG, "9.jpg": JPEG},
        ["3.jpg", "4.jpg", "6.jpg", "9.jpg"],
        [],
        {("", "warned", Reason.NUMBER_GAP)},
    ),
    "duplicate number": (
        {"1.jpg": JPEG, "01.jpg": b"", "1.jpeg": b"", "2.jpg": JPEG},
        ["1.jpg", "2.jpg"],
        [],
        {("01.jpg", "excluded", Reason.SAME_NUMBER), ("1.jpeg", "excluded", Reason.SAME_NUMBER)},
    ),
    "16 bits": ({"0.png": SIXTEEN}, ["0.png"], [], {("0.png", "warned", Reason.SIXTEEN_BIT)}),
    "no slices": ({}, [], [], {("", "excluded", Reason.NO_SLICES)}),
    "only dirt": (
        {"._0.jpg": b"x"},
        [],
        [],
        {("._0.jpg", "excluded", Reason.TWIN), ("", "excluded", Reason.NO_SLICES)},
    ),
    **{
        f"{n} slices": ({f"{i}.jpg": JPEG for i in range(n)}, [f"{i}.jpg" for i in range(n)], [], set()) for n in (1, 5)
    },
}


@pytest.mark.parametrize("case", IMAGE_DIRT)
def test_image_dirt(tmp_path, capfd, case):
    contents, names, unreadable, findings = IMAGE_DIRT[case]
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    scan = opened(tmp_path)
    assert list(scan.names) == names
    assert [name for name, image in read_all(scan).items() if image is None] == unreadable
    assert outcomes(scan) == findings
    assert capfd.readouterr() == ("", "")


class TestMoreImageDirt:
    def test_details(self, tmp_path):
        write_images(tmp_path, ["3.jpg", "4.jpg", "6.jpg", "9.jpg"])
        assert [f.reason for f in opened(tmp_path).findings] == ["gap in numbering: 3 missing, 5, 7-8"]

    def test_sixteen_bits_keep_the_high_byte(self, tmp_path):
        (tmp_path / "0.png").write_bytes(SIXTEEN)
        np.testing.assert_array_equal(opened(tmp_path).read(0), picture())

    def test_broken_link_and_folder_named_as_a_slice(self, tmp_path):
        write_images(tmp_path, ["0.jpg"])
        (tmp_path / "1.jpg").symlink_to(tmp_path / "gone.jpg")
        (tmp_path / "2.jpg").mkdir()
        scan = opened(tmp_path)
        assert [image is None for image in read_all(scan).values()] == [False, True, True]
        assert outcomes(scan) == {(name, "excluded", Reason.UNREADABLE) for name in ("1.jpg", "2.jpg")}
        assert not any(str(tmp_path) in f.reason for f in scan.findings)

    def test_link_to_a_slice_is_followed(self, tmp_path):
        write_images(tmp_path / "real", ["0.png"])
        (tmp_path / "linked").symlink_to(tmp_path / "real")
        np.testing.assert_array_equal(opened(tmp_path / "linked").read(0), picture())

    def test_missing_and_unreadable_folder(self, tmp_path, monkeypatch):
        assert outcomes(opened(tmp_path / "gone")) == {("", "excluded", Reason.MISSING)}

        def refused(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", refused)
        scan = open_scan({"scan_id": "scan", "path": str(tmp_path), "format": "jpeg"})
        assert len(scan) == 0 and outcomes(scan) == {("", "excluded", Reason.UNREADABLE)}

    def test_other_views_need_a_volume(self, tmp_path):
        assert outcomes(opened(write_images(tmp_path, ["0.jpg"]), view="coronal")) == {("", "excluded", Reason.NO_VIEW)}

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


class TestTerminal:
    def test_lines_of_others_are_passed_on(self, tmp_path, capfd, monkeypatch):
        """What another part of the program prints to stderr while a slice is decoded is neither lost nor a finding."""
        decode = cv2.imdecode

        def decode_while_others_print(data, flags):
            os.write(2, b"listing: 40% 2/5 scans\n")
            return decode(data, flags)

        monkeypatch.setattr(cv2, "imdecode", decode_while_others_print)
        scan = opened(write_images(tmp_path, ["0.jpg"]))
        scan.read(0)
        assert not scan.findings
        assert capfd.readouterr().err == "listing: 40% 2/5 scans\n"

    def test_threads_do_not_mix_up_findings(self, tmp_path, capfd, monkeypatch):
        decode = cv2.imdecode

        def slow_decode(data, flags):
            time.sleep(0.001)  # so that the other thread comes in between
            image = decode(data, flags)
            time.sleep(0.001)
            return image

        monkeypatch.setattr(cv2, "imdecode", slow_decode)
        (tmp_path / "bad").mkdir()
        for i in range(20):
            (tmp_path / "bad" / f"{i}.jpg").write_bytes(corrupted(JPEG))
        scans = [opened(write_images(tmp_path / "good", [f"{i}.jpg" for i in range(20)])), opened(tmp_path / "bad")]
        threads = [threading.Thread(target=read_all, args=(scan,)) for scan in scans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(scan.findings) for scan in scans] == [0, 20]
        os.write(2, b"stderr is back")
        assert capfd.readouterr().err == "stderr is back"


# --- NIfTI -----------------------------------------------------------------------------------------------------------

RAS = np.random.default_rng(1).integers(-1400, 200, (5, 6, 7)).astype(np.int16)  # right, anterior, superior


def expected_slice(volume, view: str, k: int) -> np.ndarray:
    """Loops: the second remaining axis points up, the first to the right."""
    nx, ny, nz = volume.shape
    if view == "axial":
        return window([[volume[x, ny - 1 - r, k] for x in range(nx)] for r in range(ny)])
    if view == "coronal":
        return window([[volume[x, k, nz - 1 - r] for x in range(nx)] for r in range(nz)])
    return window([[volume[k, y, nz - 1 - r] for y in range(ny)] for r in range(nz)])


def write_nifti(path: Path, data, affine=None, **header) -> Path:
    image = nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def patched(path: Path, offset: int, values: bytes) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[:offset] + values + data[offset + len(values) :])
    return path


class TestNifti:
    @pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SPR", "AIL", "PSR"])
    def test_any_storage_order_gives_the_same_slices(self, tmp_path, codes, view):
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
        )
        image = nib.Nifti1Image(RAS, np.diag([2.0, 2.0, 3.0, 1.0])).as_reoriented(turn)
        assert "".join(nib.aff2axcodes(image.affine)) == codes
        nib.save(image, tmp_path / "v.nii.gz")
        scan = opened(tmp_path / "v.nii.gz", view=view)
        n = RAS.shape[["sagittal", "coronal", "axial"].index(view)]
        assert scan.names == tuple(map(str, range(n)))
        for k, image in enumerate(read_all(scan).values()):
            np.testing.assert_array_equal(image, expected_slice(RAS, view, k))
        assert not scan.findings

    def test_tilted_volume_goes_to_the_closest_axes(self, tmp_path):
        angle = np.deg2rad(20)
        affine = np.eye(4)
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        scan = opened(write_nifti(tmp_path / "v.nii", RAS, affine))
        np.testing.assert_array_equal(scan.read(2), expected_slice(RAS, "axial", 2))

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
    def test_slope_and_intercept(self, tmp_path, dtype):
        stored = np.random.default_rng(2).integers(0, 200, (4, 5, 6)).astype(dtype)
        path = write_nifti(tmp_path / "v.nii", stored)
        patched(path, 112, struct.pack("<2f", 8.0, -1024.0))  # scl_slope, scl_inter
        scan = opened(path)
        hu = stored.astype(int) * 8 - 1024
        for k, image in enumerate(read_all(scan).values()):
            np.testing.assert_array_equal(image, expected_slice(hu, "axial", k))

    def test_big_endian(self, tmp_path):
        header = nib.Nifti1Header(endianness=">")
        nib.save(nib.Nifti1Image(RAS.astype(">i2"), np.eye(4), header), tmp_path / "v.nii.gz")
        assert nib.load(tmp_path / "v.nii.gz").dataobj.dtype.byteorder == ">"
        np.testing.assert_array_equal(opened(tmp_path / "v.nii.gz").read(1), expected_slice(RAS, "axial", 1))

    def test_opening_reads_the_header_alone(self, tmp_path):
        path = write_nifti(tmp_path / "v.nii", RAS)
        path.write_bytes(path.read_bytes()[:352])
        assert len(opened(path)) == 7

    @pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
    def test_never_holds_the_volume_as_float(self, tmp_path, name):
        volume = np.zeros((160, 160, 120), np.int16)
        path = write_nifti(tmp_path / name, volume - 1000)
        tracemalloc.start()
        try:
            opened(path).read(0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1.8 * volume.nbytes  # stored values and uint8 slices are 1.5 times them; as float64, 4 more

    def test_folder_of_one_volume(self, tmp_path):
        write_nifti(tmp_path / "ct.nii.gz", RAS)
        assert len(opened(tmp_path)) == 7
        write_nifti(tmp_path / "mask.nii.gz", RAS)
        assert outcomes(opened(tmp_path)) == {("", "excluded", Reason.NO_SLICES)}


NOISE = np.random.default_rng(3).integers(-1400, 200, (20, 20, 7)).astype(np.int16)


def with_values(*values):
    data = RAS.astype(np.float32)
    for i, value in enumerate(values):
        data[0, 0, i] = value
    return data


def affine_case(rows, code=1):
    def make(path):
        patched(write_nifti(path, RAS), 252, struct.pack("<2h", 0, code))
        return patched(path, 280, struct.pack("<12f", *rows))

    return make


def cut(keep):
    def make(path):
        data = gzip.compress(write_nifti(path, NOISE).read_bytes())
        path = path.with_suffix(".nii.gz")
        path.write_bytes(data[: int(keep * len(data)) if keep < 1 else -int(keep)])
        return path

    return make


def flipped_bit(path):
    whole = bytearray(gzip.compress(write_nifti(path, NOISE).read_bytes(), compresslevel=0))
    whole[len(whole) // 2] ^= 1
    path = path.with_suffix(".nii.gz")
    path.write_bytes(bytes(whole))
    return path


RGB = np.zeros((5, 6, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
# case: how the file is made; slices listed; slices readable; findings
NIFTI_DIRT = {
    "4-D of one volume": (lambda p: write_nifti(p, RAS[..., None]), 7, 7, set()),
    "4-D of several": (
        lambda p: write_nifti(p, np.stack([RAS, RAS * 0], axis=-1)),
        7,
        7,
        {("", "warned", Reason.SEVERAL_VOLUMES)},
    ),
    "2-D": (lambda p: write_nifti(p, RAS[..., 0]), 1, 1, set()),
    "1-D": (lambda p: write_nifti(p, RAS[:, 0, 0]), 0, 0, {("", "excluded", Reason.NO_SLICES)}),
    "NaN and infinity": (
        lambda p: write_nifti(p, with_values(np.nan, np.inf, -np.inf)),
        7,
        7,
        {("", "warned", Reason.NOT_FINITE)},
    ),
    "singular affine": (affine_case([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]), 7, 7, {("", "warned", Reason.BAD_AFFINE)}),
    "affine of rank 2": (affine_case([1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0]), 7, 7, {("", "warned", Reason.BAD_AFFINE)}),
    "affine of NaN": (affine_case([np.nan] * 12), 7, 7, {("", "warned", Reason.BAD_AFFINE)}),
    "no affine": (affine_case([0] * 12, code=0), 7, 7, {("", "warned", Reason.NO_ORIENTATION)}),
    "bad quaternion": (
        lambda p: patched(
            patched(write_nifti(p, RAS), 252, struct.pack("<2h", 1, 0)), 256, struct.pack("<3f", 5, 5, 5)
        ),
        0,
        0,
        {("", "excluded", Reason.UNDECODABLE)},
    ),
    "zero voxel size": (
        lambda p: patched(write_nifti(p, RAS), 80, struct.pack("<3f", 0, 0, 0)),
        7,
        7,
        {("", "warned", Reason.PARSER)},
    ),
    "truncated gzip": (cut(0.6), 7, 0, {("", "excluded", Reason.TRUNCATED)}),
    "truncated gzip, even the header": (cut(0.01), 0, 0, {("", "excluded", Reason.TRUNCATED)}),
    "gzip without its checksum": (cut(8), 7, 0, {("", "excluded", Reason.TRUNCATED)}),
    "gzip with a flipped bit": (flipped_bit, 7, 0, {("", "excluded", Reason.UNDECODABLE)}),
    "truncated": (
        lambda p: p.write_bytes(write_nifti(p, RAS).read_bytes()[:-100]) and p,
        7,
        0,
        {("", "excluded", Reason.TRUNCATED)},
    ),
    "zero bytes": (lambda p: p.write_bytes(b"") or p, 0, 0, {("", "excluded", Reason.EMPTY_FILE)}),
    "text": (lambda p: p.write_text("no volume" * 99) and p, 0, 0, {("", "excluded", Reason.UNDECODABLE)}),
    "RGB": (lambda p: write_nifti(p, RGB), 0, 0, {("", "excluded", Reason.NOT_HU)}),
    "complex": (lambda p: write_nifti(p, RAS.astype(np.complex64)), 0, 0, {("", "excluded", Reason.NOT_HU)}),
    "unknown type": (
        lambda p: patched(write_nifti(p, RAS), 70, struct.pack("<h", 1234)),
        0,
        0,
        {("", "excluded", Reason.UNDECODABLE)},
    ),
    "negative size": (
        lambda p: patched(write_nifti(p, RAS), 42, struct.pack("<h", -5)),
        0,
        0,
        {("", "excluded", Reason.NO_SLICES)},
    ),
    "already windowed": (
        lambda p: write_nifti(p, (RAS > 0).astype(np.uint8)),
        7,
        7,
        {("", "warned", Reason.NOT_HU)},
    ),
}


@pytest.mark.parametrize("case", NIFTI_DIRT)
def test_nifti_dirt(tmp_path, capfd, case):
    make, listed, readable, findings = NIFTI_DIRT[case]
    scan = opened(make(tmp_path / "v.nii"))
    assert len(scan) == listed
    assert sum(image is not None for image in read_all(scan).values()) == readable
    assert outcomes(scan) == findings
    assert not any(str(tmp_path) in f.reason for f in scan.findings)
    assert capfd.readouterr() == ("", "")


class TestNiftiDirtValues:
    def test_first_volume_of_several(self, tmp_path):
        scan = opened(write_nifti(tmp_path / "v.nii.gz", np.stack([RAS, RAS * 0], axis=-1)))
        np.testing.assert_array_equal(scan.read(3), expected_slice(RAS, "axial", 3))

    def test_not_finite_becomes_air(self, tmp_path):
        scan = opened(write_nifti(tmp_path / "v.nii", with_values(np.nan, np.inf)))
        air = RAS.copy()
        air[0, 0, :2] = -3000
        for k in range(2):
            np.testing.assert_array_equal(scan.read(k), expected_slice(air, "axial", k))
        assert [f.reason for f in scan.findings] == ["values not finite, taken as air: 2 voxels"]

    def test_degenerate_affine_leaves_the_axes(self, tmp_path):
        scan = opened(affine_case([np.nan] * 12)(tmp_path / "v.nii"))
        np.testing.assert_array_equal(scan.read(3), expected_slice(RAS, "axial", 3))


# --- DICOM -----------------------------------------------------------------------------------------------------------

AXIAL = [1, 0, 0, 0, 1, 0]


def stored_values(seed: int = 0, shape=(12, 16)) -> np.ndarray:
    """Smooth unsigned 12-bit values around lung and tissue, for intercept -1024."""
    return (cv2.GaussianBlur(np.random.default_rng(seed).random(shape), (5, 5), 0) * 1500).astype(np.uint16)


def dicom(path: Path, stored=None, *, z=0.0, number=1, series="1.2.3", syntax=ExplicitVRLittleEndian, **tags) -> Path:
    """A CT slice; a tag given as None is left out."""
    stored = stored_values() if stored is None else stored
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "SeriesInstanceUID": series,
        "InstanceNumber": number,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [0, 0, z],
        "ImageOrientationPatient": AXIAL,
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "PixelData": stored.tobytes(),
    } | tags
    for tag, value in values.items():
        if value is not None:
            setattr(ds, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def expected_dicom(seed: int = 0) -> np.ndarray:
    return window(stored_values(seed).astype(int) - 1024)


def series(folder: Path, zs, names=None, **tags) -> Path:
    """Slice i lies at zs[i] and holds stored_values(i)."""
    for i, z in enumerate(zs):
        dicom(folder / (names[i] if names else f"{i}.dcm"), stored_values(i), z=z, number=i + 1, **tags)
    return folder


class TestDicom:
    def test_order_is_from_feet_to_head_whatever_names_and_numbers_say(self, tmp_path):
        zs = [7.5, -5.0, 2.5, 0.0, 5.0, -2.5]
        scan = opened(series(tmp_path, zs))
        order = np.argsort(zs)
        assert scan.names == tuple(f"{i}.dcm" for i in order)
        for i, image in zip(order, read_all(scan).values(), strict=True):
            np.testing.assert_array_equal(image, expected_dicom(int(i)))
        assert not scan.findings

    def test_reversed_normal_gives_the_same_order(self, tmp_path):
        """A patient lying prone: the normal of the slices points to the feet."""
        scan = opened(series(tmp_path, [0, 2, 4], ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]))
        assert scan.names == ("0.dcm", "1.dcm", "2.dcm")

    def test_tilted_slices_are_ordered_along_their_normal(self, tmp_path):
        """Position along z falls while that along the tilted normal rises."""
        c, s = np.cos(0.6), np.sin(0.6)
        for i in range(3):
            position = i * np.array([0, -s, c]) * 2 + i * np.array([0, c, s]) * -5
            dicom(
                tmp_path / f"{i}.dcm", ImagePositionPatient=list(position), ImageOrientationPatient=[1, 0, 0, 0, c, s]
            )
        assert opened(tmp_path).names == ("0.dcm", "1.dcm", "2.dcm")

    def test_rescale_of_each_slice(self, tmp_path):
        stored = np.arange(192, dtype=np.int16).reshape(12, 16) - 60
        dicom(tmp_path / "0.dcm", stored, z=0, RescaleSlope=4, RescaleIntercept=-700)
        dicom(tmp_path / "1.dcm", stored, z=1, RescaleSlope=2, RescaleIntercept=-100)
        scan = opened(tmp_path)
        np.testing.assert_array_equal(scan.read(0), window(stored.astype(int) * 4 - 700))
        np.testing.assert_array_equal(scan.read(1), window(stored.astype(int) * 2 - 100))

    def test_monochrome1_is_inverted_after_the_window(self, tmp_path):
        scan = opened(dicom(tmp_path / "0.dcm", PhotometricInterpretation="MONOCHROME1"))
        np.testing.assert_array_equal(scan.read(0), 255 - expected_dicom())
        assert outcomes(scan) == {("", "warned", Reason.INVERTED)}

    @pytest.mark.parametrize(
        ("dtype", "tag", "pad"),
        [(np.int16, -2000, -2000), (np.uint16, 63536, 63536), (np.int16, 1500, 1500)],
    )
    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_padding_is_air(self, tmp_path, dtype, tag, pad, photometric):
        stored = stored_values().astype(dtype)
        plain = opened(dicom(tmp_path / "plain.dcm", stored, PhotometricInterpretation=photometric)).read(0)
        padded = stored.copy()
        padded[:3, 2:5] = pad
        path = dicom(tmp_path / "padded.dcm", padded, PixelPaddingValue=tag, PhotometricInterpretation=photometric)
        expected = plain.copy()
        expected[:3, 2:5] = 0
        np.testing.assert_array_equal(opened(path).read(0), expected)

    def test_padding_range(self, tmp_path):
        stored = stored_values()
        stored[0, :4] = [4000, 4050, 4095, 3999]
        path = dicom(tmp_path / "0.dcm", stored, PixelPaddingValue=4000, PixelPaddingRangeLimit=4095)
        expected = window(stored.astype(int) - 1024)
        assert expected[0, :4].tolist() == [255] * 4
        expected[0, :3] = 0
        np.testing.assert_array_equal(opened(path).read(0), expected)

    def test_without_preamble_or_suffix(self, tmp_path):
        path = dicom(tmp_path / "whole.dcm", syntax=ImplicitVRLittleEndian)
        data = path.read_bytes()
        body = data[132 + 12 + struct.unpack("<I", data[140:144])[0] :]  # behind the file meta group
        path.rename(tmp_path / "1.2.840.7")
        (tmp_path / "naked.dcm").write_bytes(body)
        (tmp_path / "IM0001").write_bytes(body)
        for name in ("1.2.840.7", "naked.dcm", "IM0001"):
            assert readers.guess_format(str(tmp_path / name)) == "dicom"
            scan = opened(tmp_path / name)
            np.testing.assert_array_equal(scan.read(0), expected_dicom())
            assert not scan.findings

    def test_folder_and_series_of_several(self, tmp_path):
        for i in range(5):
            dicom(tmp_path / f"a{i}.dcm", z=i, series="1.1")
        for i in range(3):
            dicom(tmp_path / f"b{i}.dcm", z=i, series="1.2")
        scan = opened(tmp_path)
        assert scan.names == tuple(f"a{i}.dcm" for i in range(5))
        assert outcomes(scan) == {(f"b{i}.dcm", "excluded", Reason.OTHER_SERIES) for i in range(3)}
        scan = opened(f"{tmp_path}#1.2")
        assert scan.names == ("b0.dcm", "b1.dcm", "b2.dcm") and not scan.findings
        assert outcomes(opened(f"{tmp_path}#1.9")) == {("", "excluded", Reason.NO_SLICES)}

    def test_a_mark_in_a_name_is_no_series(self, tmp_path):
        assert len(opened(series(tmp_path / "scan#2", [0, 1]))) == 2


def gdcm_compressed(path: Path, name: str) -> None:
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetImage(change.GetOutput())
    writer.SetFile(reader.GetFile())
    writer.SetFileName(str(path))
    assert writer.Write()


LOSSLESS = ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]


class TestCompressedDicom:
    @pytest.mark.parametrize("syntax", ["DeflatedExplicitVRLittleEndian", "ExplicitVRBigEndian"])
    def test_rare_uncompressed_syntaxes(self, tmp_path, syntax):
        path = dicom(tmp_path / "0.dcm")
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        if "Big" in syntax:
            ds.PixelData = ds.pixel_array.byteswap().tobytes()
        pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian="Big" not in syntax, force_encoding=True)
        scan = opened(path)
        np.testing.assert_array_equal(scan.read(0), expected_dicom())
        assert not scan.findings

    @pytest.mark.parametrize("name", LOSSLESS)
    def test_lossless_gives_the_same_slice(self, tmp_path, name, capfd):
        path = dicom(tmp_path / "0.dcm", stored_values(3, (64, 64)))
        plain = opened(path).read(0)
        gdcm_compressed(path, name)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
        scan = opened(path)
        np.testing.assert_array_equal(scan.read(0), plain)
        assert not scan.findings and capfd.readouterr() == ("", "")

    def test_rle_by_pydicom(self, tmp_path):
        path = dicom(tmp_path / "0.dcm")
        ds = pydicom.dcmread(path)
        ds.compress(pydicom.uid.RLELossless)
        ds.save_as(path)
        np.testing.assert_array_equal(opened(path).read(0), expected_dicom())

    @pytest.mark.parametrize("syntax", [pydicom.uid.HTJ2KLossless, pydicom.uid.MPEG2MPML])
    def test_no_decoder(self, tmp_path, syntax):
        path = dicom(tmp_path / "0.dcm")
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([b"abcd"])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(path)
        scan = opened(path)
        assert read_all(scan) == {"0.dcm": None}
        assert outcomes(scan) == {("0.dcm", "excluded", Reason.NO_DECODER)}

    @pytest.mark.parametrize("name", LOSSLESS)
    @pytest.mark.parametrize("damage", ["cut", "start"])
    def test_damaged(self, tmp_path, name, damage, capfd):
        path = dicom(tmp_path / "0.dcm", stored_values(3, (64, 64)))
        gdcm_compressed(path, name)
        data = path.read_bytes()
        if damage == "cut":
            path.write_bytes(data[:-300])
        else:
            first = data.rfind(b"\xe0\x7f\x10\x00")  # the pixel data element
            path.write_bytes(data[: first + 28] + bytes(60) + data[first + 88 :])
        scan = opened(path)
        assert read_all(scan) == {"0.dcm": None}
        (finding,) = scan.findings
        expected = {Reason.TRUNCATED} if damage == "cut" else {Reason.UNDECODABLE, Reason.TRUNCATED}
        assert finding.outcome == "excluded" and finding.reason.split(": ")[0] in expected
        assert str(tmp_path) not in finding.reason
        assert capfd.readouterr() == ("", "")


def added(**tags):
    """Four slices and one more file, x.dcm."""

    def make(folder):
        series(folder, [0, 1, 2, 3])
        dicom(folder / "x.dcm", z=4, number=9, **tags)

    return make


def with_file(name, data):
    def make(folder):
        series(folder, [0, 1, 2, 3])
        (folder / name).write_bytes(data)

    return make


def damaged(keep):
    def make(folder):
        series(folder, [0, 1, 2, 3])
        data = dicom(folder / "x.dcm", z=4).read_bytes()
        (folder / "x.dcm").write_bytes(data[: int(keep * len(data))])

    return make


def without_pixels(folder):
    series(folder, [0, 1, 2, 3])
    dicom(folder / "x.dcm", z=4, PixelData=None)


def double_zero(folder):
    series(folder, [0, 0.001, 1, 2, 3], names=["0.dcm", "x.dcm", "1.dcm", "2.dcm", "3.dcm"])


def same_instance(folder):
    for i in range(4):
        dicom(folder / f"{i}.dcm", number=i, ImagePositionPatient=None, SOPInstanceUID=f"1.5.{i}")
    dicom(folder / "x.dcm", number=3, ImagePositionPatient=None, SOPInstanceUID="1.5.3")


def invalid_uid(folder):
    added(SOPInstanceUID="1.2.3.99999")(folder)
    (folder / "x.dcm").write_bytes((folder / "x.dcm").read_bytes().replace(b"1.2.3.99999", b"1.2.3.9999x"))


def invalid_number(folder):
    added(InstanceNumber=98765432)(folder)
    (folder / "x.dcm").write_bytes((folder / "x.dcm").read_bytes().replace(b"98765432", b"no numbr"))


def reversed_numbers(folder, **tags):
    for i in range(4):
        dicom(folder / f"{3 - i}.dcm", number=i, **tags)


FOUR = ["0.dcm", "1.dcm", "2.dcm", "3.dcm"]
FIVE = [*FOUR, "x.dcm"]
BACK = FOUR[::-1]
FRAMES = np.stack([stored_values(), stored_values(1)])
# case: how the folder is filled; names in order; names that cannot be read; findings
DICOM_DIRT = {
    "missing slices": (
        lambda d: series(d, [0, 1, 4, 5]),
        FOUR,
        [],
        {("", "warned", Reason.POSITION_GAP)},
    ),
    "duplicate position": (double_zero, FOUR, [], {("x.dcm", "excluded", Reason.SAME_POSITION)}),
    "unordered": (lambda d: series(d, [3, 2, 1, 0]), BACK, [], set()),
    "no position": (
        lambda d: reversed_numbers(d, ImagePositionPatient=None),
        BACK,
        [],
        {("", "warned", Reason.NO_POSITION)},
    ),
    "no orientation": (
        lambda d: reversed_numbers(d, ImageOrientationPatient=None),
        BACK,
        [],
        {("", "warned", Reason.NO_POSITION)},
    ),
    "all at one position": (reversed_numbers, BACK, [], {("", "warned", Reason.NO_POSITION)}),
    "no position, no number": (
        lambda d: (
            series(d, [3, 2, 1, 0], ImagePositionPatient=None)
            and [pydicom.dcmread(p).save_as(p) for p in sorted(d.iterdir()) if not strip(p, "InstanceNumber")]
        ),
        FOUR,
        [],
        {("", "warned", Reason.NO_POSITION)},
    ),
    "no position, same instance twice": (
        same_instance,
        FOUR,
        [],
        {("", "warned", Reason.NO_POSITION), ("x.dcm", "excluded", Reason.SAME_POSITION)},
    ),
    "other modality": (added(Modality="MR"), FOUR, [], {("x.dcm", "excluded", Reason.OTHER_MODALITY)}),
    "structured report": (
        added(Modality="SR", Rows=None, Columns=None, PixelData=None),
        FOUR,
        [],
        {("x.dcm", "excluded", Reason.OTHER_MODALITY)},
    ),
    "localizer": (
        added(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        FOUR,
        [],
        {("x.dcm", "excluded", Reason.LOCALIZER)},
    ),
    "no modality stated": (added(Modality=None), FIVE, [], set()),
    "other series": (added(series="1.9"), FOUR, [], {("x.dcm", "excluded", Reason.OTHER_SERIES)}),
    "other orientation": (
        added(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        FOUR,
        [],
        {("x.dcm", "excluded", Reason.OTHER_ORIENTATION)},
    ),
    "multi-frame": (
        added(stored=FRAMES, NumberOfFrames=2),
        FOUR,
        [],
        {("x.dcm", "excluded", Reason.MULTI_FRAME)},
    ),
    "colour": (
        added(PhotometricInterpretation="RGB", SamplesPerPixel=3),
        FOUR,
        [],
        {("x.dcm", "excluded", Reason.COLOUR)},
    ),
    "no rescale tags": (
        lambda d: series(d, [0, 1, 2, 3], RescaleSlope=None, RescaleIntercept=None),
        FOUR,
        [],
        {("", "warned", Reason.NO_RESCALE)},
    ),
    "slope of zero": (added(RescaleSlope=0), FIVE, ["x.dcm"], {("x.dcm", "excluded", Reason.BAD_RESCALE)}),
    "zero bytes": (with_file("x.dcm", b""), FOUR, [], {("x.dcm", "excluded", Reason.EMPTY_FILE)}),
    "text named .dcm": (
        with_file("x.dcm", b"no dicom" * 40),
        FOUR,
        [],
        {("x.dcm", "excluded", Reason.UNDECODABLE)},
    ),
    "truncated pixels": (damaged(0.8), FIVE, ["x.dcm"], {("x.dcm", "excluded", Reason.TRUNCATED)}),
    "truncated header": (damaged(0.3), FOUR, [], {("x.dcm", "excluded", Reason.UNDECODABLE)}),
    "no pixels": (without_pixels, FIVE, ["x.dcm"], {("x.dcm", "excluded", Reason.TRUNCATED)}),
    "DICOMDIR": (with_file("DICOMDIR", bytes(128) + b"DICM"), FOUR, [], {("DICOMDIR", "excluded", Reason.SYSTEM_FILE)}),
    "twin": (with_file("._0.dcm", b"x"), FOUR, [], {("._0.dcm", "excluded", Reason.TWIN)}),
    "preview": (with_file("preview.jpg", JPEG), FOUR, [], {("preview.jpg", "excluded", Reason.OTHER_FILE)}),
    "unparsable number": (invalid_number, FIVE, [], {("", "warned", Reason.PARSER)}),
    "invalid value": (
        invalid_uid,
        FIVE,
        [],
        {("", "warned", Reason.PARSER)},
    ),
}


def strip(path: Path, tag: str) -> None:
    ds = pydicom.dcmread(path)
    delattr(ds, tag)
    ds.save_as(path)


@pytest.mark.parametrize("case", DICOM_DIRT)
def test_dicom_dirt(tmp_path, capfd, case):
    fill, names, unreadable, findings = DICOM_DIRT[case]
    fill(tmp_path)
    scan = opened(tmp_path)
    assert list(scan.names) == names
    assert [name for name, image in read_all(scan).items() if image is None] == unreadable
    assert outcomes(scan) == findings
    assert not any(str(tmp_path) in f.reason for f in scan.findings)
    assert capfd.readouterr() == ("", "")


class TestDicomDirtValues:
    def test_no_rescale_takes_values_as_hu(self, tmp_path):
        stored = stored_values().astype(np.int16) - 1024
        path = dicom(tmp_path / "0.dcm", stored, RescaleSlope=None, RescaleIntercept=None)
        np.testing.assert_array_equal(opened(path).read(0), window(stored))

    def test_how_many_are_missing(self, tmp_path):
        assert [f.reason for f in opened(series(tmp_path, [0, 1.25, 5, 6.25, 7.5, 10])).findings] == [
            "gap in positions: about 3 missing at 2 places, step 1.25 mm"
        ]

    def test_whole_scan_of_another_modality(self, tmp_path):
        scan = opened(series(tmp_path, [0, 1], Modality="MR"))
        assert len(scan) == 0
        assert ("", "excluded", Reason.NO_SLICES) in outcomes(scan)


def test_a_series_and_its_localizer_among_others(tmp_path):
    """The files of one series stay together, also where all but one are no slices."""
    dicom(tmp_path / "a.dcm", series="1.1")
    dicom(tmp_path / "b.dcm", series="1.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    dicom(tmp_path / "c.dcm", series="1.2")
    dicom(tmp_path / "d.dcm", series="1.3", Modality="MR")
    paths, strangers = readers.dicom_scans(str(tmp_path), ["a.dcm", "b.dcm", "c.dcm", "d.dcm"])
    assert paths == [f"{tmp_path}#1.1", str(tmp_path / "c.dcm")]
    assert strangers == [("d.dcm", "other modality: MR")]
    scan = opened(paths[0])
    assert scan.names == ("a.dcm",) and outcomes(scan) == {("b.dcm", "excluded", Reason.LOCALIZER)}


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


class TestViewsOfDicom:
    @pytest.mark.parametrize("view", ["coronal", "sagittal"])
    @pytest.mark.parametrize("rows_and_columns", [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [0, 1, 0, -1, 0, 0]])
    def test_same_slices_as_the_volume_in_nifti(self, tmp_path, view, rows_and_columns):
        """DICOM slices sampled from a volume given in patient space, stored in several in-plane directions."""
        volume = RAS  # (right, anterior, superior)
        nx, ny, nz = volume.shape
        right, down = np.array(rows_and_columns[:3]), np.array(rows_and_columns[3:])
        corner = np.where(right + down > 0, 0, [nx - 1, ny - 1, 0])  # LPS index of the first pixel
        columns, rows = abs(right @ [nx, ny, nz]), abs(down @ [nx, ny, nz])
        for z in range(nz):
            stored = np.empty((rows, columns), np.int16)
            for r in range(rows):
                for c in range(columns):
                    left, back, _ = corner + r * down + c * right
                    stored[r, c] = volume[nx - 1 - left, ny - 1 - back, z]
            position = [float(corner[0]), float(corner[1]), 3.0 * z]
            dicom(
                tmp_path / f"{(z * 3) % nz}.dcm",
                stored,
                RescaleIntercept=0,
                ImagePositionPatient=position,
                ImageOrientationPatient=rows_and_columns,
            )
        scan = opened(tmp_path, view=view)
        assert len(scan) == volume.shape[["sagittal", "coronal"].index(view)]
        for k, image in enumerate(read_all(scan).values()):
            np.testing.assert_array_equal(image, expected_slice(volume, view, k))
        assert not scan.findings

    def test_unreadable_slice_is_left_out(self, tmp_path):
        damaged(0.8)(tmp_path)
        scan = opened(tmp_path, view="coronal")
        assert scan.read(0).shape == (4, 16)
        assert outcomes(scan) == {("x.dcm", "excluded", Reason.TRUNCATED)}

    @pytest.mark.parametrize("tags", [{"ImagePositionPatient": None}, {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}])
    def test_not_axial(self, tmp_path, tags):
        for i in range(3):
            dicom(tmp_path / f"{i}.dcm", number=i, **({"ImagePositionPatient": [0, i, 0]} | tags))
        scan = opened(tmp_path, view="coronal")
        assert len(scan) == 0 and ("", "excluded", Reason.NO_VIEW) in outcomes(scan)

    def test_mixed_shapes(self, tmp_path):
        dicom(tmp_path / "0.dcm", z=0)
        dicom(tmp_path / "1.dcm", stored_values(0, (8, 8)), z=1)
        scan = opened(tmp_path, view="sagittal")
        assert set(map(type, read_all(scan).values())) == {type(None)}
        assert outcomes(scan) == {("", "excluded", Reason.NO_VIEW)}
