"""Variants of what people have: every case is a chest of 20 slices in another guise, or something that is none."""

import numpy as np
import pytest

from e2d_lib.method import preprocess
from e2d_lib.scans.cohort import cohort_findings, read_cohort
from tests.make_scans import dicom, write_images, write_nifti

AFFINE = np.diag([-0.7, -0.7, 5, 1])
y, x = np.mgrid[:96, :96] - 47.5
OUTSIDE = x**2 + y**2 > 47**2


def chest(n: int = 20) -> np.ndarray:
    """(n, 96, 96) int16 HU, feet to head; most lung between slices 7 and 17."""
    hu = np.full((n, 96, 96), -1000, np.int16)
    hu[:, (x / 40) ** 2 + (y / 32) ** 2 < 1] = 40
    for k, plane in enumerate(hu):
        r = np.sin(np.pi * ((k + 0.5) / n) ** 1.5)
        for side in (-16, 16):
            plane[((x - side) / (11 * r)) ** 2 + (y / (19 * r)) ** 2 < 1] = -850
    return hu


HU = chest()
XYZ = HU.transpose(2, 1, 0)
LUNG = (XYZ == -850).astype(np.uint8)
GREY = np.clip((HU + 1350.0) / 1500 * 255, 0, 255).astype(np.uint8)


RUN = [f"{k}.png" for k in range(20)]


def window(hu, centre, width):
    return np.clip((hu - centre + width / 2) / width * 255, 0, 255).astype(np.uint8)


def slices(folder, stored=HU, shift=0, **tags):
    """A DICOM series of these values; HU where no tag says otherwise."""
    tags = {"RescaleIntercept": 0, "StudyInstanceUID": "1.2"} | tags
    for k, plane in enumerate(stored):
        own = {
            name: value[k] if isinstance(value, list) and len(value) == len(stored) else value
            for name, value in tags.items()
        }
        dicom(folder / f"{k + shift}.dcm", np.ascontiguousarray(plane), **{"z": 5.0 * k, "number": k + 1} | own)


def padded(value, dtype=np.int16, add=0):
    return np.where(OUTSIDE, value, HU.astype(int) + add).astype(dtype)


def tilted(folder):
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    slices(folder, ImageOrientationPatient=[1, 0, 0, 0, c, -s], GantryDetectorTilt=20)


def two_acquisitions(folder):
    slices(folder, AcquisitionNumber=1)
    slices(folder, np.roll(HU, 2, axis=1), shift=20, AcquisitionNumber=2)


