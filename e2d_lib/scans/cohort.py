"""The cohort table: which scans there are, where, with what label, in which split and fold."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from e2d_lib.scans.dicom import dicom_scans
from e2d_lib.scans.findings import Finding, Reason
from e2d_lib.scans.formats import (
    file_kind,
    guess_format,
    is_folder,
    is_hidden,
    looks_like_dicom,
    natural_key,
    split_series,
)

COHORT_COLUMNS = ("scan_id", "path", "split", "label", "fold", "source", "format")
SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
CLASSES = {"positive": 1, "covid": 1, "negative": 0, "non-covid": 0, "noncovid": 0, "non_covid": 0}
"""Class folder -> label."""
LABELS = {"1": 1, "0": 0} | CLASSES
"""Cell of a manifest -> label."""
FORMATS = ("jpeg", "nifti", "dicom")
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})

Note = Callable[[str, str, str, str], None]
"""Takes the four fields of a `Finding`."""


class CohortError(ValueError):
    """A data root, manifest or cohort row that cannot be used; the message is one line and says what to do."""


def read_cohort(data_root: str | Path) -> pd.DataFrame:
    """The scans at ``data_root``, one row each: `COHORT_COLUMNS`.

    ``data_root`` is one of
    - a folder in COV19-CT-DB layout (method.md §1): ``train|valid|test`` over ``positive|negative`` over scans (test
      has no classes); a scan is a folder of images or DICOM files, or a NIfTI file; its id is its path below the root;
    - any other folder: each folder of images, NIfTI file and DICOM series below it is a scan without label;
    - a ``.csv`` manifest: column ``path`` (relative to the manifest), and perhaps the other columns;
    - one NIfTI or DICOM file.

    A ``sources.csv`` (scan_id, source) in the folder names each scan's hospital. Paths begin with ``data_root`` as it
    was given. Rows are sorted by split (train, valid, test) and then by id, numbers as numbers; a manifest keeps its
    order. Label and fold are Int64 with <NA>, the rest str. Files are listed, not opened (but for a few headers in
    folders of DICOM files).

    Raises `CohortError` if the root is missing, nothing in it is a scan, or a manifest is malformed. Dirt that belongs
    to no scan is in `cohort_findings`.
    """
    root = os.path.expanduser(os.fspath(data_root))
    if not os.path.exists(root):
        raise CohortError(f"data root {root!r} does not exist; give a folder of scans or a .csv manifest")
    findings: list[Finding] = []

    def note(scan_id: str, name: str, outcome: str, reason: str) -> None:
        findings.append(Finding(scan_id, name, outcome, str(reason)))

    if root.lower().endswith(".csv"):
        table = _frame(_read_manifest(root, note))
    else:
        found = _read_tree(root, note) if os.path.isdir(root) else _read_file(root)
        rows = [_row(*scan) for scan in _unique_ids(found)]
        order = list(dict.fromkeys(SPLITS.values()))
        rows.sort(key=lambda r: (order.index(r["split"]) if r["split"] else len(order), natural_key(r["scan_id"])))
        table = _add_sources(_frame(rows), os.path.join(root, "sources.csv"), note)
    table.attrs["findings"] = [list(f) for f in findings]  # lists, which a parquet file's metadata can hold
    return table


def cohort_findings(cohort: pd.DataFrame) -> list[Finding]:
    """What `read_cohort` noted about the cohort as a whole; a slice's and scan's dirt is in `Scan.findings`."""
    return [Finding(*f) for f in cohort.attrs.get("findings", [])]


def assign_folds(cohort: pd.DataFrame, *, n_folds: int = 4, seed: int = 42) -> pd.DataFrame:
    """A copy with ``fold``: stratified folds 1 … n_folds over the labelled train scans, n_folds + 1 the valid split.

    Scans are dealt in natural order of their ids, whatever the table's order, so that a cohort has one set of folds.
    Folds that a manifest gives are kept, if all labelled train scans have one. All else stays <NA>. Raises
    `CohortError` if a class has fewer than ``n_folds`` train scans. Source: method.md §1 (StratifiedKFold, shuffled).
    """
    cohort = cohort.copy()
    train = cohort.index[(cohort["split"] == "train") & cohort["label"].notna()]
    valid = cohort.index[(cohort["split"] == "valid") & cohort["label"].notna() & cohort["fold"].isna()]
    given = cohort.loc[train, "fold"].notna()
    if given.any() and not given.all():
        raise CohortError(
            f"{(~given).sum()} of {len(given)} labelled train scans have no fold; give all of them one, or none"
        )
    cohort.loc[valid, "fold"] = n_folds + 1
    if given.any() or not len(train):
        return cohort
    train = sorted(train, key=lambda i: natural_key(cohort.at[i, "scan_id"]))
    labels = cohort.loc[train, "label"].to_numpy(dtype=int)
    counts = {name: int((labels == label).sum()) for name, label in (("positive", 1), ("negative", 0))}
    if min(counts.values()) < n_folds:
        few = ", ".join(f"{n} {name}" for name, n in counts.items())
        raise CohortError(f"{n_folds} stratified folds need {n_folds} train scans of each class, got {few}")
    from sklearn.model_selection import StratifiedKFold  # not needed to preprocess

    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    for number, (_, members) in enumerate(folds.split(labels, labels), start=1):
        cohort.loc[[train[i] for i in members], "fold"] = number
    return cohort


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COHORT_COLUMNS))
    return table.astype({"label": "Int64", "fold": "Int64"})


def _row(scan_id: str, path: str, kind: str) -> dict[str, Any]:
    """Split and label are told by the first two parts of the id, as `_read_tree` made them."""
    parts = [*scan_id.split("/"), "", ""]
    split = SPLITS.get(parts[0].lower(), "") if parts[1] else ""
    label = CLASSES.get(parts[1].lower()) if split and parts[2] else None
    values = (scan_id, path, split, label, None, "", kind)
    return dict(zip(COHORT_COLUMNS, values, strict=True))


# --- folders ---------------------------------------------------------------------------------------------------------

Found = tuple[str, str, str]
"""Id, path, format. The id still has a file's suffix."""


