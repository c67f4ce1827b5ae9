"""Chapter 8's headline, tables and answer, recomputed from the saved probabilities by scikit-learn and pandas."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from tests.notebooks.conftest import asked, holm, in_order

pytestmark = pytest.mark.notebook
NAME = "08_across_sources"
DESIGNS = ["within", "mixed", "left out"]


@pytest.fixture(scope="module")
def scores(ci_run) -> pd.DataFrame:
    return ci_run.parquet(NAME, "scores")


def mean_auc(scores: pd.DataFrame, design: str) -> float:
    """Mean over sources of the mean over replicates."""
    own = scores[scores["design"] == design].groupby(["source", "replicate"])
    each = {key: roc_auc_score(part["label"].astype(int), part["probability"]) for key, part in own}
    return float(pd.Series(each).groupby(level=0).mean().mean())


def test_scans_are_the_usable_ones_with_source_and_label(ci_run, scores):
    cohort, cached = ci_run.cohort(), ci_run.cached("scans")
    usable = set(cached.loc[cached["status"].ne("excluded") & cached["stop"].gt(cached["start"]), "scan_id"])
    expected = {row.scan_id for row in cohort.itertuples() if row.source and pd.notna(row.label)} & usable
    for (design, replicate), own in scores.groupby(["design", "replicate"]):
        assert set(own["scan_id"]) == expected and own["scan_id"].is_unique, (design, replicate)
    assert scores["replicate"].nunique() == asked(NAME)["replicates"] and set(scores["design"]) == set(DESIGNS)
    table = ci_run.numbers(NAME, "sources").set_index("source")
    counted = cohort[cohort["scan_id"].isin(expected)].groupby("source")["label"].agg(["size", "sum"])
    assert table["scans"].to_dict() == counted["size"].to_dict()
    assert table["positive"].to_dict() == counted["sum"].to_dict()
    values = ci_run.values(NAME)
    assert (values["scans"], values["sources"]) == (len(expected), len(table))


def test_headline_and_tables(ci_run, scores):
    values, costs = ci_run.values(NAME), ci_run.numbers(NAME, "costs").set_index("less")
    auc = {design: mean_auc(scores, design) for design in DESIGNS}
    for design, value in auc.items():
        assert values[f"{design.replace(' ', '_')}_roc_auc"] == pytest.approx(value, abs=1e-9)
    for other in ("mixed", "within"):
        assert costs.loc[other, "difference"] == pytest.approx(auc["left out"] - auc[other], abs=1e-9)
        assert costs.loc[other, "low"] <= costs.loc[other, "difference"] <= costs.loc[other, "high"]
        assert values[f"left_out_less_{other}"] == pytest.approx(costs.loc[other, "difference"], abs=1e-9)
    np.testing.assert_allclose(costs["p_holm"], holm(costs["p_value"]))
    carried = scores.assign(called=scores["probability"] >= scores["carried"])
    f1 = [
        {"design": key[0], "value": f1_score(part["label"].astype(int), part["called"], average="macro")}
        for key, part in carried.groupby(["design", "source", "replicate"])
    ]
    mean = pd.DataFrame(f1).groupby("design")["value"].mean()
    table = ci_run.numbers(NAME, "challenge").query("threshold == 'carried'")
    table = table.set_index(["design", "absent_class"])["value"]
    for design in DESIGNS:
        for absent in ("counted as 0", "left out"):
            assert table[design, absent] == pytest.approx(mean[design], abs=1e-9)
    assert values["challenge_left_out"] == pytest.approx(mean["left out"], abs=1e-9)


def test_answer_says_every_comparison_as_its_table_has_it(ci_run, scores):
    answer = next(text for text in ci_run.said(NAME) if "mean over sources of ROC AUC" in text)
    costs, told, remedies = (ci_run.numbers(NAME, name) for name in ("costs", "told", "remedies"))
    assert in_order(answer, ci_run.values(NAME)["scans"], *(f"{mean_auc(scores, design):.3f}" for design in DESIGNS))
    for row in costs.itertuples():
        verdict = "told apart" if row.p_holm < 0.05 else "not told apart"
        assert f"less {row.less}: {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}), {verdict}" in answer
    for row in remedies.itertuples():
        verdict = "told apart" if row.p_holm < 0.05 else "not told apart"
        assert f"*{row.remedy}*: {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}), {verdict}" in answer
    assert all(f"{row.input} {row.accuracy:.2f}" in answer for row in told.itertuples())
    assert f"(chance {told['chance'].iloc[0]:.2f})" in answer
    by = ci_run.numbers(NAME, "by_source").query("design == 'left out'")
    least = by.loc[by["sensitivity"].idxmin()]
    assert f"is {least['sensitivity']:.2f}, of {least['source']}" in answer


def test_shifts_are_differences_of_the_saved_scores(ci_run, scores):
    shifted, table = ci_run.parquet(NAME, "shifted"), ci_run.numbers(NAME, "shifts").set_index("shift")
    assert list(table.index) == asked(NAME)["shifts"] == ["kernel", "noise", "window", "spacing"]
    lines = [line for line in ci_run.said(NAME)[-1].splitlines() if "Shift of the" in line]
    for (name, row), line in zip(table.iterrows(), lines, strict=True):
        own = shifted[shifted["shift"] == name]
        assert row["difference"] == pytest.approx(mean_auc(own, "mixed") - mean_auc(scores, "mixed"), abs=1e-9)
        assert name in line and in_order(line, *(f"{row[c]:+.3f}" for c in ("difference", "low", "high")))
        assert f"{row['detectable']:.3f} would be seen" in line and ("not told" in line) == (row["p_holm"] >= 0.05)
        trained = own.merge(scores[scores["design"] == "mixed"], on=["replicate", "scan_id"])
        assert (trained["carried_x"] == trained["carried_y"]).all()  # thresholds come from scans as they were
        assert not np.allclose(trained["probability_x"], trained["probability_y"])
    np.testing.assert_allclose(table["p_holm"], holm(table["p_value"]))


def test_the_hospital_is_guessed_against_the_largest_share(ci_run, scores):
    told = ci_run.numbers(NAME, "told")
    one = scores.drop_duplicates("scan_id")
    assert told["chance"].unique() == pytest.approx(one["source"].value_counts().max() / len(one))
    assert (told["accuracy"].between(told["low"], told["high"])).all() and (told["n"] == len(one)).all()


def test_balancing_what_is_balanced_changes_nothing_much(ci_run):
    table = ci_run.numbers(NAME, "sources")
    row = ci_run.numbers(NAME, "remedies").set_index("remedy").loc["balanced"]
    groups = table[["positive", "negative"]].to_numpy()
    if (np.round(groups.max() / groups) == 1).all():
        assert row["difference"] == row["low"] == row["high"] == 0
