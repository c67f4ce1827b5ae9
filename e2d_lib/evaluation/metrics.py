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
from scipy.stats import rankdata, t

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
    scores, place = np.unique(data.probabilities, return_inverse=True)
    if len(scores) == 1:
        return 0.5
    middles = (scores[:-1] + scores[1:]) / 2
    # Adjacent floats may have no float between them: the cut is then the upper score itself.
    middles = np.where(middles > scores[:-1], middles, scores[1:])
    fn = np.bincount(place, data.labels).cumsum()[:-1]  # of each cut, the positives below it
    tn = np.bincount(place).cumsum()[:-1] - fn
    value = macro_f1(data.n_positive - fn, data.n_negative - tn, tn, fn)
    best = middles[value >= value.max() * (1 - 1e-12)]
    return float(best[np.argmin(np.abs(best - 0.5))])


# Intervals ---------------------------------------------------------------------------------------------------------


def pooled(
    runs: pd.DataFrame,
    *,
    rng: np.random.Generator | int,
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
    if missing := [name for name in ("scan_id", "label", "probability") if name not in runs]:
        raise ValueError(f"the table of runs lacks the columns {missing}")
    if not (keys := [name for name in ("seed", "fold") if name in runs]):
        raise ValueError("the table of runs needs a column seed or fold to tell runs apart")

    def scored(part: pd.DataFrame) -> Scored:
        weight = None if weights is None else part[weights]
        return checked(part.label, part.probability, part.get("threshold", threshold), weight, part.get("patient"))

    parts: list[pd.DataFrame] = []
    for seed, part in runs.groupby("seed", sort=True) if "seed" in runs else [("", runs)]:
        part = part.sort_values("scan_id", kind="stable").reset_index(drop=True)
        if (twice := part.scan_id.duplicated()).any():
            raise ValueError(
                f"seed {seed}: {part.scan_id[twice].iloc[0]} is predicted twice; expected one fold per scan"
            )
        if parts and not (part.scan_id.equals(parts[0].scan_id) and (part.label == parts[0].label).all()):
            raise ValueError(f"seed {seed} has other scans or labels than seed {parts[0].seed[0]}")
        parts.append(part)
    data = [scored(part) for part in parts]
    by_seed = pd.DataFrame([points(one) for one in data])
    single = pd.DataFrame([points(scored(part)) for _, part in runs.groupby(keys, sort=True, dropna=False)])
    spread = {"run_mean": single.mean(), "run_sd": single.std(), "n_runs": single.count(), "seed_sd": by_seed.std()}
    table = _intervals(data, by_seed.mean(), weights is not None, rng, n_boot)
    return table.join(pd.DataFrame(spread), on="metric")


# Influence of the scans --------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """A metric of some runs on the same scans. values: (runs,); parts: (runs, patients), their influence on each,
    scaled so that ``parts @ parts.T`` is the runs' covariance over the choice of patients."""

    values: np.ndarray
    parts: np.ndarray

    def __sub__(self, other: "Runs") -> "Runs":
        return Runs(self.values - other.values, self.parts - other.parts)


def runs(
    labels: Any, probabilities: Any, metric: str = "roc_auc", threshold: float = 0.5, *, patients: Any = None
) -> Runs:
    """Of (scans,) labels and (scans,) or (runs, scans) probabilities: `metric`, "roc_auc" or "macro_f1", of each run.

    The influence is a jackknife's, within the classes. Of ROC AUC that is DeLong's (DeLong, DeLong & Clarke-Pearson,
    Biometrics 44 (1988) 837-845; by ranks after Sun & Xu, IEEE Signal Processing Letters 21 (2014) 1389-1393). It is
    summed in each patient (Obuchowski, Biometrics 53 (1997) 567-578), as scans of one patient may depend on each other
    in any way, and scaled as each class has n patients in place of m scans.
    patients: (scans,), whose; without it each scan is one's.

    Raises ValueError with fewer than two scans, or two patients, of a class.

    >>> found = runs([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> float(found.values[0]), round(float((found.parts @ found.parts.T)[0, 0]), 12)
    (0.75, 0.125)
    """
    labels, scores = np.asarray(labels), np.atleast_2d(np.asarray(probabilities, dtype=float))
    both = [np.flatnonzero(labels == value) for value in (1, 0)]
    m, n = map(len, both)
    of = pd.factorize(np.arange(m + n) if patients is None else np.asarray(patients, dtype=object))[0]
    whose = [len(np.unique(of[rows])) for rows in both]
    if min(whose) < 2:
        raise ValueError(
            f"{m} positive and {n} negative scans of {whose[0]} and {whose[1]} patients; two of each are needed"
        )
    if metric == "roc_auc":
        # A scan's rank among all less its rank in its class counts the other class's below it, ties one half.
        ranks = rankdata(scores, axis=1)
        below = [ranks[:, rows] - rankdata(scores[:, rows], axis=1) for rows in both]
        values = below[0].sum(1) / (m * n)
        without = [-below[0] / ((m - 1) * n), below[1] / (m * (n - 1))]  # but for a constant
    else:
        hits, false = ((scores[:, rows] >= threshold).astype(int) for rows in both)
        tp, fp = hits.sum(1, keepdims=True), false.sum(1, keepdims=True)
        values = macro_f1(tp, fp, n - fp, m - tp)[:, 0]
        without = [
            macro_f1(tp - hits, fp, n - fp, m - 1 - (tp - hits)),
            macro_f1(tp, fp - false, n - 1 - (fp - false), m - tp),
        ]
    parts = np.zeros((len(scores), of.max() + 1))
    for rows, left, count in zip(both, without, whose, strict=True):
        scale = (len(rows) - 1) / len(rows) * np.sqrt(count / (count - 1))
        np.add.at(parts, (slice(None), of[rows]), (left.mean(1, keepdims=True) - left) * scale)
    return Runs(values, parts)


# Calibration and use -----------------------------------------------------------------------------------------------


def calibration(labels: Any, probabilities: Any, *, groups: Any = None) -> pd.DataFrame:
    """Intercept and slope of the labels' log-odds on the predicted ones; columns metric, value, low, high, n, reason.

    slope: 1 is calibrated, less is overconfident. intercept: with the slope held at 1; 0 where as many scans are
    positive as the probabilities add up to, more where fewer are predicted (Cox, Biometrika 45 (1958) 562-565; Van
    Calster et al., BMC Medicine 17 (2019) 230). Wald's intervals; robust to ``groups``, such as patients of several
    scans. NaN, with the reason, where a class is absent or the classes lie apart, so that nothing finite fits.
    """
    from statsmodels.genmod import families  # statsmodels.api takes half a second more
    from statsmodels.genmod.generalized_linear_model import GLM

    data = checked(labels, probabilities, 0.5, None, groups)
    x, y = logit(np.clip(data.probabilities, 1e-6, 1 - 1e-6)), data.labels
    reasons = {"intercept": "" if 0 < data.n_positive < len(y) else "one class only"}
    reasons["slope"] = reasons["intercept"] or ("constant scores" if np.ptp(x) == 0 else "")
    if not reasons["slope"] and (min(x[y == 1]) > max(x[y == 0]) or max(x[y == 1]) < min(x[y == 0])):
        reasons["slope"] = "the classes lie apart"
    one, rows = np.ones((len(x), 1)), []
    designs = {"intercept": (one, x), "slope": (np.column_stack([one, x]), None)}
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


def checked(labels: Any, probabilities: Any, threshold: Any, weights: Any, groups: Any = None) -> Scored:
    """Everything as arrays of one length; scans of weight 0 are left out."""
    labels = pd.array(labels) if not isinstance(labels, pd.Series) else labels.array
    if missing := int(pd.isna(labels).sum()):
        raise ValueError(f"{missing} of {len(labels)} scans have no label; leave unlabeled scans out")
    if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, one per scan; got {np.unique(labels)[:5].tolist()}")
    labels = np.asarray(labels, dtype=np.int64)
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
    kept = weights > 0
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != labels.shape or pd.isna(groups).any():
            raise ValueError(f"groups must name the group of each of {len(labels)} scans")
        groups = groups[kept] if len(set(groups[kept])) < kept.sum() else None  # one of each: no groups
    return Scored(labels[kept], probabilities[kept], decisions[kept], weights[kept], groups)


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
    """Every metric as a number, NaN where it has no meaning."""
    found = _weighted_metrics(data, data.weights[None], [m for m in METRICS if not undefined(m, data)])
    return {m: float(found[m][0]) if m in found else np.nan for m in METRICS}


def macro_f1(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Mean of both classes' F1; needs both classes among the labels, so neither denominator is 0."""
    return tp / (2 * tp + fp + fn) + tn / (2 * tn + fp + fn)


def _weighted_metrics(data: Scored, weights: np.ndarray, only: Sequence[str]) -> dict[str, np.ndarray]:
    """The metrics for many weightings at once: (R, n) weights -> (R,) each. What scikit-learn does one at a time."""
    positive, called = data.labels == 1, data.decisions == 1
    total = weights.sum(axis=1)
    tp, fn = weights @ (positive & called), weights @ (positive & ~called)
    fp, tn = weights @ (~positive & called), weights @ (~positive & ~called)
    if {"roc_auc", "pr_auc"} & set(only):
        order = np.argsort(-data.probabilities, kind="stable")
        starts = np.flatnonzero(np.diff(data.probabilities[order], prepend=2.0))  # groups of equal scores
        ranked = weights[:, order]
        pos = np.add.reduceat(ranked * positive[order], starts, axis=1)  # (R, groups), the highest scores first
        neg = np.add.reduceat(ranked * ~positive[order], starts, axis=1)
        above = np.cumsum(pos, axis=1)
        called_so_far = above + np.cumsum(neg, axis=1)
        # A replicate may hold none of the top groups: no recall is gained there, whatever the precision.
        precision = above / np.where(called_so_far > 0, called_so_far, 1)
    compute = {
        "macro_f1": lambda: macro_f1(tp, fp, tn, fn),
        "roc_auc": lambda: (neg * (above - pos / 2)).sum(axis=1) / ((tp + fn) * (fp + tn)),
        "pr_auc": lambda: (pos * precision).sum(axis=1) / (tp + fn),
        "sensitivity": lambda: tp / (tp + fn),
        "specificity": lambda: tn / (tn + fp),
        "accuracy": lambda: (tp + tn) / total,
        "brier": lambda: weights @ (data.probabilities - data.labels) ** 2 / total,
        "ece": lambda: _ece(data, weights) / total,
    }
    return {metric: compute[metric]() for metric in only}


def _ece(data: Scored, weights: np.ndarray) -> np.ndarray:
    """(R, n) weights -> (R,) sums over scans. In a bin, weight · |mean label - mean probability| is
    |Σ w (label - probability)|."""
    member = np.eye(BINS)[np.minimum((data.probabilities * BINS).astype(int), BINS - 1)]  # (n, bins)
    return np.abs(weights @ (member * (data.labels - data.probabilities)[:, None])).sum(axis=1)


def replicates(
    runs: Sequence[Scored],
    rng: np.random.Generator | int,
    n_boot: int,
    *,
    only: Sequence[str],
    shares: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """(n_boot,) values of each metric: its sum over ``runs`` by ``shares`` (the mean), all on the same resamples."""
    shares = np.full(len(runs), 1 / len(runs)) if shares is None else shares
    labels = runs[0].labels
    only = [m for m in only if not undefined(m, runs[0])]
    rng = np.random.default_rng(rng)
    blocks: dict[str, list[np.ndarray]] = {m: [] for m in only}
    for counts in bootstrap.counts(rng, n_boot, len(labels), strata=labels, groups=runs[0].groups):
        values = [_weighted_metrics(run, counts * run.weights, only) for run in runs]
        for m in only:
            blocks[m].append(sum(share * v[m] for share, v in zip(shares, values, strict=True)))
    return {m: np.concatenate(parts) for m, parts in blocks.items()}


def _on_logits(value: float, error: float, freedom: float = np.inf) -> tuple[float, float]:
    """The interval of a share by its standard error, symmetric in its log-odds (the delta method)."""
    reach = t.isf((1 - bootstrap.LEVEL) / 2, freedom) * error / (value * (1 - value))
    return float(expit(logit(value) - reach)), float(expit(logit(value) + reach))


def _auc_interval(data: Sequence[Scored]) -> tuple[float, float, str, str]:
    """low, high, method, reason for the mean AUC of runs on the same scans."""
    if lone := lone_class(data[0]):
        return np.nan, np.nan, "", lone
    found = runs(data[0].labels, np.stack([run.probabilities for run in data]))
    auc, variance = found.values.mean(), np.square(found.parts.mean(axis=0)).sum()
    if variance > 1e-15 and 0 < auc < 1:
        return *_on_logits(auc, np.sqrt(variance)), "DeLong, logit scale", ""
    if auc in (0, 1):
        pairs = min(data[0].n_positive, data[0].n_negative)
        return *bootstrap.clopper_pearson(pairs if auc else 0, pairs), "exact, disjoint pairs", ""
    constant = all(np.ptp(run.probabilities) == 0 for run in data)
    return np.nan, np.nan, "", "constant scores" if constant else "DeLong's variance is 0"


def _intervals(
    runs: Sequence[Scored], values: pd.Series, weighted: bool, rng: np.random.Generator | int, n_boot: int
) -> pd.DataFrame:
    """The first columns of `pooled`. values: means over ``runs`` (seeds) of the same scans, weights and groups."""
    data = runs[0]
    sizes = {"sensitivity": data.n_positive, "specificity": data.n_negative}
    independent = not weighted and data.groups is None
    closed = ("roc_auc",) * independent + ("sensitivity", "specificity", "accuracy") * (independent and len(runs) == 1)
    drawn = [metric for metric in METRICS if metric not in (*closed, "ece")]
    resampled = replicates(runs, rng, n_boot, only=drawn)
    rows = []
    for metric in METRICS:
        n, value = sizes.get(metric, len(data.labels)), values[metric]
        low, high, method, reason = np.nan, np.nan, "", undefined(metric, data)
        if reason:
            pass
        elif metric == "ece":
            reason = "resampling adds to its bias"
        elif metric == "roc_auc" and metric in closed:
            low, high, method, reason = _auc_interval(runs)
        elif metric in closed:
            low, high = bootstrap.clopper_pearson(round(value * n), n)
            method = "Clopper-Pearson"
        elif reason := lone_class(data):
            pass
        elif np.ptp(resampled[metric]) > 1e-12:
            low, high = bootstrap.percentiles(resampled[metric])
            method = "stratified bootstrap" if data.groups is None else "stratified bootstrap of groups"
            if metric in SKEWED and EDGE < value < 1 - EDGE:
                freedom = (n if data.groups is None else len(set(data.groups))) - 2
                low, high = _on_logits(value, resampled[metric].std(ddof=1), freedom)
                method += ", logit scale"
        else:
            reason = "every replicate gives the same value"
        rows.append((metric, value, low, high, n, method, reason))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "method", "reason"])
