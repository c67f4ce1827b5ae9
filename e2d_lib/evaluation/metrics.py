"""The metrics on scan scores, with intervals.

The scan is the unit: intervals treat scans as independent draws and hold the class sizes fixed. Where patients have
several scans, ``groups`` names the patient, and whole patients are resampled.
Released scores count a scan once for each of its slices (method/README.md §5); slice counts as ``weights`` do the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import norm, rankdata, t

from e2d_lib import bootstrap
from e2d_lib.network.scores import require_probabilities

METRICS = ("macro_f1", "roc_auc", "pr_auc", "sensitivity", "specificity", "accuracy", "brier", "ece")
"""macro_f1 is the challenge's; pr_auc is average precision; ece, the expected calibration error, is the mean over scans
of |share of positives - mean probability| of their bin, for `BINS` bins of equal width, the last one closed."""
BINS = 10

SKEWED, EDGE = ("pr_auc", "brier"), 1e-4
"""Metrics whose percentiles fail in small cohorts, and how near to 0 and 1 the logit scale serves them."""

NEED_POSITIVES = {"macro_f1", "roc_auc", "pr_auc", "sensitivity"}
NEED_NEGATIVES = {"macro_f1", "roc_auc", "pr_auc", "specificity"}

# Point values ------------------------------------------------------------------------------------------------------


def point_metrics(labels: Any, probabilities: Any, *, threshold: Any = 0.5, weights: Any = None) -> dict[str, float]:
    """Every metric of ``METRICS`` as a number; NaN where it has no meaning (a class is absent).

    ``labels``: (n,) 0 or 1. ``probabilities``: (n,) in [0, 1]. A scan is called positive when probability ≥
    ``threshold`` (one number, or one per scan). ``weights``: (n,) ≥ 0; slices of each scan count as the released code.

    >>> m = point_metrics([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
    >>> m["macro_f1"], m["roc_auc"], m["sensitivity"]
    (0.5, 0.75, 0.5)
    """
    return points(checked(labels, probabilities, threshold, weights))


def best_threshold(labels: Any, probabilities: Any) -> float:
    """The cut that maximises macro F1; for scores of training scans only, never of the scans then reported.

    Candidates are the midpoints between neighbouring distinct scores, of equals the one nearest 0.5. Constant scores
    give 0.5. Raises ValueError when a class is absent.

    >>> best_threshold([0, 0, 1, 1], [0.125, 0.25, 0.75, 0.875])
    0.5
    """
    data = checked(labels, probabilities, 0.5, None)
    if not data.n_positive or not data.n_negative:
        raise ValueError(
            f"a threshold needs both classes; got {data.n_positive} positive and {data.n_negative} negative scans"
        )
    order = np.argsort(data.probabilities, kind="stable")
    scores = data.probabilities[order]
    cuts = np.flatnonzero(np.diff(scores) > 0) + 1  # the first scan called positive
    if not cuts.size:
        return 0.5
    fn = np.cumsum(data.labels[order])[cuts - 1]
    tn = cuts - fn
    value = macro_f1(data.n_positive - fn, data.n_negative - tn, tn, fn)
    middles = (scores[cuts - 1] + scores[cuts]) / 2
    # Adjacent floats may have no float between them: the cut is then the upper score itself.
    middles = np.where(middles > scores[cuts - 1], middles, scores[cuts])
    best = middles[value >= value.max() * (1 - 1e-12)]
    return float(best[np.argmin(np.abs(best - 0.5))])


# Intervals ---------------------------------------------------------------------------------------------------------


def pooled(
    runs: pd.DataFrame,
    *,
    rng: np.random.Generator,
    threshold: float = 0.5,
    weights: str | None = None,
    n_boot: int = 2000,
) -> pd.DataFrame:
    """Out-of-fold predictions of all folds together, with intervals, beside the spread between runs.

    ``runs``: one row a scan and run, with the columns scan_id, label, probability, seed and fold (either may be
    missing), ``threshold`` (optional, in place of the argument), ``patient`` (optional: whose scans are resampled
    together) and the column named by ``weights``. Within a seed each scan is predicted once, by the fold that held it
    out.

    Columns metric, value (over all scans, averaged over seeds), low, high, n (scans the metric speaks of, for
    sensitivity the positive ones), method, reason. The interval, of 95 % and two-sided, covers the choice of scans
    (the same ones for every seed), not that of seeds:

    - ROC AUC: DeLong's variance on the logit scale, so that the interval stays inside (0, 1). Where all positives score
      above all negatives its variance is 0 and would claim certainty; then an exact bound: min(positives, negatives)
      disjoint pairs, all rightly ordered, are that many independent successes (Clopper-Pearson).
    - Sensitivity, specificity, accuracy of one seed: Clopper-Pearson over scans.
    - Average precision and Brier score: the bootstrap's standard error on the logit scale, with Student's quantile. In
      cohorts of 44 scans they hold the truth in 92 to 94 % and 91 to 94 %; percentiles in 82 to 90 % and 87 to 94 %, as
      both are skewed, and resampling, which repeats scans, raises average precision.
    - Others, and all of them under ``weights``, or where a patient has several scans: percentiles of ``n_boot``
      resamples, drawn within each class.
    - ECE has none: resampling adds to it the bias that it already has.

    Where no honest value or interval exists (class absent, one scan of a class, equal replicates, constant scores), it
    is NaN and ``reason`` says why. Then ``run_mean``, ``run_sd`` (n - 1) and ``n_runs`` over the (seed, fold)
    runs in which the metric exists, and ``seed_sd``, the spread of the pooled value between seeds (NaN for one seed).
    Pooled AUC compares scores of different folds' models, so it can lie below ``run_mean`` where their scales differ.
    Raises ValueError when a scan is predicted twice in a seed, or seeds differ in their scans or labels.
    """
    if runs.empty:
        raise ValueError("no runs: the table of predictions is empty")
    keys = _run_keys(runs)
    groups = "patient" if "patient" in runs else None
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
    data = [_run_data(part, threshold, weights, groups) for part in parts]
    result = _evaluated(data, weights is not None, rng, n_boot)

    every = runs.groupby(keys, sort=True, dropna=False)
    single = pd.DataFrame([points(_run_data(part, threshold, weights)) for _, part in every])
    single = single.melt(var_name="metric").groupby("metric")["value"]
    result["run_mean"] = result.metric.map(single.mean())
    result["run_sd"] = result.metric.map(single.std(ddof=1))
    result["n_runs"] = result.metric.map(single.count())
    by_seed = pd.DataFrame([points(one) for one in data])
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
    above, below = placements(positive, negative)
    runs = len(scores)
    if min(m, n) < 2:
        return above.mean(axis=1), np.full((runs, runs), np.nan)
    covariance = np.cov(above).reshape(runs, runs) / m + np.cov(below).reshape(runs, runs) / n
    return above.mean(axis=1), covariance


def placements(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(runs, m) and (runs, n) scores -> of each positive the share of negatives below it, of each negative the share of
    positives above it; ties count one half. The mean of either is the AUC."""
    m, n = positive.shape[1], negative.shape[1]
    among_all = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    # A positive's rank among all less its rank among positives counts the negatives below it, ties one half.
    above = (among_all[:, :m] - rankdata(positive, axis=1)) / n
    return above, 1 - (among_all[:, m:] - rankdata(negative, axis=1)) / m


# Calibration and use -----------------------------------------------------------------------------------------------


def calibration(labels: Any, probabilities: Any, *, groups: Any = None) -> pd.DataFrame:
    """Intercept and slope of the labels' log-odds on the predicted ones; columns metric, value, low, high, n, reason.

    slope: 1 is calibrated, less is overconfident. intercept: with the slope held at 1; 0 where as many scans are
    positive as the probabilities add up to, more where fewer are predicted (Cox, Biometrika 45 (1958) 562-565; Van
    Calster et al., BMC Medicine 17 (2019) 230). Wald's intervals; robust to ``groups``, such as patients of several
    scans. NaN, with the reason, where a class is absent or the classes lie apart, so that nothing finite fits.
    """
    from statsmodels.api import GLM, families

    data = checked(labels, probabilities, 0.5, None, groups)
    x, y = logit(np.clip(data.probabilities, 1e-6, 1 - 1e-6)), data.labels
    reasons = {"intercept": "" if 0 < data.n_positive < len(y) else "one class only"}
    reasons["slope"] = reasons["intercept"] or ("constant scores" if np.ptp(x) == 0 else "")
    if not reasons["slope"] and (min(x[y == 1]) > max(x[y == 0]) or max(x[y == 1]) < min(x[y == 0])):
        reasons["slope"] = "the classes lie apart"
    one, rows = np.ones_like(x), []
    designs = {"intercept": (one[:, None], x), "slope": (np.column_stack([one, x]), np.zeros_like(x))}
    kind = {} if data.groups is None else {"cov_type": "cluster", "cov_kwds": {"groups": pd.factorize(data.groups)[0]}}
    for name, (design, offset) in designs.items():
        value, low, high = np.nan, np.nan, np.nan
        if not reasons[name]:
            fit = GLM(y, design, families.Binomial(), offset=offset).fit(**kind)
            value, (low, high) = fit.params[-1], fit.conf_int(1 - bootstrap.LEVEL)[-1]
        rows.append((name, value, low, high, len(y), reasons[name]))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "reason"])


