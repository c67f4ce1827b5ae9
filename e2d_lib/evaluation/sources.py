"""Scans of hospitals that took no part in training: the scores, the thresholds and the differences of chapter 8.

The challenges of the field (method.md §8) score the mean over sources of macro F1, on sources that training may not
hold. A *head* is any function (training features, labels, features) -> probabilities; it is fitted anew for every part.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from e2d_lib import bootstrap
from e2d_lib.evaluation import metrics
from e2d_lib.network import features as frozen
from e2d_lib.network.model import E2D
from e2d_lib.network.recipe import LEAST_TO_CHOOSE
from e2d_lib.network.slices import ScanSlices
from e2d_lib.progress import bar
from e2d_lib.scans.patients import classes, dealt, patient_of

Head = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(m, d) features, (m,) labels, (k, d) features -> (k,) probabilities."""

DESIGNS = {
    "within": "trained in folds on the source's own other scans",
    "mixed": "trained in folds on scans of every source",
    "left out": "trained on all other sources",
}


def design(cohort: pd.DataFrame) -> pd.DataFrame:
    """One row a source: source, scans, positive, negative, classes, in the order of their names.

    Scans without source or label are left out. Raises ValueError where there is no second source, and where each source
    has a single class: the source is then the label, and no score on such scans means anything.
    """
    known = cohort[cohort["source"].fillna("").ne("") & cohort["label"].notna()]
    found = known.groupby("source")["label"].agg(scans="size", positive="sum").astype(int).reset_index()
    found["negative"] = found["scans"] - found["positive"]
    found["classes"] = found["positive"].gt(0).astype(int) + found["negative"].gt(0)
    if len(found) < 2:
        raise ValueError(f"{len(found)} sources with labelled scans: two are needed to leave one out")
    if found["classes"].max() < 2:
        raise ValueError("each source has scans of one class only: the source is the label, and nothing can be scored")
    return found