def beside_pet(folder):
    slices(folder)
    slices(folder, shift=30, series="1.9", Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.128")


def masks(folder):
    write_nifti(folder / "ct.nii.gz", XYZ, AFFINE)
    for name in ("ct_seg", "seg", "labels", "lungmask", "lung-label", "ct_roi", "mask_1"):
        write_nifti(folder / f"{name}.nii.gz", LUNG, AFFINE)


def other_header(change):
    import nibabel as nib

    def make(folder):
        image = nib.Nifti1Image(XYZ, AFFINE)
        change(image)
        nib.save(image, folder / "a.nii.gz")

    return make


def nifti(values, affine=AFFINE):
    return lambda folder: write_nifti(folder / "a.nii.gz", values, affine)


def images(names, pictures=GREY):
    return lambda folder: write_images(folder, names, pictures)


def twice(names):
    return images([f"{k}.png" for k in range(20)] + [names.format(k) for k in range(20)], [*GREY, *GREY])


def system_files(folder):
    images([f"{k}.png" for k in range(20)])(folder)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._3.png"):
        (folder / name).write_bytes(b"x")


WHOLE = ("kept", 7, 17)
CASES = {
    "signed padding": (lambda f: slices(f, padded(-2000), PixelPaddingValue=-2000), WHOLE, ""),
    "unsigned padding": (
        lambda f: slices(f, padded(63536, np.uint16, 1024), PixelPaddingValue=63536, RescaleIntercept=-1024),
        WHOLE,
        "",
    ),
    "gantry tilt": (tilted, WHOLE, ""),
    "no instance numbers": (lambda f: slices(f, InstanceNumber=None), WHOLE, ""),
    "overlay in the high bits": (
        lambda f: slices(f, (HU + 1024).astype(np.uint16) | 1 << 13, BitsStored=12, HighBit=11, RescaleIntercept=-1024),
        WHOLE,
        "",
    ),
    "two acquisitions": (two_acquisitions, ("warned", 7, 17), "other stack of the series"),
    "PET beside CT": (beside_pet, ("warned", 7, 17), "other modality: PT"),
    "maximum intensity": (
        lambda f: slices(f, ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"]),
        "excluded",
        "projection or rendering",
    ),
    "windowed to 8 bits": (
        lambda f: slices(f, GREY, BitsAllocated=8, BitsStored=8, HighBit=7),
        "excluded",
        "values not in Hounsfield units: no air near -1000",
    ),
    "time": (nifti(np.stack([XYZ, XYZ + 5], -1)), ("warned", 7, 17), "several volumes, first kept"),
    "sform before qform": (
        other_header(lambda i: (i.set_qform(np.diag([0.7, -0.7, 5, 1]), 1), i.set_sform(AFFINE, 2))),
        WHOLE,
        "",
    ),
    "no spacing": (
        other_header(lambda i: (i.set_qform(None, 0), i.set_sform(np.diag([0, 0, 0, 1.0]), 2))),
        ("warned", 7, 17),
        "degenerate affine",
    ),
    "slices across the pixels": (
        nifti(HU, np.diag([5, 0.7, 0.7, 1])),
        ("warned", 24, 72),
        "not axial: pixels of 5 x 0.7 mm",
    ),
    "not finite outside": (
        nifti(np.where(OUTSIDE.T[..., None], np.nan, XYZ).astype(np.float32)),
        ("warned", 7, 17),
        "values not finite",
    ),
    "HU + 1024": (nifti((XYZ + 1024).astype(np.uint16)), "excluded", "values not in Hounsfield units"),
    "0 to 1": (nifti(((XYZ + 1024) / 2048).astype(np.float32)), "excluded", "values not in Hounsfield units"),
    "masks beside": (masks, WHOLE, "mask, not CT"),
    "two greys": (
        images([f"{k}.png" for k in range(20)], 255 * (HU > -500).astype(np.uint8)),
        "excluded",
        "mask, not CT",
    ),
    "black": (images([f"{k}.png" for k in range(20)], GREY * 0), "excluded", "no air beside tissue"),
    "window for the mediastinum": (images(RUN, window(HU, 40, 400)), "excluded", "not the lung window"),
    "window for the brain": (images(RUN, window(HU, 40, 80)), "excluded", "not the lung window"),
    "another lung window": (images(RUN, window(HU, -500, 1400)), WHOLE, ""),
    "noise": (images(RUN, np.random.default_rng(0).integers(0, 256, HU.shape, np.uint8)), "excluded", "noise"),
    "copies of a browser": (twice("{} (1).png"), ("warned", 7, 17), "copy: of 0"),
    "copies of Windows": (twice("{} - Copy.png"), ("warned", 7, 17), "copy: of 0"),
    "copies of an older one": (twice("Copy of {}.png"), ("warned", 7, 17), "other run of numbers"),
    "k of n": (images([f"{k + 1}of20.png" for k in range(20)]), WHOLE, "name not a number: 20"),
    "date and number": (images([f"20200101_{k:03}.png" for k in range(20)]), WHOLE, "name not a number: 20"),
    "files of systems": (system_files, WHOLE, "hidden or system file"),
}
"""Case -> what makes it, status and window (or "excluded"), and how one of the findings begins."""


@pytest.mark.parametrize("name", CASES)
def test_variant(tmp_path, name):
    make, expected, told = CASES[name]
    folder = tmp_path / "data" / "s"
    folder.mkdir(parents=True)
    make(folder)
    cohort = read_cohort(tmp_path / "data")
    (row,) = cohort.to_dict("records")
    made = preprocess.preprocess_scan(row, tmp_path / "cache", preprocess.Params(size=32))
    found = made["status"] if made["status"] == "excluded" else (made["status"], made["start"], made["stop"])
    reasons = [f.reason for f in cohort_findings(cohort)] + [finding[3] for finding in made["findings"]]
    assert found == expected, reasons
    assert any(reason.startswith(told) for reason in reasons) if told else not reasons
