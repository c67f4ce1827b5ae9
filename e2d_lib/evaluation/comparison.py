"""Two settings on the same scans: differences with intervals and paired tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from e2d_lib import bootstrap
from e2d_lib.evaluation import metrics, multirun

COMPARED = ("roc_auc", "accuracy", "macro_f1")


def compare(
    labels: Any,
    a: Any,
    b: Any,
    *,
    rng: np.random.Generator | int,
    thresholds: tuple[float, float] = (0.5, 0.5),
    n_boot: int = 2000,
    groups: Any = None,
) -> pd.DataFrame:
    """Two settings on the same scans: columns metric, a, b, difference (b - a), low, high, p_value, detectable, n,
    method, reason.

    ``a``, ``b``: (n,) probabilities in the order of ``labels``, or (n, seeds) of several runs, not necessarily as many
    of both: metrics are then means over the runs, as in `metrics.pooled`, and so is the difference. Where pandas
    objects are given their indices must be equal. ``thresholds``: for each a number, or an array of the scores' shape.

    Three rows: roc_auc (DeLong's paired test), accuracy (exact McNemar test of the decisions, interval by paired
    bootstrap), macro_f1 (paired stratified bootstrap; its p-value is the smallest level at which the percentile
    interval leaves 0 out, at least 2 / (n_boot + 1), and so is accuracy's with several runs). Intervals and tests
    cover the choice of scans, not that of seeds. For many comparisons see `metrics.adjust`.
    ``groups``: (n,), such as the patient: where one has several scans whole groups are resampled, and all three rows
    are the bootstrap's.
    detectable: the smallest difference that would be found with 80 % power, were the error the one found here.
    Equal scores give difference 0 and p = 1. Where no test exists, p is NaN and ``reason`` says why.
    """
    indices = [x.index for x in (labels, a, b) if isinstance(x, pd.Series | pd.DataFrame)]
    if any(not index.equals(indices[0]) for index in indices[1:]):
        raise ValueError("labels, a and b have different indices; align them by scan first")
    pair = [_each_run(labels, scores, cut, groups) for scores, cut in zip((a, b), thresholds, strict=True)]
    runs = pair[0] + pair[1]
    groups = runs[0].groups
    contrast = np.repeat([-1 / len(pair[0]), 1 / len(pair[1])], [len(part) for part in pair])
    points = [pd.DataFrame([metrics.points(run) for run in part]).mean() for part in pair]
    equal = {"roc_auc": "scores"} if _equal(pair, "probabilities") else {}
    equal |= {"accuracy": "decisions", "macro_f1": "decisions"} if _equal(pair, "decisions") else {}
    lone = metrics.lone_class(runs[0])
    resampled = [metric for metric in COMPARED if metric not in equal and not (metric == "roc_auc" and groups is None)]
    replicates = metrics.replicates(runs, rng, n_boot, only=[] if lone else resampled, shares=contrast)

    rows = []
    for metric in COMPARED:
        value_a, value_b = (point[metric] for point in points)
        low, high, p, seen, method, reason = *[np.nan] * 4, "", metrics.undefined(metric, runs[0])
        if reason:
            pass
        elif metric in equal:
            p, reason = 1.0, f"equal {equal[metric]}"
        elif metric not in resampled:
            low, high, p, seen, method, reason = _delong_test(runs, contrast)
        else:
            reason = lone
            if metric == "accuracy" and len(runs) == 2 and groups is None:
                p, method = _mcnemar(*runs), "McNemar, exact"
            if not lone and np.ptp(replicates[metric]) < 1e-12:
                reason = "every replicate gives the same difference"
            elif not lone:
                low, high = bootstrap.percentiles(replicates[metric])
                seen = metrics.detectable(replicates[metric].std())
                if not method:
                    beyond = min((replicates[metric] <= 0).sum(), (replicates[metric] >= 0).sum())
                    p = min(1.0, 2 * (beyond + 1) / (n_boot + 1))
                method = f"{method}; paired bootstrap" if method else "paired bootstrap"
        n = len(runs[0].labels)
        rows.append((metric, value_a, value_b, value_b - value_a, low, high, p, seen, n, method, reason))
    columns = ["metric", "a", "b", "difference", "low", "high", "p_value", "detectable", "n", "method", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _each_run(labels: Any, scores: Any, thresholds: Any, groups: Any) -> list[metrics.Scored]:
    """(n,) or (n, seeds) scores as runs; thresholds: a number, or of the scores' shape."""
    scores = np.atleast_2d(np.asarray(scores, dtype=float).T)
    cuts = np.broadcast_to(np.asarray(thresholds, dtype=float).T, scores.shape)
    return [metrics.checked(labels, own, cut, None, groups) for own, cut in zip(scores, cuts, strict=True)]


def _equal(pair: Sequence[Sequence[metrics.Scored]], name: str) -> bool:
    a, b = ([getattr(run, name) for run in runs] for runs in pair)
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def _delong_test(runs: Sequence[metrics.Scored], contrast: np.ndarray) -> tuple[float, float, float, float, str, str]:
    """low, high, p, detectable, method, reason for the sum of the AUCs by ``contrast``, all on the same scans."""
    if lone := metrics.lone_class(runs[0]):
        return *[np.nan] * 4, "", lone
    auc, parts = metrics.runs(runs[0].labels, np.stack([run.probabilities for run in runs]))
    summed = metrics.Runs(contrast[None] @ auc, contrast[None] @ parts)
    if np.square(summed.parts).sum() < 1e-15:
        if abs(summed.values.item()) < 1e-12:
            return np.nan, np.nan, 1.0, np.nan, "", "equal order of positive and negative scans"
        return *[np.nan] * 4, "", "DeLong's variance is 0"
    found = multirun.test(summed)
    return found["low"], found["high"], found["p_value"], found["detectable"], "DeLong, paired", ""


def _mcnemar(first: metrics.Scored, second: metrics.Scored) -> float:
    """Exact two-sided p; only scans that just one of the runs gets right count. They are not none here."""
    a_alone, b_alone = (
        int(((one.decisions == one.labels) & (other.decisions != other.labels)).sum())
        for one, other in ((first, second), (second, first))
    )
    return float(binomtest(a_alone, a_alone + b_alone).pvalue)
