"""Lungs from masks: the grey values of the very volume, drawn as masks, so that any turn or shift shows."""

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest

from e2d_lib.elsewhere import spoil
from e2d_lib.elsewhere.masks import LUNG, MaskError, read_mask
from e2d_lib.elsewhere.spoil import VolumeError
from e2d_lib.scans import open_cohorts
from tests import cells
from tests.make_scans import NOISE, window, write_nifti
from tests.scans.test_open_cohorts import s3  # noqa: F401

DARK = 100  # grey value of the lung window under which a voxel is drawn


def drawn_by(headers: list[pydicom.Dataset], pixels: dict[str, np.ndarray], path) -> None:
    """A DICOM segmentation of the source images, a segment a name."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    maker = hd.AlgorithmIdentificationSequence("made up", codes.DCM.ArtificialIntelligence, "1")
    how = {"algorithm_type": "AUTOMATIC", "algorithm_identification": maker}
    types = {"Heart": codes.SCT.Heart}
    described = [
        hd.seg.SegmentDescription(k, name, codes.SCT.Organ, types.get(name, codes.SCT.Lung), **how)
        for k, name in enumerate(pixels, start=1)
    ]
    seg = hd.seg.Segmentation(
        headers, np.stack(list(pixels.values()), -1).astype(np.uint8), "BINARY", described, "1.2.9", 1, "1.2.9.1", 1,
        "m", "m", "1", "1",
    )  # fmt: skip
    seg.save_as(path)


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """A real series under shuffled names, its dark voxels as a segmentation, and both beside each other."""
    pytest.importorskip("highdicom")
    folder = tmp_path_factory.mktemp("seg")
    (folder / "ct").mkdir()
    paths = sorted((shared / "data" / "lung-pet-ct-dx" / "A0002-soft-kernel").glob("*.dcm"))[4:24]
    headers = [pydicom.dcmread(path) for path in paths]
    for header in headers:
        header.PatientName = "A^"  # highdicom wants two parts
    for k, path in enumerate(paths):
        (folder / "ct" / f"{(7 * k) % 20}.dcm").write_bytes(path.read_bytes())
    grey = np.stack([window(h.pixel_array * float(h.RescaleSlope) + float(h.RescaleIntercept)) for h in headers])
    dark = grey < DARK
    dark[:3] = dark[-2:] = False  # slices that the segmentation leaves out
    left, right = dark.copy(), dark.copy()
    left[:, :, :200], right[:, :, 200:] = False, False
    drawn_by(headers, {"Lung-Left": left, "R": right, "GTV-1 lung tumor": ~dark}, folder / "seg.dcm")
    drawn_by(headers, {"Heart": dark}, folder / "heart.dcm")
    return folder


@pytest.mark.shared
def test_a_dicom_segmentation_lies_on_the_series_it_was_drawn_on(folder):
    volume = spoil.read_volume(folder / "ct", folder / "seg.dcm")
    assert volume.known and volume.lung.shape == volume.hu.shape == (512, 512, 20)
    expected = window(volume.hu) < DARK
    empty = np.flatnonzero(~volume.lung.any((0, 1)))
    assert list(empty) in ([0, 1, 2, 18, 19], [0, 1, 17, 18, 19])
    expected[:, :, empty] = False
    np.testing.assert_array_equal(volume.lung, expected)


@pytest.mark.shared
def test_segmentations_that_do_not_fit_are_told_in_one_line(folder, shared, tmp_path):
    with pytest.raises(MaskError, match=r"heart.dcm has no segment named lung, only Heart \(Heart\)"):
        read_mask(folder / "heart.dcm", folder / "ct")
    with pytest.raises(MaskError, match="is of another series than"):
        read_mask(folder / "seg.dcm", shared / "data" / "lung-pet-ct-dx" / "A0001-lung-kernel")
    (tmp_path / "no.dcm").write_text("no")
    with pytest.raises(MaskError, match=r"no.dcm is no mask of"):
        read_mask(tmp_path / "no.dcm", folder / "ct")


@pytest.mark.parametrize(
    ("name", "lung"),
    [("Lungs-Total", True), ("Lung", True), ("Segment 1 (Lung)", True), ("Lung Nodule 1 (Lung)", False)],
)
def test_which_segments_are_lung(name, lung):
    assert bool(LUNG.search(name)) == lung


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA", "PIL"])
def test_a_nifti_mask_beside_a_nifti_volume(tmp_path, axes):
    pytest.importorskip("SimpleITK")
    turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(axes))
    affine = np.eye(4) @ nib.orientations.inv_ornt_aff(turn, NOISE.shape)
    dark = (window(NOISE) < DARK).astype(np.uint8)
    paths = [
        write_nifti(tmp_path / f"{name}.nii.gz", nib.orientations.apply_orientation(data, turn), affine)
        for name, data in (("ct", NOISE), ("mask", dark))
    ]
    volume = spoil.read_volume(*paths)
    assert volume.known
    np.testing.assert_array_equal(volume.lung, window(volume.hu) < DARK)
    short = write_nifti(tmp_path / "short.nii.gz", dark[:, :, 1:])
    with pytest.raises(VolumeError, match=r"short.nii.gz has \(20, 20, 6\) voxels, .* \(20, 20, 7\)"):
        spoil.read_volume(paths[0], short)


def test_the_trachea_of_luna16_is_no_lung(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    values = np.random.default_rng(0).choice([0, 3, 4, 5], (4, 5, 6)).astype(np.uint8)  # slices, rows, columns
    (tmp_path / "seg-lungs-LUNA16").mkdir()
    path = tmp_path / "seg-lungs-LUNA16" / "1.2.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(values), path)
    # rows go to the back, columns to the left
    np.testing.assert_array_equal(read_mask(path, ""), np.isin(values, (3, 4)).transpose(2, 1, 0)[::-1, ::-1])


def against_masks(manifest, n, **given):
    """Chapter 7's table of the patients with masks, and why others were left out."""
    given |= {"masks": str(manifest), "n_masks": n, "options": {"size": 16}, "views": ["axial", "coronal"]}
    left = cells.run("07_generalizability", "tables, left_out = ", "patients = pd.concat", **given)
    return left.patients, left.left_out


