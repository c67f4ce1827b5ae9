"""Chapters 1 to 3 at the paper's size: a cohort of hard links to a few phantom scans, so that it costs next to no disk.

    python benchmarks/cohort.py                    # 1,684 scans of 286 slices on average, as COV19-CT-DB; 6 min
    python benchmarks/cohort.py --scans 168        # a tenth

Copy k of a scan lacks its last k slices, so that no two scans are of the same bytes. Prints each chapter's seconds and
slices a second, its slowest cell, and the largest memory of one process.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

from e2d_lib.phantom import phantom

RENDERED = 12
"""Scans that are rendered; the others are their links."""


def linked(rendered: Path, folder: Path, n_scans: int) -> int:
    """``n_scans`` scans in the layout of COV19-CT-DB, from the rendered ones in turn; the number of their slices."""
    sources = sorted(path for path in rendered.glob("*/*/*") if path.is_dir())
    total = 0
    for number in range(n_scans):
        copy, which = divmod(number, len(sources))
        source = sources[which]
        scan = folder / source.relative_to(rendered).parent / f"ct_scan_{number}"
        scan.mkdir(parents=True)
        images = sorted(source.iterdir(), key=lambda path: int(path.stem))
        for image in images[: max(20, len(images) - copy)]:
            os.link(image, scan / image.name)
        total += len(list(scan.iterdir()))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=1684)
    parser.add_argument("--matrix", type=int, default=512, help="rows and columns of a slice")
    parser.add_argument("--work", type=Path, default=None, help="a folder to work in (default: a temporary one)")
    options = parser.parse_args()
    copies = options.scans // RENDERED
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        rendered, cohort, run = (Path(work) / name for name in ("rendered", "cohort", "run"))
        lengths = (186 + copies // 2, 386 + copies // 2)  # 286 on average, once copies have lost theirs
        phantom.write(rendered, n_scans=RENDERED, matrix=options.matrix, slices=lengths, dirt=False)
        slices = linked(rendered, cohort, options.scans)
        print(f"{options.scans:,} scans, {slices:,} slices of {options.matrix} x {options.matrix}", flush=True)
        command = [sys.executable, "-m", "e2d_lib", "run", "--quiet", "--data-root", str(cohort), "--out", str(run)]
        subprocess.run([*command, "--only", "01,02,03"], check=True, stdout=subprocess.DEVNULL)
        for folder in sorted(run.glob("0*")):
            executed = nbformat.read(folder / "notebook.ipynb", as_version=4)
            seconds = executed.metadata["papermill"]["duration"]
            slowest = max(cell.metadata.get("papermill", {}).get("duration") or 0 for cell in executed.cells)
            print(f"{folder.name:25} {seconds:7.1f} s  {slices / seconds:9,.0f} slices/s  slowest cell {slowest:.1f} s")
    print(f"largest process {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
