"""SSFL++ over a cohort: boxes, lung areas, windows and cropped slices in a cache that training reads.

Each scan goes through one function, ``preprocess_scan``: decode every slice once, measure box and lung area, choose the
window, write the window's cropped and resized slices. Scans are independent, so that function runs over the cores of
one machine (joblib) or over a Dask cluster, with the same bytes as the result. A scan's record is written last: what
has no record was not finished and is done again, so a run may be killed at any moment and started anew.

Cache of one set of parameters (the originals are only read)::

    <out_dir>/<params.key>/params.json
                           scans/<scan>.npy      window slices, (width, size, size) uint8
                           scans/<scan>.parquet  a row for each slice: shape, box, lung area
                           scans/<scan>.json     the scan's record, written last
                           scans.parquet, slices.parquet, findings.parquet   the cohort's tables, in cohort order
"""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from e2d_lib import io, parallel, progress
from e2d_lib.method import ssfl
from e2d_lib.scans import plausible, readers
from e2d_lib.scans.findings import Notes

FORMAT = 2
"""Version of the cache: raise it when the same parameters give other bytes; old caches then stay, unread."""

ROW_GROUP = 256
"""Scans to a row group of the cohort's tables: what putting them together holds in memory."""

NO_LOSS = (readers.Reason.TWIN, readers.Reason.SYSTEM_FILE)
"""Files that never were slices: they are among the findings, but no reason to warn of a scan."""

SLICES = pa.schema(
    [("scan_id", pa.string()), ("index", pa.int64()), ("name", pa.string())]
    + [(name, pa.int64()) for name in ("height", "width", "row0", "row1", "col0", "col1", "area", "area_crop")]
)
FINDINGS = pa.schema([(name, pa.string()) for name in readers.Finding._fields])
COHORT = ("split", "label", "fold", "source", "format", "patient")
RECORD = ("n_files", "n_slices", "height", "width", "start", "stop", "status", "reason")
RECORD += ("source_bytes", "cache_bytes")


class PreprocessError(ValueError):
    """Preprocessing could not be done, or its result is not there; one line says what to do."""


@dataclass(frozen=True)
class Params:
    """What the cache of a cohort depends on, besides the scans (method/README.md §2, §3).

    size: side of the square, resized slices, pixels (the released training takes 384).
    crop: the spatial step; False keeps whole slices (ablation).
    fraction: width of the window as a part of the scan; 1.0 keeps all slices (ablation).
    trim: the released cut of both ends of the area curve before the window is chosen.
    area_on: "full" or "crop", where lung areas are measured (released: "full" in training, "crop" on test scans).
    variant: "released" keeps the last slice only, whole, of a scan whose slices differ in shape; "paper" (which says
        nothing of them) and "corrected" keep all, as each slice is cropped and resized on its own.
    view: "axial", "coronal" or "sagittal".
    min_slices: scans with fewer slices left are excluded.

    >>> Params(size=384.5)
    Traceback (most recent call last):
    ValueError: size must be a whole number >= 1, not 384.5
    """

    size: int = 384
    crop: bool = True
    fraction: float = 0.5
    trim: bool = False
    area_on: str = "full"
    variant: str = "corrected"
    view: str = "axial"
    min_slices: int = 5

    def __post_init__(self):
        known = {"area_on": ("full", "crop"), "variant": ("released", "paper", "corrected"), "view": readers.VIEWS}
        count = "a whole number >= 1", lambda value: type(value) is int and value >= 1  # no bool, which is an int too
        share = "a number in (0, 1]", lambda v: not isinstance(v, bool) and isinstance(v, int | float) and 0 < v <= 1
        truth = "true or false", lambda value: isinstance(value, bool)
        checks = {"size": count, "min_slices": count, "fraction": share, "crop": truth, "trim": truth}
        checks |= {name: (f"one of {', '.join(ways)}", ways.__contains__) for name, ways in known.items()}
        for name, (expected, fits) in checks.items():
            if not fits(value := getattr(self, name)):
                raise ValueError(f"{name} must be {expected}, not {value!r}")
        object.__setattr__(self, "fraction", float(self.fraction))  # 1 and 1.0 must share a key
        if self.area_on == "crop" and not self.crop:
            raise ValueError('area_on "crop" needs crop=True: without the spatial step there is no crop')

    @property
    def key(self) -> str:
        """Short hash of the parameters and the cache's format, the same in every process."""
        return io.digest({"format": FORMAT, **asdict(self)})


