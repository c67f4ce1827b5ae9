"""What chapter 5 looks at: scan scores at two thresholds, by run and by group, and runs paired.

A table of scan scores here has one row a scan and run: fraction, seed, fold, scan_id, label, source, patient,
probability, and ``chosen``, the threshold that the run's own training folds chose (NaN where they chose none).
Every bootstrap starts anew from ``seed``: equal decisions get equal intervals wherever they stand.
"""

from collections.abc import Iterable
from typing import Any, get_args

import pandas as pd

from e2d_lib.evaluation import comparison, metrics
from e2d_lib.network.recipe import LEAST_TO_CHOOSE
from e2d_lib.network.scores import Aggregation
from e2d_lib.network.scores import scan_scores as slice_scores
from e2d_lib.scans.patients import patient_of

RUN = ["fraction", "seed", "fold"]
AGGREGATIONS = get_args(Aggregation)
AT_A_CUT = ("macro_f1", "sensitivity", "specificity", "accuracy")
"""The metrics that depend on the threshold."""
CHOSEN = "chosen"


class EvaluationError(ValueError):
    """Runs that cannot be evaluated as asked."""


# Scores and thresholds ---------------------------------------------------------------------------------------------


def thresholds(predictions: pd.DataFrame, *, how: Aggregation = "mean", k: int = 3) -> pd.DataFrame:
    """The threshold that each run's training folds choose: fraction, seed, fold, threshold, scans, positives, reason.

    ``predictions``: chapter 4's slices. Only their part "inner" is looked at, the scans held out of the run's training
    folds; the cut is the one of greatest macro F1 there (`metrics.best_threshold`). These scans chose the epoch too,
    and they may be few: ``scans`` says how many. With fewer than `LEAST_TO_CHOOSE` of them, or with one class, the
    threshold is 0.5 and ``reason`` says why.
    """
    rows = []
    for key, run in predictions.groupby(RUN, sort=True):
        inner = run[run["part"] == "inner"]
        scans = slice_scores(inner, how=how, k=k) if len(inner) else inner
        positives = int(scans["label"].sum())
        reason = "" if 0 < positives < len(scans) else "one class only among the scans held out"
        if len(scans) < LEAST_TO_CHOOSE:
            reason = f"{len(scans) or 'no'} scans held out of the training folds, {LEAST_TO_CHOOSE} are needed"
        threshold = 0.5 if reason else metrics.best_threshold(scans["label"], scans["probability"])
        rows.append((*key, threshold, len(scans), positives, reason))
    return pd.DataFrame(rows, columns=[*RUN, "threshold", "scans", "positives", "reason"])


def scan_scores(
    predictions: pd.DataFrame, cohort: pd.DataFrame, *, how: Aggregation = "mean", k: int = 3
) -> pd.DataFrame:
    """The table of scan scores (see the module) of the reported folds, with each run's ``chosen`` threshold."""
    valid = predictions[predictions["part"] == "valid"]
    scores = slice_scores(valid, how=how, k=k, by=[*RUN, "scan_id"]).drop(columns="n_slices")
    cuts = thresholds(predictions, how=how, k=k)
    cuts[CHOSEN] = cuts["threshold"].where(cuts["reason"].eq(""))
    known = cohort[["scan_id", "source"]].assign(patient=patient_of(cohort))
    return scores.merge(known, on="scan_id").merge(cuts[[*RUN, CHOSEN]], on=RUN)


def largest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the runs on the largest share of the training scans."""
    return table[table["fraction"] == table["fraction"].max()]


def mean_over_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a scan (scan_id, label, source, fold, patient, probability, chosen): the means of the seeds'."""
    columns = ["scan_id", "label", "source", "fold", "patient"]
    return scores.groupby(columns, as_index=False, sort=True)[["probability", CHOSEN]].mean()


def has_chosen(scores: pd.DataFrame) -> bool:
    """Whether every run of the table chose a threshold."""
    return bool(scores[CHOSEN].notna().all())


# Metrics with intervals --------------------------------------------------------------------------------------------


