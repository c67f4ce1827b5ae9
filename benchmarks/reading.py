"""Slices read as training reads them from a cache that memory does not hold: 8 random ones a scan, at the paper's size.

    python benchmarks/reading.py                    # 200 windows of 143 slices of 384 x 384, 4.2 GB on disk
    python benchmarks/reading.py --needed 1500      # images a second that the GPU asks for

cold    the system was told to forget the files before each step, so each slice comes from the disk
warm    the same steps again, from the system's memory
behind  cold, read ahead by `slices.ahead` while the device is busy for a step at ``--needed``: images a second in all
Prints each in slices a second, and the share of ``--needed``.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from e2d_lib.network.slices import ScanSlices, ahead

SCANS_A_STEP, SAMPLES, STEPS = 20, 8, 30


def forget(paths: list[Path]) -> None:
    """Have the system drop what it keeps of the files in memory."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--width", type=int, default=143, help="slices of a window")
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--needed", type=float, default=1500, help="images a second that the GPU trains on")
    parser.add_argument("--work", type=Path, default=None, help="a folder on the disk to measure")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        paths = [Path(work) / f"{number}.npy" for number in range(options.scans)]
        for path in paths:
            np.save(path, rng.integers(0, 256, (options.width, options.size, options.size), dtype=np.uint8))
        arrays = [np.load(path, mmap_mode="r") for path in paths]
        names = [path.stem for path in paths]
        areas = [np.ones(options.width, int)] * options.scans
        slices = ScanSlices.from_arrays(arrays, areas, [0] * options.scans, names, resident=False)
        scans = [rng.choice(options.scans, SCANS_A_STEP, replace=False) for _ in range(STEPS)]
        steps = [
            (slices.starts[rows][:, None] + rng.integers(options.width, size=(len(rows), SAMPLES))).ravel()
            for rows in scans
        ]
        device = torch.device("cpu")
        images = STEPS * SCANS_A_STEP * SAMPLES

        def cold():
            for flat in steps:
                forget(paths)
                yield slices.gather(flat, device)

        def rate(batches, busy: float = 0.0) -> float:
            began = time.perf_counter()
            for _ in batches:
                time.sleep(busy)
            return images / (time.perf_counter() - began)

        began = time.perf_counter()
        for _ in steps:
            forget(paths)
        forgetting = time.perf_counter() - began
        alone = images / (images / rate(cold()) - forgetting)
        found = {
            "cold": alone,
            "warm": rate(slices.gather(flat, device) for flat in steps),
            "behind": rate(ahead(cold()), SCANS_A_STEP * SAMPLES / options.needed),
        }
    for name, value in found.items():
        print(f"{name:7} {value:8,.0f} slices/s  {value / options.needed:6.2f} of {options.needed:,.0f}")


if __name__ == "__main__":
    main()
