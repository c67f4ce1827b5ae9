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
    yield holds, {"fit": fit, "right": right, "near": near, "missing": 57_714 - rows}


@check("H3")
def _every_scan_has_a_draw(given: Inputs):
    table = given.real.scans.query("year == 2025")
    short = table[table["stop"] - table["start"] < N_SAMPLES]
    few = int((table["n_drawn"] < N_SAMPLES).sum())
    holds = len(table) == 1481 and sorted(table["n_drawn"].unique()) == [7, 8]
    facts = {"scans": len(table), "few": few, "short": len(short), "drawn": N_SAMPLES}
    yield holds and few == 1 and bool(short["repeated"].all()), facts


@check("H4")
def _real_windows(given: Inputs):
    table, rule = given.real.scans.set_index("scan_id"), curves.rules(given.real.curves).set_index("scan_id")
    same = (table.loc[rule.index, ["start", "stop"]] == rule[["start", "stop"]]).all(axis=1)
    removed, counts = float(rule["removed"].mean()), {}
    for year in (2025, 2024):
        part = table.loc[given.real.of(year, least=N_SAMPLES)]
        names = ("drew_largest", "equal_areas", "repeated")
        counts[f"in_{year}"] = [len(part), *(int(part[name].sum()) for name in names)]
    holds = counts == {"in_2025": [1476, 0, 591, 4], "in_2024": [993, 0, 633, 5]}
    facts = {"same": int(same.sum()), "windows": len(same), "removed": removed, **counts}
    yield holds and bool(same.all()) and round(removed, 4) == 0.4975, facts


@check("H5")
def _samplers_on_patients(given: Inputs):
    scans = given.real.of(2025, least=N_SAMPLES)[::EVERY]
    windows = {scan: given.real.windows[scan] for scan in scans}
    settings = sampling.settings(("random", "spaced", "systematic", "kds"), (N_SAMPLES,), (4, 8))
    quality = sampling.quality(windows, settings, redraws=10, rng=given.rng)
    means = quality.groupby(["method", quality["n_intervals"].fillna(0)])["ks"].mean()
    order = [("random", 0), ("spaced", 0), ("systematic", 4), ("kds", 4), ("kds", 8)]
    random, spaced, systematic, four, eight = means[order].tolist()
    near = np.abs(np.subtract([random, systematic, four, spaced], [0.262, 0.207, 0.197, 0.178])).max() < 0.02
    facts = {"windows": len(windows), "random": random, "systematic": systematic, "spaced": spaced}
    yield near and random > systematic and random > four > eight and four > spaced, facts | {"kds": [four, eight]}


@check("H6")
def _what_a_redraw_does(given: Inputs):
    saved = pd.read_csv(given.published / "saved_scores.csv").set_index("run")["value"]
    one, ten = (saved[f"predecessor 2023, {draws}"].to_numpy() for draws in ("one draw", "ten draws averaged"))
    gain = ten - one
    facts = {"better": int((gain > 0).sum()), "folds": len(gain), "mean": gain.mean()}
    facts |= {"range": (gain.min(), gain.max()), "spread": one.std(ddof=1)}
    yield len(one) == len(ten) == 5 and bool((gain > 0).all()), facts


@check("H7")
def _a_source_without_positives(given: Inputs):
    from sklearn.metrics import f1_score

    related = pd.read_csv(given.published / "related_scores.csv").groupby("metric")["value"]
    by_source = related.get_group("source_macro_f1").to_numpy()
    counted = related.get_group("challenge_score").iloc[0]

    def score(wrong: int) -> float:
        called = np.arange(45) < wrong
        return float(f1_score(np.zeros(45), called, labels=[0, 1], average="macro", zero_division=0))

    best = (3 + score(0)) / 4
    holds = round(by_source.mean(), 4) == counted == 0.7648 and best == 0.875 and round(score(3), 4) == by_source[2]
    yield bool(holds), {"mean": by_source.mean(), "right": score(0), "three": score(3), "best": best}
