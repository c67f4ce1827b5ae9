"""Scan scores, the metrics on them with intervals, and paired comparisons of two runs.

The scan is the unit throughout: intervals and tests treat scans as independent draws and hold the class sizes fixed.
Released scores count a scan once for each of its slices (method.md §5); slice counts as ``weights`` do the same.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

Aggregation = Literal["mean", "median", "max", "topk", "logodds"]

METRICS = ("macro_f1", "roc_auc", "pr_auc", "sensitivity", "specificity", "accuracy", "brier", "ece")
"""macro_f1 is the challenge's; pr_auc is average precision; ece, the expected calibration error, is the mean over scans
of |share of positives - mean probability| of their bin, for equal-width bins [0, 1/bins), …, [1 - 1/bins, 1]."""

NEED_POSITIVES = {"macro_f1", "roc_auc", "pr_auc", "sensitivity"}
NEED_NEGATIVES = {"macro_f1", "roc_auc", "pr_auc", "specificity"}

LOGIT_CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 before their log-odds are taken (about float32's resolution near 1)."""

BLOCK = 4_000_000
"""Replicates are drawn in blocks of at most this many weights, so that memory stays flat for any cohort."""


# Scan scores -------------------------------------------------------------------------------------------------------


def scan_scores(
    slice_predictions: pd.DataFrame, *, how: Aggregation = "mean", k: int = 3, by: Sequence[str] = ("scan_id",)
) -> pd.DataFrame:
    """One score per scan from its slices' predictions.

    ``slice_predictions``: one row a slice, with the columns ``by`` and ``probability`` (in [0, 1]) or ``logit``.
    ``how``: "mean" of probabilities (released, method.md §5), "median", "max", mean of the ``k`` largest ("topk";
    of all when there are fewer), or sigmoid of the mean log-odds ("logodds").
    Gives the columns ``by``, ``probability``, ``n_slices`` (predictions that went in), and ``label``, ``fold`` and
    ``source`` where they are in the input. Order of rows: sorted by ``by``.
    Where both are given, log-odds are taken from ``logit``, everything else from ``probability``.
    Raises ValueError for missing columns, values that are no probabilities, or a label that differs inside a scan.

    >>> slices = pd.DataFrame({"scan_id": ["a", "a", "b"], "probability": [0.2, 0.6, 0.9]})
    >>> [round(float(p), 12) for p in scan_scores(slices).probability]
    [0.4, 0.9]
    """
    by = list(by)
    columns = set(slice_predictions.columns)
    if missing := [name for name in by if name not in columns]:
        raise ValueError(f"slice predictions lack the columns {missing}; they have {sorted(columns)}")
    if how not in Aggregation.__args__:
        raise ValueError(f"how={how!r}, expected one of {', '.join(Aggregation.__args__)}")
    if k < 1:
        raise ValueError(f"k={k}, expected 1 or more slices")
    if slice_predictions[by].isna().any(axis=None):
        raise ValueError(f"slice predictions have empty values in {by}")
    if not columns & {"probability", "logit"}:
        raise ValueError(f"slice predictions need a column probability or logit; they have {sorted(columns)}")
    source = "logit" if "logit" in columns and (how == "logodds" or "probability" not in columns) else "probability"
    values = slice_predictions[source].to_numpy(dtype=float)
    if source == "probability":
        _require_probabilities(values)
        values = logit(np.clip(values, LOGIT_CLIP, 1 - LOGIT_CLIP)) if how == "logodds" else values
    elif np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {values.size} slice logits are NaN")
    elif how != "logodds":
        values = expit(values)

    table = slice_predictions[by].assign(probability=values)
    groups = table.groupby(by, sort=True)["probability"]
    if how == "topk":
        largest = table.sort_values("probability", ascending=False, kind="stable").groupby(by, sort=True).head(k)
        scores = largest.groupby(by, sort=True)["probability"].mean()
    elif how == "logodds":
        mean = groups.mean()
        scores = pd.Series(expit(mean.to_numpy()), index=mean.index, name="probability")
    else:
        scores = groups.agg(how)
    result = pd.concat([scores, groups.size().rename("n_slices")], axis=1)
    for name in ("label", "fold", "source"):
        if name in columns and name not in by:
            carried = slice_predictions.groupby(by, sort=True)[name]
            if (mixed := carried.nunique(dropna=False) > 1).any():
                raise ValueError(f"{name} differs between slices of {mixed.idxmax()}; expected one per scan")
            result[name] = carried.first()
    return result.reset_index()