# Paired comparisons ------------------------------------------------------------------------------------------------


def detectable(error: float, freedom: float = np.inf) -> float:
    """The smallest difference that a test at 5 % finds with 80 % power, were its standard error ``error``.

    freedom: degrees of freedom of the error; without them it is taken as known.

    >>> round(detectable(0.01), 4)
    0.028
    """
    return float((t.isf(0.025, freedom) + t.ppf(0.8, freedom)) * error)


def adjust(pvalues: Any) -> np.ndarray:
    """P-values corrected for multiple comparisons by Holm; NaN stays NaN and does not count as a comparison.

    >>> adjust([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(pvalues, dtype=float)
    result = np.full(values.shape, np.nan)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaN sorts last
    # statsmodels' form calls Python's garbage collector each time: up to 0.25 s in a chapter that imports torch.
    result[order] = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return result


# Inside ------------------------------------------------------------------------------------------------------------


class Scored(NamedTuple):
    labels: np.ndarray  # (n,) int64, 0 or 1
    probabilities: np.ndarray  # (n,) float64
    decisions: np.ndarray  # (n,) int64, 0 or 1
    weights: np.ndarray  # (n,) float64, > 0
    groups: np.ndarray | None = None  # (n,) what is resampled whole

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


def checked(labels: Any, probabilities: Any, threshold: Any, weights: Any, groups: Any = None) -> Scored:
    """Everything as arrays of one length; scans of weight 0 are left out."""
    labels = _labels(labels)
    probabilities = np.asarray(probabilities, dtype=float)
    if probabilities.shape != labels.shape:
        raise ValueError(f"{len(labels)} labels but probabilities of shape {probabilities.shape}")
    require_probabilities(probabilities)
    threshold = np.asarray(threshold, dtype=float)
    if threshold.shape not in ((), labels.shape) or np.isnan(threshold).any():
        raise ValueError(f"threshold must be one number or one per scan, got shape {threshold.shape}")
    decisions = (probabilities >= threshold).astype(np.int64)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    if weights.shape != labels.shape or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"weights must be {len(labels)} finite numbers of 0 or more, one per scan")
    groups = None if groups is None else np.asarray(groups)
    if groups is not None and (groups.shape != labels.shape or pd.isna(groups).any()):
        raise ValueError(f"groups must name the group of each of {len(labels)} scans")
    kept = weights > 0
    groups = None if groups is None else groups[kept]
    groups = None if groups is None or len(set(groups)) == len(groups) else groups  # one of each: no groups
    return Scored(labels[kept], probabilities[kept], decisions[kept], weights[kept], groups)


def _run_keys(runs: pd.DataFrame) -> list[str]:
    if missing := [name for name in ("scan_id", "label", "probability") if name not in runs]:
        raise ValueError(f"the table of runs lacks the columns {missing}")
    if not (keys := [name for name in ("seed", "fold") if name in runs]):
        raise ValueError("the table of runs needs a column seed or fold to tell runs apart")
    return keys


def _run_data(part: pd.DataFrame, threshold: float, weights: str | None, groups: str | None = None) -> Scored:
    cut = part["threshold"].to_numpy(dtype=float) if "threshold" in part else threshold
    return checked(
        part.label, part.probability, cut, *(None if name is None else part[name] for name in (weights, groups))
    )


def undefined(metric: str, data: Scored) -> str:
    """Why the metric has no value, or ""."""
    if not len(data.labels):
        return "no scans"
    if metric in NEED_POSITIVES and not data.n_positive:
        return "no positive scans"
    if metric in NEED_NEGATIVES and not data.n_negative:
        return "no negative scans"
    return ""


def lone_class(data: Scored) -> str:
    """Resampling within a class says nothing about a class of one scan, or of one group."""
    for name, members in (("positive", data.labels == 1), ("negative", data.labels == 0)):
        if members.sum() == 1:
            return f"one {name} scan: its class cannot be resampled"
        if data.groups is not None and members.any() and len(set(data.groups[members])) == 1:
            return f"one group of {name} scans: its class cannot be resampled"
    return ""


def points(data: Scored) -> dict[str, float]:
    from sklearn import metrics as sk

    labels, probabilities, decisions, weights, _ = data
    weighted = {"sample_weight": weights}
    compute = {
        "macro_f1": lambda: sk.f1_score(labels, decisions, average="macro", zero_division=0.0, **weighted),
        "roc_auc": lambda: sk.roc_auc_score(labels, probabilities, **weighted),
        "pr_auc": lambda: sk.average_precision_score(labels, probabilities, **weighted),
        "sensitivity": lambda: sk.recall_score(labels, decisions, pos_label=1, **weighted),
        "specificity": lambda: sk.recall_score(labels, decisions, pos_label=0, **weighted),
        "accuracy": lambda: sk.accuracy_score(labels, decisions, **weighted),
        "brier": lambda: np.average((probabilities - labels) ** 2, weights=weights),
        "ece": lambda: _ece(data, weights[None])[0],
    }
    return {m: np.nan if undefined(m, data) else float(compute[m]()) for m in METRICS}


def _ece(data: Scored, weights: np.ndarray) -> np.ndarray:
    """(R, n) weights -> (R,). In a bin, weight · |mean label - mean probability| = |Σ w (label - probability)|."""
    place = np.minimum((data.probabilities * BINS).astype(int), BINS - 1)
    member = np.eye(BINS)[place]  # (n, bins)
    gaps = weights @ (member * (data.labels - data.probabilities)[:, None])
    return np.abs(gaps).sum(axis=1) / weights.sum(axis=1)


def macro_f1(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Mean of both classes' F1; needs both classes among the labels, so neither denominator is 0."""
    return tp / (2 * tp + fp + fn) + tn / (2 * tn + fp + fn)