def _read_file(path: str) -> list[Found]:
    kind = file_kind(path) or ("dicom" if looks_like_dicom(path) else "")
    if kind not in ("nifti", "dicom"):
        raise CohortError(f"data root {path!r} is a file, but no .csv manifest, NIfTI or DICOM file")
    return [(os.path.basename(path), path, kind)]


def _read_tree(root: str, note: Note) -> list[Found]:
    try:
        with os.scandir(root) as listing:
            names = {e.name: is_folder(e) for e in listing}
    except OSError as error:
        raise CohortError(f"data root {root!r} cannot be read: {error.strerror}") from None
    splits = sorted(name for name, folder in names.items() if folder and name.lower() in SPLITS)
    found: list[Found] = []
    for name in splits:
        found += _scans(os.path.join(root, name), name, note, level=1)
    if splits:
        for name in sorted(set(names) - set(splits)):
            if not _is_system(name) if names[name] else file_kind(name) and not is_hidden(name):
                note("", name, "excluded", Reason.OUTSIDE_LAYOUT)
    else:
        found = _scans(root, "", note, level=None)
    if not found:
        raise CohortError(
            f"no scan in {root!r}: expected train/, valid/ or test/ folders of scans, or any tree of NIfTI files, "
            "DICOM series or folders of .jpg or .png slices"
        )
    return found


def _is_system(folder: str) -> bool:
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def _scans(
    folder: str, scan_id: str, note: Note, *, level: int | None, above: tuple[os.stat_result, ...] = ()
) -> list[Found]:
    """The scans at and below a folder. ``level``: 1 a split, 2 a class, 3 at or below a scan; None outside the layout.

    Splits and classes hold scans and are none. A folder of images in the layout is one scan, and nothing below it is
    another, lest a folder of previews become a labelled scan; an empty folder stays in the cohort, as an empty scan.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda e: e.name)
        trail = (*above, os.stat(folder))
    except OSError as error:
        note(scan_id, "", "excluded", f"{Reason.UNREADABLE}: {error.strerror}")
        return [(scan_id, folder, "jpeg")] if level == 3 else []
    folders, files = [], {"jpeg": [], "nifti": [], "dicom": []}
    for entry in entries:
        name = entry.name
        if is_folder(entry):
            if not _is_system(name):
                folders.append(entry)
        elif not is_hidden(name):
            kind = file_kind(name) or ("dicom" if looks_like_dicom(entry.path) else "")
            if kind:
                files[kind].append(name)
    prefix = f"{scan_id}/" if scan_id else ""
    found = [(prefix + name, os.path.join(folder, name), "nifti") for name in files["nifti"]]
    if files["dicom"]:
        paths, strangers = dicom_scans(folder, files["dicom"])
        found += [(scan_id + path[len(folder) :].replace(os.sep, "/"), path, "dicom") for path in paths]
        for name, reason in strangers:
            note("", prefix + name, "excluded", reason)
    if files["jpeg"] and (found or level in (1, 2)):
        note("", scan_id, "excluded", f"{Reason.LOOSE_IMAGES}: {len(files['jpeg'])}")
    elif files["jpeg"]:
        found.append((scan_id, folder, "jpeg"))
    if level == 3 and files["jpeg"]:
        for entry in folders:
            note(scan_id, entry.name, "excluded", Reason.OTHER_FILE)
        return found
    for entry in folders:
        if entry.is_symlink() and any(os.path.samestat(os.stat(entry.path), folder) for folder in trail):
            note("", prefix + entry.name, "excluded", Reason.LINK_LOOP)
            continue
        below = level and (2 if level == 1 and entry.name.lower() in CLASSES else 3)
        found += _scans(entry.path, prefix + entry.name, note, level=below, above=trail)
    if level == 3 and not found and not folders:
        found.append((scan_id, folder, "jpeg"))
    return found


def _unique_ids(found: list[Found]) -> list[Found]:
    """Ids without a file's suffix, where that leaves them unique; the root itself is called by its own name."""
    bare = [(_bare(scan_id, kind), scan_id) for scan_id, _, kind in found]
    seen: dict[str, int] = {}
    for short, _ in bare:
        seen[short] = seen.get(short, 0) + 1
    ids = [(short if seen[short] == 1 else full).lstrip("/") for short, full in bare]
    named = []
    for short, (_, path, kind) in zip(ids, found, strict=True):
        if not short or short.startswith("#"):
            short = os.path.basename(os.path.abspath(split_series(path)[0])) + short
        named.append((short, path, kind))
    return named