# Point values ------------------------------------------------------------------------------------------------------


def point_metrics(
    labels: Any, probabilities: Any, *, threshold: Any = 0.5, weights: Any = None, bins: int = 10
) -> dict[str, float]:
    """Every metric of ``METRICS`` as a number; NaN where it has no meaning (a class is absent).

    ``labels``: (n,) 0 or 1. ``probabilities``: (n,) in [0, 1]. A scan is called positive when probability ≥
    ``threshold`` (one number, or one per scan). ``weights``: (n,) ≥ 0; slices of each scan count as the released code.

    >>> m = point_metrics([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
    >>> m["macro_f1"], m["roc_auc"], m["sensitivity"]
    (0.5, 0.75, 0.5)
    """
    return _points(_checked(labels, probabilities, threshold, weights), bins)


def best_threshold(
    labels: Any,
    probabilities: Any,
    *,
    metric: Literal["macro_f1", "youden", "accuracy"] = "macro_f1",
    weights: Any = None,
) -> float:
    """The cut that maximises ``metric``; for scores of training scans only, never of the scans then reported.

    Candidates are the midpoints between neighbouring distinct scores, of equals the one nearest 0.5. Constant scores
    give 0.5. Raises ValueError when a class is absent.

    >>> best_threshold([0, 0, 1, 1], [0.125, 0.25, 0.75, 0.875])
    0.5
    """
    if metric not in ("macro_f1", "youden", "accuracy"):
        raise ValueError(f"metric={metric!r}, expected macro_f1, youden or accuracy")
    data = _checked(labels, probabilities, 0.5, weights)
    if not data.n_positive or not data.n_negative:
        raise ValueError(
            f"a threshold needs both classes; got {data.n_positive} positive and {data.n_negative} negative scans"
        )
    order = np.argsort(data.probabilities, kind="stable")
    scores = data.probabilities[order]
    cuts = np.flatnonzero(np.diff(scores) > 0) + 1  # the first scan called positive
    if not cuts.size:
        return 0.5
    positive = np.concatenate([[0.0], np.cumsum((data.weights * data.labels)[order])])
    negative = np.concatenate([[0.0], np.cumsum((data.weights * (1 - data.labels))[order])])
    fn, tn = positive[cuts], negative[cuts]
    tp, fp = positive[-1] - fn, negative[-1] - tn
    value = {
        "macro_f1": _macro_f1(tp, fp, tn, fn),
        "youden": tp / positive[-1] + tn / negative[-1],
        "accuracy": tp + tn,
    }[metric]
    middles = (scores[cuts - 1] + scores[cuts]) / 2
    # Adjacent floats may have no float between them: the cut is then the upper score itself.
    middles = np.where(middles > scores[cuts - 1], middles, scores[cuts])
    best = middles[value >= value.max() * (1 - 1e-12)]
    return float(best[np.argmin(np.abs(best - 0.5))])


# Intervals ---------------------------------------------------------------------------------------------------------


