"""Made-up scans on disk, and what tests ask of a scan once it is opened."""

import gzip
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from e2d_lib.scans.readers import Reason, Scan, SliceError, open_scan


def window(hu) -> np.ndarray:
    """method/README.md §7 in whole numbers: floor of 255 (HU + 1350) / 1500."""
    return np.clip((np.asarray(hu, dtype=np.int64) + 1350) * 255 // 1500, 0, 255).astype(np.uint8)


def opened(path, **options) -> Scan:
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


def picture(seed: int = 0, shape=(40, 48)) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return cv2.GaussianBlur(noise, (7, 7), 0)


def encoded(image, suffix=".jpg") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


JPEG = encoded(picture())


def write_images(folder: Path, names, images=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        image = picture(i) if images is None else images[i]
        (folder / name).write_bytes(encoded(image, Path(name).suffix.lower()))
    return folder


def corrupted(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + b"\xff\xfe\x00\x12" * 5 + data[middle + 20 :]


RAS = np.random.default_rng(1).integers(-1400, 200, (5, 6, 7)).astype(np.int16)  # right, anterior, superior
NOISE = np.random.default_rng(3).integers(-1400, 200, (20, 20, 7)).astype(np.int16)


def expected_slice(volume, view: str, k: int) -> np.ndarray:
    """Loops over a (right, front, head) volume: axial from the feet, coronal from the front, sagittal from the left."""
    nx, ny, nz = volume.shape
    if view == "axial":
        return window([[volume[nx - 1 - c, ny - 1 - r, k] for c in range(nx)] for r in range(ny)])
    if view == "coronal":
        return window([[volume[nx - 1 - c, k, nz - 1 - r] for c in range(nx)] for r in range(nz)])
    return window([[volume[k, ny - 1 - c, nz - 1 - r] for c in range(ny)] for r in range(nz)])


def write_nifti(path: Path, data, affine=None, **header) -> Path:
    image = nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def cut(keep):
    def make(path):
        data = gzip.compress(write_nifti(path, NOISE).read_bytes())
        path = path.with_suffix(".nii.gz")
        path.write_bytes(data[: int(keep * len(data)) if keep < 1 else -int(keep)])
        return path

    return make


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
