"""The cohort table: which scans there are, where, with what label, in which split and fold."""

import contextlib
import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from e2d_lib.scans import formats, patients
from e2d_lib.scans.dicom import dicom_scans, series_at
from e2d_lib.scans.findings import Finding, Reason, printable
from e2d_lib.scans.patients import CohortError, Found, Note

COHORT_COLUMNS = ("scan_id", "path", "split", "label", "fold", "source", "format", "patient")
SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("valid", "val", "validation"), "valid")
SPLITS |= dict.fromkeys(("test", "testing"), "test")
CLASSES = dict.fromkeys(("1", "positive", "covid", "covid19"), 1)
CLASSES |= dict.fromkeys(("0", "negative", "normal", "noncovid", "noncovid19"), 0)
"""Class folder, or cell of a manifest, in small letters and digits alone -> label."""
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})


def read_cohort(data_root: str | Path, *, labels: str | Mapping[str, int] = "") -> pd.DataFrame:
    """The scans at ``data_root``, one row each: `COHORT_COLUMNS`.

    ``data_root`` is one of
    - a folder in COV19-CT-DB layout (method/README.md §1): ``train|valid|test`` over ``positive|negative`` over scans
      (test has no classes), or a folder that holds one such; a scan is a folder of images or DICOM files, or one
      volume; its id is its path below the root;
    - any other folder: each folder of images, volume and DICOM series below it is a scan, most often without label;
    - a ``.csv`` manifest: column ``path`` (relative to the manifest), and perhaps the other columns;
    - one volume or DICOM file.

    ``labels`` adds to `CLASSES`: names of class folders, or a manifest's cells, -> 1 or 0; as text "Pneumonia:0, X:1".
    Outside the layout folders at the top that bear such names (no bare numbers) give their scans a label, but no split.
    Of several series of one DICOM study one is chosen (`Series.rank`), the others are among the findings; parts of one
    series are joined. ``patient`` is the manifest's, or the PatientID, else the StudyInstanceUID, else the folder that
    holds several scans, else the scan. A ``sources.csv`` (scan_id, source) in the folder names each scan's hospital.

    Paths begin with ``data_root`` as it was given. Rows are sorted by split (train, valid, test) and then by id,
    numbers as numbers; a manifest keeps its order. Label and fold are Int64 with <NA>, the rest str. Images and
    volumes are listed, not opened, but those of equal size; of DICOM series a few headers are read.

    Raises `CohortError` if the root is missing, nothing in it is a scan, a manifest is malformed, or one path, series
    or SOPInstanceUID lies in two splits or under two labels. Dirt that belongs to no scan is in `cohort_findings`.
    """
    root = os.path.expanduser(os.fspath(data_root))
    if not os.path.exists(root):
        raise CohortError(f"data root {root!r} does not exist; give a folder of scans or a .csv manifest")
    findings: list[Finding] = []

    def note(scan_id: str, name: str, outcome: str, reason: str) -> None:
        findings.append(Finding(printable(scan_id), printable(name), outcome, printable(str(reason))))

    classes = CLASSES | _mapping(labels)
    if root.lower().endswith(".csv"):
        found = _read_manifest(root, classes, note)
    else:
        root = _layout_below(root, note)
        found = _read_tree(root, classes, note) if os.path.isdir(root) else _read_file(root)
        if not found:
            there = "; ".join(dict.fromkeys(finding.reason for finding in findings))
            volumes = ", ".join(formats.SUFFIXES["nifti"] + formats.SUFFIXES["itk"])
            raise CohortError(
                f"no scan in {root!r}: expected train/, valid/ or test/ folders of scans, or any tree of volumes "
                f"({volumes}), DICOM series or folders of .jpg or .png slices"
                f"{there and '; there is: '}{there}"
            )
        found = [one._replace(**_told(one.scan_id, classes)) for one in _unique_ids(found)]
        found = patients.one_of_each_study(found, root, note)
        _note_unknown_classes(found, note)
        order = [*dict.fromkeys(SPLITS.values()), ""]
        found.sort(key=lambda one: (order.index(one.split), formats.natural_key(one.scan_id)))
        found = _with_sources(found, os.path.join(root, "sources.csv"), note)
    table = _table(found, note)
    table.attrs["findings"] = [list(f) for f in findings]  # lists, which a parquet file's metadata can hold
    return table