def at_thresholds(scores: pd.DataFrame, *, seed: int = 0, threshold: float = 0.5, n_boot: int = 2000) -> pd.DataFrame:
    """`metrics.pooled` over folds and seeds, after a column ``at``: the threshold, or "chosen" for the runs' own.

    At the chosen thresholds only the metrics that depend on them; none where a run chose none.
    """
    tables = {f"{threshold:g}": metrics.pooled(scores, rng=seed, threshold=threshold, n_boot=n_boot)}
    if has_chosen(scores):
        again = metrics.pooled(scores.assign(threshold=scores[CHOSEN]), rng=seed, n_boot=n_boot)
        tables[CHOSEN] = again[again["metric"].isin(AT_A_CUT)]
    return _together(tables.items(), "at")


def by_run(scores: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Each run by itself: `at_thresholds` less what is about several runs, after fraction, seed, fold."""
    tables = ((key, at_thresholds(run, **options)) for key, run in scores.groupby(RUN, sort=True))
    return _together(tables, *RUN).drop(columns=["run_mean", "run_sd", "n_runs", "seed_sd"])


def by_group(scores: pd.DataFrame, group: str, *, seed: int = 0, **options: Any) -> pd.DataFrame:
    """`metrics.pooled` of the scans of each value of a column, after that column; an empty value is "unknown".

    A metric that a group cannot have (one class only) keeps its row, with the reason.
    """
    parts = scores.groupby(group, sort=True)
    return _together(((key or "unknown", metrics.pooled(part, rng=seed, **options)) for key, part in parts), group)


def _together(tables: Iterable[tuple[Any, pd.DataFrame]], *names: str) -> pd.DataFrame:
    """(key, table) one after another, after columns of the keys."""
    keys, parts = zip(*tables, strict=True)
    return pd.concat(parts, keys=keys, names=names).reset_index(list(names)).reset_index(drop=True)


# Two runs ----------------------------------------------------------------------------------------------------------


def paired(
    a: pd.DataFrame, b: pd.DataFrame, *, seed: int = 0, threshold: float = 0.5, n_boot: int = 2000
) -> pd.DataFrame:
    """`comparison.compare` of two tables of scan scores (b less a), means over their seeds, after a column ``at``.

    DeLong for AUC, exact McNemar for the decisions (of one seed), paired bootstrap for the rest; all but AUC also at
    the chosen thresholds where both have them. Raises EvaluationError where the tables have other scans or labels.
    """
    patients = a.drop_duplicates("scan_id").sort_values("scan_id")["patient"]
    by_seed = [scores.pivot(index=["scan_id", "label"], columns="seed").sort_index() for scores in (a, b)]
    (scans_a, labels_a), (scans_b, labels_b) = (
        (table.index.get_level_values("scan_id"), table.index.get_level_values("label")) for table in by_seed
    )
    if not scans_a.equals(scans_b):
        raise EvaluationError(
            f"two runs are compared on the same validation scans: these score {len(scans_a)} and {len(scans_b)} scans, "
            f"{len(scans_a.intersection(scans_b))} of them in both; give runs of the same folds and data"
        )
    if (other := labels_a != labels_b).any():
        raise EvaluationError(f"two runs of other labels: {scans_a[other][0]} is {labels_a[other][0]} in the first")
    cuts = {f"{threshold:g}": (threshold, threshold)}
    if has_chosen(a) and has_chosen(b):
        cuts[CHOSEN] = tuple(table[CHOSEN].to_numpy() for table in by_seed)
    scores = [table["probability"].to_numpy() for table in by_seed]
    how = {"rng": seed, "n_boot": n_boot, "groups": patients}
    tests = ((at, comparison.compare(labels_a, *scores, thresholds=both, **how)) for at, both in cuts.items())
    table = _together(tests, "at")
    of_auc = table["metric"].eq("roc_auc")
    return table.assign(at=table["at"].mask(of_auc, ""))[~(of_auc & table["at"].eq(CHOSEN))].reset_index(drop=True)
