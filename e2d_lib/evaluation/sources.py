"""Scans of hospitals that took no part in training: the scores and the thresholds of chapter 8.

The challenges of the field (method.md §8) score the mean over sources of macro F1, on sources that training may not
hold. A *head* is any function (training features, labels, features) -> probabilities; it is fitted anew for every part.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from e2d_lib.evaluation import metrics
from e2d_lib.network.recipe import LEAST_TO_CHOOSE
from e2d_lib.progress import bar
from e2d_lib.scans.patients import classes, dealt, patient_of

Head = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(m, d) features, (m,) labels, (k, d) features -> (k,) probabilities."""

DESIGNS = {
    "within": "trained in folds on the source's own other scans",
    "mixed": "trained in folds on scans of every source",
    "left out": "trained on all other sources",
}


@threadpool_limits.wrap(limits=1, user_api="blas")  # a hundred scans: more threads take five times as long
def scores(
    features: np.ndarray, scans: pd.DataFrame, head: Head, *, designs: Sequence[str] = tuple(DESIGNS), n_folds: int = 5,
    weigh: Callable[[pd.DataFrame], np.ndarray] | None = None, extra: np.ndarray | None = None,
    shifted: np.ndarray | None = None, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Every scan's probability in each design and replicate: design, replicate, scan_id, source, label, patient,
    probability, carried, anew (two thresholds).

    features: (replicates, n, d), one set of draws a replicate; scans: n rows of scan_id, source and label. Folds, of
    patients, are drawn anew for each replicate. carried: the threshold of greatest macro F1 on the training scans, each
    predicted by a head that had not seen it. anew: the same on the source's other scans, from their own predictions.
    weigh: of the training scans, how often each is taken (whole numbers). extra: (replicates, n, d), other features of
    the training scans, which join them (augmentation). shifted: likewise, what the predicted scans have in place of
    ``features``, which still train and carry thresholds. Sources of one class are predicted, never trained on by
    themselves. Fewer than `LEAST_TO_CHOOSE` scans choose no threshold: it is 0.5.
    """
    labels, sources = scans["label"].to_numpy(dtype=np.int64), scans["source"].to_numpy(dtype=object)
    patients = patient_of(scans)
    tables = []
    with bar(total=len(features) * len(designs), desc="sources", unit="part") as progress:
        for replicate, x in enumerate(features):
            seen = [x] if extra is None else [x, extra[replicate]]

            def fitted(train: np.ndarray, test: np.ndarray, there: np.ndarray, seen: list = seen) -> np.ndarray:
                rows = train if weigh is None else np.repeat(train, weigh(scans.iloc[train]))
                own, theirs = np.concatenate([one[rows] for one in seen]), np.tile(labels[rows], len(seen))
                return head(own, theirs, there[test])

            for name in designs:
                probability, carried = np.full(len(labels), np.nan), np.full(len(labels), 0.5)
                for train, test in _parts(name, labels, sources, patients, n_folds, seed + replicate):
                    probability[test] = fitted(train, test, x if shifted is None else shifted[replicate])
                    inner = np.full(len(train), np.nan)
                    for a, b in _folds(labels[train], patients[train], n_folds, seed):
                        inner[b] = fitted(train[a], train[b], x)
                    carried[test] = _chosen(labels[train], inner)
                about = {"design": name, "replicate": replicate, "patient": patients}
                table = scans[["scan_id", "source", "label"]].assign(**about, probability=probability, carried=carried)
                tables.append(table.assign(anew=_anew(table, n_folds, seed)).dropna(subset="probability"))
                progress.update()
    return pd.concat(tables, ignore_index=True)


def _parts(
    design: str, labels: np.ndarray, sources: np.ndarray, patients: np.ndarray, n_folds: int, seed: int
) -> Iterator[tuple]:
    """Rows to train on and rows to predict, of each fit."""
    groups = [np.flatnonzero(sources == source) for source in sorted(set(sources))]
    if design == "left out":
        rows = np.arange(len(labels))
        parts = [(np.setdiff1d(rows, group), group) for group in groups]
        yield from (part for part in parts if len(set(labels[part[0]])) == 2)
        return
    for group in [np.arange(len(labels))] if design == "mixed" else groups:
        strata = np.unique([f"{sources[row]} {labels[row]}" for row in group], return_inverse=True)[1]
        yield from ((group[a], group[b]) for a, b in _folds(labels[group], patients[group], n_folds, seed, strata))


def _folds(
    labels: np.ndarray, patients: np.ndarray, n_folds: int, seed: int, strata: np.ndarray | None = None
) -> Iterator[tuple]:
    """Rows within and without, of stratified folds of patients; fewer of them where a class has fewer patients, none
    where it has one.

    strata: to balance too, where each has a patient for every fold.
    """
    of, known = classes(patients, labels)
    folds = min(n_folds, np.bincount(known, minlength=2).min())
    if folds > 1:
        strata = None if strata is None else strata[np.unique(of, return_index=True)[1]]
        within = strata is not None and np.bincount(strata).min() >= folds
        number = dealt(of, strata if within else known, folds, seed)
        yield from ((np.flatnonzero(number != k), np.flatnonzero(number == k)) for k in range(folds))


def _chosen(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold; 0.5 where the scans are few, or a class's single patient left no fit without it (NaN)."""
    enough = len(labels) >= LEAST_TO_CHOOSE and not np.isnan(probabilities).any()
    return metrics.best_threshold(labels, probabilities) if enough else 0.5


def _anew(table: pd.DataFrame, n_folds: int, seed: int) -> np.ndarray:
    """The threshold that the source's other scans choose, for each scan of it; 0.5 where they cannot."""
    found = pd.Series(0.5, index=table.index)
    for _, own in table.dropna(subset="probability").groupby("source"):
        y, p = own["label"].to_numpy(dtype=np.int64), own["probability"].to_numpy()
        for a, b in _folds(y, patient_of(own), n_folds, seed):
            found.loc[own.index[b]] = _chosen(y[a], p[a])
    return found.to_numpy()
