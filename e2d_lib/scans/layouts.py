"""Public CT collections that come by other ways than ``e2d fetch``: a manifest from each one's documented layout.

Each reader lists what lies in the folder and looks labels up for it, so that no name in a file of labels is ever a
path. What has no label, or is listed and not there, is counted and said.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from e2d_lib import io
from e2d_lib.scans.formats import natural_key
from e2d_lib.scans.open_cohorts import COLUMNS, Say, safe, split

Row = dict[str, Any]


class LayoutError(ValueError):
    """A folder that is not laid out as its collection's documentation says; one line says what was expected."""


def manifest(name: str, folder: str | Path, *, seed: int = 0, say: Say = print) -> pd.DataFrame:
    """The scans of a collection in ``folder`` as ``folder``/manifest.csv, paths relative to it: `open_cohorts.COLUMNS`.

    Patients are split 4 to 1 into train and valid within each class by ``seed``, where the collection has no split of
    its own. Raises LayoutError for an unknown collection, or a folder laid out otherwise.
    """
    if name not in LAYOUTS:
        raise LayoutError(f"no layout {name!r}; there are {', '.join(LAYOUTS)}")
    about, folder = LAYOUTS[name], Path(folder)
    try:
        rows = list(READERS[name](folder)) if folder.is_dir() else []
    except (OSError, ValueError, KeyError) as error:
        raise LayoutError(f"{folder} is no {name}: {error}; expected {about['expected']}") from None
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    known = table.dropna(subset="label").astype({"label": int})
    if known.empty:
        raise LayoutError(f"{folder} is no {name}: expected {about['expected']}")
    known = known.sort_values("scan_id", key=lambda ids: ids.map(natural_key), ignore_index=True)
    known["patient"] = known["patient"].fillna(known["scan_id"])
    patients = known.groupby("patient")["label"].max()
    drawn = known["patient"].map(dict(zip(patients.index, split(patients, seed=seed), strict=True)))
    known = known.fillna({"split": drawn, "source": name, "licence": about["licence"], "mask": ""})
    known["path"] = [Path(path).relative_to(folder).as_posix() for path in known["path"]]
    io.write_csv(folder / "manifest.csv", known)
    if len(table) > len(known):
        say(f"{len(table) - len(known)} of {len(table)} scans left out: no label for them")
    say(f"{len(known)} scans, {int(known['label'].sum())} with COVID-19, {about['licence']}: {folder / 'manifest.csv'}")
    say(f"as a test bed: {about['wrong']}")
    return known


def _stoic(folder: Path) -> Iterator[Row]:
    reference = next((p for p in (folder / "metadata/reference.csv", folder / "reference.csv") if p.is_file()), None)
    labels = {} if reference is None else pd.read_csv(reference).set_index("PatientID")["probCOVID"].dropna()
    positive = {str(patient): int(value >= 0.5) for patient, value in labels.items()}
    for path in folder.rglob("*.mha"):
        yield {"scan_id": path.stem, "path": path, "label": positive.get(path.stem)}


def _mosmed(folder: Path) -> Iterator[Row]:
    for path in [p for top in (folder / "studies", folder) for p in top.glob("CT-[0-4]/*.nii*")]:
        yield {"scan_id": path.name.partition(".")[0], "path": path, "label": int(path.parent.name != "CT-0")}


def _covid_ct_md(folder: Path) -> Iterator[Row]:
    classes = {"covid-19 cases": 1, "cap cases": 0, "normal cases": 0}
    for path in folder.glob("*/*/"):
        if (top := path.parent.name.lower()) in classes:
            yield {"scan_id": path.name, "path": path, "label": classes[top]}


def _luna16(folder: Path) -> Iterator[Row]:
    for path in folder.glob("subset[0-9]/*.mhd"):
        mask = folder / "seg-lungs-LUNA16" / path.name
        there = mask.relative_to(folder).as_posix() if mask.is_file() else ""
        yield {"scan_id": path.stem, "path": path, "label": 0, "mask": there}


def _covidx_ct(folder: Path) -> Iterator[Row]:
    """Slices of all scans lie in one folder: they are linked into one a scan, as the lists and names group them."""
    images = {path.name: path for path in folder.rglob("*.png") if "scans" not in path.relative_to(folder).parts}
    table = folder / "metadata.csv"
    people = pd.read_csv(table).set_index("patient id")["source"].to_dict() if table.is_file() else {}
    found: dict[str, Row] = {}
    for part, name in (("train", "train"), ("valid", "val"), ("test", "test")):
        for lines in folder.glob(f"{name}_COVIDx*.txt"):
            for line in lines.read_text(encoding="utf-8").splitlines():
                image, kind, *_ = line.rsplit(maxsplit=5)
                if not (parts := re.fullmatch(r"(.+?)[-_]?(?:IM)?(\d+)\.png", image)):
                    raise ValueError(f"no slice number in {image!r} of {lines.name}")
                scan, number = parts.groups()
                # CNCB's names are class_patient_scan_slice; elsewhere a patient has one scan
                patient = re.sub(r"^((?:NCP|CP|Normal)_\d+)_\d+$", r"\1", scan)
                home = folder / "scans" / safe(scan)
                row = {"scan_id": safe(scan), "patient": patient, "path": home, "split": part, "label": None}
                row = found.setdefault(scan, row | {"source": people.get(patient, "covidx-ct")})
                if image in images:
                    row["label"] = int(int(kind) == 2)
                    home.mkdir(parents=True, exist_ok=True)
                    if not (link := home / f"{int(number)}.png").is_symlink():
                        link.symlink_to(os.path.relpath(images[image], home))
    yield from found.values()


READERS = {"stoic": _stoic, "mosmed": _mosmed, "covid-ct-md": _covid_ct_md, "covidx-ct": _covidx_ct, "luna16": _luna16}
"""Name -> folder to rows of scan_id, path, label (None: unknown, left out) and perhaps others of a manifest."""
LAYOUTS = io.shipped("e2d_lib.scans", "layouts.yaml")
"""Name -> expected (the layout in a line), licence, wrong (with it as a test bed), as the collections' pages say."""
