"""NIfTI volumes: slices against plain loops, and a stated outcome for each kind of dirt."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2d_lib.scans.readers import Reason
from tests.make_scans import NOISE, RAS, cut, expected_slice, opened, outcomes, read_all, write_nifti


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
        assert len(opened(tmp_path)) == 7
        write_nifti(tmp_path / "other.nii.gz", RAS)
        assert outcomes(opened(tmp_path)) == {("", "excluded", Reason.NO_SLICES)}


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
    "no affine": (affine_case([0] * 12, code=0), 7, 7, {("", "kept", Reason.NO_ORIENTATION)}),
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
        {("", "kept", Reason.PARSER)},
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