def cohort_findings(cohort: pd.DataFrame) -> list[Finding]:
    """What `read_cohort` noted about the cohort as a whole; a slice's and scan's dirt is in `Scan.findings`."""
    return [Finding(*f) for f in cohort.attrs.get("findings", [])]


def assign_folds(cohort: pd.DataFrame, *, n_folds: int = 4, seed: int = 42) -> pd.DataFrame:
    """A copy with ``fold``: stratified folds 1 … n_folds over the labelled train scans, n_folds + 1 the valid split.

    Patients are dealt, with all their scans, in natural order of their first scan's id, whatever the table's order, so
    that a cohort has one set of folds. Folds that a manifest gives are kept, if all labelled train scans have one. All
    else stays <NA>. Raises `CohortError` if a class has fewer than ``n_folds`` train patients, and if the same file is
    in two splits or under two labels. Source: method/README.md §1 (StratifiedKFold, shuffled).
    """
    cohort = cohort.copy()
    for finding in cohort_findings(cohort):
        if finding.reason.startswith(f"{Reason.SAME_BYTES}: in another"):
            raise CohortError(f"{finding.scan_id}: {finding.reason}; leave one of them out")
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
    train = sorted(train, key=lambda i: formats.natural_key(cohort.at[i, "scan_id"]))
    of, labels = patients.classes(patients.patient_of(cohort.loc[train]), cohort.loc[train, "label"].astype(int))
    positive, negative = (labels == 1).sum(), (labels == 0).sum()
    if min(positive, negative) < n_folds:
        few = f"{positive} positive, {negative} negative"
        unit = "scans" if len(labels) == len(train) else "patients"
        raise CohortError(f"{n_folds} stratified folds need {n_folds} train {unit} of each class, got {few}")
    cohort.loc[train, "fold"] = 1 + patients.dealt(of, labels, n_folds, seed)
    return cohort


def with_folds(cohort: pd.DataFrame, *, n_folds: int = 4, seed: int = 42) -> pd.DataFrame:
    """`assign_folds`; where that cannot be, a copy with no fold and a finding that says why."""
    try:
        return assign_folds(cohort, n_folds=n_folds, seed=seed)
    except CohortError as error:
        cohort = cohort.assign(fold=pd.array([pd.NA] * len(cohort), dtype="Int64"))
        why = Finding("", "", "warned", f"{Reason.NO_FOLDS}: {error}")
        cohort.attrs["findings"] = [*cohort.attrs.get("findings", []), list(why)]
        return cohort


def why_no_folds(cohort: pd.DataFrame) -> str:
    """Why there is nothing to train and validate on; "" where a scan has both a label and a fold."""
    if cohort[["label", "fold"]].notna().all(axis=1).any():
        return ""
    found = [finding.reason for finding in cohort_findings(cohort) if finding.reason.startswith(Reason.NO_FOLDS)]
    return found[-1] if found else "no scan has both a label and a fold (a split to train and validate on)"


def _mapping(labels: str | Mapping[str, int]) -> dict[str, int]:
    """Names as `_plain` writes them -> 1 or 0."""
    if isinstance(labels, str):
        labels = dict(re.split(r"[:=]", f"{part}:", maxsplit=1) for part in re.split(r"[,;]", labels) if part.strip())
    given = {str(name).strip(): str(label).strip(": ") for name, label in labels.items()}
    if wrong := [f"{name}:{label}" for name, label in given.items() if label not in ("0", "1") or not _plain(name)]:
        raise CohortError(f'labels: {wrong[0]!r} is no NAME:1 or NAME:0, as in "Pneumonia:0, COVID:1"')
    return {_plain(name): int(label) for name, label in given.items()}


def _how_to_tell(names: Iterable[str]) -> str:
    told = ",".join(f"{name}:0" for name in dict.fromkeys(names))
    return f'tell what it is with -p labels="{told}", with 1 in place of 0 for COVID-19'


def _plain(name: str) -> str:
    return re.sub(r"[^\w]|_", "", name).lower()


# --- folders ---------------------------------------------------------------------------------------------------------


def _told(scan_id: str, classes: Mapping[str, int]) -> dict[str, Any]:
    """Split, label and unit, as the first parts of the id tell them."""
    parts = scan_id.split("/")
    split = SPLITS.get(parts[0].lower(), "") if len(parts) > 1 else ""
    above = parts[1:2] if split else [part for part in parts[:1] if not part.isdecimal()]
    label = classes.get(_plain(above[0])) if above and len(parts) > 1 + bool(split) else None
    inside = 0 if not split else 2 if label is None else 3
    home = re.sub(r"#(none|[\d.]+)$", "", scan_id)  # of several series the folder
    unit = "/".join(home.split("/")[:inside]) if inside else home if home != scan_id else os.path.dirname(scan_id)
    return {"split": split, "label": label, "unit": unit}