DEFAULT = Params()


@dataclass(frozen=True)
class Preprocessed:
    """A preprocessed cohort on disk; tables and pixels are read when asked for.

    folder: the cache's folder, ``<out_dir>/<params.key>``.
    scans: one row for each scan of the cohort, in its order: scan_id, split, label, fold, source, format, n_files
        (slices listed), n_slices (slices left, the rows of ``slices``), height, width (the commonest shape),
        start, stop (the window [start, stop), indices among the slices left), status ("kept", "warned", "excluded"),
        reason, source_bytes (original files), cache_bytes (cropped slices).
    history: where `run` made it, how many scans it did now, found done, did anew as their files had changed, or missed.
    """

    folder: Path
    params: Params
    scans: pd.DataFrame
    history: str = ""

    @cached_property
    def slices(self) -> pd.DataFrame:
        """One row for each slice left, excluded scans too: scan_id, index, name, height, width (of the whole slice),
        row0, row1, col0, col1 (the crop [row0, row1) x [col0, col1)), area (lung, pixels), area_crop (the same measured
        on the crop alone, as the released code does on test scans)."""
        return pd.read_parquet(self.folder / "slices.parquet")

    @cached_property
    def findings(self) -> pd.DataFrame:
        """Dirt and decisions: scan_id, slice (name, or "" for the scan), outcome, reason."""
        return pd.read_parquet(self.folder / "findings.parquet")

    @cached_property
    def _rows(self) -> dict[str, Any]:
        first = self.scans["n_slices"].cumsum() - self.scans["n_slices"]
        return {row.scan_id: row for row in self.scans.assign(first=first).itertuples()}

    def _row(self, scan_id: str) -> Any:
        if scan_id not in self._rows:
            raise PreprocessError(f"no scan {scan_id!r} among the {len(self.scans)} preprocessed ones")
        row = self._rows[scan_id]
        if row.status == "excluded":
            raise PreprocessError(f"scan {scan_id!r} is excluded ({row.reason})")
        return row

    def pixels(self, scan_id: str) -> np.memmap:
        """(window width, size, size) uint8 on disk; only the slices that are indexed are read."""
        self._row(scan_id)
        return np.load(self.folder / "scans" / f"{stem(scan_id)}.npy", mmap_mode="r", allow_pickle=False)

    def areas(self, scan_id: str) -> np.ndarray:
        """(window width,) int64, the lung areas inside the window, pixels: what KDS samples from."""
        row = self._row(scan_id)
        return self.slices["area"].to_numpy()[row.first + row.start : row.first + row.stop]


def stem(scan_id: str) -> str:
    """A file name for any scan id: readable, safe, and different for different ids.

    >>> stem("../a b").split("-")[0]
    'a_b'
    """
    return f"{re.sub('[^A-Za-z0-9]+', '_', scan_id).strip('_')[:60]}-{io.digest(scan_id)}"


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """(rows, cols) uint8 -> (size, size) uint8: area averages where no side grows, else linear interpolation.

    The aspect ratio is not kept, as in the released training.
    """
    shrinks = min(image.shape) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


# ---------------------------------------------------------------------------------------------- one scan


