"""The same steps on other CT: views and parts of one volume, and the volume spoilt on purpose.

Every volume goes through the readers and ``preprocess`` as a scan of a cohort would, and nothing is tuned for it; its
lungs, which the method never sees, then say what crop and window kept.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from e2d_lib.elsewhere.spoil import Volume, VolumeError
from e2d_lib.method import preprocess, reduction, ssfl

WHOLE, THORAX, ABDOMEN = "whole scan", "thorax", "abdomen"

REMOVES = 0.01
HOLDS = {"lung_in_crop": 0.95, "of_best": 0.90, "area_r": 0.80}
"""The method holds where the crop removes at least the first, and `measure`'s columns reach these."""


@dataclass(frozen=True)
class Measured:
    """What preprocessing gave for volumes and views.

    table: a row a volume and view, see `measure`. slices: ``Preprocessed.slices`` of all, with volume and view.
    """

    table: pd.DataFrame
    slices: pd.DataFrame

    def of(self, volume: str, view: str) -> tuple[pd.Series, pd.DataFrame]:
        """The row and the slices of one volume in one view."""
        row, slices = (t[(t["volume"] == volume) & (t["view"] == view)] for t in (self.table, self.slices))
        return row.iloc[0], slices


def measure(volumes: Mapping[str, Volume], views: Sequence[str], *, n_jobs: int = 1, **options: Any) -> Measured:
    """Write the volumes as NIfTI, preprocess them as a cohort in every view, and compare with their lungs.

    options: as of ``preprocess.Params`` (size, fraction, trim, ...); nothing is left on disk. The table has volume,
    view, n_slices, start, stop, area_delta, length_delta, total_delta (``reduction.total_reduction``), and

    - lung_in_crop: share of all lung voxels inside their slice's crop;
    - lung_in_window: share of them in the window's slices; of_best: that over what the best window of its width holds;
    - lung_kept: share of them inside both;
    - uncropped: share of slices that keep their whole picture, as those without body do;
    - area_r: correlation of the measured lung areas with the true ones over the slices; area_ratio: their sum over
      that of the true ones;
    - breaks: see `breaks`, and warning: what the library says of the scan, "" where it says nothing.

    Shares and ratio are NaN without lung, ``area_r`` where one of the two does not vary.
    """
    rows, slices = [], []
    with tempfile.TemporaryDirectory() as scratch:
        paths = {name: Path(scratch, f"{k}.nii") for k, name in enumerate(volumes)}
        for name, path in paths.items():
            affine = np.diag([1.5, 1.5, 1.5, 1.0])  # an identity would say that nobody gave one
            nib.save(nib.Nifti1Image(np.ascontiguousarray(volumes[name].hu), affine), path)
        cohort = pd.DataFrame({"scan_id": list(paths), "path": [str(p) for p in paths.values()], "format": "nifti"})
        for view in views:
            done = preprocess.run(
                cohort, Path(scratch, "cache"), preprocess.Params(view=view, **options), n_jobs=n_jobs, check=False
            )
            reduced = reduction.total_reduction(done.slices, done.scans).set_index("scan_id")
            slices.append(done.slices.assign(volume=done.slices["scan_id"], view=view))
            tables = dict(tuple(done.slices.groupby("scan_id")))
            for scan in done.scans.itertuples():
                if scan.status == "excluded":
                    raise VolumeError(f"{scan.scan_id}, {view}: {scan.reason}")
                table = tables[scan.scan_id]
                kept = _kept(volumes[scan.scan_id].lung_slices(view), table, scan.start, scan.stop)
                head = {"volume": scan.scan_id, "view": view, "n_slices": scan.n_slices}
                row = head | {"start": scan.start, "stop": scan.stop, **reduced.loc[scan.scan_id]} | kept
                rows.append(row | {"breaks": breaks(row), "warning": scan.reason})
    place = list(volumes).index
    table = pd.DataFrame(rows).sort_values("volume", key=lambda names: names.map(place), kind="stable")
    return Measured(table.reset_index(drop=True), pd.concat(slices, ignore_index=True))


def _kept(lung: np.ndarray, slices: pd.DataFrame, start: int, stop: int) -> dict[str, float]:
    """How much of ``lung`` (n, rows, columns) crop and window keep, and how the areas follow it."""
    true, areas = lung.sum((1, 2)), slices["area"].to_numpy()
    boxes = slices[["row0", "row1", "col0", "col1"]].to_numpy()
    cropped = np.array([part[a:b, c:d].sum() for part, (a, b, c, d) in zip(lung, boxes, strict=True)])
    whole = slices["height"] * slices["width"] == (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    best = slice(*ssfl.slice_window(true, (stop - start) / len(true)))
    total, most = (part.sum() or np.nan for part in (true, true[best]))  # without lung no share is defined
    varies = len(true) > 1 and true.std() > 0 and areas.std() > 0
    return {
        "uncropped": float(whole.mean()),
        "lung_in_crop": cropped.sum() / total,
        "lung_in_window": true[start:stop].sum() / total,
        "of_best": true[start:stop].sum() / most,
        "lung_kept": cropped[start:stop].sum() / total,
        "area_ratio": areas.sum() / total,
        "area": int(areas.sum()),
        "area_r": np.corrcoef(true, areas)[0, 1] if varies else np.nan,
    }


def breaks(row: Mapping[str, Any]) -> str:
    """What of the method fails on a volume, by the bounds above: "" where nothing does.

    >>> holds = {"lung_in_crop": 1.0, "of_best": 0.98, "area": 9, "area_r": 0.99, "area_delta": 0.4}
    >>> breaks(holds), breaks(holds | {"lung_in_crop": 0.5, "area": 0})
    ('', 'crop loses lung; no lung found')
    """
    there = not np.isnan(row["lung_in_crop"])
    found = {
        "crop removes nothing": row["area_delta"] < REMOVES,
        "crop loses lung": there and row["lung_in_crop"] < HOLDS["lung_in_crop"],
        "no lung found": there and not row["area"],
        "window beside the lung": there and row["area"] > 0 and row["of_best"] < HOLDS["of_best"],
        "areas not of the lung": there and row["area"] > 0 and row["area_r"] < HOLDS["area_r"],
        "finds lung where there is none": not there and row["area"] > 0,
    }
    return "; ".join(name for name, failed in found.items() if failed)
