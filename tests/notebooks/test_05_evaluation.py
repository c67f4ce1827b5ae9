"""Chapter 5: every score, difference and figure recomputed from chapter 4's predictions."""

import ast
import re

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from e2d_lib.study.notebook import stored_cells
from tests import cells
from tests.conftest import ROOT
from tests.notebooks.conftest import PUBLISHED, asked, holm, in_order, points

pytestmark = pytest.mark.notebook
CHAPTER = "05_evaluation"
RUN = ["fraction", "seed", "fold"]
AT_A_CUT = ("macro_f1", "sensitivity", "specificity", "accuracy")
WAYS = {
    "mean": np.mean,
    "median": np.median,
    "max": np.max,
    "topk": lambda p: np.sort(p)[-3:].mean(),
    "logodds": lambda p: 1 / (1 + np.exp(-np.log(p / (1 - p)).mean())),
}


def scan_scores(ci_run, part="valid", how="mean") -> pd.DataFrame:
    """A row a run and scan: the slices' probabilities put together."""
    slices = ci_run.parquet("04_training", "predictions").query("part == @part")
    groups = slices.groupby([*RUN, "scan_id"])
    scores = groups["probability"].agg(lambda p: WAYS[how](p.to_numpy())).reset_index()
    cohort = ci_run.cohort().set_index("scan_id")
    return scores.assign(**{name: scores["scan_id"].map(cohort[name]) for name in ("label", "source")})


def best_cut(scores: pd.DataFrame) -> float:
    """Of the midpoints between the scores, the one of greatest macro F1; of equals, that nearest to a half."""
    p = np.unique(scores["probability"])
    cuts = (p[1:] + p[:-1]) / 2
    f1 = np.array([points(scores["label"], scores["probability"], cut)["macro_f1"] for cut in cuts])
    best = cuts[f1 >= f1.max() - 1e-12]
    return best[np.argmin(abs(best - 0.5))]


def chosen(ci_run, how="mean") -> dict:
    """Of each run that held ten scans of both classes out, the best threshold on them."""
    groups = scan_scores(ci_run, "inner", how).groupby(RUN)
    return {key: best_cut(part) for key, part in groups if len(part) >= 10 and part["label"].nunique() == 2}


@pytest.fixture(scope="module")
def scores(ci_run) -> pd.DataFrame:
    table, cuts = scan_scores(ci_run), chosen(ci_run)
    return table.assign(chosen=[cuts.get(tuple(row), np.nan) for row in table[RUN].itertuples(index=False)])


@pytest.fixture(scope="module")
def main(scores) -> pd.DataFrame:
    """Of the run on all training scans; one seed at ci size."""
    return scores[scores["fraction"] == 1.0]


def agree(table: pd.DataFrame, expected: dict) -> None:
    """The table's values, one row a metric, are the expected ones, and intervals hold them."""
    assert len(table)
    for row in table.itertuples():
        assert row.value == pytest.approx(expected[row.metric], rel=1e-6, nan_ok=True), row.metric
        if not np.isnan(row.low):
            assert row.low - 1e-9 <= row.value <= row.high + 1e-9, row.metric


def test_scan_scores_and_thresholds_come_from_the_slices(ci_run, scores, main):
    every = ci_run.numbers(CHAPTER, "all_scan_scores")
    pd.testing.assert_frame_equal(every[[*scores]], scores, check_dtype=False)
    table = ci_run.table(CHAPTER, "scan_scores")
    columns = ["scan_id", "label", "source", "probability", "chosen"]
    pd.testing.assert_frame_equal(table[columns], main[columns].reset_index(drop=True), check_dtype=False)
    cuts, inner = ci_run.table(CHAPTER, "thresholds").set_index(RUN), scan_scores(ci_run, "inner").groupby(RUN)["label"]
    assert len(cuts) == 2 and len(chosen(ci_run)) == 1  # few scans choose nothing, and 0.5 is said with the reason
    assert cuts["threshold"].to_dict() == pytest.approx({key: chosen(ci_run).get(key, 0.5) for key in cuts.index})
    assert [bool(why) for why in cuts["reason"]] == [key not in chosen(ci_run) for key in cuts.index]
    held = inner.agg(["size", "sum"]).reindex(cuts.index, fill_value=0)
    assert list(cuts["scans"]) == list(held["size"]) and list(cuts["positives"]) == list(held["sum"])