def _table(found: list[Found], note: Note) -> pd.DataFrame:
    """The cohort's table; scans with the same bytes are noted, and are one patient's where nobody told another."""
    told = patients.whose(found)
    for i, k in patients.same_bytes(found):
        first, again = found[i], found[k]
        where = "two splits" if first.split != again.split else "two labels" if first.label != again.label else ""
        other = f"in another split or under another label, {first.scan_id}" if where else f"as {first.scan_id}"
        note(again.scan_id, "", "warned", f"{Reason.SAME_BYTES}: {other}")
        told[k] = again.patient or told[i]
    rows = []
    for one, patient in zip(found, told, strict=True):
        values = (one.scan_id, one.path, one.split, one.label, one.fold, one.source, one.kind, patient)
        rows.append([printable(value) if isinstance(value, str) else value for value in values])
    table = pd.DataFrame(rows, columns=list(COHORT_COLUMNS)).astype({"label": "Int64", "fold": "Int64"})
    for patient, scans in table.drop_duplicates(["patient", "split"]).groupby("patient", sort=False)["scan_id"]:
        if len(scans) > 1:
            note("", patient, "warned", f"{Reason.SPLIT_PATIENT}: {' and '.join(scans)}")
    return table


def _note_unknown_classes(found: list[Found], note: Note) -> None:
    """Class folders of a name that tells no label."""
    lost = [one.scan_id.split("/") for one in found if one.split in ("train", "valid") and one.label is None]
    unknown = Counter((split, folder) for split, folder, *scan in lost if scan)
    how = _how_to_tell(folder for _, folder in unknown)
    for (split, folder), count in unknown.items():
        note("", f"{split}/{folder}", "warned", f"{Reason.UNKNOWN_CLASS}: {count} scans without label; {how}")


def _layout_below(root: str, note: Note) -> str:
    """The root, or the one folder in it that holds the layout's splits where the root holds none."""
    if _splits(root):
        return root
    below = _folders(root, lambda entry: not _is_system(entry.name) and _splits(entry.path))
    if len(below) > 1:
        raise CohortError(f"{root!r} holds {len(below)} data sets, {' and '.join(below)}: give the path of one of them")
    for name in below:
        note("", name, "kept", f"{Reason.LAYOUT_BELOW}: read from {name}/")
    return os.path.join(root, *below)


def _splits(folder: str) -> list[str]:
    return _folders(folder, lambda entry: entry.name.lower() in SPLITS)