def evaluate(
    labels: Any,
    probabilities: Any,
    *,
    rng: np.random.Generator,
    threshold: Any = 0.5,
    weights: Any = None,
    n_boot: int = 2000,
    level: float = 0.95,
    bins: int = 10,
) -> pd.DataFrame:
    """Every metric of one run with its interval: columns metric, value, low, high, n, method, reason.

    Arguments as in `point_metrics`; ``n``: scans the metric speaks of (for sensitivity the positive ones).
    Methods, at ``level``, two-sided:

    - ROC AUC: DeLong's variance on the logit scale, so that the interval stays inside (0, 1). Where all positives score
      above all negatives its variance is 0 and would claim certainty; then an exact bound: min(positives, negatives)
      disjoint pairs, all rightly ordered, are that many independent successes (Clopper-Pearson).
    - Sensitivity, specificity, accuracy: Clopper-Pearson over scans.
    - Others, and all of them under ``weights``: percentiles of ``n_boot`` resamples of scans, drawn within each class.
      Macro F1 whose replicates are all equal (no errors) takes the box of Clopper-Pearson bounds for sensitivity and
      specificity, Bonferroni shared, since macro F1 rises in both.
    - ECE: the percentiles reflected about the value, and widened to hold it, since resampling adds to ECE the bias
      it already has. Approximate: in simulations of 100 to 400 scans it covered 78 to 90 %, and less for
      nearly calibrated runs.

    Where no honest value or interval exists (class absent, one scan of a class, equal replicates, constant scores), it
    is NaN and ``reason`` says why. Raises ValueError for labels that are not 0 or 1 and probabilities outside [0, 1].
    """
    data = _checked(labels, probabilities, threshold, weights)
    return _evaluated([data], weights is not None, rng, n_boot, level, bins)


def by_run(runs: pd.DataFrame, *, threshold: float = 0.5, weights: str | None = None, bins: int = 10) -> pd.DataFrame:
    """Point metrics of each run, tidy: columns seed, fold (those in ``runs``), metric, value, n.

    ``runs``: one row a scan and run, with the columns scan_id, label, probability, seed and fold (either may be
    missing), ``threshold`` (optional, in place of the argument) and the column named by ``weights``.
    """
    keys = _run_keys(runs)
    parts = []
    for key, part in runs.groupby(keys, sort=True, dropna=False):
        values = _points(_run_data(part, threshold, weights), bins)
        rows = pd.DataFrame({"metric": list(values), "value": list(values.values()), "n": len(part)})
        for position, (name, value) in enumerate(zip(keys, key, strict=True)):
            rows.insert(position, name, value)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def pooled(
    runs: pd.DataFrame,
    *,
    rng: np.random.Generator,
    threshold: float = 0.5,
    weights: str | None = None,
    n_boot: int = 2000,
    level: float = 0.95,
    bins: int = 10,
) -> pd.DataFrame:
    """Out-of-fold predictions of all folds together, with intervals, beside the spread between runs.

    ``runs`` as in `by_run`: within a seed each scan is predicted once (by the fold that held it out).
    Gives the columns of `evaluate`, where ``value`` is the metric over all scans, averaged over seeds, and the interval
    resamples scans (the same ones for every seed): it covers the choice of scans, not that of seeds. Then
    ``run_mean``, ``run_sd`` (n - 1) and ``n_runs`` over the (seed, fold) runs in which the metric exists, and
    ``seed_sd``, the spread of the pooled value between seeds (NaN for one seed).
    Pooled AUC compares scores of different folds' models, so it can lie below ``run_mean`` where their scales differ.
    Raises ValueError when a scan is predicted twice in a seed, or seeds differ in their scans or labels.
    """
    if runs.empty:
        raise ValueError("no runs: the table of predictions is empty")
    _run_keys(runs)
    seeds = [("", runs)] if "seed" not in runs else list(runs.groupby("seed", sort=True))
    parts = []
    for seed, part in seeds:
        part = part.sort_values("scan_id", kind="stable").reset_index(drop=True)
        if (twice := part.scan_id.duplicated()).any():
            raise ValueError(
                f"seed {seed}: {part.scan_id[twice].iloc[0]} is predicted twice; expected one fold per scan"
            )
        if parts and not (part.scan_id.equals(parts[0].scan_id) and (part.label == parts[0].label).all()):
            raise ValueError(f"seed {seed} has other scans or labels than seed {seeds[0][0]}")
        parts.append(part)
    data = [_run_data(part, threshold, weights) for part in parts]
    result = _evaluated(data, weights is not None, rng, n_boot, level, bins)

    single = by_run(runs, threshold=threshold, weights=weights, bins=bins).groupby("metric")["value"]
    result["run_mean"] = result.metric.map(single.mean())
    result["run_sd"] = result.metric.map(single.std(ddof=1))
    result["n_runs"] = result.metric.map(single.count())
    by_seed = pd.DataFrame([_points(one, bins) for one in data])
    result["seed_sd"] = result.metric.map(by_seed.std(ddof=1))
    return result