def test_metrics_by_threshold_run_fraction_and_source(ci_run, scores, main):
    table = ci_run.numbers(CHAPTER, "metrics")
    first, second = table[table["at"] == "0.5"], table[table["at"] == "chosen"]
    assert len(first) == 8 and set(second["metric"]) == set(AT_A_CUT)
    assert set(table["prevalence"]) == {main["label"].mean()} and main["label"].mean() != 0.5
    agree(first, points(main["label"], main["probability"]))
    agree(second, points(main["label"], main["probability"], main["chosen"]))
    n = {"sensitivity": (main["label"] == 1).sum(), "specificity": (main["label"] == 0).sum()}
    assert [n.get(m, len(main)) for m in table["metric"]] == list(table["n"])
    by_run = ci_run.numbers(CHAPTER, "metrics_by_run")
    assert set(by_run["fraction"]) == set(scores["fraction"])
    for (fraction, at), part in by_run.groupby(["fraction", "at"]):
        own = scores[scores["fraction"] == fraction]
        assert at == "0.5" or own["chosen"].notna().all()
        agree(part, points(own["label"], own["probability"], own["chosen"] if at == "chosen" else 0.5))
    for name, group, whole in (("metrics_by_fraction", "fraction", scores), ("metrics_by_source", "source", main)):
        table = ci_run.numbers(CHAPTER, name)
        assert set(table[group]) == set(whole[group])
        for value, part in table.groupby(group):
            own = whole[whole[group] == value]
            agree(part, points(own["label"], own["probability"]))
            assert part.set_index("metric").loc["accuracy", "n"] == len(own)


@pytest.fixture(scope="module")
def calibration(main) -> dict[str, float]:
    """Of the labels on the predicted log-odds: an unpenalised slope, and the intercept that is right on average."""
    x, y = logit(main["probability"].to_numpy()), main["label"].to_numpy()
    fit = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(((x - x.mean()) / x.std())[:, None], y)
    return {"intercept": brentq(lambda a: (y - expit(a + x)).sum(), -9, 9), "slope": fit.coef_[0, 0] / x.std()}


def test_calibration_and_net_benefit(ci_run, main, calibration, tmp_path_factory):
    table = ci_run.numbers(CHAPTER, "calibration").set_index("metric")
    assert table["value"].to_dict() == pytest.approx(calibration, rel=1e-3)
    assert table["low"].lt(table["value"]).all() and table["high"].gt(table["value"]).all()
    use, y = ci_run.numbers(CHAPTER, "net_benefit"), main["label"] == 1
    assert list(use["threshold"]) == pytest.approx(np.arange(0.05, 1, 0.05))
    worth = [
        (((called & y).sum() - (called & ~y).sum() * t / (1 - t)) / len(y))
        for t in use["threshold"]
        for called in (main["probability"] >= t, y | True)
    ]
    np.testing.assert_allclose(use[["network", "treat_all"]], np.reshape(worth, (-1, 2)), atol=1e-12)
    assert use["treat_none"].eq(0).all() and use["network"].nunique() > 2
    assert (use["low"] - 1e-9).le(use["network"]).all() and (use["high"] + 1e-9).ge(use["network"]).all()
    (axis,) = ci_run.figures(CHAPTER, tmp_path_factory.mktemp("drawn"))["net_benefit"].axes
    for line, policy in zip(axis.lines, ("network", "treat_all", "treat_none"), strict=True):
        np.testing.assert_allclose(line.get_xydata(), use[["threshold", policy]])
    assert axis.get_xlabel() == "threshold" and axis.get_ylabel() == "net benefit, true positives a scan"