def _folders(folder: str, wanted: Callable[[os.DirEntry], Any]) -> list[str]:
    """The names of the wanted folders in a folder; none of what is no folder, or cannot be listed."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if formats.is_folder(entry) and wanted(entry))
    return []


def _read_file(path: str) -> list[Found]:
    kind = formats.format_of(path)
    if kind in ("", "jpeg"):
        raise CohortError(f"data root {path!r} is a file, but no .csv manifest, volume or DICOM file")
    return [Found(os.path.basename(path), path, kind, series_at(path) if kind == "dicom" else None)]


def _read_tree(root: str, classes: Mapping[str, int], note: Note) -> list[Found]:
    if not (splits := _splits(root)):
        return _scans(root, "", classes, note, level=None)
    found = [one for name in splits for one in _scans(os.path.join(root, name), name, classes, note, level=1)]
    with os.scandir(root) as listing:
        others = {e.name: formats.is_folder(e) for e in listing if e.name not in splits}
    for name in sorted(others):
        if not _is_system(name) if others[name] else formats.file_kind(name) and not formats.is_hidden(name):
            note("", name, "excluded", Reason.OUTSIDE_LAYOUT)
    _note_strangers([name for name, folder in others.items() if not folder], "", note)
    return found


def _note_strangers(names: Iterable[str], prefix: str, note: Note) -> None:
    for name, reason in formats.strangers(names):
        if reason.startswith(Reason.UNKNOWN_FORMAT):
            note("", prefix + name, "excluded", reason)


def _is_system(folder: str) -> bool:
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def _scans(
    folder: str,
    scan_id: str,
    classes: Mapping[str, int],
    note: Note,
    *,
    level: int | None,
    above: tuple[os.stat_result, ...] = (),
) -> list[Found]:
    """The scans at and below a folder. ``level``: 1 a split, 2 a class, 3 at or below a scan; None outside the layout.

    Splits and classes hold scans and are none. A folder of images in the layout is one scan, and nothing below it is
    another, lest a folder of previews become a labelled scan; an empty folder stays in the cohort, as an empty scan.
    Masks, told by their names, are noted and left out.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda e: e.name)
        trail = (*above, os.stat(folder))
    except OSError as error:
        note(scan_id, "", "excluded", f"{Reason.UNREADABLE}: {error.strerror}")
        return [Found(scan_id, folder, "jpeg")] if level == 3 else []
    folders, files = [], defaultdict(list)
    for entry in entries:
        if formats.is_folder(entry):
            folders += [] if _is_system(entry.name) else [entry]
        elif not formats.is_hidden(entry.name):
            files[formats.format_of(entry.path)].append(entry)
    prefix = f"{scan_id}/" if scan_id else ""
    volumes = [*files["nifti"], *files["itk"]]
    deeper = [e for e in folders if not (level in (3, None) and len(entries) > 1 and formats.names_mask(e.name))]
    scans = [e for e in volumes if not formats.names_mask(e.name)] or volumes
    taken = {*scans, *deeper}  # there may be thousands
    for entry in [e for e in [*volumes, *folders] if e not in taken]:
        note("", prefix + entry.name, "excluded", Reason.MASK)
    found = [Found(prefix + e.name, e.path, formats.file_kind(e.name)) for e in scans]
    if files["dicom"]:
        series, unfit = dicom_scans(folder, [e.name for e in files["dicom"]])
        ids = [scan_id + one.path[len(folder) :].replace(os.sep, "/") for one in series]
        found += [Found(name, one.path, "dicom", one) for name, one in zip(ids, series, strict=True)]
        for name, reason in unfit:
            note("", prefix + name, "excluded", reason)
    images = files["jpeg"]
    if images and (found or level in (1, 2)):
        note("", scan_id, "excluded", f"{Reason.LOOSE_IMAGES}: {len(images)}")
    elif images:
        found.append(Found(scan_id, folder, "jpeg"))
    if not (images or files["dicom"]):  # opening those reports what lies beside them
        _note_strangers([e.name for e in files[""] + files["itk"]], prefix, note)  # a header tells its values' file
    if level == 3 and images:
        for entry in folders:
            note(scan_id, entry.name, "excluded", Reason.OTHER_FILE)
        return found
    # "0" and "1" may be classes, or the names of scans; classes stand alone
    plain = level == 1 and all(_plain(e.name) in classes for e in folders)
    for entry in deeper:
        if entry.is_symlink() and any(os.path.samestat(os.stat(entry.path), folder) for folder in trail):
            note("", prefix + entry.name, "excluded", Reason.LINK_LOOP)
            continue
        named = _plain(entry.name) in classes and (plain or not entry.name.isdecimal())
        below = level and (2 if level == 1 and named else 3)
        found += _scans(entry.path, prefix + entry.name, classes, note, level=below, above=trail)
    if level == 3 and not found and not deeper:
        found.append(Found(scan_id, folder, "jpeg"))
    return found


def _unique_ids(found: list[Found]) -> list[Found]:
    """Ids without a file's suffix, where that leaves them unique; the root itself is called by its own name."""
    bare = [_bare(one.scan_id, one.kind) for one in found]
    seen = Counter(bare)
    named = []
    for one, short in zip(found, bare, strict=True):
        name = (short if seen[short] == 1 else one.scan_id).lstrip("/")
        if not name or name.startswith("#"):
            name = os.path.basename(os.path.abspath(formats.split_series(one.path)[0])) + name
        named.append(one._replace(scan_id=name))
    return named


def _bare(name: str, kind: str) -> str:
    """A path without the suffix of a volume or DICOM file."""
    if kind not in ("", "jpeg") and kind == formats.file_kind(name):
        return name[: -len(next(end for end in formats.SUFFIXES[kind][::-1] if name.lower().endswith(end)))]
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


def _with_sources(found: list[Found], path: str, note: Note) -> list[Found]:
    if not os.path.exists(path):
        return found
    sources: dict[str, str] = {}
    for line, row in _read_csv(path, ("scan_id", "source"))[1]:
        scan_id = row["scan_id"]
        if sources.setdefault(scan_id, row["source"]) != row["source"]:
            raise CohortError(f"{path}, line {line}: scan {scan_id!r} has a second source {row['source']!r}")
    for scan_id in sorted(set(sources) - {printable(one.scan_id) for one in found}, key=formats.natural_key):
        note(scan_id, "", "warned", f"{Reason.UNKNOWN_SCAN}: in sources.csv only")
    return [one._replace(source=sources.get(printable(one.scan_id), "")) for one in found]


