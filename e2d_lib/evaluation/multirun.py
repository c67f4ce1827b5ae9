"""Comparisons that count seeds and draws: a difference has to hold over scans and over replicates, both a sample.

A replicate is a seed, or a subset of the training scans with a set of draws. Many runs scored on the same scans are
what radiology knows as readers and cases, and are treated so: Obuchowski & Rockette, Communications in Statistics B 24
(1995) 285-308, with the degrees of freedom of Hillis, Statistics in Medicine 26 (2007) 596-619. The scans' part is
DeLong's for ROC AUC and a jackknife within classes for macro F1; both are linear, so that means over settings and
cohorts are too.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from e2d_lib import bootstrap
from e2d_lib.evaluation import metrics

METRICS = ("roc_auc", "macro_f1")


class Runs(NamedTuple):
    """A metric of some runs on the same scans. values: (runs,); parts: (runs, patients), their influence on each,
    scaled so that ``parts @ parts.T`` is the runs' covariance over the choice of patients."""

    values: np.ndarray
    parts: np.ndarray

    def __sub__(self, other: "Runs") -> "Runs":
        return Runs(self.values - other.values, self.parts - other.parts)


def runs(
    labels: np.ndarray,
    probabilities: np.ndarray,
    metric: str = "roc_auc",
    threshold: float = 0.5,
    *,
    patients: np.ndarray | None = None,
) -> Runs:
    """Of (scans,) labels and (runs, scans) probabilities. patients: (scans,), whose; without it each scan is one's.

    Raises ValueError with fewer than two scans, or two patients, of a class.
    """
    labels, scores = np.asarray(labels), np.atleast_2d(np.asarray(probabilities, dtype=float))
    positive, negative = (np.flatnonzero(labels == value) for value in (1, 0))
    m, n = len(positive), len(negative)
    of = pd.factorize(np.arange(m + n) if patients is None else np.asarray(patients, dtype=object))[0]
    whose = [len(np.unique(of[rows])) for rows in (positive, negative)]
    if min(whose) < 2:
        raise ValueError(
            f"{m} positive and {n} negative scans of {whose[0]} and {whose[1]} patients; two of each are needed"
        )
    parts = np.empty(scores.shape)
    if metric == "roc_auc":
        above, below = metrics.placements(scores[:, positive], scores[:, negative])
        values = above.mean(1)
        for rows, placed in ((positive, above), (negative, below)):
            parts[:, rows] = (placed - values[:, None]) / np.sqrt(len(rows) * (len(rows) - 1))
        return Runs(values, _by_patient(parts, labels, of))
    called = scores >= threshold
    tp, fp = called[:, positive].sum(1), called[:, negative].sum(1)
    values = metrics.macro_f1(tp, fp, n - fp, m - tp)
    for rows, value in ((positive, 1), (negative, 0)):
        hit = called[:, rows].astype(int)
        found, false = (tp[:, None] - hit, fp[:, None]) if value else (tp[:, None], fp[:, None] - hit)
        without = metrics.macro_f1(found, false, n - (not value) - false, m - value - found)
        parts[:, rows] = (without.mean(1, keepdims=True) - without) * np.sqrt((len(rows) - 1) / len(rows))
    return Runs(values, _by_patient(parts, labels, of))


def _by_patient(parts: np.ndarray, labels: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(runs, scans) influences summed in each patient (Obuchowski, Biometrics 53 (1997) 567-578): scans of one patient
    may depend on each other in any way. Scaled as each class has n patients in place of m scans."""
    summed = np.zeros((len(parts), of.max() + 1))
    for value in (1, 0):
        rows = np.flatnonzero(labels == value)
        m, n = len(rows), len(np.unique(of[rows]))
        np.add.at(summed, (slice(None), of[rows]), parts[:, rows] * np.sqrt((m - 1) * n / (m * (n - 1))))
    return summed


def mean(several: list[Runs], *, same_scans: bool = True) -> Runs:
    """The mean over settings, replicate by replicate; over cohorts, whose scans are others, with same_scans=False."""
    values = np.mean([one.values for one in several], axis=0)
    if same_scans:
        return Runs(values, np.mean([one.parts for one in several], axis=0))
    return Runs(values, np.concatenate([one.parts for one in several], axis=1) / len(several))


def test(runs: Runs, other: Runs | None = None) -> dict[str, float]:
    """Whether the runs' mean differs from 0, or from that of others whose replicates are not the same ones.

    runs: replicate by replicate the difference of two settings, most often. Gives difference, low, high, p_value,
    replicate_sd (NaN of one), detectable (the smallest difference that this design finds with 80 % power, were its
    errors those estimated), replicates. With one replicate the error is the scans' alone.
    """
    groups = [runs] if other is None else [runs, other]
    difference = runs.values.mean() - (other.values.mean() if other else 0.0)
    covariance = runs.parts.mean(0) - (other.parts.mean(0) if other else 0.0)
    total, moving, squares = float(covariance @ covariance), 0.0, 0.0
    for one in groups:
        r = len(one.values)
        if r > 1:
            # what the scans add to the spread between replicates is in the replicates' own variance already
            own = np.square(one.parts - one.parts.mean(0)).sum() / (r - 1) / r
            between = one.values.var(ddof=1) / r
            total, moving, squares = total - own, moving + between, squares + between**2 / (r - 1)
    variance = moving + max(total, 0.0)
    freedom = variance**2 / squares if squares > 0 else np.inf
    error = np.sqrt(variance)
    reach = t.isf((1 - bootstrap.LEVEL) / 2, freedom) * error
    p = 2 * t.sf(abs(difference) / error, freedom) if error > 1e-12 else float(abs(difference) < 1e-12)
    return {
        "difference": float(difference),
        "low": float(difference - reach),
        "high": float(difference + reach),
        "p_value": float(p),
        "replicate_sd": float(runs.values.std(ddof=1)) if len(runs.values) > 1 else np.nan,
        "detectable": metrics.detectable(error, freedom),
        "replicates": min(len(one.values) for one in groups),
    }