def test_learnt_is_a_training_loss_below_a_coins(ci_run):
    history = ci_run.numbers("04_training", "history").set_index(["run", "epoch"])["loss"]
    loss = [history[run.run, run.epoch] for run in ci_run.table("04_training", "runs").itertuples()]
    table = ci_run.numbers(CHAPTER, "learnt")
    assert list(table["loss"]) == pytest.approx(loss)
    assert list(table["learnt"]) == [value < np.log(2) for value in loss]


@pytest.mark.parametrize("worse", [[], [0.3], [1.0], [0.3, 1.0]])
def test_networks_that_learnt_nothing_are_no_result(ci_run, scores, worse):
    """The cell of the few scans, and the answer's warning, with runs whose loss is a coin's (0.7)."""
    history = ci_run.table("04_training", "history").assign(loss=0.6)
    history.loc[history["fraction"].isin(worse), "loss"] = 0.7
    read = {"tables/history.csv": history, "tables/runs.csv": ci_run.table("04_training", "runs")}
    chapter = cells.Chapter()
    chapter.read = lambda _, file: read[file]
    options = {"seed": 0, "threshold": 0.5, "n_boot": 100}
    given = {"chapter": chapter, "scores": scores, "options": options}
    found = cells.run(CHAPTER, 'kept["learnt"] =', 'save_figure("few_shot"', **given)
    figures, said = chapter.figures, chapter.said
    left = [share for share in (0.3, 1.0) if share not in worse]
    names = ", ".join(f"{100 * share:g} %" for share in (1.0, 0.3) if share in worse)
    assert said[0].endswith(f": {names or 'none'}.")
    if left:
        (axis,) = figures["few_shot"].axes
        assert [tick.get_text() for tick in axis.get_yticklabels()] == [f"{100 * share:g} %" for share in left]
        auc = [points(*(scores.loc[scores["fraction"] == f, k] for k in ("label", "probability"))) for f in left]
        drawn = [x for line in axis.lines if line.get_marker() == "o" for x in line.get_xdata()]
        assert drawn == pytest.approx([one["roc_auc"] for one in auc])
    assert bool(figures) == bool(left)
    code = [cell.source for cell in stored_cells(ROOT / f"notebooks/{CHAPTER}.ipynb") if cell.kind == "code"]
    (warning,) = (
        n for s in code for n in ast.walk(ast.parse(s)) if isinstance(n, ast.If) and "untrained" in ast.dump(n)
    )
    lines = []
    exec(compile(ast.Module([warning], []), CHAPTER, "exec"), vars(found) | {"lines": lines})
    assert ["a network on all scans has not learnt" in line.lower() for line in lines] == [True] * (1.0 in worse)


def test_headline_is_the_scores_of_the_run_on_all_scans(ci_run, main, calibration):
    headline, table = ci_run.headline(CHAPTER), ci_run.numbers(CHAPTER, "metrics").set_index(["at", "metric"])
    plain = points(main["label"], main["probability"])
    again = points(main["label"], main["probability"], main["chosen"])
    expected = plain | {f"{name}_at_chosen": again[name] for name in AT_A_CUT}
    values = {name: entry["value"] for name, entry in headline.items()}
    for name, value in calibration.items():
        assert values.pop(f"{name}_of_calibration") == pytest.approx(value, rel=1e-3)
    assert values == pytest.approx(expected, rel=1e-6)
    for name, entry in ((name, headline[name]) for name in values):
        row = table.loc[("chosen" if name.endswith("_at_chosen") else "0.5", name.removesuffix("_at_chosen"))]
        assert entry["n"] == row["n"] and entry["ci95"] == pytest.approx(
            [None if np.isnan(end) else end for end in (row["low"], row["high"])]
        )


