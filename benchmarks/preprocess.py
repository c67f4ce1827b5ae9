"""Preprocessing measured in one run: speed-up, memory, bytes, reading, and what a million scans would need.

python benchmarks/preprocess.py                     a phantom, 20 scans (memory: 20 and 200)
python benchmarks/preprocess.py --scans 50          50 scans (memory: 50 and 500)
python benchmarks/preprocess.py --data-root DIR     that many of the JPEG scans in DIR
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib.externals.loky import get_reusable_executor

from e2d_lib.method import preprocess
from e2d_lib.phantom import phantom
from e2d_lib.scans.cohort import read_cohort

TRAINING_SLICES = 385_631 / 1358
"""Mean slices of a COV19-CT-DB training scan (method.md §1)."""

DRAWN = 12
"""Scans of the phantom that are rendered; more are these again, as rendering takes far longer than preprocessing."""


def repeated(cohort: pd.DataFrame, n: int) -> pd.DataFrame:
    """``n`` scans: the cohort's again and again under new ids, so that a large cohort costs no disk of its own."""
    rows = cohort.iloc[np.arange(n) % len(cohort)].reset_index(drop=True)
    return rows.assign(scan_id=[f"{i:06d}/{scan}" for i, scan in enumerate(rows["scan_id"])])


def timed_run(
    cohort: pd.DataFrame, work: Path, params: preprocess.Params, n_jobs: int
) -> tuple[preprocess.Preprocessed, float]:
    """The cohort preprocessed into an empty folder, and the seconds that took, the processes' start included."""
    preprocess.run(cohort.iloc[:1], work / f"warm-{n_jobs}", params, n_jobs=1)  # compiled code is loaded
    began = time.perf_counter()
    pre = preprocess.run(cohort, work / f"processes-{n_jobs}", params, n_jobs=n_jobs)
    return pre, time.perf_counter() - began


def peak_memory(cohort: pd.DataFrame, work: Path, params: preprocess.Params, n_jobs: int) -> str:
    """Peak resident memory of the main process and of its largest worker, in a new process."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        cohort.to_parquet(Path(folder) / "cohort.parquet")
        command = [sys.executable, __file__, "--measure", folder, "--size", str(params.size), "--jobs", str(n_jobs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return "main process {} MiB, largest worker {} MiB".format(*done.stdout.split())


def measure(folder: Path, params: preprocess.Params, n_jobs: int) -> None:
    preprocess.run(pd.read_parquet(folder / "cohort.parquet"), folder / "cache", params, n_jobs=n_jobs)
    get_reusable_executor().shutdown(wait=True)  # a child counts once it was waited for
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(resource.getrusage(who).ru_maxrss // 1024)


def reading(cohort: pd.DataFrame, pre: preprocess.Preprocessed, repeats: int = 50) -> tuple[float, float]:
    """Median ms for 8 random slices of a scan: from the cache; by decoding, cropping and resizing the originals.

    Both are read from the system's file cache: it is the work that is compared, not the disk.
    """
    rng = np.random.default_rng(0)
    paths = cohort.set_index("scan_id")["path"]
    scans = pre.scans[pre.scans["status"].ne("excluded") & (pre.scans["stop"] - pre.scans["start"]).ge(8)]
    rows_of = dict(iter(pre.slices.groupby("scan_id")))
    seconds: dict[str, list[float]] = {"cache": [], "originals": []}
    for scan in scans.iloc[rng.integers(len(scans), size=repeats)].itertuples():
        drawn = np.sort(rng.choice(scan.stop - scan.start, 8, replace=False))
        rows = list(rows_of[scan.scan_id].iloc[scan.start + drawn].itertuples())
        began = time.perf_counter()
        cached = np.asarray(pre.pixels(scan.scan_id)[drawn])
        seconds["cache"].append(time.perf_counter() - began)
        began = time.perf_counter()
        images = []
        for row in rows:
            image = cv2.imread(os.path.join(paths[scan.scan_id], row.name), cv2.IMREAD_GRAYSCALE)
            images.append(preprocess.resize(image[row.row0 : row.row1, row.col0 : row.col1], pre.params.size))
        seconds["originals"].append(time.perf_counter() - began)
        if not np.array_equal(np.stack(images), cached):
            raise SystemExit(f"{scan.scan_id}: the cache holds other pixels than the originals give")
    cache, originals = (1000 * float(np.median(values)) for values in seconds.values())
    return cache, originals


def report(cohort: pd.DataFrame, work: Path, params: preprocess.Params, n_jobs: int) -> dict[str, str]:
    one, seconds_one = timed_run(cohort, work, params, 1)
    pre, seconds = timed_run(cohort, work, params, n_jobs)
    if not all(
        (one.folder / f).read_bytes() == (pre.folder / f).read_bytes() for f in ("scans.parquet", "slices.parquet")
    ):
        raise SystemExit("the tables differ between numbers of processes")
    n_slices, windows = int(pre.scans["n_slices"].sum()), int((pre.scans["stop"] - pre.scans["start"]).sum())
    size = preprocess.size_report(pre).set_index("part")["bytes"]
    original, cached = int(size["originals"]), int(size["cached pixels"])
    cache_ms, original_ms = reading(cohort, pre)
    hours = TRAINING_SLICES * seconds_one / n_slices / 3600
    terabytes = 1e6 * TRAINING_SLICES * params.fraction * cached / windows / 1e12
    mib = 2**20
    return {
        "cohort": f"{len(cohort)} scans, {n_slices} slices, window slices of {params.size} x {params.size}",
        "1 process": f"{seconds_one:.1f} s, {n_slices / seconds_one:.0f} slices/s",
        f"{n_jobs} processes": f"{seconds:.1f} s, {n_slices / seconds:.0f} slices/s ({seconds_one / seconds:.2f} x)",
        f"peak memory, {len(cohort)} scans": peak_memory(cohort, work, params, n_jobs),
        f"peak memory, {10 * len(cohort)} scans": peak_memory(repeated(cohort, 10 * len(cohort)), work, params, n_jobs),
        "on disk": f"originals {original / mib:.1f} MiB, cache {cached / mib:.1f} MiB ({cached / original:.2f} times)",
        "8 random slices": f"cache {cache_ms:.2f} ms, originals {original_ms:.2f} ms",
        f"scans of {TRAINING_SLICES:.0f} slices": f"{1 / hours:.0f} an hour on one core",
        "a million of them": f"{1e6 * hours:.0f} core hours, {terabytes:.1f} TB of cache",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="a cohort of JPEG scans; a phantom is made without")
    parser.add_argument("--scans", type=int, default=20, help="memory is measured at this number and at ten times it")
    parser.add_argument("--slices", type=int, default=60, help="slices of a scan of the phantom")
    parser.add_argument("--size", type=int, default=preprocess.DEFAULT.size, help="side of the cached slices, pixels")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["E2D_PROGRESS"] = "off"
    params = preprocess.Params(size=options.size)
    if options.measure:
        return measure(options.measure, params, options.jobs)
    with tempfile.TemporaryDirectory() as work:
        root = options.data_root
        if not root:
            root = Path(work) / "phantom"
            slices = (options.slices, options.slices)
            phantom.write(root, n_scans=min(options.scans, DRAWN), slices=slices, dirt=False, n_jobs=options.jobs)
        cohort = repeated(read_cohort(root), options.scans)
        for name, value in report(cohort, Path(work), params, options.jobs).items():
            print(f"{name:26s} {value}")


if __name__ == "__main__":
    main()
