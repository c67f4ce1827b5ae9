"""Folders of images: grey values against other decoders, order, and a stated outcome for each kind of dirt."""

import struct

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from e2d_lib.scans.readers import Reason, SliceError
from tests.make_scans import JPEG, corrupted, encoded, opened, outcomes, picture, read_all, write_images


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

    @pytest.mark.parametrize("ending", ["jpg", "png"])
    def test_grey_images_are_decoded_once_each(self, tmp_path, monkeypatch, ending):
        """Whether they are colours, the header says."""
        decoded, files = [], write_images(tmp_path, [f"{i}.{ending}" for i in range(3)])
        for owner, name in ((cv2, "imdecode"), (simplejpeg, "decode_jpeg")):
            whole = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *a, f=whole, **k: decoded.append(1) or f(*a, **k))
        read_all(opened(files))
        assert len(decoded) == 3

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
        [],
        {("1.jpg", "kept", Reason.NO_END)},
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
        ["1.jpg"],
        {("1.jpg", "excluded", Reason.CORRUPT)},
    ),
    "truncated png": (
        {"0.png": encoded(picture(), ".png")[:-200]},
        ["0.png"],
        ["0.png"],
        {("0.png", "excluded", Reason.TRUNCATED)},
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
        {("", "kept", Reason.NOT_A_NUMBER), ("", "warned", Reason.NUMBER_GAP)},
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

    def test_other_views_need_a_volume(self, tmp_path):
        assert outcomes(opened(write_images(tmp_path, ["0.jpg"]), view="coronal")) == {("", "excluded", Reason.NO_VIEW)}