def _weighted_metrics(data: Scored, weights: np.ndarray, only: Sequence[str]) -> dict[str, np.ndarray]:
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
        result["macro_f1"] = macro_f1(tp, fp, tn, fn)
    if "sensitivity" in only:
        result["sensitivity"] = tp / (tp + fn)
    if "specificity" in only:
        result["specificity"] = tn / (tn + fp)
    if "accuracy" in only:
        result["accuracy"] = (tp + tn) / total
    if "brier" in only:
        result["brier"] = weights @ (data.probabilities - data.labels) ** 2 / total
    if "ece" in only:
        result["ece"] = _ece(data, weights)
    return result


def replicates(
    runs: Sequence[Scored],
    rng: np.random.Generator,
    n_boot: int,
    *,
    only: Sequence[str],
    shares: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """(n_boot,) values of each metric: its sum over ``runs`` by ``shares`` (the mean), all on the same resamples."""
    shares = np.full(len(runs), 1 / len(runs)) if shares is None else shares
    labels = runs[0].labels
    only = [m for m in only if not undefined(m, runs[0])]
    blocks: dict[str, list[np.ndarray]] = {m: [] for m in only}
    for counts in bootstrap.counts(rng, n_boot, len(labels), strata=labels, groups=runs[0].groups):
        values = [_weighted_metrics(run, counts * run.weights, only) for run in runs]
        for m in only:
            blocks[m].append(sum(share * v[m] for share, v in zip(shares, values, strict=True)))
    return {m: np.concatenate(parts) for m, parts in blocks.items()}


def _auc_interval(runs: Sequence[Scored]) -> tuple[float, float, str, str]:
    """low, high, method, reason for the mean AUC of ``runs`` on the same scans."""
    if lone := lone_class(runs[0]):
        return np.nan, np.nan, "", lone
    aucs, covariance = delong(runs[0].labels, np.stack([run.probabilities for run in runs]))
    auc, variance = aucs.mean(), covariance.mean()  # Var(mean) = Σ covariances / runs²
    if variance > 1e-15 and 0 < auc < 1:
        reach = norm.isf((1 - bootstrap.LEVEL) / 2) * np.sqrt(variance) / (auc * (1 - auc))
        return float(expit(logit(auc) - reach)), float(expit(logit(auc) + reach)), "DeLong, logit scale", ""
    if auc in (0, 1):
        pairs = min(runs[0].n_positive, runs[0].n_negative)
        low, high = bootstrap.clopper_pearson(pairs if auc else 0, pairs)
        return low, high, "exact, disjoint pairs", ""
    constant = all(np.ptp(run.probabilities) == 0 for run in runs)
    return np.nan, np.nan, "", "constant scores" if constant else "DeLong's variance is 0"


def _evaluated(runs: Sequence[Scored], weighted: bool, rng: np.random.Generator, n_boot: int) -> pd.DataFrame:
    """The first columns of `pooled` for the mean of ``runs`` (seeds), which share scans, labels, weights and groups."""
    data = runs[0]
    values = pd.DataFrame([points(run) for run in runs]).mean()
    sizes = {"sensitivity": data.n_positive, "specificity": data.n_negative}
    independent = not weighted and data.groups is None
    closed = ("roc_auc",) * independent + ("sensitivity", "specificity", "accuracy") * (independent and len(runs) == 1)
    drawn = [metric for metric in METRICS if metric not in (*closed, "ece")]
    resampled = replicates(runs, rng, n_boot, only=drawn)
    rows = []
    for metric in METRICS:
        n = sizes.get(metric, len(data.labels))
        low, high, method, reason = np.nan, np.nan, "", undefined(metric, data)
        if reason:
            pass
        elif metric == "ece":
            reason = "resampling adds to its bias"
        elif metric == "roc_auc" and metric in closed:
            low, high, method, reason = _auc_interval(runs)
        elif metric in closed:
            low, high = bootstrap.clopper_pearson(round(values[metric] * n), n)
            method = "Clopper-Pearson"
        elif reason := lone_class(data):
            pass
        elif np.ptp(resampled[metric]) > 1e-12:
            low, high = bootstrap.percentiles(resampled[metric])
            method = "stratified bootstrap" if data.groups is None else "stratified bootstrap of groups"
            if metric in SKEWED and EDGE < values[metric] < 1 - EDGE:
                freedom = (n if data.groups is None else len(set(data.groups))) - 2
                value = values[metric]
                error = resampled[metric].std(ddof=1) / (value * (1 - value))  # the delta method
                reach = t.isf((1 - bootstrap.LEVEL) / 2, freedom) * error
                low, high = (float(expit(logit(value) + side * reach)) for side in (-1, 1))
                method += ", logit scale"
        else:
            reason = "every replicate gives the same value"
        rows.append((metric, values[metric], low, high, n, method, reason))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "method", "reason"])
