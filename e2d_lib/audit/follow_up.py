"""What the audit recomputes of the years around the paper: the follow-up, the predecessor, how the field counts.

The numbers are those of ``results/published``: real areas, windows and draws, saved scores and related ones.
"""

import numpy as np
import pandas as pd

from e2d_lib.audit import forensics
from e2d_lib.audit.checks import N_SAMPLES, Inputs, check
from e2d_lib.evaluation import sampling
from e2d_lib.method import curves

EVERY = 12
"""H5 draws from every twelfth of the 1,476 windows of 2025: chapter 6 takes them all."""


@check("H1")
def _counted_by_rows_again(given: Inputs):
    saved = pd.read_csv(given.published / "saved_scores.csv", dtype={"value": str}).set_index("value")
    (fit,) = given.fits[given.fits["run"].str.startswith("follow-up")].to_dict("records")
    rows, errors, right = int(fit["rows"]), int(fit["errors"]), (19_334, 34_659)
    exact = forensics.macro_f1(rows, errors, right[1] - right[0])
    near = abs(float((exact - forensics.Fraction(float(fit["value"]))) / forensics.SPACING))
    holds = fit["solutions"] == 1 and fit["as_scans"] == 0 and near < 4 and sum(right) + errors == rows
    holds &= saved.loc[fit["value"], "rows"] == rows == 56_792
    found = (
        f"{fit['value']} is the macro F1 of {rows:,} rows, {right[0]:,} and {right[1]:,} right, {errors:,} wrong, to "
        f"{near:.1f} spacings of 2^-53, and of no other number of cases from 2 to 107,999; {fit['chance']:.2f} "
        f"solutions would be expected by chance. {57_714 - rows:,} of the split's 57,714 slices are missing from it"
    )
    return holds, found, []


@check("H3")
def _every_scan_has_a_draw(given: Inputs):
    table = given.real.scans.query("year == 2025")
    short = table[table["stop"] - table["start"] < N_SAMPLES]
    found = (
        f"{len(table):,} scans, each with a draw; {int((table['n_drawn'] < N_SAMPLES).sum())} of 7 slices; the "
        f"{len(short)} windows under {N_SAMPLES} slices have {N_SAMPLES} too, all with repeats"
    )
    holds = len(table) == 1481 and sorted(table["n_drawn"].unique()) == [7, 8]
    return holds and (table["n_drawn"] < N_SAMPLES).sum() == 1 and bool(short["repeated"].all()), found, []


@check("H4")
def _real_windows(given: Inputs):
    table, rule = given.real.scans.set_index("scan_id"), curves.rules(given.real.curves).set_index("scan_id")
    same = (table.loc[rule.index, ["start", "stop"]] == rule[["start", "stop"]]).all(axis=1)
    removed, words, counts = float(rule["removed"].mean()), [], []
    for year in (2025, 2024):
        part = table.loc[given.real.of(year, least=N_SAMPLES)]
        counts += [len(part), *(int(part[name].sum()) for name in ("drew_largest", "equal_areas", "repeated"))]
        words.append(
            f"{year}: largest area drawn in {counts[-3]} of {counts[-4]:,} windows, equal areas in {counts[-2]}, "
            f"{counts[-1]} draws with a repeat"
        )
    found = f"{int(same.sum()):,} of {len(same):,} windows follow; removed {removed:.4f} of the slices; " + "; ".join(
        words
    )
    holds = bool(same.all()) and round(removed, 4) == 0.4975 and counts == [1476, 0, 591, 4, 993, 0, 633, 5]
    return holds, found, []


@check("H5")
def _samplers_on_patients(given: Inputs):
    scans = given.real.of(2025, least=N_SAMPLES)[::EVERY]
    windows = {scan: given.real.windows[scan] for scan in scans}
    settings = sampling.settings(("random", "spaced", "systematic", "kds"), (N_SAMPLES,), (4, 8))
    quality = sampling.quality(windows, settings, redraws=10, rng=given.rng)
    means = quality.groupby(["method", quality["n_intervals"].fillna(0)])["ks"].mean()
    random, spaced, systematic, four, eight = (
        float(means[key]) for key in (("random", 0), ("spaced", 0), ("systematic", 4), ("kds", 4), ("kds", 8))
    )
    found = (
        f"{len(windows)} of the windows: random {random:.3f}, systematic {systematic:.3f}, KDS {four:.3f} with 4 and "
        f"{eight:.3f} with 8 intervals, one from each of 8 runs {spaced:.3f}"
    )
    near = np.abs(np.subtract([random, systematic, four, spaced], [0.262, 0.207, 0.197, 0.178])).max() < 0.02
    return near and random > systematic and random > four > eight and four > spaced, found, []


@check("H6")
def _what_a_redraw_does(given: Inputs):
    saved = pd.read_csv(given.published / "saved_scores.csv")
    one, ten = (
        saved.loc[saved["run"] == f"predecessor 2023, {name}", "value"].to_numpy()
        for name in ("one draw", "ten draws averaged")
    )
    gain = ten - one
    found = (
        f"ten draws averaged score higher in {int((gain > 0).sum())} of {len(gain)} folds, by {gain.mean():.4f} on "
        f"average ({gain.min():.4f} to {gain.max():.4f}); the folds themselves spread by {one.std(ddof=1):.4f} (SD)"
    )
    return len(one) == len(ten) == 5 and bool((gain > 0).all()), found, []


@check("H7")
def _a_source_without_positives(given: Inputs):
    from sklearn.metrics import f1_score

    related = pd.read_csv(given.published / "related_scores.csv")
    by_source = related.loc[related["metric"] == "source_macro_f1", "value"].to_numpy()
    counted = float(related.loc[related["metric"] == "challenge_score", "value"].iloc[0])
    truth = np.zeros(45, dtype=int)

    def score(wrong: int) -> float:
        called = np.r_[np.ones(wrong, dtype=int), truth[wrong:]]
        return float(f1_score(truth, called, labels=[0, 1], average="macro", zero_division=0))

    best = (3 + score(0)) / 4
    found = (
        f"the four sources' mean is {by_source.mean():.4f}; 45 negatives all called rightly score {score(0):g}, with 3 "
        f"of them wrong {score(3):.4f}; so the best possible mean is {best:g}"
    )
    holds = round(by_source.mean(), 4) == counted == 0.7648 and best == 0.875 and round(score(3), 4) == by_source[2]
    return bool(holds), found, []
