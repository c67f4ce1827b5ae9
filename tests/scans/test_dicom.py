"""DICOM series: grey values, order and views against plain loops, and a stated outcome for each kind of dirt."""

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import ImplicitVRLittleEndian

from e2d_lib.scans.dicom import dicom_scans
from e2d_lib.scans.formats import guess_format
from e2d_lib.scans.readers import Reason
from tests.make_scans import (
    JPEG,
    RAS,
    dicom,
    expected_dicom,
    expected_slice,
    opened,
    outcomes,
    read_all,
    series,
    stored_values,
    window,
)


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
            assert guess_format(str(tmp_path / name)) == "dicom"
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
        assert outcomes(scan) == {("", "kept", Reason.OTHER_UNITS)}  # GDCM writes RescaleType US
        assert capfd.readouterr() == ("", "")

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
    def test_damaged(self, tmp_path, name, damage):
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
        (finding,) = [f for f in scan.findings if f.outcome == "excluded"]
        assert finding.reason.split(": ")[0] in {Reason.UNDECODABLE, Reason.TRUNCATED}
        assert str(tmp_path) not in finding.reason


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
    "unparsable number": (invalid_number, FIVE, [], {("", "kept", Reason.PARSER)}),
    "invalid value": (
        invalid_uid,
        FIVE,
        [],
        {("", "kept", Reason.PARSER)},
    ),
}


def test_two_slices_of_two_orientations(tmp_path):
    dicom(tmp_path / "0.dcm", z=0, number=1)
    dicom(tmp_path / "1.dcm", z=4, number=2, ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6])  # tilted
    scan = opened(tmp_path)
    assert scan.names == ("0.dcm",) and outcomes(scan) == {("1.dcm", "excluded", Reason.OTHER_ORIENTATION)}


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
    paths, strangers = dicom_scans(str(tmp_path), ["a.dcm", "b.dcm", "c.dcm", "d.dcm"])
    assert [one.path for one in paths] == [f"{tmp_path}#1.1", str(tmp_path / "c.dcm")]
    assert strangers == [("d.dcm", "other modality: MR")]
    scan = opened(paths[0].path)
    assert scan.names == ("a.dcm",) and outcomes(scan) == {("b.dcm", "excluded", Reason.LOCALIZER)}


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