def _bare(name: str, kind: str) -> str:
    """A path without the suffix of a NIfTI or DICOM file."""
    if kind in ("nifti", "dicom") and kind == file_kind(name):
        name = name[:-3] if name.lower().endswith(".gz") else name
        return os.path.splitext(name)[0]
    return name


def _read_csv(path: str, required: tuple[str, ...]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns, and (line number, row) of each row that is not blank; cells are stripped."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [c.strip() for c in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = []
            for row in reader:
                if None in row:
                    raise CohortError(f"{path}, line {reader.line_num}: more cells than the {len(columns)} columns")
                cells = {c: (v or "").strip() for c, v in row.items()}
                if any(cells.values()):
                    rows.append((reader.line_num, cells))
    except UnicodeDecodeError:
        raise CohortError(f"{path} is not UTF-8 text; save it as CSV in UTF-8") from None
    except (csv.Error, OSError) as error:
        raise CohortError(f"{path} cannot be read: {error}") from None
    if missing := [c for c in required if c not in columns]:
        raise CohortError(
            f"{path} has no column {missing[0]!r}, only {columns}; expected comma-separated columns, a header first"
        )
    if doubled := sorted({c for c in columns if columns.count(c) > 1}):
        raise CohortError(f"{path} has column {doubled[0]!r} twice")
    return columns, rows


def _add_sources(table: pd.DataFrame, path: str, note: Note) -> pd.DataFrame:
    if not os.path.exists(path):
        return table
    sources: dict[str, str] = {}
    for line, row in _read_csv(path, ("scan_id", "source"))[1]:
        scan_id = row["scan_id"]
        if sources.setdefault(scan_id, row["source"]) != row["source"]:
            raise CohortError(f"{path}, line {line}: scan {scan_id!r} has a second source {row['source']!r}")
    for scan_id in sorted(set(sources) - set(table["scan_id"]), key=natural_key):
        note(scan_id, "", "warned", f"{Reason.UNKNOWN_SCAN}: in sources.csv only")
    table["source"] = [sources.get(scan_id, "") for scan_id in table["scan_id"]]
    return table


# --- manifests -------------------------------------------------------------------------------------------------------


def _read_manifest(path: str, note: Note) -> list[dict[str, Any]]:
    columns, lines = _read_csv(path, ("path",))
    for column in columns:
        if column not in COHORT_COLUMNS:
            note("", column, "warned", Reason.UNKNOWN_COLUMN)
    if not lines:
        raise CohortError(f"{path} lists no scan")
    folder = os.path.dirname(path)
    home = os.path.realpath(folder or ".")
    rows: list[dict[str, Any]] = []
    first_at: dict[str, int] = {}
    there = 0
    for line, cells in lines:
        where = f"{path}, line {line}"
        if not cells["path"]:
            raise CohortError(f"{where}: path is empty")
        given = os.path.expanduser(cells["path"])
        full = os.path.join(folder, given)
        plain = os.path.normpath(cells["path"]).replace(os.sep, "/").lstrip("/")
        scan_id = cells.get("scan_id") or _bare(plain, file_kind(plain))
        if scan_id in first_at:
            raise CohortError(f"{where}: scan_id {scan_id!r} is already that of line {first_at[scan_id]}")
        first_at[scan_id] = line
        real = os.path.realpath(split_series(full)[0])
        there += os.path.exists(real)
        if not os.path.isabs(given) and os.path.commonpath([home, real]) != home:
            note(scan_id, "", "warned", f"{Reason.OUTSIDE}: {cells['path']}")
        kind = _choice(cells.get("format", ""), {f: f for f in FORMATS}, where, "format")
        fold = cells.get("fold", "")
        if fold and not (fold.isdecimal() and int(fold) > 0):
            raise CohortError(f"{where}: fold is {fold!r}, expected 1, 2, … or nothing")
        rows.append(
            {
                "scan_id": scan_id,
                "path": full,
                "split": _choice(cells.get("split", ""), SPLITS, where, "split") or "",
                "label": _choice(cells.get("label", ""), LABELS, where, "label"),
                "fold": int(fold) if fold else None,
                "source": cells.get("source", ""),
                "format": kind or guess_format(full),
            }
        )
    if not there:
        raise CohortError(f"{path}: none of its {len(rows)} paths exists, the first is {rows[0]['path']!r}")
    return rows


def _choice(text: str, choices: dict[str, Any], where: str, column: str) -> Any:
    """The value a cell stands for, None for an empty one."""
    if not text:
        return None
    if text.lower() not in choices:
        raise CohortError(f"{where}: {column} is {text!r}, expected one of {', '.join(choices)} or nothing")
    return choices[text.lower()]
