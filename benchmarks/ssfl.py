"""SSFL++ beside decoding, in one run on one core: three decoders, decoding and measuring, and the plain reference.

python benchmarks/ssfl.py                         slices of phantom patients, written as JPEG of quality 95
python benchmarks/ssfl.py --dicom DIR             the slices of every scan in DIR, written as JPEG
python benchmarks/ssfl.py --images DIR            the JPEGs in DIR and below, as they are
python benchmarks/ssfl.py --dicom DIR --quality 75 95

Measuring is crop and lung area, and lung area on the crop too, as `e2d_lib.method.preprocess` does it. The decoder
is that of `e2d_lib.scans.images`, simplejpeg; beside it OpenCV, and PyTurboJPEG where it is installed.
The reference is tests/reference.py, which reads the file in colour again for each of the two steps, as the released
code does. All take turns, so that what else the machine does meets all of them. Times are per slice: a slice's
median over the repeats, averaged over the slices; beside it the minimum, which other load disturbs least.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from e2d_lib.method import ssfl

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 4
"""Passes over all slices before the next contender's turn: caches and branch predictors settle on one of them."""


def phantom_slices(n: int) -> Iterator[np.ndarray]:
    """n 512 x 512 slices, spread from base to apex over a few phantom patients."""
    from e2d_lib.phantom import phantom

    for seed in range(4):
        patient = phantom.patient(seed, n_slices=n, positive=seed % 2 == 1)
        yield from (patient.image(k) for k in range(seed, n, 4))


def dicom_slices(folder: Path) -> Iterator[np.ndarray]:
    from e2d_lib.scans.cohort import read_cohort
    from e2d_lib.scans.readers import open_scan

    for row in read_cohort(folder).to_dict("records"):
        scan = open_scan(row)
        yield from (scan.read(i) for i in range(len(scan)))


def write_jpegs(slices: list[np.ndarray], folder: Path, quality: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{k}.jpg" for k in range(len(slices))]
    for path, image in zip(paths, slices, strict=True):
        path.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
    return paths


def decode(path: Path) -> np.ndarray:
    return simplejpeg.decode_jpeg(path.read_bytes(), "GRAY")[..., 0]


def decode_opencv(path: Path) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)


def decode_and_measure(path: Path) -> tuple[ssfl.Box, int]:
    return ssfl.measure(decode(path))


def both_areas(path: Path) -> tuple[ssfl.Box, int, int]:
    return ssfl.measure_both(decode(path))


def plain_reference(path: Path) -> tuple[ssfl.Box, int]:
    from tests import reference

    return (
        reference.crop_box(cv2.imread(str(path), cv2.IMREAD_COLOR)),
        reference.lung_area(cv2.imread(str(path), cv2.IMREAD_COLOR)),
    )


def timed(step: Callable[[Path], object], paths: list[Path], passes: int) -> list[list[float]]:
    """(passes, slices) milliseconds."""
    rows = []
    for _ in range(passes):
        row = []
        for path in paths:
            start = time.perf_counter()
            step(path)
            row.append((time.perf_counter() - start) * 1e3)
        rows.append(row)
    return rows


def contenders() -> dict[str, Callable[[Path], object]]:
    """What takes turns, by its line in the table; the first is what the others are compared with."""
    steps: dict[str, Callable[[Path], object]] = {
        "grey decoding, simplejpeg": decode,
        "grey decoding, OpenCV": decode_opencv,
        "decoding and measure()": decode_and_measure,
        "decoding, measure(), area on the crop": both_areas,
        "plain reference, colour, two reads": plain_reference,
    }
    try:
        import turbojpeg

        turbo = turbojpeg.TurboJPEG()
    except (ImportError, RuntimeError) as error:
        print(f"without PyTurboJPEG: {str(error).splitlines()[0]}")
        return steps
    return steps | {"grey decoding, PyTurboJPEG": lambda path: turbo.decode(path.read_bytes(), turbojpeg.TJPF_GRAY)}


def compare(title: str, paths: list[Path], repeats: int) -> None:
    steps = contenders()
    for path in paths:
        row0, row1, col0, col1 = decode_and_measure(path)[0]
        apart = *decode_and_measure(path), ssfl.lung_area(decode(path)[row0:row1, col0:col1])
        if decode_and_measure(path) != plain_reference(path) or both_areas(path) != apart:
            raise SystemExit(f"{path}: the library and the reference disagree")
        for name, step in steps.items():
            if name.startswith("grey") and not np.array_equal(np.squeeze(step(path)), decode(path)):
                raise SystemExit(f"{path}: {name} gives other pixels")
    times: dict[str, list[list[float]]] = {name: [] for name in steps}
    for turn in range(repeats):
        for name, step in steps.items():
            if step is not plain_reference or turn < 5:
                times[name] += timed(step, paths, 1 if step is plain_reference else BLOCK)
    size = sum(path.stat().st_size for path in paths) / len(paths) / 1024
    print(f"\n{title}: {len(paths)} slices, {size:.0f} KiB each on average; pixels, box and area equal on all")
    print(f"{'per slice':<42}{'median':>10}{'minimum':>10}{'x decoding':>12}{'(minima)':>10}")
    first = None
    for name, rows in times.items():
        spent = np.array([np.median(rows, axis=0).mean(), np.min(rows, axis=0).mean()])
        first = spent if first is None else first
        print(
            f"{name:<42}{spent[0]:>7.3f} ms{spent[1]:>7.3f} ms{spent[0] / first[0]:>12.2f}{spent[1] / first[1]:>10.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", type=Path, metavar="DIR", help="JPEGs to read as they are")
    source.add_argument("--dicom", type=Path, metavar="DIR", help="DICOM slices, written as JPEG to a temporary folder")
    parser.add_argument("--quality", type=int, nargs="+", default=[95], help="JPEG qualities to write (default: 95)")
    parser.add_argument("--slices", type=int, default=20, help="slices at most (default: 20)")
    parser.add_argument("--repeats", type=int, default=10, help=f"turns of {BLOCK} passes each (default: 10)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    sys.path.append(str(ROOT))  # for tests.reference
    print(f"Python {platform.python_version()}, OpenCV {cv2.__version__}, NumPy {np.__version__}; one thread")
    if args.images:
        files = sorted(path for path in args.images.rglob("*.jp*g") if not path.name.startswith("._"))
        if not files:
            parser.error(f"{args.images} holds no JPEG")
        compare(str(args.images), files[: args.slices], args.repeats)
        return
    slices = list(dicom_slices(args.dicom) if args.dicom else phantom_slices(args.slices))[: args.slices]
    with tempfile.TemporaryDirectory() as folder:
        for quality in args.quality:
            files = write_jpegs(slices, Path(folder) / str(quality), quality)
            compare(f"{args.dicom or 'phantom'}, JPEG quality {quality}", files, args.repeats)


if __name__ == "__main__":
    main()