def test_aggregations_and_their_comparison_with_the_mean(ci_run):
    table = ci_run.numbers(CHAPTER, "aggregations")
    tests = ci_run.numbers(CHAPTER, "aggregations_against_mean")
    assert list(table["aggregation"].unique()) == list(WAYS) and set(tests["aggregation"]) == set(WAYS) - {"mean"}
    values = {}
    for how in WAYS:
        own = scan_scores(ci_run, how=how).query("fraction == 1")
        cut = chosen(ci_run, how)[(1.0, 0, 5)]
        for at, at_cut in (("0.5", 0.5), ("chosen", cut)):
            values[how, at] = points(own["label"], own["probability"], at_cut)
            agree(table[(table["aggregation"] == how) & (table["at"] == at)], values[how, at])
    for row in tests.itertuples():
        at = "0.5" if pd.isna(row.at) else str(row.at)
        assert row.a == pytest.approx(values["mean", at][row.metric], rel=1e-6)
        assert row.b == pytest.approx(values[row.aggregation, at][row.metric], rel=1e-6)
        assert row.difference == pytest.approx(row.b - row.a, abs=1e-9)
    np.testing.assert_allclose(tests["p_holm"], holm(tests["p_value"]))


def test_comparison_is_all_scans_less_the_fewest(ci_run, scores, main):
    few = scores[scores["fraction"] == min(asked("04_training")["fractions"])]
    table = ci_run.numbers(CHAPTER, "comparison")
    assert len(table) == 3 and table["name"].str.contains(f"less {100 * few['fraction'].iloc[0]:g} %").all()
    for row in table.itertuples():
        a, b = (points(t["label"], t["probability"])[row.metric] for t in (few, main))
        assert (row.a, row.b) == pytest.approx((a, b), rel=1e-6)
        assert row.difference == pytest.approx(b - a, abs=1e-9)
    assert table["difference"].abs().max() > 0.01  # or no test would see a turned sign


def test_known_scores_stand_beside_this_runs_two_counts(ci_run, main):
    saved = pd.read_csv(PUBLISHED / "saved_scores.csv")
    pd.testing.assert_frame_equal(ci_run.numbers(CHAPTER, "saved_scores"), saved)
    known = ci_run.numbers(CHAPTER, "known_scores")
    theirs, ours = (known[known["data"].str.startswith(start)] for start in ("saved", "this run"))
    wanted = saved[saved["metric"].isin(["macro_f1", "roc_auc"])]
    assert list(theirs["value"]) == list(wanted["value"]) and list(theirs["metric"]) == list(wanted["metric"])
    sizes = main["scan_id"].map(ci_run.scans().set_index("scan_id")["n_slices"])
    for unit, weights in (("scans", None), ("slice rows", sizes)):
        part = ours[ours["counted_in"] == unit]
        assert set(part["metric"]) == {"macro_f1", "roc_auc"}
        agree(part, points(main["label"], main["probability"], weights=weights))


def test_worst_errors_are_the_wrong_calls_farthest_off(ci_run, main):
    wrong = main[(main["probability"] >= 0.5) != (main["label"] == 1)]
    off = (wrong["probability"] - wrong["label"]).abs().sort_values(ascending=False, kind="stable")
    expected = wrong.loc[off.index][: asked(CHAPTER)["worst"]]
    table = ci_run.table(CHAPTER, "worst_errors")
    assert list(table["scan_id"]) == list(expected["scan_id"])
    assert list(table["error"] == "false positive") == list(expected["label"] == 0)
    slices = ci_run.parquet("04_training", "predictions").query("part == 'valid' and fraction == 1 and index >= 0")
    for row in table.itertuples():
        drawn = slices.loc[slices["scan_id"] == row.scan_id].groupby("index")["probability"].mean()
        assert row.index >= 0 and row.slice_probability == pytest.approx(drawn.min() if row.label else drawn.max())
    (text,) = [said for said in ci_run.said(CHAPTER) if "called wrongly" in said or "heat map" in said]
    assert in_order(text, len(wrong), len(main), "0.5", len(table))