# --- manifests -------------------------------------------------------------------------------------------------------


def _read_manifest(path: str, classes: Mapping[str, int], note: Note) -> list[Found]:
    columns, lines = _read_csv(path, ("path",))
    for column in columns:
        if column not in COHORT_COLUMNS:
            note("", column, "warned", Reason.UNKNOWN_COLUMN)
    if not lines:
        raise CohortError(f"{path} lists no scan")
    for _, cells in lines:  # whole numbers beside empty cells, as pandas writes them
        cells.update({name: cells[name].removesuffix(".0") for name in ("label", "fold") if name in cells})
    folder = os.path.dirname(path)
    home = os.path.realpath(folder or ".")
    found: list[Found] = []
    first_at: dict[str, int] = {}
    given = [cells.get("label", "") for _, cells in lines]
    how = "; or " + _how_to_tell(text for text in given if text and _plain(text) not in classes)
    for line, cells in lines:
        where = f"{path}, line {line}"
        if not cells["path"]:
            raise CohortError(f"{where}: path is empty")
        given = os.path.expanduser(cells["path"])
        full = formats.on_disk(os.path.join(folder, given))
        plain = os.path.normpath(cells["path"]).replace(os.sep, "/").lstrip("/")
        scan_id = cells.get("scan_id") or _bare(plain, formats.file_kind(plain))
        if scan_id in first_at:
            raise CohortError(f"{where}: scan_id {scan_id!r} is already that of line {first_at[scan_id]}")
        first_at[scan_id] = line
        real = os.path.realpath(formats.split_series(full)[0])
        if not os.path.isabs(given) and os.path.commonpath([home, real]) != home:
            note(scan_id, "", "warned", f"{Reason.OUTSIDE}: {cells['path']}")
        kind = _choice(cells.get("format", ""), {f: f for f in formats.SUFFIXES}, where, "format")
        fold = cells.get("fold", "")
        if fold and not (fold.isdecimal() and int(fold) > 0):
            raise CohortError(f"{where}: fold is {fold!r}, expected 1, 2, … or nothing")
        full, kind = (full, kind) if kind else _inside(full, scan_id, note)
        series = series_at(full) if kind == "dicom" else None
        split = _choice(cells.get("split", ""), SPLITS, where, "split", str.lower) or ""
        label = _choice(cells.get("label", ""), classes, where, "label", how=how)
        about = {"patient": cells.get("patient", ""), "source": cells.get("source", "")}
        found.append(Found(scan_id, full, kind, series, split, label, fold=int(fold) if fold else None, **about))
    if not any(os.path.exists(formats.split_series(one.path)[0]) for one in found):
        raise CohortError(f"{path}: none of its {len(found)} paths exists, the first is {found[0].path!r}")
    patients.refuse_leaks(found, lambda one: [os.path.realpath(one.path)])
    patients.refuse_leaks((one for one in found if one.series), lambda one: [*one.series.uids, one.series.head.series])
    return found


def _inside(path: str, scan_id: str, note: Note) -> tuple[str, str]:
    """Path and format of the one scan in a folder that a manifest names, also where it lies deeper."""
    folder, series = formats.split_series(path)
    if series or not os.path.isdir(folder) or any(formats.formats_in(folder)):
        return path, formats.guess_format(path)
    found = [one._replace(unit=scan_id) for one in _scans(folder, scan_id, {}, note, level=None)]
    found = patients.one_of_each_study(found, folder, note)
    if len(found) > 1:
        note(scan_id, "", "warned", f"{Reason.NO_SLICES}: {len(found)} scans are below it, such as {found[0].scan_id}")
    return (found[0].path, found[0].kind) if len(found) == 1 else (path, "jpeg")


def _choice(
    text: str, choices: Mapping[str, Any], where: str, column: str, plain: Callable = _plain, how: str = ""
) -> Any:
    """The value a cell stands for, None for an empty one."""
    if not text:
        return None
    if plain(text) not in choices:
        raise CohortError(f"{where}: {column} is {text!r}, expected one of {', '.join(choices)} or nothing{how}")
    return choices[plain(text)]