def preprocess_scan(
    row: Mapping[str, Any], out_dir: str | Path, params: Params, *, check: bool = True
) -> dict[str, Any]:
    """Bring one scan into the cache and return its record; a scan that is there already is left as it is.

    row: a row of the cohort (scan_id, path, format). out_dir: as given to ``run``. The record holds the scan's
    columns of ``Preprocessed.scans`` (from n_files on), its findings, and fresh: whether anything was done. A scan
    that cannot be read is recorded as excluded; one whose files are gone is excluded too, and what an earlier run made
    of it stays.

    Raises PreprocessError where the cache cannot be written.
    """
    folder, name = Path(out_dir) / params.key / "scans", stem(row["scan_id"])
    if not os.path.lexists(_input(row)) and (folder / f"{name}.json").exists():
        # What was made of the scan while it was there stays, for when it is back; this run goes without.
        return _process(row, params)[0] | {"source_bytes": 0, "cache_bytes": 0, "fresh": False, "gone": True}
    fingerprint, source_bytes = _fingerprint(row["path"])
    if record := _finished(folder, name, fingerprint):
        return record | {"fresh": False}
    again = (folder / f"{name}.json").exists()
    with _writing(folder):
        # Gone before its pixels change, so that no record ever speaks of another input's pixels.
        (folder / f"{name}.json").unlink(missing_ok=True)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # scans run side by side: one core each
    try:
        record, table, pixels = _process(row, params, check=check)
    finally:
        cv2.setNumThreads(threads)
    record |= {"fingerprint": fingerprint, "source_bytes": source_bytes}
    with _writing(folder):
        (folder / f"{name}.npy").unlink(missing_ok=True)
        if pixels is not None:
            io.write_array(folder / f"{name}.npy", pixels)
        io.write_parquet(folder / f"{name}.parquet", table)
        written = [".parquet"] if pixels is None else [".npy", ".parquet"]
        record["files"] = {suffix: os.stat(folder / f"{name}{suffix}").st_size for suffix in written}
        record["cache_bytes"] = record["files"].get(".npy", 0)
        io.write_json(folder / f"{name}.json", record)
    return record | {"fresh": True, "again": again}


def _input(row: Mapping[str, Any]) -> str:
    """The file or folder that a scan is read from."""
    return readers.split_series(os.fspath(row["path"]))[0]


def _fingerprint(path: str | Path) -> tuple[str, int]:
    """Hash of the names, sizes and modification times of a scan's files, and their bytes together.

    Names are relative to the scan, so that a cohort that was moved as it is need not be done again.
    """
    root = _input({"path": path})
    paths = [os.path.join(top, name) for top, _, names in os.walk(root) for name in names]
    seen, total = [os.path.basename(path)], 0
    for name in sorted(paths) if os.path.isdir(root) else [root]:
        try:
            stat = os.stat(name)
        except OSError:  # missing, or a link to nothing: reading will say so
            seen.append([os.path.relpath(name, root), "unreadable"])
            continue
        total += stat.st_size
        seen.append([os.path.relpath(name, root), stat.st_size, stat.st_mtime_ns])
    return io.digest(seen, length=32), total


def _finished(folder: Path, name: str, fingerprint: str) -> dict[str, Any] | None:
    """The scan's record, if it is of these very input files and the files it speaks of are still there."""
    try:
        record = io.read_json(folder / f"{name}.json")
        sizes = {suffix: os.stat(folder / f"{name}{suffix}").st_size for suffix in record["files"]}
    except (OSError, ValueError, KeyError):
        return None
    # A failure may have been the moment's (memory, a network file system): it is tried again.
    done = record["fingerprint"] == fingerprint and record["files"] == sizes and not record["failed"]
    return record if done else None


def _process(
    row: Mapping[str, Any], params: Params, *, check: bool = True
) -> tuple[dict[str, Any], pd.DataFrame, np.ndarray | None]:
    """Record, table of slices, and (width, size, size) pixels of a scan, or None where it is excluded."""
    scan_id, hounsfield = str(row["scan_id"]), row.get("format", "jpeg") != "jpeg"
    notes, n_files, start, stop, pixels, failed = Notes(scan_id), 0, 0, 0, None, False
    try:
        scan = readers.open_scan(row, view=params.view)
        n_files, notes = len(scan), scan.findings  # to which reading adds
        found = list(scan.readable())  # each slice is decoded once
        del scan  # and with it the volume
        table, images = _measure(found, params, notes)
        if any(finding.slice == "" and finding.outcome == "excluded" for finding in notes):
            pass  # nothing could be read, and the reader has said why
        elif len(images) < params.min_slices:
            notes.add("", "excluded", f"fewer than {params.min_slices} slices: {len(images)}")
        elif (why := plausible.doubtful(images, hounsfield=hounsfield)) and check:
            notes.add("", "excluded", why)
        else:
            if not why and not hounsfield and plausible.bright_around(images):
                why = f"{readers.Reason.NO_AIR}: the crop keeps the corners"
            if why:
                notes.add("", "warned", why)
            start, stop = ssfl.slice_window(table["area"], params.fraction, params.trim)
            if not table["area"].any():
                notes.add("", "warned", "no lung: every lung area is 0")
            if start == stop:
                notes.add("", "warned", f"empty window: the cut leaves nothing of {len(table)} slices")
            pixels = _pixels(images[start:stop], table[start:stop], params.size)
    except Exception as error:  # one bad scan must not end the cohort; its findings say what happened
        frames = traceback.extract_tb(error.__traceback__)
        place = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
        notes.add("", "excluded", f"failed: {type(error).__name__}: {error} [{place}]")
        table, images, start, stop, pixels, failed = SLICES.empty_table().to_pandas(), [], 0, 0, None, True
    # A record must not differ between machines, so no folder of this one may be named in it.
    findings = [finding._replace(reason=finding.reason.replace(row["path"], scan_id)) for finding in notes]
    status, reason = _verdict(findings)
    height, width = _shapes(images)[0][0] if images else (0, 0)
    record = {"scan_id": scan_id, "n_files": n_files, "n_slices": len(images), "height": height, "width": width}
    record |= {"start": start, "stop": stop, "status": status, "reason": reason, "failed": failed}
    return record | {"findings": [list(finding) for finding in findings]}, table, pixels