def printed(row) -> list[str]:
    return [f"{value:.3f}" for value in row if not np.isnan(value)]


def test_answer_says_what_the_tables_say(ci_run, main):
    table = ci_run.numbers(CHAPTER, "metrics").set_index(["at", "metric"])[["value", "low", "high"]]
    first = ci_run.numbers(CHAPTER, "comparison").iloc[0]
    numbers = [len(main), *printed(table.loc[("0.5", "roc_auc")]), *printed(table.loc[("0.5", "macro_f1")])]
    numbers += printed(table.loc[("chosen", "macro_f1")])
    numbers += [*printed(first[["difference", "low", "high"]]), f"{first['p_value']:.2g}"]
    numbers.append(f"{first['detectable']:.3f}")
    answer = ci_run.said(CHAPTER)[-1]
    assert first["metric"] == "roc_auc" and in_order(answer, *numbers) and "seeds are not in them" in answer
    assert f"at a prevalence of {main['label'].mean():.3f}" in answer
    for row in ci_run.numbers(CHAPTER, "calibration").itertuples():
        assert in_order(answer.partition("Calibration")[2], *printed((row.value, row.low, row.high)))
    tests = ci_run.numbers(CHAPTER, "aggregations_against_mean")
    clear = tests[tests["p_holm"] < 0.05]
    (line,) = [line for line in answer.splitlines() if "Against the mean" in line]
    assert f"from {tests['detectable'].median():.3f} would be seen" in line
    assert f", {len(tests)} tests: " in line and ("none differs" in line) == clear.empty
    assert all(
        in_order(line, *(f"{row[c]:+.3f}" for c in ("difference", "low", "high"))) for _, row in clear.iterrows()
    )


def test_model_card_holds_the_metrics(ci_run, main):
    card = (ci_run.dir / CHAPTER / "model_card.md").read_text()
    table = ci_run.numbers(CHAPTER, "metrics")
    lines = [line for line in card.splitlines() if line.startswith("|")]
    for row in table[table["low"].notna()].itertuples():
        words = printed((row.value, row.low, row.high))
        assert any(in_order(line, *words) for line in lines), row.metric
    assert in_order(card.partition("## Evaluation data")[2], 5, len(main), main["label"].sum())


def test_figures_show_the_scores(ci_run, main, scores, tmp_path_factory):
    figures = ci_run.figures(CHAPTER, tmp_path_factory.mktemp("drawn"))
    y = main["label"] == 1
    for axes, cut in zip(panels(figures["confusion"]), (0.5, main["chosen"]), strict=False):
        called = main["probability"] >= cut
        cells = [(~y & ~called).sum(), (~y & called).sum(), (y & ~called).sum(), (y & called).sum()]
        found = [int(re.search(r"\d+", text.get_text())[0]) for text in axes.texts]
        assert found == cells
    auc = {f: points(t["label"], t["probability"])["roc_auc"] for f, t in scores.groupby("fraction")}
    assert set(ci_run.numbers(CHAPTER, "learnt").query("learnt or fraction == 1")["fraction"]) == set(auc)
    lines = [line for axes in figures["roc_pr"].axes for line in axes.lines if len(line.get_xdata()) > 2]
    areas = [np.trapezoid(np.asarray(line.get_ydata(), float), np.asarray(line.get_xdata(), float)) for line in lines]
    assert all(any(area == pytest.approx(value, abs=1e-6) for area in areas) for value in auc.values())
    words = " ".join(text.get_text() for text in legends(figures["roc_pr"]))
    assert "all training scans" in words and f"{100 * scores['fraction'].min():g} %" in words


def panels(figure) -> list:
    return [axes for axes in figure.axes if len(axes.texts) >= 4]


def legends(figure) -> list:
    found = [axes.get_legend() for axes in figure.axes] + figure.legends
    return [text for legend in found if legend is not None for text in legend.get_texts()]
