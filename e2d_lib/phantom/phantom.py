"""A made-up cohort of chest CT on disk, for those without COV19-CT-DB: real surfaces, known masks and labels.

Layout and dirt are those of COV19-CT-DB (method/README.md §1), the window is that of §7 there;
``e2d_lib.phantom.patient`` draws and renders each scan.
"""

import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from e2d_lib import io, parallel, progress
from e2d_lib.phantom.patient import LABELS, OUTSIDE_FOV, SOURCES, Patient

__all__ = ["DIRT", "LABELS", "OUTSIDE_FOV", "SOURCES", "VERSION", "Patient", "patient", "write"]

VERSION = 4
"""Of the generator: another version means other pixels."""


def patient(seed: int | np.random.SeedSequence | np.random.Generator, **options: Any) -> Patient:
    """One patient; see ``Patient``.

    >>> patient(0, matrix=64, n_slices=3, positive=True).image(1).shape
    (64, 64)
    """
    return Patient(seed, **options)


# -- a cohort on disk

DIRT = ("twins", "undecodable", "three_channel", "mixed_shapes", "short")
"""Kinds of dirt (method/README.md §1), each given to one scan in about 60; the last two only from 20 scans on, as they
cost the pipeline a scan."""

_APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(139)
"""What macOS leaves in a ``._`` twin: AppleDouble's magic number and version, then nothing of use; 163 bytes."""


