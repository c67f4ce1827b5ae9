"""What the saved scores can be scores of: searched for over all confusion matrices, and kept as data."""

from pathlib import Path

import pandas as pd

from e2d_lib.audit import forensics

SCANS = range(1, 1685)
"""Numbers of cases a score of scans can have: up to all training and validation scans."""
ROWS = range(70_000, 105_001)
"""Numbers of cases a score of slice rows can have: any fold of the cohort."""
ALL_ROWS = range(2, 108_000)
"""The same for the score of 2025, of which nothing was assumed."""
FITS = ["rows", "errors", "smaller_class", "larger_class", "solutions", "as_scans", "distance", "chance"]
POSITIVE_ROWS = range(38_000, 46_501)
VALIDATION_ROWS = 89_264


def score_fits(folder: str | Path) -> pd.DataFrame:
    """What each saved score can be a score of: one row a score of 12 decimals and more, in the file's order.

    ``folder``: of the published tables. saved_scores.csv has run, metric (macro_f1 or roc_auc) and value; what follows
    from a value takes seconds to find and never changes, so it is read from score_fits.csv where it stands there, and
    derived (`score_fit`) where it does not. Columns: run, metric, value (str, as printed) and those of `score_fit`.
    """
    saved = pd.read_csv(Path(folder) / "saved_scores.csv", dtype={"value": str})
    saved = saved[saved["value"].str.partition(".")[2].str.len() >= 12]
    known = pd.read_csv(Path(folder) / "score_fits.csv", dtype={"value": str}).set_index(["metric", "value"])[FITS]
    known, rows = known.to_dict("index"), []
    for run, metric, text in saved[["run", "metric", "value"]].itertuples(index=False):
        fit = known.get((metric, text)) or score_fit(metric, text, follow_up(run))
        rows.append({"run": run, "metric": metric, "value": text, **fit})
    table = pd.DataFrame(rows, columns=["run", "metric", "value", *FITS])
    return table.astype(dict.fromkeys(FITS[:6], "Int64") | dict.fromkeys(FITS[6:], float))


def follow_up(run: str) -> bool:
    """Whether a saved score is of 2025: it was searched for over all numbers of cases, not only those of a fold."""
    return run.startswith("follow-up")


def score_fit(metric: str, text: str, wide: bool = False) -> dict:
    """What a score printed as ``text`` can be a score of; ``wide``: search `ALL_ROWS`, not `ROWS`.

    rows, errors (macro F1 only), smaller_class and larger_class (rows, AUC only: which of them is the positive one an
    AUC cannot tell), solutions (in the rows searched, or in `POSITIVE_ROWS`), as_scans (solutions in `SCANS`, macro F1
    only), distance (spacings of 2^-53) and chance (solutions expected of a number that is no score at all).
    """
    value = float(text)
    if metric == "macro_f1":
        searched = ALL_ROWS if wide else ROWS
        found = forensics.f1_totals(value, searched)
        fit = {"rows": found[0].rows, "errors": found[0].errors, "distance": found[0].distance} if found else {}
        as_scans = len(forensics.f1_totals(value, SCANS))
        return fit | {"solutions": len(found), "as_scans": as_scans, "chance": forensics.f1_chance(searched)}
    found = forensics.auc_positives(value, VALIDATION_ROWS, POSITIVE_ROWS)
    fit = {}
    if found:
        smaller, larger = sorted(found[0][:2])
        fit = {"smaller_class": smaller, "larger_class": larger, "distance": found[0].distance}
    pairs = {frozenset(one[:2]) for one in found}
    chance = forensics.auc_chance(VALIDATION_ROWS, POSITIVE_ROWS)
    return fit | {"rows": VALIDATION_ROWS, "solutions": len(pairs), "chance": chance}
