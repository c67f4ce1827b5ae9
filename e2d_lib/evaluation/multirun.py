"""Comparisons that count seeds and draws: a difference has to hold over scans and over replicates, both a sample.

A replicate is a seed, or a subset of the training scans with a set of draws. Many runs scored on the same scans are
what radiology knows as readers and cases, and are treated so: Obuchowski & Rockette, Communications in Statistics B 24
(1995) 285-308, with the degrees of freedom of Hillis, Statistics in Medicine 26 (2007) 596-619. The scans' part
(`metrics.runs`) is linear, so that means over settings and cohorts are too.
"""

import numpy as np
from scipy.stats import t

from e2d_lib import bootstrap
from e2d_lib.evaluation import metrics
from e2d_lib.evaluation.metrics import Runs

METRICS = ("roc_auc", "macro_f1")


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