def _plan(parameters: dict[str, Any]) -> pd.DataFrame:
    """One row a scan: scan_id, split, label, source, n_slices, dirt; a function of the parameters alone."""
    n, sources = parameters["n_scans"], parameters["n_sources"]
    rng = np.random.default_rng(np.random.SeedSequence(parameters["seed"], spawn_key=(0,)))
    # Label, then source, then split are dealt in turn, so that each is balanced within the ones before.
    n_positive = round(n * parameters["positive"])
    label = np.r_[np.ones(n_positive, int), np.zeros(n - n_positive, int)]
    source = np.concatenate([np.arange(k) % sources for k in (n_positive, n - n_positive)])
    order = rng.permutation(n)
    rank = np.empty(n)
    for key in range(2 * sources):
        members = order[(label * sources + source)[order] == key]
        rank[members] = (np.arange(len(members)) + rng.random()) / max(len(members), 1)
    split = np.full(n, "train", dtype=object)
    for value in (1, 0):
        members = np.flatnonzero(label == value)
        split[members[np.argsort(rank[members], kind="stable")[: round(len(members) * parameters["valid"])]]] = "valid"
    low, high = parameters["slices"]
    spans = np.array([SOURCES[s % len(SOURCES)].counts for s in source])
    n_slices = np.rint(low + (high - low) * rng.uniform(spans[:, 0], spans[:, 1])).astype(int)
    dirt = np.full(n, "", dtype=object)
    if parameters["dirt"]:
        kinds = DIRT if n >= 20 else DIRT[:3]
        train = rng.permutation(np.flatnonzero(split == "train"))
        each = max(1, n // 60)
        for i, kind in enumerate(kinds):
            dirt[train[i * each : (i + 1) * each]] = kind
    kept = np.where(dirt == "short", rng.integers(1, 5, n), n_slices)
    plan = pd.DataFrame(
        {
            "split": split,
            "label": label,
            "source": [f"hospital_{s + 1}" for s in source],
            "source_index": source,
            "planned": n_slices,
            "n_slices": kept,
            "dirt": dirt,
        }
    )
    plan = plan.iloc[rng.permutation(n)].reset_index(drop=True)
    number = plan.groupby(["split", "label"]).cumcount()
    classes = plan["label"].map({1: "positive", 0: "negative"})
    plan.insert(0, "scan_id", plan["split"] + "/" + classes + "/ct_scan_" + number.astype(str))
    return plan


def _safe(scan_id: str) -> str:
    return scan_id.replace("/", "__")


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _write_scan(out: Path, parameters: dict[str, Any], planned: tuple[int, dict[str, Any]]) -> None:
    """Render one scan and put it in place: mask and record first, the slices last, each with one rename."""
    index, row = planned
    cv2.setNumThreads(1)  # there is a process a core already
    seed = np.random.SeedSequence(parameters["seed"], spawn_key=(1, index))
    rng = np.random.default_rng(np.random.SeedSequence(parameters["seed"], spawn_key=(2, index)))
    matrix, dirt = parameters["matrix"], row["dirt"]
    scan = Patient(
        seed, matrix=matrix, n_slices=row["planned"], positive=bool(row["label"]), source=row["source_index"]
    )
    n, first = row["n_slices"], (row["planned"] - row["n_slices"]) // 2  # a short scan is the middle of a whole one
    spoilt, odd = rng.integers(n), max(n // 10, 1)
    name, final = _safe(row["scan_id"]), out / row["scan_id"]
    partial = out / "truth" / "partial" / name
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    masks = np.zeros((n, matrix, matrix), np.uint8)
    for k in range(n):
        hu, masks[k] = scan.render(first + k)
        image = scan.export(hu)
        if dirt == "mixed_shapes" and k < odd:  # another reconstruction among the slices
            image = image[: matrix * 3 // 4]
        data = _jpeg(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if dirt == "three_channel" else image)
        if dirt == "undecodable" and k == spoilt:
            data = data[:60]  # a copy that broke off within the tables
        (partial / f"{k}.jpg").write_bytes(data)
        if dirt == "twins":
            (partial / f"._{k}.jpg").write_bytes(_APPLE_DOUBLE)
    with io.replacing(out / "truth" / "masks" / f"{name}.npz") as tmp, open(tmp, "wb") as file:
        np.savez_compressed(file, mask=masks)
    record = scan.truth(masks) | {"n_files": len(os.listdir(partial))}
    io.write_json(out / "truth" / "records" / f"{name}.json", record)
    final.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


def _is_complete(out: Path, scan_id: str) -> bool:
    name, folder = _safe(scan_id), out / scan_id
    record = out / "truth" / "records" / f"{name}.json"
    if not (record.is_file() and (out / "truth" / "masks" / f"{name}.npz").is_file() and folder.is_dir()):
        return False
    return len(os.listdir(folder)) == io.read_json(record)["n_files"]


def write(
    out_dir: str | Path,
    *,
    n_scans: int = 60,
    matrix: int = 512,
    slices: Sequence[int] = (50, 300),
    seed: int = 0,
    positive: float = 0.5,
    valid: float = 0.25,
    n_sources: int = 4,
    dirt: bool = True,
    n_jobs: int = -1,
) -> pd.DataFrame:
    """Write a made-up cohort and return its table of truth, one row a scan.

    Layout of COV19-CT-DB (method/README.md §1): ``train|valid/positive|negative/ct_scan_N/K.jpg``, numbers from 0, so
    names repeat between classes; ``sources.csv`` (scan_id, source); ``phantom.json``, all parameters;
    ``truth/scans.csv``, the table returned; ``truth/masks/<scan_id, / as __>.npz`` with ``mask``: (slices, rows,
    columns) uint8, values of ``LABELS``, in the order and shape a reader of the files gets.

    n_scans: scans, training and validation together. matrix: rows and columns of a slice. slices: fewest and most
    slices of a scan (a hospital uses a part of that span). positive, valid: shares. n_sources: hospitals. dirt: see
    ``DIRT``. n_jobs: processes, -1 for one a core; the files do not depend on it.

    A scan appears whole or not at all. A second call with the same parameters writes what is missing only. ValueError
    for parameters out of range, and for a folder that holds anything else than a phantom of the same parameters.
    """
    out = Path(out_dir)
    parameters = {
        "version": VERSION,
        "n_scans": int(n_scans),
        "matrix": int(matrix),
        "slices": [int(s) for s in slices],
        "seed": int(seed),
        "positive": float(positive),
        "valid": float(valid),
        "n_sources": int(n_sources),
        "dirt": bool(dirt),
    }
    _check(out, parameters)
    io.write_json(out / "phantom.json", parameters)
    plan = _plan(parameters)
    todo = [i for i, scan_id in enumerate(plan["scan_id"]) if not _is_complete(out, scan_id)]
    table_path = out / "truth" / "scans.csv"
    if not todo and table_path.is_file():
        return _read_truth(table_path)
    rows = plan.to_dict("records")
    if todo:
        task = functools.partial(_write_scan, out, parameters)
        n_jobs = min(n_jobs, len(todo)) if n_jobs > 0 else n_jobs
        done = parallel.unordered(task, [(i, rows[i]) for i in todo], n_jobs=n_jobs)
        for _ in progress.bar(done, total=len(todo), desc="phantom", unit="scan"):
            pass
        shutil.rmtree(out / "truth" / "partial", ignore_errors=True)
    records = [io.read_json(out / "truth" / "records" / f"{_safe(i)}.json") for i in plan["scan_id"]]
    table = pd.concat([plan.drop(columns=["source_index", "planned"]), pd.DataFrame(records)], axis=1)
    io.write_csv(out / "sources.csv", plan[["scan_id", "source"]])
    io.write_csv(table_path, table)
    return _read_truth(table_path)


def _read_truth(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values={"label": [""]})


def _check(out: Path, parameters: dict[str, Any]) -> None:
    low, high = parameters["slices"]
    if not 1 <= low <= high:
        raise ValueError(f"slices must be (fewest, most) with 1 <= fewest <= most, not {(low, high)}")
    for name in ("n_scans", "n_sources"):
        if parameters[name] < 1:
            raise ValueError(f"{name} must be at least 1, not {parameters[name]}")
    if parameters["matrix"] < 32:
        raise ValueError(f"matrix must be at least 32 pixels, not {parameters['matrix']}")
    for name in ("positive", "valid"):
        if not 0 <= parameters[name] <= 1:
            raise ValueError(f"{name} is a share from 0 to 1, not {parameters[name]}")
    if not out.exists():
        return
    if (out / "phantom.json").is_file():
        found = io.read_json(out / "phantom.json")
        differ = [f"{k} {found.get(k)!r} there, {v!r} asked for" for k, v in parameters.items() if found.get(k) != v]
        if differ:
            raise ValueError(f"{out} holds another phantom ({'; '.join(differ)}); delete it or choose another folder")
    elif any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no phantom; choose another folder")
