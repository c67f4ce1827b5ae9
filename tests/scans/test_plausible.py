"""What can be no chest CT in the lung window is left out, and no real scan is, however it was cut."""

import os

import cv2
import numpy as np
import pydicom
import pytest

from e2d_lib.method import preprocess, ssfl
from e2d_lib.scans import plausible
from e2d_lib.scans.cohort import CohortError, cohort_findings, read_cohort
from e2d_lib.scans.readers import open_scan
from tests.make_scans import dicom

SHAPE = np.mgrid[:96, :96] - 47.5


def slices(n: int = 20) -> np.ndarray:
    """(n, 96, 96) uint8: air, a body, two lungs that grow and shrink."""
    y, x = SHAPE
    out = np.full((n, 96, 96), 59, np.uint8)
    out[:, (x / 40) ** 2 + (y / 32) ** 2 < 1] = 236
    for k, image in enumerate(out):
        r = np.sin(np.pi * (k + 0.5) / n)
        for side in (-16, 16):
            image[((x - side) / (11 * r)) ** 2 + (y / (19 * r)) ** 2 < 1] = 85
    return out


def outcome(tmp_path, images) -> tuple[str, str]:
    """Status and reason of the scan that these PNG files make."""
    (tmp_path / "data" / "s").mkdir(parents=True)
    for k, image in enumerate(images):
        cv2.imwrite(str(tmp_path / "data" / "s" / f"{k}.png"), image)
    rows = read_cohort(tmp_path / "data").to_dict("records")
    record = preprocess.preprocess_scan(rows[0], tmp_path / "cache", preprocess.Params(size=32))
    return record["status"], record["reason"]


def mapped(images):
    return [cv2.applyColorMap(image, cv2.COLORMAP_JET) for image in images]


def marked(images):
    return [cv2.circle(cv2.cvtColor(i, cv2.COLOR_GRAY2BGR), (30, 30), 9, (0, 0, 255), 2) for i in images]


def white(images):
    outside = (SHAPE[1] / 40) ** 2 + (SHAPE[0] / 32) ** 2 >= 1
    return [np.where(outside, 255, image).astype(np.uint8) for image in images]


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (list, "kept", ""),
        (marked, "kept", ""),
        (lambda images: 255 - images, "excluded", "air all around the body counts as lung: inverted greys"),
        (white, "warned", "bright to the corners: the crop keeps the corners"),
        (mapped, "excluded", "colour: greys cannot be told from colours"),
    ],
    ids=["plain", "marked", "inverted", "white background", "colour map"],
)
def test_images(tmp_path, change, status, reason):
    assert outcome(tmp_path, change(slices())) == (status, reason)


REAL = ("lung-pet-ct-dx/A0001-lung-kernel", "lung-pet-ct-dx/A0002-lung-kernel", "lung-pet-ct-dx/A0002-soft-kernel")
REAL += ("tcia-covid-19-ny-sbu", "totalsegmentator-example/example_ct.nii.gz")


def inside(image):
    """Cut into the lungs: no air around, chest wall in the corners."""
    r0, r1, c0, c1 = ssfl.crop_box(image)
    r, c = (r1 - r0) // 7, (c1 - c0) // 8
    return image[r0 + r : r1 - r, c0 + c : c1 - c]


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_scans_are_left_in_whole_and_cut_and_out_inverted(shared, name):
    for row in read_cohort(shared / "data" / name).to_dict("records"):
        scan = open_scan(row)
        whole = [scan.read(i) for i in range(len(scan))]
        body = [image[r0:r1, c0:c1] for image in whole for r0, r1, c0, c1 in [ssfl.crop_box(image)]]
        assert plausible.doubtful(whole, hounsfield=False) == ""
        for images in (body, [inside(image) for image in whole]):  # of an abdomen no air may be left
            assert "inverted" not in plausible.doubtful(images, hounsfield=False)
        assert not plausible.bright_around(whole)
        assert "inverted" in plausible.doubtful([255 - image for image in whole], hounsfield=False)


OF_LUNG = [(-600, 1500), (-500, 1500), (-620, 1500), (-560, 1400), (-600, 1200), (-700, 1000), (-400, 1500)]
OF_ELSE = [(40, 400), (40, 350), (50, 450), (300, 1500), (400, 1800), (40, 80), (40, 100)]


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL[:4])
def test_real_scans_in_the_windows_of_other_organs_are_left_out(shared, name):
    """And in those of the lung no slice is, alone, cut to the body, or amid black."""
    slices = []
    for path in sorted((shared / "data" / name).glob("*.dcm"))[:: 1 if "tcia" in name else 4]:
        data = pydicom.dcmread(path)
        slices.append(data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept))
    for centre, width in [*OF_LUNG, *OF_ELSE]:
        greys = [np.clip((hu - centre + width / 2) / width * 255, 0, 255).astype(np.uint8) for hu in slices]
        greys = [cv2.imdecode(cv2.imencode(".jpg", grey, [1, 90])[1], cv2.IMREAD_GRAYSCALE) for grey in greys]
        if (centre, width) in OF_ELSE:
            assert plausible.doubtful(greys, hounsfield=False).split(":")[0] in (
                "not the lung window",
                "no air beside tissue",
            )
            continue
        for grey in greys:
            r0, r1, c0, c1 = ssfl.crop_box(grey)
            body = grey[r0:r1, c0:c1]
            for some in (grey, body, np.pad(body, 300)):
                assert plausible.doubtful([some], hounsfield=False) == ""


def test_a_folder_named_in_latin_1(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for k, image in enumerate(slices(6)):
        with open(folder + b"/%d.png" % k, "wb") as file:
            file.write(cv2.imencode(".png", image)[1].tobytes())
    (row,) = read_cohort(tmp_path).to_dict("records")
    assert row["scan_id"] == r"caf\xe9"
    np.testing.assert_array_equal(open_scan(row).read(3), slices(6)[3])


@pytest.mark.parametrize("folder", ["p", "train/positive/p"])
def test_two_reconstructions_loose_in_one_folder_are_one_scan(tmp_path, folder):
    for uid, kernel in (("1.7", "B30f"), ("1.8", "B60f")):
        for k in range(3):
            series = {"series": uid, "StudyInstanceUID": "1.2", "ConvolutionKernel": kernel}
            dicom(tmp_path / folder / f"{uid}-{k}.dcm", z=k, **series)
    cohort = read_cohort(tmp_path)
    assert cohort["scan_id"].tolist() == [f"{folder}#1.8"]
    (finding,) = cohort_findings(cohort)
    assert finding.reason == f"other series: of the study {folder}#1.8 was chosen"


def test_a_root_without_any_scan_says_what_is_there(tmp_path):
    (tmp_path / "s").mkdir()
    for k in range(3):
        (tmp_path / "s" / f"{k}.bmp").write_bytes(b"BM")
    with pytest.raises(CohortError, match=r"slices; there is: unknown format: .bmp"):
        read_cohort(tmp_path)