@pytest.mark.shared
def test_scans_with_masks_are_measured_one_by_one_and_a_bad_one_has_its_reason(folder):
    rows = [("a", "ct", "seg.dcm"), ("b", "ct", "heart.dcm"), ("c", "ct", "")]
    pd.DataFrame(rows, columns=["scan_id", "path", "mask"]).to_csv(folder / "manifest.csv", index=False)
    table, left_out = against_masks(folder / "manifest.csv", 5)
    assert list(table["volume"]) == ["a"] and left_out == {
        "b": f"{folder / 'heart.dcm'} has no segment named lung, only Heart (Heart)"
    }
    volume = spoil.read_volume(folder / "ct", folder / "seg.dcm")
    assert table["area_ratio"][0] == pytest.approx(table["area"][0] / volume.lung.sum())
    first, second = (against_masks(folder / "manifest.csv", 1, seed=seed) for seed in (2, 3))
    assert {tuple(first[0]["volume"]), tuple(second[0]["volume"])} == {(), ("a",)}  # either may be drawn
    (folder / "without.csv").write_text("scan_id,path,mask\nc,ct,\n")
    with pytest.raises(VolumeError, match=r"without.csv names no mask: fetch a cohort with masks"):
        against_masks(folder / "without.csv", 1)


@pytest.mark.shared
def test_masks_come_with_the_scans_they_were_drawn_on(folder, s3, tmp_path):  # noqa: F811
    """From a bucket of a real S3 server, by the index that names series and segmentation."""
    client, url = s3
    client.create_bucket(Bucket="lungs", ACL="public-read")
    rows = []
    for kind, paths in (("CT", sorted((folder / "ct").iterdir())), ("SEG", [folder / "seg.dcm"])):
        for path in paths:
            client.put_object(Bucket="lungs", Key=f"{kind}/{path.name}", Body=path.read_bytes(), ACL="public-read")
        rows.append(
            {"collection_id": "nsclc_radiomics", "PatientID": "LUNG1-001", "StudyInstanceUID": "1.2", "Modality": kind}
            | {"SeriesInstanceUID": f"1.2.{kind}", "sop_class_name": "CT Image Storage", "instanceCount": len(paths)}
            | {"SeriesDescription": {"CT": "", "SEG": "Segmentation"}[kind], "license_short_name": f"licence of {kind}"}
            | {"series_size_MB": sum(path.stat().st_size for path in paths) / 1e6, "source_DOI": f"10.1/{kind}"}
            | {"series_aws_url": f"s3://lungs/{kind}/*"}
        )
    pd.DataFrame(rows).to_parquet(tmp_path / "index.parquet")
    how = {"accept_licence": True, "endpoint_url": url, "index": tmp_path / "index.parquet", "n_jobs": 1}
    said = []
    manifest = open_cohorts.fetch("nsclc-radiomics", tmp_path / "out", say=said.append, **how)
    assert manifest["mask"].tolist() == ["masks/LUNG1-001/seg.dcm"]
    assert "licence of CT, licence of SEG" in said[0]
    assert "lung masks: https://doi.org/10.1/SEG, licence of SEG" in (tmp_path / "out" / "CITATION.txt").read_text()
    table, left_out = against_masks(tmp_path / "out" / "manifest.csv", 1)
    assert list(table["volume"]) == ["LUNG1-001"] and table["n_slices"][0] == 20 and not left_out