def scan_features(
    net: E2D, scans: ScanSlices, drawn: np.ndarray, *, change: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> np.ndarray:
    """(replicates, n, d) float32: the mean over a scan's drawn slices of the frozen network's pooled features.

    drawn: (replicates, n, k) positions in each scan's window. change: of a scan's (k, 1, S, S) uint8 slices, before the
    network sees them. A slice drawn again is computed again only where it was changed.
    """
    device = next(net.parameters()).device
    flat = scans.starts[None, :, None] + drawn
    rows, place = np.unique(flat, return_inverse=True) if change is None else (flat.ravel(), np.arange(flat.size))
    found = []
    size = drawn.shape[2] * 8
    for part in bar(np.split(rows, range(size, len(rows), size)), desc="features", unit="batch"):
        pixels = scans.gather(part, device)
        if change is not None:
            pixels = torch.cat([change(own) for own in pixels.split(drawn.shape[2])])
        found.append(frozen.forward(net, pixels).float().cpu())
    return torch.cat(found)[torch.from_numpy(place.reshape(flat.shape))].mean(2).numpy()


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
            more = None if extra is None else extra[replicate]

            def fitted(train: np.ndarray, test: np.ndarray, x: np.ndarray = x, more=more, there=None) -> np.ndarray:
                rows = train if weigh is None else np.repeat(train, weigh(scans.iloc[train]))
                own, theirs = x[rows], labels[rows]
                if more is not None:
                    own, theirs = np.concatenate([own, more[rows]]), np.concatenate([theirs, theirs])
                return head(own, theirs, (x if there is None else there)[test])

            for name in designs:
                probability, carried = np.full(len(labels), np.nan), np.full(len(labels), 0.5)
                for train, test in _parts(name, labels, sources, patients, n_folds, seed + replicate):
                    probability[test] = fitted(train, test, there=None if shifted is None else shifted[replicate])
                    inner = _crossed(
                        labels[train], patients[train], n_folds, seed, lambda a, b, t=train: fitted(t[a], t[b])
                    )
                    carried[test] = 0.5 if inner is None else _chosen(labels[train], inner)
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


def _crossed(labels: np.ndarray, patients: np.ndarray, n_folds: int, seed: int, predict: Callable) -> np.ndarray | None:
    """Each scan's probability by a fit without its patient; None where a class has a single one."""
    found = np.full(len(labels), np.nan)
    for a, b in _folds(labels, patients, n_folds, seed):
        found[b] = predict(a, b)
    return None if np.isnan(found).any() else found


def _chosen(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return metrics.best_threshold(labels, probabilities) if len(labels) >= LEAST_TO_CHOOSE else 0.5


def _anew(table: pd.DataFrame, n_folds: int, seed: int) -> np.ndarray:
    """The threshold that the source's other scans choose, for each scan of it; 0.5 where they cannot."""
    found = pd.Series(0.5, index=table.index)
    for _, own in table.dropna(subset="probability").groupby("source"):
        y, p = own["label"].to_numpy(dtype=np.int64), own["probability"].to_numpy()
        for a, b in _folds(y, patient_of(own), n_folds, seed):
            found.loc[own.index[b]] = _chosen(y[a], p[a])
    return found.to_numpy()


THRESHOLDS = ("0.5", "carried", "anew")


def by_source(scored: pd.DataFrame) -> pd.DataFrame:
    """Means over replicates for each design and source: scans, positive, roc_auc, brier, sensitivity and specificity at
    the carried threshold, macro F1 at each of `THRESHOLDS`, and `metrics.calibration`. NaN: a class is absent."""
    rows = []
    for (name, source, _), own in scored.groupby(["design", "source", "replicate"], sort=False):
        y, p = own["label"].to_numpy(dtype=np.int64), own["probability"].to_numpy()
        at = {
            cut: metrics.point_metrics(y, p, threshold=0.5 if cut == "0.5" else own[cut].to_numpy())
            for cut in THRESHOLDS
        }
        row = {"design": name, "source": source, "scans": len(y), "positive": int(y.sum())}
        row |= {metric: at["carried"][metric] for metric in ("roc_auc", "brier", "sensitivity", "specificity")}
        row |= {f"macro_f1_{cut}": values["macro_f1"] for cut, values in at.items()}
        rows.append(row | metrics.calibration(y, p).set_index("metric")["value"].to_dict())
    keys = ["design", "source", "scans", "positive"]
    return pd.DataFrame(rows).groupby(keys, sort=False, as_index=False).mean()


def challenge(scored: pd.DataFrame) -> pd.DataFrame:
    """The challenge's score, mean over sources of macro F1: design, threshold, absent_class, value, sd over replicates.

    absent_class: a source without positives (or negatives) has its missing class counted as F1 = 0, as the challenge's
    formula has it, or left out of the source's mean.
    """
    rows = []
    for (name, _), own in scored.groupby(["design", "replicate"], sort=False):
        for cut in THRESHOLDS:
            called = own["probability"] >= (0.5 if cut == "0.5" else own[cut])
            f1 = [_class_f1(part["label"] == 1, called[part.index]) for _, part in own.groupby("source")]
            for absent, mean in (
                ("counted as 0", np.nan_to_num(f1).mean()),
                ("left out", np.nanmean(f1, axis=1).mean()),
            ):
                rows.append({"design": name, "threshold": cut, "absent_class": absent, "value": mean})
    keys = ["design", "threshold", "absent_class"]
    return pd.DataFrame(rows).groupby(keys, sort=False)["value"].agg(value="mean", sd="std").reset_index()


def _class_f1(positive: pd.Series, called: pd.Series) -> list[float]:
    """F1 of the negative and of the positive class; NaN for a class without scans."""
    return [
        2 * (truth & call).sum() / (truth.sum() + call.sum()) if truth.any() else np.nan
        for truth, call in ((~positive, ~called), (positive, called))
    ]


def auc_difference(first: pd.DataFrame, second: pd.DataFrame, *, n_boot: int, rng: np.random.Generator) -> dict:
    """Mean over sources of ROC AUC, first less second, on the same scans: difference, low, high (95 %), p_value,
    detectable (as of `comparison.compare`).

    Both replicates and patients are drawn again: replicates whole and R - 1 of R, which makes their part of the
    variance unbiased; patients within class and source. One replicate: the interval is over patients alone. Sources of
    one class have no part. Raises ValueError where no source has both classes.
    """
    wins = [_wins(table) for table in (first, second)]
    contrasts = {source: wins[0][source] - wins[1][source] for source in wins[0] if source in wins[1]}
    if not contrasts:
        raise ValueError("no source has both classes")
    replicates = first["replicate"].nunique()
    taken = max(1, replicates - 1)
    weights = rng.multinomial(taken, np.full(replicates, 1 / replicates), n_boot) / taken
    drawn = np.zeros(n_boot)
    scans = first.drop_duplicates("scan_id").sort_values("scan_id")
    for source, contrast in contrasts.items():
        counts = []
        for label in (1, 0):
            patients = patient_of(scans[(scans["source"] == source) & (scans["label"] == label)])
            blocks = bootstrap.counts(rng, n_boot, len(patients), groups=patients)
            counts.append(np.concatenate([block / block.sum(axis=1, keepdims=True) for block in blocks]))
        positive, negative = counts
        drawn += np.einsum("br,bp,rpn,bn->b", weights, positive, contrast, negative, optimize=True) / len(contrasts)
    low, high = bootstrap.percentiles(drawn)
    tail = max(min((drawn <= 0).mean(), (drawn >= 0).mean()), 1 / n_boot)
    value = float(np.mean([contrast.mean() for contrast in contrasts.values()]))
    found = {"difference": value, "low": low, "high": high, "p_value": min(1.0, 2 * float(tail))}
    return found | {"detectable": metrics.detectable(drawn.std())}


def _wins(scored: pd.DataFrame) -> dict[str, np.ndarray]:
    """source -> (replicates, positive, negative): 1 where the positive scan's probability is larger, 1/2 at a tie."""
    found = {}
    for source, own in scored.groupby("source"):
        p = own.pivot(index="replicate", columns="scan_id", values="probability")
        positive = own.drop_duplicates("scan_id").set_index("scan_id")["label"].loc[p.columns].eq(1).to_numpy()
        if positive.any() and not positive.all():
            a, b = p.to_numpy()[:, positive, None], p.to_numpy()[:, None, ~positive]
            found[source] = (a > b) + 0.5 * (a == b)
    return found
