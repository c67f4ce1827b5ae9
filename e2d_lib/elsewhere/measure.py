"""The same steps on other CT: views and parts of one volume, and the volume spoilt on purpose.

Every volume goes through the readers and ``preprocess`` as a scan of a cohort would, and nothing is tuned for it; its
lungs, which the method never sees, then say what crop and window kept.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from e2d_lib.elsewhere import spoil
from e2d_lib.elsewhere.masks import MaskError
from e2d_lib.elsewhere.spoil import FAILURES, Volume, VolumeError
from e2d_lib.method import preprocess, reduction, ssfl
from e2d_lib.progress import bar

WHOLE, THORAX, ABDOMEN = "whole scan", "thorax", "abdomen"

REMOVES = 0.01
HOLDS = {"lung_in_crop": 0.95, "of_best": 0.90, "area_r": 0.80}
"""The method holds where the crop removes at least the first, and `measure`'s columns reach these."""


def regions(volume: Volume, *, abdomen_below: int = -1) -> dict[str, Volume]:
    """The whole scan, its thorax (the lungs and a tenth of their height below) and its abdomen (below the lungs).

    abdomen_below: axial slice, counted from the feet, at which the lungs begin; -1 for the lowest with lung. A part of
    fewer than 10 axial slices is left out.
    """
    levels = np.flatnonzero(volume.lung.any((0, 1)))
    split = abdomen_below if abdomen_below >= 0 else int(levels[0]) if levels.size else volume.hu.shape[2]
    margin = -(-np.count_nonzero(levels >= split) // 10)
    parts = {THORAX: np.s_[max(split - margin, 0) :], ABDOMEN: np.s_[:split]}
    found = {name: volume.part(np.s_[:], np.s_[:], part) for name, part in parts.items()}
    return {WHOLE: volume} | {name: part for name, part in found.items() if part.hu.shape[2] >= 10}


class Picked(NamedTuple):
    """A slice (rows, columns) uint8 and its lung, bool."""

    image: np.ndarray
    lung: np.ndarray


def fullest(volume: Volume, view: str) -> Picked:
    """The slice with the most lung, or the middle one where there is none."""
    lung = volume.lung_slices(view)
    k = int(lung.sum((1, 2)).argmax()) if lung.any() else len(lung) // 2
    return Picked(volume.slices(view)[k], lung[k])


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
            tables = dict(tuple(done.slices.groupby("scan_id")))
            for scan in done.scans.itertuples():
                if scan.status == "excluded":
                    raise VolumeError(f"{scan.scan_id}, {view}: {scan.reason}")
                table = tables[scan.scan_id]
                boxed = (table["row1"] - table["row0"]) * (table["col1"] - table["col0"])
                kept = _kept(volumes[scan.scan_id].lung_slices(view), table, scan.start, scan.stop)
                head = {"volume": scan.scan_id, "view": view, "n_slices": scan.n_slices}
                head |= {"start": scan.start, "stop": scan.stop, **reduced.loc[scan.scan_id]}
                head["uncropped"] = float((boxed == table["height"] * table["width"]).mean())
                rows.append(head | kept | {"breaks": breaks(head | kept), "warning": scan.reason})
                slices.append(table.assign(volume=scan.scan_id, view=view))
    table = pd.DataFrame(rows)
    order = {name: k for k, name in enumerate(volumes)}
    table = table.sort_values("volume", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    return Measured(table, pd.concat(slices, ignore_index=True))


def _kept(lung: np.ndarray, slices: pd.DataFrame, start: int, stop: int) -> dict[str, float]:
    """How much of ``lung`` (n, rows, columns) crop and window keep, and how the areas follow it."""
    true, areas = lung.sum((1, 2)), slices["area"].to_numpy()
    boxes = slices[["row0", "row1", "col0", "col1"]].to_numpy()
    cropped = np.array([part[a:b, c:d].sum() for part, (a, b, c, d) in zip(lung, boxes, strict=True)])
    total, width = true.sum(), stop - start
    varies = len(true) > 1 and true.std() > 0 and areas.std() > 0
    area_r = np.corrcoef(true, areas)[0, 1] if varies else np.nan
    found = {"area": int(areas.sum()), "area_r": area_r}
    if not total:
        return dict.fromkeys(("lung_in_crop", "lung_in_window", "of_best", "lung_kept", "area_ratio"), np.nan) | found
    best = slice(*ssfl.slice_window(true, width / len(true)))
    return {
        "lung_in_crop": cropped.sum() / total,
        "lung_in_window": true[start:stop].sum() / total,
        "of_best": true[start:stop].sum() / true[best].sum(),
        "lung_kept": cropped[start:stop].sum() / total,
        "area_ratio": areas.sum() / total,
    } | found


def against_masks(manifest: str | Path, views: Sequence[str], *, n: int, seed: int = 0, **options: Any) -> pd.DataFrame:
    """`measure`'s table of at most ``n`` scans of a manifest (columns scan_id, path, mask), drawn by ``seed``.

    Scans without a mask are passed over; ``attrs["left_out"]`` says why another was: scan_id -> reason. Raises
    VolumeError for a manifest without masks.
    """
    scans = pd.read_csv(manifest, keep_default_na=False, dtype=str)
    scans = scans[scans["mask"] != ""] if "mask" in scans else scans.head(0)
    if scans.empty:
        raise VolumeError(f"{manifest} names no mask: fetch a cohort with masks (e2d fetch --list)")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(scans))[:n])
    tables, left_out = [], {}
    for scan in bar(scans.iloc[drawn].itertuples(), total=len(drawn), desc="against masks", unit="scan"):
        paths = [Path(manifest).parent / path for path in (scan.path, scan.mask)]
        try:
            tables.append(measure({scan.scan_id: spoil.read_volume(*paths)}, views, **options).table)
        except (VolumeError, MaskError) as error:
            left_out[scan.scan_id] = str(error)
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["volume", "view", "breaks"])
    table.attrs["left_out"] = left_out
    return table


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """A row a volume of `measure`'s table: volume, why, what breaks in each view, whether the library warns.

    ``silent``: something breaks in some view and no view is warned of.
    """
    views = list(dict.fromkeys(table["view"]))
    wide = table.pivot(index="volume", columns="view", values="breaks").reindex(dict.fromkeys(table["volume"]))[views]
    why = {failure.title: failure.why for failure in FAILURES} | {ABDOMEN: "holes are the gas of stomach and bowel"}
    wide.insert(0, "why", [why.get(name, "") for name in wide.index])
    wide["warned"] = table["warning"].ne("").groupby(table["volume"]).any()
    wide["silent"] = wide[views].ne("").any(axis=1) & ~wide["warned"]
    return wide.rename_axis(columns=None).reset_index()


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


def listed(names: Sequence[str]) -> str:
    """Names in brackets, for prose; nothing where there are none.

    >>> listed(["metal", "prone"]), listed([])
    (' (metal, prone)', '')
    """
    return f" ({', '.join(names)})" if names else ""