# DeLong ------------------------------------------------------------------------------------------------------------


def delong(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and their covariance by DeLong's method, with midranks (ties count one half).

    ``labels``: (n,) 0 or 1; ``scores``: (n,) or (runs, n), any scale. Gives (runs,) and (runs, runs) float64.
    The covariance is NaN with fewer than 2 scans of a class. Raises ValueError when a class is absent.
    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988) 837-845; midranks after Sun & Xu, IEEE Signal
    Processing Letters 21 (2014) 1389-1393.

    >>> auc, covariance = delong([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> float(auc[0]), float(covariance[0, 0])
    (0.75, 0.125)
    """
    labels = _labels(labels)
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    if scores.shape[1:] != labels.shape:
        raise ValueError(f"scores of shape {scores.shape} for {len(labels)} labels")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    m, n = positive.shape[1], negative.shape[1]
    if not m or not n:
        raise ValueError(f"AUC needs both classes; got {m} positive and {n} negative scans")
    among_all = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    # A positive's rank among all less its rank among positives counts the negatives below it, ties one half.
    above = (among_all[:, :m] - rankdata(positive, axis=1)) / n
    below = 1 - (among_all[:, m:] - rankdata(negative, axis=1)) / m
    runs = len(scores)
    if min(m, n) < 2:
        return above.mean(axis=1), np.full((runs, runs), np.nan)
    covariance = np.cov(above).reshape(runs, runs) / m + np.cov(below).reshape(runs, runs) / n
    return above.mean(axis=1), covariance


# Paired comparisons ------------------------------------------------------------------------------------------------


def compare(
    labels: Any,
    a: Any,
    b: Any,
    *,
    rng: np.random.Generator,
    thresholds: tuple[float, float] = (0.5, 0.5),
    n_boot: int = 2000,
    level: float = 0.95,
) -> pd.DataFrame:
    """Two settings on the same scans: columns metric, a, b, difference (b - a), low, high, p_value, n, method, reason.

    ``a``, ``b``: (n,) probabilities in the order of ``labels``, or (n, seeds) of several runs, not necessarily as many
    of both: metrics are then means over the runs, as in `pooled`, and so is the difference. Where pandas objects are
    given their indices must be equal. ``thresholds``: for each a number, or an array of the scores' shape.

    Three rows: roc_auc (DeLong's paired test), accuracy (exact McNemar test of the decisions, interval by paired
    bootstrap), macro_f1 (paired stratified bootstrap; its p-value is the smallest level at which the percentile
    interval leaves 0 out, at least 2 / (n_boot + 1), and so is accuracy's with several runs). Intervals and tests
    cover the choice of scans, not that of seeds. For many comparisons see `adjust`.
    Equal scores give difference 0 and p = 1. Where no test exists, p is NaN and ``reason`` says why.
    """
    indices = [x.index for x in (labels, a, b) if isinstance(x, pd.Series | pd.DataFrame)]
    if any(not index.equals(indices[0]) for index in indices[1:]):
        raise ValueError("labels, a and b have different indices; align them by scan first")
    _require_level(level)
    pair = [_each_run(labels, scores, cut) for scores, cut in zip((a, b), thresholds, strict=True)]
    runs = pair[0] + pair[1]
    contrast = np.repeat([-1 / len(pair[0]), 1 / len(pair[1])], [len(part) for part in pair])
    points = [pd.DataFrame([_points(run, 10) for run in part]).mean() for part in pair]
    same_decisions = _equal(*([run.decisions for run in part] for part in pair))
    single = len(runs) == 2
    lone = _lone_class(runs[0])
    only = [] if same_decisions or lone else ["accuracy", "macro_f1"]
    replicates = _replicates(runs, rng, n_boot, 10, only=only, shares=contrast)

    rows = []
    for metric in ("roc_auc", "accuracy", "macro_f1"):
        value_a, value_b = (point[metric] for point in points)
        low, high, p, method, reason = np.nan, np.nan, np.nan, "", _undefined(metric, runs[0])
        if reason:
            pass
        elif metric == "roc_auc":
            if _equal(*([run.probabilities for run in part] for part in pair)):
                p, reason = 1.0, "equal scores"
            else:
                low, high, p, method, reason = _delong_test(runs, contrast, level)
        elif same_decisions:
            p, reason = 1.0, "equal decisions"
        else:
            reason = lone
            if metric == "accuracy" and single:
                p, method = _mcnemar(*runs), "McNemar, exact"
            if not lone and np.ptp(replicates[metric]) < 1e-12:
                reason = "every replicate gives the same difference"
            elif not lone:
                low, high = np.quantile(replicates[metric], [(1 - level) / 2, (1 + level) / 2])
                if not method:
                    beyond = min((replicates[metric] <= 0).sum(), (replicates[metric] >= 0).sum())
                    p = min(1.0, 2 * (beyond + 1) / (n_boot + 1))
                method = f"{method}; paired bootstrap" if method else "paired bootstrap"
        rows.append((metric, value_a, value_b, value_b - value_a, low, high, p, len(runs[0].labels), method, reason))
    columns = ["metric", "a", "b", "difference", "low", "high", "p_value", "n", "method", "reason"]
    return pd.DataFrame(rows, columns=columns)


def adjust(pvalues: Any, *, method: str = "holm") -> np.ndarray:
    """P-values corrected for multiple comparisons; NaN stays NaN and does not count as a comparison.

    ``method``: any of statsmodels' ``multipletests`` ("holm", "bonferroni", "fdr_bh", …).

    >>> adjust([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    from statsmodels.stats.multitest import multipletests

    values = np.asarray(pvalues, dtype=float)
    result = np.full(values.shape, np.nan)
    present = ~np.isnan(values)
    if present.any():
        result[present] = multipletests(values[present], method=method)[1]
    return result


# Inside ------------------------------------------------------------------------------------------------------------


class _Data(NamedTuple):
    labels: np.ndarray  # (n,) int64, 0 or 1
    probabilities: np.ndarray  # (n,) float64
    decisions: np.ndarray  # (n,) int64, 0 or 1
    weights: np.ndarray  # (n,) float64, > 0

    @property
    def n_positive(self) -> int:
        return int(self.labels.sum())

    @property
    def n_negative(self) -> int:
        return len(self.labels) - self.n_positive


def _labels(labels: Any) -> np.ndarray:
    values = pd.array(labels) if not isinstance(labels, pd.Series) else labels.array
    if missing := int(pd.isna(values).sum()):
        raise ValueError(f"{missing} of {len(values)} scans have no label; leave unlabeled scans out")
    values = np.asarray(values)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, one per scan; got {np.unique(values)[:5].tolist()}")
    return values.astype(np.int64)


def _require_probabilities(values: np.ndarray) -> None:
    if wrong := int((~((values >= 0) & (values <= 1))).sum()):
        raise ValueError(f"{wrong} of {values.size} probabilities are NaN or outside [0, 1]")


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level}, expected a share between 0 and 1, such as 0.95")


def _checked(labels: Any, probabilities: Any, threshold: Any, weights: Any) -> _Data:
    """Everything as arrays of one length; scans of weight 0 are left out."""
    labels = _labels(labels)
    probabilities = np.asarray(probabilities, dtype=float)
    if probabilities.shape != labels.shape:
        raise ValueError(f"{len(labels)} labels but probabilities of shape {probabilities.shape}")
    _require_probabilities(probabilities)
    threshold = np.asarray(threshold, dtype=float)
    if threshold.shape not in ((), labels.shape) or np.isnan(threshold).any():
        raise ValueError(f"threshold must be one number or one per scan, got shape {threshold.shape}")
    decisions = (probabilities >= threshold).astype(np.int64)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    if weights.shape != labels.shape or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"weights must be {len(labels)} finite numbers of 0 or more, one per scan")
    kept = weights > 0
    return _Data(labels[kept], probabilities[kept], decisions[kept], weights[kept])


def _each_run(labels: Any, scores: Any, thresholds: Any) -> list[_Data]:
    """(n,) or (n, seeds) scores as runs; thresholds: a number, or of the scores' shape."""
    scores, thresholds = np.asarray(scores, dtype=float), np.asarray(thresholds, dtype=float)
    if scores.ndim == 1:
        return [_checked(labels, scores, thresholds, None)]
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(f"scores are (n,) or (n, seeds), got shape {scores.shape}")
    cuts = thresholds.T if thresholds.ndim else [thresholds] * scores.shape[1]
    return [_checked(labels, column, cut, None) for column, cut in zip(scores.T, cuts, strict=True)]


def _equal(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def _run_keys(runs: pd.DataFrame) -> list[str]:
    if missing := [name for name in ("scan_id", "label", "probability") if name not in runs]:
        raise ValueError(f"the table of runs lacks the columns {missing}")
    if not (keys := [name for name in ("seed", "fold") if name in runs]):
        raise ValueError("the table of runs needs a column seed or fold to tell runs apart")
    return keys


def _run_data(part: pd.DataFrame, threshold: float, weights: str | None) -> _Data:
    cut = part["threshold"].to_numpy(dtype=float) if "threshold" in part else threshold
    return _checked(part.label, part.probability, cut, None if weights is None else part[weights])


def _undefined(metric: str, data: _Data) -> str:
    """Why the metric has no value, or ""."""
    if not len(data.labels):
        return "no scans"
    if metric in NEED_POSITIVES and not data.n_positive:
        return "no positive scans"
    if metric in NEED_NEGATIVES and not data.n_negative:
        return "no negative scans"
    return ""


def _lone_class(data: _Data) -> str:
    """Resampling within a class says nothing about a class of one scan."""
    if data.n_positive == 1:
        return "one positive scan: its class cannot be resampled"
    if data.n_negative == 1:
        return "one negative scan: its class cannot be resampled"
    return ""


def _points(data: _Data, bins: int) -> dict[str, float]:
    from sklearn import metrics as sk

    labels, probabilities, decisions, weights = data
    weighted = {"sample_weight": weights}
    compute = {
        "macro_f1": lambda: sk.f1_score(labels, decisions, average="macro", zero_division=0.0, **weighted),
        "roc_auc": lambda: sk.roc_auc_score(labels, probabilities, **weighted),
        "pr_auc": lambda: sk.average_precision_score(labels, probabilities, **weighted),
        "sensitivity": lambda: sk.recall_score(labels, decisions, pos_label=1, **weighted),
        "specificity": lambda: sk.recall_score(labels, decisions, pos_label=0, **weighted),
        "accuracy": lambda: sk.accuracy_score(labels, decisions, **weighted),
        "brier": lambda: np.average((probabilities - labels) ** 2, weights=weights),
        "ece": lambda: _ece(data, weights[None], bins)[0],
    }
    return {m: np.nan if _undefined(m, data) else float(compute[m]()) for m in METRICS}


def _ece(data: _Data, weights: np.ndarray, bins: int) -> np.ndarray:
    """(R, n) weights -> (R,). In a bin, weight · |mean label - mean probability| = |Σ w (label - probability)|."""
    if bins < 1:
        raise ValueError(f"bins={bins}, expected 1 or more")
    place = np.minimum((data.probabilities * bins).astype(int), bins - 1)
    member = np.eye(bins)[place]  # (n, bins)
    gaps = weights @ (member * (data.labels - data.probabilities)[:, None])
    return np.abs(gaps).sum(axis=1) / weights.sum(axis=1)


def _macro_f1(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Mean of both classes' F1; needs both classes among the labels, so neither denominator is 0."""
    return tp / (2 * tp + fp + fn) + tn / (2 * tn + fp + fn)


def _weighted_metrics(data: _Data, weights: np.ndarray, bins: int, only: Sequence[str]) -> dict[str, np.ndarray]:
    """The metrics for many weightings at once: (R, n) weights -> (R,) each. What scikit-learn does one at a time."""
    positive, called = data.labels == 1, data.decisions == 1
    total = weights.sum(axis=1)
    tp, fn = weights @ (positive & called), weights @ (positive & ~called)
    fp, tn = weights @ (~positive & called), weights @ (~positive & ~called)
    result = {}
    if {"roc_auc", "pr_auc"} & set(only):
        order = np.argsort(data.probabilities, kind="stable")
        scores = data.probabilities[order]
        starts = np.flatnonzero(np.concatenate([[True], np.diff(scores) > 0]))  # groups of equal scores
        ranked = weights[:, order]
        pos = np.add.reduceat(ranked * positive[order], starts, axis=1)  # (R, groups)
        neg = np.add.reduceat(ranked * ~positive[order], starts, axis=1)
        if "roc_auc" in only:
            result["roc_auc"] = (pos * (np.cumsum(neg, axis=1) - neg / 2)).sum(axis=1) / ((tp + fn) * (fp + tn))
        if "pr_auc" in only:
            pos_down, neg_down = pos[:, ::-1], neg[:, ::-1]
            above = np.cumsum(pos_down, axis=1)
            called_so_far = above + np.cumsum(neg_down, axis=1)
            # A replicate may hold none of the top groups: no recall is gained there, whatever the precision.
            precision = above / np.where(called_so_far > 0, called_so_far, 1)
            result["pr_auc"] = (pos_down * precision).sum(axis=1) / (tp + fn)
    if "macro_f1" in only:
        result["macro_f1"] = _macro_f1(tp, fp, tn, fn)
    if "sensitivity" in only:
        result["sensitivity"] = tp / (tp + fn)
    if "specificity" in only:
        result["specificity"] = tn / (tn + fp)
    if "accuracy" in only:
        result["accuracy"] = (tp + tn) / total
    if "brier" in only:
        result["brier"] = weights @ (data.probabilities - data.labels) ** 2 / total
    if "ece" in only:
        result["ece"] = _ece(data, weights, bins)
    return result


def _draw_counts(labels: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, n) float64: how often each scan is drawn, with replacement within its class."""
    counts = np.zeros((size, len(labels)))
    for value in (0, 1):
        members = np.flatnonzero(labels == value)
        if m := len(members):
            drawn = rng.integers(m, size=(size, m)) + np.arange(size)[:, None] * m
            counts[:, members] = np.bincount(drawn.ravel(), minlength=size * m).reshape(size, m)
    return counts


def _replicates(
    runs: Sequence[_Data],
    rng: np.random.Generator,
    n_boot: int,
    bins: int,
    *,
    only: Sequence[str],
    shares: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """(n_boot,) values of each metric: its sum over ``runs`` by ``shares`` (the mean), all on the same resamples."""
    if n_boot < 1:
        raise ValueError(f"n_boot={n_boot}, expected 1 or more")
    shares = np.full(len(runs), 1 / len(runs)) if shares is None else shares
    labels = runs[0].labels
    only = [m for m in only if not _undefined(m, runs[0])]
    blocks: dict[str, list[np.ndarray]] = {m: [] for m in only}
    step = max(1, BLOCK // max(1, len(labels)))
    for start in range(0, n_boot, step):
        counts = _draw_counts(labels, rng, min(step, n_boot - start))
        values = [_weighted_metrics(run, counts * run.weights, bins, only) for run in runs]
        for m in only:
            blocks[m].append(sum(share * v[m] for share, v in zip(shares, values, strict=True)))
    return {m: np.concatenate(parts) for m, parts in blocks.items()}


def _proportion_interval(successes: int, n: int, level: float) -> tuple[float, float]:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - level, method="beta")
    return float(low), float(high)


def _auc_interval(runs: Sequence[_Data], level: float) -> tuple[float, float, str, str]:
    """low, high, method, reason for the mean AUC of ``runs`` on the same scans."""
    if lone := _lone_class(runs[0]):
        return np.nan, np.nan, "", lone
    aucs, covariance = delong(runs[0].labels, np.stack([run.probabilities for run in runs]))
    auc, variance = aucs.mean(), covariance.mean()  # Var(mean) = Σ covariances / runs²
    if variance > 1e-15 and 0 < auc < 1:
        reach = norm.isf((1 - level) / 2) * np.sqrt(variance) / (auc * (1 - auc))
        return float(expit(logit(auc) - reach)), float(expit(logit(auc) + reach)), "DeLong, logit scale", ""
    if auc in (0, 1):
        pairs = min(runs[0].n_positive, runs[0].n_negative)
        low, high = _proportion_interval(pairs if auc else 0, pairs, level)
        return low, high, "exact, disjoint pairs", ""
    constant = all(np.ptp(run.probabilities) == 0 for run in runs)
    return np.nan, np.nan, "", "constant scores" if constant else "DeLong's variance is 0"


def _f1_box(data: _Data, level: float) -> tuple[float, float]:
    """Macro F1 at the corners of Clopper-Pearson bounds for sensitivity and specificity, Bonferroni shared."""
    p, n = data.n_positive, data.n_negative
    tp = int((data.labels & data.decisions).sum())
    tn = n - int(((1 - data.labels) & data.decisions).sum())
    shared = 1 - (1 - level) / 2
    corners = zip(_proportion_interval(tp, p, shared), _proportion_interval(tn, n, shared), strict=True)
    low, high = (_macro_f1(se * p, (1 - sp) * n, sp * n, (1 - se) * p) for se, sp in corners)
    return float(low), float(high)


def _evaluated(
    runs: Sequence[_Data], weighted: bool, rng: np.random.Generator, n_boot: int, level: float, bins: int
) -> pd.DataFrame:
    """The table of `evaluate` for the mean of ``runs`` (seeds), which share scans, labels and weights."""
    _require_level(level)
    data = runs[0]
    values = pd.DataFrame([_points(run, bins) for run in runs]).mean()
    sizes = {"sensitivity": data.n_positive, "specificity": data.n_negative}
    exact = not weighted and len(runs) == 1
    replicates = _replicates(runs, rng, n_boot, bins, only=METRICS)
    tail = (1 - level) / 2
    rows = []
    for metric in METRICS:
        n = sizes.get(metric, len(data.labels))
        low, high, method, reason = np.nan, np.nan, "", _undefined(metric, data)
        if reason:
            pass
        elif metric == "roc_auc" and not weighted:
            low, high, method, reason = _auc_interval(runs, level)
        elif metric in ("sensitivity", "specificity", "accuracy") and exact:
            low, high = _proportion_interval(round(values[metric] * n), n, level)
            method = "Clopper-Pearson"
        elif reason := _lone_class(data):
            pass
        elif np.ptp(replicates[metric]) > 1e-12:
            low, high = np.quantile(replicates[metric], [tail, 1 - tail])
            method = "stratified bootstrap"
            if metric == "ece":
                value = values[metric]
                low, high = max(0.0, min(value, 2 * value - high)), max(value, 2 * value - low)
                method = "stratified bootstrap, reflected"
        elif metric == "macro_f1" and exact:
            low, high = _f1_box(data, level)
            method = "Clopper-Pearson box"
        else:
            reason = "every replicate gives the same value"
        rows.append((metric, values[metric], low, high, n, method, reason))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "method", "reason"])


def _delong_test(runs: Sequence[_Data], contrast: np.ndarray, level: float) -> tuple[float, float, float, str, str]:
    """low, high, p, method, reason for the sum of the AUCs by ``contrast``, all on the same scans."""
    if lone := _lone_class(runs[0]):
        return np.nan, np.nan, np.nan, "", lone
    auc, covariance = delong(runs[0].labels, np.stack([run.probabilities for run in runs]))
    difference, variance = contrast @ auc, contrast @ covariance @ contrast
    if variance < 1e-15:
        if abs(difference) < 1e-12:
            return np.nan, np.nan, 1.0, "", "equal order of positive and negative scans"
        return np.nan, np.nan, np.nan, "", "DeLong's variance is 0"
    error = np.sqrt(variance)
    reach = norm.isf((1 - level) / 2) * error
    p = 2 * norm.sf(abs(difference) / error)
    return float(difference - reach), float(difference + reach), float(p), "DeLong, paired", ""


def _mcnemar(first: _Data, second: _Data) -> float:
    """Exact two-sided p; only scans that just one of the runs gets right count. They are not none here."""
    from statsmodels.stats.contingency_tables import mcnemar

    right_a, right_b = first.decisions == first.labels, second.decisions == second.labels
    table = [
        [(right_a & right_b).sum(), (right_a & ~right_b).sum()],
        [(~right_a & right_b).sum(), (~right_a & ~right_b).sum()],
    ]
    return float(mcnemar(table, exact=True).pvalue)
