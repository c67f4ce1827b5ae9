"""Derive ``e2d_lib/phantom/data/chest_nurbs.npz`` from the source distribution of gecatsim (XCIST).

    pip download --no-deps --no-binary :all: gecatsim
    python benchmarks/derive_anatomy.py gecatsim-1.6.9.tar.gz e2d_lib/phantom/data

Keeps four cubic B-spline surfaces of ``vmale50_chest_less_surfaces.nrb`` (skin, sternum, lungs; the head and ears are
left out) as float32 control points (rows, columns, 3) in mm with their knots, and copies the licence beside them.
"""

import argparse
import tarfile
from pathlib import Path

import numpy as np

from e2d_lib import io

SURFACES = {"chest_surface": "body", "sternum": "sternum", "rlung": "lung_r", "llung": "lung_l"}
"""Name in the .nrb file: name in the package data."""


def parse_nrb(text: str) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Surfaces of an .nrb file: name -> (control points (M, N, 3), row knots (M + 4,), column knots (N + 4,)).

    A surface is: its name, a material number, ``M :M``, ``N :N``, ``U Knot Vector`` with the N + 4 column knots,
    ``V Knot Vector`` with the M + 4 row knots, ``Control Points`` with M·N lines of x y z, row by row.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    surfaces, at = {}, 0
    while at < len(lines):
        name, rows, columns = lines[at], int(lines[at + 2].split()[0]), int(lines[at + 3].split()[0])
        at += 5
        column_knots = np.array(lines[at : at + columns + 4], float)
        at += columns + 4 + 1
        row_knots = np.array(lines[at : at + rows + 4], float)
        at += rows + 4 + 1
        points = np.array([line.split() for line in lines[at : at + rows * columns]], float)
        at += rows * columns
        surfaces[name] = points.reshape(rows, columns, 3), row_knots, column_knots
    return surfaces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sdist", type=Path, help="gecatsim-*.tar.gz")
    parser.add_argument("out", type=Path, help="the package's data folder")
    arguments = parser.parse_args()
    with tarfile.open(arguments.sdist) as archive:
        found = {Path(name).name: name for name in archive.getnames()}
        nrb = archive.extractfile(found["vmale50_chest_less_surfaces.nrb"]).read().decode()
        licence = archive.extractfile(found["LICENSE"]).read().decode()
    surfaces = parse_nrb(nrb)
    arrays = {}
    for source, name in SURFACES.items():
        points, row_knots, column_knots = surfaces[source]
        arrays[f"{name}_points"] = points.astype(np.float32)
        arrays[f"{name}_row_knots"], arrays[f"{name}_column_knots"] = row_knots, column_knots
    with io.replacing(arguments.out / "chest_nurbs.npz") as tmp, open(tmp, "wb") as file:
        np.savez_compressed(file, **arrays)
    io.write_text(arguments.out / "LICENSE-gecatsim.txt", licence)


if __name__ == "__main__":
    main()