def _shapes(images: list[np.ndarray]) -> list[tuple[tuple[int, int], int]]:
    """Shapes (rows, cols) and how many slices have each, commonest first, the earlier one on ties."""
    return Counter(image.shape for image in images).most_common()


def _measure(
    found: list[tuple[str, np.ndarray]], params: Params, notes: Notes
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The table of slices, and their images: all that were found, or what the released rule leaves of a mixed scan."""
    whole = not params.crop
    shapes = _shapes([image for _, image in found])
    if len(shapes) > 1:
        listed = ", ".join(f"{rows}x{cols} ({count})" for (rows, cols), count in shapes)
        if params.variant == "released":
            # The released pipeline throws the crop away and keeps the last slice only.
            found, whole = found[-1:], True
            notes.add("", "warned", f"mixed shapes: {listed}; the last slice is kept, whole")
        else:
            notes.add("", "warned", f"mixed shapes: {listed}; each slice is cropped and resized on its own")
    rows = []
    for index, (name, image) in enumerate(found):
        height, width = image.shape
        if whole:
            box, full = (0, height, 0, width), ssfl.lung_area(image)
            on_crop = full
        else:
            box, full, on_crop = ssfl.measure_both(image)
        area = on_crop if params.area_on == "crop" else full
        rows.append((notes.scan_id, index, name, height, width, *box, area, on_crop))
    table = pd.DataFrame(rows, columns=SLICES.names).astype(dict.fromkeys(SLICES.names[3:], "int64"))
    return table, [image for _, image in found]


def _pixels(images: list[np.ndarray], table: pd.DataFrame, size: int) -> np.ndarray:
    """(n, size, size) uint8: the window's n slices, cropped and resized."""
    pixels = np.empty((len(images), size, size), np.uint8)
    boxes = table[["row0", "row1", "col0", "col1"]].to_numpy()
    for k, (image, (row0, row1, col0, col1)) in enumerate(zip(images, boxes, strict=True)):
        pixels[k] = resize(image[row0:row1, col0:col1], size)
    return pixels


def _verdict(findings: list[readers.Finding]) -> tuple[str, str]:
    """Status and reason of a scan: its own findings first, then its slices' counted by kind."""
    told = [finding for finding in findings if finding.outcome != "kept"]
    reasons = [finding.reason for finding in told if not finding.slice]
    kinds = Counter((finding.outcome, finding.reason.partition(":")[0]) for finding in told if finding.slice)
    reasons += [f"slices {outcome}, {kind}: {n}" for (outcome, kind), n in sorted(kinds.items()) if kind not in NO_LOSS]
    excluded = any(finding.outcome == "excluded" for finding in told if not finding.slice)
    return "excluded" if excluded else "warned" if reasons else "kept", "; ".join(reasons)


# ---------------------------------------------------------------------------------------------- the cohort


def run(
    cohort: pd.DataFrame,
    out_dir: str | Path,
    params: Params = DEFAULT,
    *,
    n_jobs: int = -1,
    scheduler: str | None = None,
    wait: bool = False,
    check: bool = True,
) -> Preprocessed:
    """Preprocess a cohort into ``out_dir``; what is there already, from the same files, is not done again.

    cohort: as ``cohort.read_cohort`` gives it. n_jobs: processes, -1 for one on each core. scheduler: address of a
    Dask scheduler ("tcp://…"), whose workers must see the same folders; n_jobs is then not used. The bytes written
    depend neither on these nor on earlier runs that were killed. The cohort's tables are those of the last run;
    scans of earlier cohorts stay in the cache. wait: where another run is writing to this cache, wait for its end.
    check: exclude what its greys show to be no chest CT; False only warns of it, for volumes spoilt on purpose.

    Raises ValueError for a cohort without the needed columns, PreprocessError where no scan's files are to be found
    (nothing is then changed), the cache cannot be written or every scan is excluded, and parallel.WorkersError where
    the workers die.
    """
    rows = _cohort_rows(cohort)
    if not any(os.path.lexists(_input(row)) for row in rows):
        raise PreprocessError(
            f"none of the {len(rows)} scans is where the cohort says, such as {rows[0]['path']}: missing path. What is "
            "in the cache stays as it is; were the data moved, or is the cohort another one's?"
        )
    folder = Path(os.path.abspath(out_dir)) / params.key
    task = functools.partial(preprocess_scan, out_dir=folder.parent, params=params, check=check)
    with _only_writer(folder, wait=wait):
        with _writing(folder):
            # Until all is done again the tables could speak of pixels that have changed.
            (folder / "scans.parquet").unlink(missing_ok=True)
            io.write_json(folder / "params.json", {"format": FORMAT, **asdict(params)})
        records = parallel.unordered(task, rows, n_jobs=n_jobs, scheduler=scheduler)
        slices, began, counts, gone = 0, time.perf_counter(), Counter(), {}
        with contextlib.closing(records), progress.bar(total=len(rows), desc="SSFL++", unit="scan") as bar:
            for record in records:
                slices += record["n_slices"] if record["fresh"] else 0
                counts.update(name for name in ("fresh", "again", "gone") if record.get(name))
                if record.get("gone"):
                    gone[record["scan_id"]] = record
                bar.set_postfix_str(f"{slices / (time.perf_counter() - began):.0f} slices/s", refresh=False)
                bar.update()
        with _writing(folder):
            _consolidate(cohort, rows, folder, gone)
        result = replace(load(out_dir, params), history=_history(len(rows), counts))
    if (result.scans["status"] == "excluded").all():
        reason, count = Counter(result.scans["reason"]).most_common(1)[0]
        raise PreprocessError(f"all {len(rows)} scans are excluded, {count} of them as: {reason}")
    return result


def _history(n: int, counts: Mapping[str, int]) -> str:
    """What a run did, in one line."""
    done = f"{counts['fresh']:,} of {n:,} scans preprocessed now, {n - counts['fresh'] - counts['gone']:,} found done"
    again = f"; {counts['again']:,} of them anew, as their files or an earlier failure asked" if counts["again"] else ""
    gone = f"; {counts['gone']:,} missing now, left out, their earlier slices kept" if counts["gone"] else ""
    return done + again + gone


def load(out_dir: str | Path, params: Params = DEFAULT, *, wait: bool = False) -> Preprocessed:
    """What ``run`` wrote for these parameters; raises PreprocessError where it is not there or not finished.

    wait: where a run is writing to this cache, wait for its end.
    """
    folder = Path(out_dir) / params.key
    with contextlib.ExitStack() as held:  # until the table is read: a run that follows would take it away meanwhile
        if wait:
            with contextlib.suppress(OSError):  # no run, or no locks here
                fcntl.flock(held.enter_context(open(folder / ".lock")), fcntl.LOCK_SH)
        if not (folder / "scans.parquet").is_file():
            state = "unfinished" if folder.is_dir() else "missing"
            raise PreprocessError(
                f"the preprocessed cohort {folder} is {state}: run the chapter 02_ssflpp_preprocessing "
                f"(or e2d_lib.preprocess.run) with {params}"
            )
        return Preprocessed(folder, params, pd.read_parquet(folder / "scans.parquet"))


def excluded_table(pre: Preprocessed) -> pd.DataFrame:
    """The scans that are not simply kept, excluded ones first: scan_id, status, n_files, n_slices, reason."""
    table = pre.scans.loc[pre.scans["status"] != "kept", ["scan_id", "status", "n_files", "n_slices", "reason"]]
    return table.sort_values("status", kind="stable").reset_index(drop=True)


def size_report(pre: Preprocessed) -> pd.DataFrame:
    """Bytes on disk of the originals, the cached pixels and the tables: part, bytes, share (of the originals)."""
    parts = {"originals": int(pre.scans["source_bytes"].sum()), "cached pixels": int(pre.scans["cache_bytes"].sum())}
    parts["tables"] = sum((pre.folder / f"{name}.parquet").stat().st_size for name in ("scans", "slices", "findings"))
    report = pd.DataFrame(parts.items(), columns=["part", "bytes"])
    return report.assign(share=report["bytes"] / max(parts["originals"], 1))


def _cohort_rows(cohort: pd.DataFrame) -> list[dict[str, str]]:
    """What a worker needs of each scan; paths absolute, since a worker may stand in another folder."""
    if missing := {"scan_id", "path", "format"} - set(cohort.columns):
        raise ValueError(f"the cohort lacks the columns {sorted(missing)}: make it with e2d_lib.cohort.read_cohort")
    if cohort.empty:
        raise ValueError("the cohort holds no scan: nothing to preprocess")
    if (twice := cohort["scan_id"][cohort["scan_id"].duplicated()]).any():
        raise ValueError(f"scan_id must be unique in the cohort, {twice.iloc[0]!r} is not")
    rows = cohort[["scan_id", "path", "format"]].astype(str).to_dict("records")
    return [row | {"path": os.path.abspath(row["path"])} for row in rows]


@contextlib.contextmanager
def _only_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for one run, and clear away temporary files, which then can only be a killed run's.

    The lock dies with its process, so a killed run leaves nothing to be removed by hand.
    """
    with contextlib.ExitStack() as held:
        with _writing(folder):
            (folder / "scans").mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(open(folder / ".lock", "w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PreprocessError(
                f"another run is writing to {folder}: wait for its end or choose another folder"
            ) from error
        except OSError:  # a network file system without locks: there the user must not start two runs at once
            pass
        try:
            yield
        finally:
            for stale in [*folder.glob("*.tmp"), *folder.glob("scans/*.tmp")]:
                stale.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failing disk (full, read-only) into one clear line."""
    try:
        yield
    except OSError as error:
        try:
            free = f", {shutil.disk_usage(folder).free / 2**20:.0f} MiB free"
        except OSError:
            free = ""
        raise PreprocessError(
            f"cannot write to {folder}: {error.strerror or error}{free}; make room or choose another folder and "
            "run again: finished scans are kept"
        ) from error


def _consolidate(
    cohort: pd.DataFrame, rows: list[dict[str, str]], folder: Path, gone: Mapping[str, dict[str, Any]]
) -> None:
    """The cohort's tables, in cohort order; scans.parquet last, as its being there says that all is done.

    gone: records of scans that are missing now, by id: they have no slices, whatever lies in the cache.

    Some hundred scans at a time, so that memory does not grow with the cohort.
    """
    records = []
    with (
        io.replacing(folder / "slices.parquet") as slices_path,
        io.replacing(folder / "findings.parquet") as findings_path,
        pq.ParquetWriter(slices_path, SLICES) as slices,
        pq.ParquetWriter(findings_path, FINDINGS) as findings,
    ):
        listed = [readers.Finding(*f)._asdict() for f in cohort.attrs.get("findings", [])]
        findings.write_table(pa.Table.from_pylist(listed, schema=FINDINGS))
        for first in range(0, len(rows), ROW_GROUP):
            group, tables = [], []
            for row in rows[first : first + ROW_GROUP]:
                path, lost = folder / "scans" / f"{stem(row['scan_id'])}.json", gone.get(row["scan_id"])
                group.append(lost or io.read_json(path))
                table = path.with_suffix(".parquet")
                tables.append(SLICES.empty_table() if lost else pq.read_table(table, schema=SLICES))
            slices.write_table(pa.concat_tables(tables).combine_chunks())
            noted = [readers.Finding(*f)._asdict() for record in group for f in record["findings"]]
            findings.write_table(pa.Table.from_pylist(noted, schema=FINDINGS))
            records += [[record[name] for name in RECORD] for record in group]
    scans = cohort[["scan_id", *(name for name in COHORT if name in cohort)]].reset_index(drop=True)
    scans = scans.join(pd.DataFrame(records, columns=list(RECORD)))
    io.write_parquet(folder / "scans.parquet", scans)
