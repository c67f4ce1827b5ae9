"""Which scans are one patient's: series of a study, parts of a series, copies, and what lies where it must not."""

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from e2d_lib.scans.dicom import Series
from e2d_lib.scans.findings import Reason
from e2d_lib.scans.formats import file_kind, is_hidden, split_series

Note = Callable[[str, str, str, str], None]
"""Takes the four fields of a `Finding`."""


class CohortError(ValueError):
    """A data root, manifest or cohort row that cannot be used; the message is one line and says what to do."""


class Found(NamedTuple):
    """A scan that listing found. ``scan_id`` has at first a file's suffix."""

    scan_id: str
    path: str
    kind: str
    series: Series | None = None
    split: str = ""
    label: int | None = None
    unit: str = ""  # the layout's scan; elsewhere the folder
    patient: str = ""
    fold: int | None = None
    source: str = ""


def patient_of(cohort: pd.DataFrame) -> np.ndarray:
    """(n,) the patient of each row; the scan's id where the table does not say, so that each scan is one patient's."""
    own = cohort["scan_id"].to_numpy(dtype=object)
    return cohort["patient"].fillna(cohort["scan_id"]).to_numpy(dtype=object) if "patient" in cohort else own


def classes(patients: Sequence[str], labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) scans -> (n,) number of each one's patient, in the order in which they come; (patients,) its class, the
    largest of its scans' labels.

    >>> classes(["b", "a", "b"], [0, 0, 1])
    (array([0, 1, 0]), array([1, 0]))
    """
    of, _ = pd.factorize(np.asarray(patients, dtype=object))
    return of, pd.Series(np.asarray(labels)).groupby(of).max().to_numpy()


def dealt(of: np.ndarray, strata: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """(n,) fold, from 0, of scans whose patients have the numbers ``of``: StratifiedKFold of (patients,) strata."""
    from sklearn.model_selection import StratifiedKFold  # not needed to preprocess

    fold = np.empty(len(strata), np.int64)
    parts = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(strata, strata)
    for number, (_, members) in enumerate(parts):
        fold[members] = number
    return fold[of]


def whose(found: list[Found]) -> list[str]:
    """Each scan's patient. An id that all scans share is none: somebody has taken the names away."""
    own = []
    for mark in ("patient", "study"):
        told = [getattr(one.series.head, mark) if one.series else "" for one in found]
        given = list(filter(None, told))
        own.append([""] * len(told) if len(given) > 1 and len(set(given)) == 1 else told)
    several = Counter(one.unit for one in found)
    patients = []
    for one, *told in zip(found, *own, strict=True):
        shared = several[one.unit] > 1 and one.unit and (one.split or one.series)
        patients.append(next(filter(None, [one.patient, *told, one.unit if shared else one.scan_id])))
    return patients


def same_bytes(found: list[Found]) -> list[tuple[int, int]]:
    """Places (first, other) of scans of the same bytes; only what agrees in number and size of files is opened."""
    like: dict[Any, list[int]] = defaultdict(list)
    for i, one in enumerate(found):
        with contextlib.suppress(OSError):  # reading the scan says so
            files = _files(one)
            if size := os.path.getsize(files[len(files) // 2]) if files else 0:
                like[one.kind, len(files), size].append(i)
    pairs = []
    for places in like.values():
        first: dict[bytes, int] = {}
        for i in places if len(places) > 1 else ():
            same = first.setdefault(_digest(found[i]), i)
            if same != i:
                pairs.append((same, i))
    return pairs


def _files(one: Found) -> list[str]:
    """A volume, or a folder's images in the order of their names; none of DICOM, whose UIDs tell what is the same."""
    if one.kind == "dicom":
        return []
    if not os.path.isdir(one.path):
        return [one.path]
    names = sorted(n for n in os.listdir(one.path) if file_kind(n) == one.kind and not is_hidden(n))
    return [os.path.join(one.path, name) for name in names]


def _digest(one: Found) -> bytes:
    digest = hashlib.sha256()
    for path in _files(one):
        try:
            with open(path, "rb") as file:
                digest.update(file.read())
        except OSError:  # reading the scan says so; it is no copy of another that cannot be read
            digest.update(path.encode(errors="replace"))
    return digest.digest()


def one_of_each_study(found: list[Found], root: str, note: Note) -> list[Found]:
    """Parts of one series joined, one series of each study chosen, a series in two splits or labels refused."""
    refuse_leaks((one for one in found if one.series), lambda one: [*one.series.uids, one.series.head.series])
    found = _joined(found, root, note)
    for by in ("unit", "frame"):
        studies: dict[Any, list[Found]] = defaultdict(list)
        for one in found:
            head = one.series.head if one.series else None
            together = head and head.study and (one.unit if by == "unit" else head.frame)
            if together:
                studies[head.study, together, one.split, one.label].append(one)
        for ones in studies.values():
            chosen = max(ones, key=lambda one: one.series.rank)  # the first on ties
            _leave_out(ones, chosen, f"of the study {chosen.scan_id} was chosen", found, note)
    return found


def _leave_out(ones: list[Found], kept: Found, why: str, found: list[Found], note: Note) -> None:
    """Remove all of them but the one that is kept."""
    for one in ones:
        if one is not kept:
            note("", one.scan_id, "excluded", one.series.unfit or f"{Reason.OTHER_SERIES}: {why}")
            found.remove(one)


def refuse_leaks(found: Iterable[Found], marks: Callable[[Found], Iterable[str]]) -> None:
    """Raise `CohortError` where a mark (path, UID) is in two splits or under two labels."""
    seen: dict[str, Found] = {}
    for one in found:
        for mark in marks(one):
            first = seen.setdefault(mark, one)
            if mark not in ("", "none") and (first.split, first.label) != (one.split, one.label):
                what = "two splits" if first.split != one.split else "under two labels"
                raise CohortError(
                    f"the same {'path' if os.sep in mark else 'DICOM image or series'} is in {what}: {first.scan_id} "
                    f"({first.split or 'no split'}, label {first.label}) and {one.scan_id} ({one.split or 'no split'}, "
                    f"label {one.label}); leave one of them out"
                )


def _joined(found: list[Found], root: str, note: Note) -> list[Found]:
    """Found with the parts of one series, which lie in several folders, as one scan: the folder that holds them."""
    parts: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        if one.series and not one.series.unfit:
            parts[one.series.head.series].append(one)
    for uid, ones in parts.items():
        if len(ones) < 2 or uid == "none":
            continue
        folder = os.path.commonpath([split_series(one.path)[0] for one in ones])
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        units = {one.unit for one in ones}
        whole = all(os.path.dirname(split_series(one.path)[0]) == folder for one in ones)
        if len(units) > 1 or not whole or not next(iter(units)):
            kept = max(ones, key=lambda one: one.series.count)
            _leave_out(ones, kept, f"the same as {kept.scan_id}", found, note)
            continue
        count = sum(one.series.count for one in ones)
        joined = ones[0]._replace(
            scan_id=below, path=f"{folder}#{uid}", series=ones[0].series._replace(path=folder, count=count)
        )
        found[found.index(ones[0])] = joined
        found = [one for one in found if one not in ones]
        note(below, "", "kept", f"{Reason.JOINED}: {', '.join(os.path.basename(one.path) for one in ones)}")
    return found
