"""Settings, and results compared: against scikit-learn, hand-worked values and Holm's rule by hand."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from e2d_lib.evaluation import ablation
from e2d_lib.evaluation.ablation import Result, Setting
from e2d_lib.network import prediction
from e2d_lib.phantom import phantom
from e2d_lib.scans.cohort import assign_folds, read_cohort
from tests import cells


def result(probabilities, labels, *, seed=0, draws=1, **setting) -> Result:
    """Scores of one seed; ``probabilities``: (scans,) or (draws, scans)."""
    table = np.atleast_2d(np.asarray(probabilities, dtype=float))
    rows = [
        {"seed": seed, "fold": 5, "draw": draw, "scan_id": f"s{k:03d}", "label": int(labels[k]), "probability": p}
        for draw, row in enumerate(table)
        for k, p in enumerate(row)
    ]
    return Result({"method": "kds", "recipe": {}, **setting}, pd.DataFrame(rows))


class TestSetting:
    @pytest.mark.parametrize(
        ("ssfl", "crop", "fraction"),
        [("both", True, 0.4), ("spatial", True, 1.0), ("slice", False, 0.4), ("off", False, 1.0)],
    )
    def test_steps_of_ssfl(self, ssfl, crop, fraction):
        params = Setting(ssfl=ssfl, preprocessing={"fraction": 0.4, "size": 64}).params
        assert (params.crop, params.fraction, params.size) == (crop, fraction, 64)

    def test_changes_go_where_they_belong(self):
        own = {"few_shot": 0.1, "variant": "released"}
        changed = Setting(recipe={"epochs": 2}).but(**own, preprocessing={"trim": True}, recipe={"method": "random"})
        assert (changed.few_shot, changed.variant) == (0.1, "released")
        assert changed.preprocessing == {"trim": True}
        assert changed.recipe == {"epochs": 2, "method": "random"}

    def test_changes_of_changes_add_up(self):
        assert Setting().but(recipe={"lr": 1.0}).but(recipe={"method": "kds"}).recipe == {"lr": 1.0, "method": "kds"}

    def test_unknown_steps(self):
        with pytest.raises(ValueError, match="ssfl is one of both, spatial, slice, off, got 'none'"):
            Setting(ssfl="none")


class TestCompare:
    @pytest.fixture
    def three(self, rng):
        labels = np.repeat([0, 1], 40)
        good = np.clip(0.35 + 0.3 * labels + 0.12 * rng.standard_normal(80), 0, 1)
        return labels, {
            "good": result(good, labels, method="kds"),
            "same": result(good, labels, method="random"),
            "chance": result(rng.random(80), labels, method="systematic"),
        }

    def test_values_are_scikit_learns(self, three, rng):
        labels, results = three
        table = ablation.compare(results, rng=rng, n_boot=100).set_index(["cell", "metric"])
        for name, one in results.items():
            expected = roc_auc_score(labels, one.scores["probability"])
            assert table.loc[(name, "roc_auc"), "value"] == pytest.approx(expected, abs=1e-12)
        auc = table.xs("roc_auc", level="metric")
        assert auc.loc["chance", "difference"] == pytest.approx(auc.loc["chance", "value"] - auc.loc["good", "value"])
        assert auc.loc["chance", "p_value"] < 1e-4 and auc.loc["same", "p_value"] == 1
        assert np.isnan(auc.loc["good", "difference"]) and auc.loc["good", "baseline"] == ""

    def test_p_is_corrected_by_holm_over_the_table(self, rng):
        labels = np.repeat([0, 1], 30)
        scores = {f"r{k}": result(np.clip(0.5 + 0.1 * k * (labels - 0.5) + 0.2 * rng.standard_normal(60), 0, 1), labels)
                  for k in range(5)}  # fmt: skip
        table = ablation.compare(scores, "r4", rng=rng, n_boot=50)
        part = table[(table["metric"] == "roc_auc") & table["p_value"].notna()].sort_values("p_value")
        by_hand = np.minimum(1, np.maximum.accumulate(part["p_value"].to_numpy() * [4, 3, 2, 1]))
        np.testing.assert_allclose(part["p_holm"], by_hand, rtol=1e-12)

    def test_another_partner_for_some(self, three, rng):
        table = ablation.compare(three[1], "good", against={"same": "chance"}, rng=rng, n_boot=50)
        assert table.groupby("cell")["baseline"].first().to_dict() == {"good": "", "same": "chance", "chance": "good"}

    def test_only_scans_that_both_have_are_compared(self, three, rng):
        labels, results = three
        good = results["good"]
        fewer = good._replace(scores=good.scores[good.scores["scan_id"] >= "s010"])
        table = ablation.compare({"all": results["chance"], "fewer": fewer}, rng=rng, n_boot=50)
        row = table.set_index(["cell", "metric"]).loc[("fewer", "roc_auc")]
        difference = roc_auc_score(labels[10:], good.scores["probability"][10:]) - roc_auc_score(
            labels[10:], results["chance"].scores["probability"][10:]
        )
        assert row["difference"] == pytest.approx(difference, abs=1e-12) and row["n"] == 70

    def test_difference_is_that_of_the_means_over_seeds(self, rng):
        labels = np.array([0, 0, 1, 1] * 10)
        a, b = rng.random(40), rng.random(40)
        both = Result({}, pd.concat([result(a, labels, seed=0).scores, result(b, labels, seed=1).scores]))
        other = result(rng.random(40), labels)
        table = ablation.compare({"other": other, "both": both}, rng=rng, n_boot=50).set_index(["cell", "metric"])
        mean = (roc_auc_score(labels, a) + roc_auc_score(labels, b)) / 2
        row = table.loc[("both", "roc_auc")]
        assert row["value"] == pytest.approx(mean, abs=1e-12)
        expected = mean - roc_auc_score(labels, other.scores["probability"])
        assert row["difference"] == pytest.approx(expected, abs=1e-12)
        for metric in ablation.METRICS:
            values = table.xs(metric, level="metric")["value"]
            assert table.loc[("both", metric), "difference"] == pytest.approx(values["both"] - values["other"])

    def test_unknown_baseline(self, three, rng):
        with pytest.raises(ValueError, match="no result 'bad' to compare; there are good, same, chance"):
            ablation.compare(three[1], "bad", rng=rng)

    def test_only_choices_that_differ_are_columns(self):
        table = ablation.differences(
            [{"a": 1, "recipe": {"lr": 2, "epochs": 3}}, {"a": 1, "recipe": {"lr": 4, "epochs": 3}}]
        )
        assert table.columns.tolist() == ["lr"]


def test_stability_by_hand():
    """Two draws: one scan moves by 0.2 (SD 0.2 / sqrt 2), three do not; AUC goes from 1 to 0.75."""
    labels = [0, 0, 1, 1]
    one = result([[0.1, 0.4, 0.5, 0.9], [0.1, 0.6, 0.5, 0.9]], labels)
    found = ablation.stability(one.scores)
    assert found["probability"] == pytest.approx(0.2 / np.sqrt(2) / 4)
    assert found["roc_auc"] == pytest.approx(0.25 / np.sqrt(2))
    table = ablation.compare({"one": one}, rng=np.random.default_rng(0), n_boot=20).set_index("metric")
    assert table.loc["roc_auc", "redraw_sd"] == found["roc_auc"] and table.loc["macro_f1", "redraw_sd"] > 0
    assert set(table["score_sd"]) == {found["probability"]}


def test_effects_are_named_by_the_register():
    table = pd.DataFrame(
        {
            "cell": ["ours", "E3 chosen on the fold", "wide"],
            "metric": "roc_auc",
            "difference": [np.nan, 0.02, 0.1],
            "difference_low": [np.nan, 0.01, 0.0],
            "difference_high": [np.nan, 0.03, 0.2],
            "baseline": ["", "ours", "ours"],
            "n": 50,
        }
    )
    found = ablation.effects(table)
    assert found["id"].tolist() == ["E3"] and found["value"].tolist() == [0.02]
    assert found["metric"].tolist() == ["ROC AUC, trained both ways, E3 chosen on the fold less ours"]


class TestFiles:
    def test_what_is_saved_is_found(self, tmp_path):
        one = result([0.1, 0.9], [0, 1])
        for name in ("g/a", "g/b", "h/a"):
            ablation.save(one, tmp_path / name)
        assert list(ablation.find([tmp_path / "g"])) == ["a", "b"]
        names = list(ablation.find([tmp_path / "g", tmp_path / "h"]))
        assert names == ["g/a", "g/b", "h/a"]
        pd.testing.assert_frame_equal(ablation.load(tmp_path / "h" / "a").scores, one.scores)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match="no results"):
            ablation.find([tmp_path])


def test_run_trains_once_and_scores_every_scan_every_time(tmp_path):
    phantom.write(tmp_path / "data", n_scans=16, valid=0.5, matrix=64, slices=(12, 14), dirt=False, n_jobs=1)
    cohort = assign_folds(read_cohort(tmp_path / "data"), n_folds=2)
    cohort["patient"] = [f"p{number // 2}" for number in range(len(cohort))]
    setting = Setting(preprocessing={"size": 32}, recipe={"epochs": 1, "scans_per_step": 4, "device": "cpu"})
    how = {"cache": tmp_path / "cache", "runs": tmp_path / "runs", "folds": [3], "redraws": 3, "n_jobs": 1}
    how["data"] = "my cohort"
    first = ablation.run(setting, cohort, seeds=[0, 1], **how)
    valid = cohort[cohort["fold"] == 3].set_index("scan_id")["label"]
    assert len(first.scores) == 2 * 3 * len(valid)
    assert first.scores.groupby(["seed", "draw"])["scan_id"].agg(set).map(len).eq(len(valid)).all()
    assert (first.scores["label"] == first.scores["scan_id"].map(valid)).all()
    assert (first.scores["patient"] == first.scores["scan_id"].map(cohort.set_index("scan_id")["patient"])).all()
    weights = Path(first.runs["checkpoint"].iloc[0])
    assert prediction.trained_on([weights]) == "my cohort"
    before = os.stat(weights).st_mtime_ns
    again = ablation.run(setting, cohort, seeds=[0, 1], **how)
    assert os.stat(weights).st_mtime_ns == before
    pd.testing.assert_frame_equal(again.scores, first.scores)
    # another aggregation of the same draws: the largest slice probability is never below the mean
    largest = ablation.run(setting.but(aggregation="max"), cohort, seeds=[0, 1], **how).scores
    assert (largest["probability"] >= first.scores["probability"] - 1e-12).all()
    assert (largest["probability"] > first.scores["probability"]).any()


def test_a_sweep_in_words(tmp_path):
    table = pd.DataFrame(
        {
            "cell": ["a", "b", "c"],
            "metric": "roc_auc",
            "difference": [np.nan, -0.2, 0.1],
            "difference_low": [np.nan, -0.3, -0.1],
            "difference_high": [np.nan, -0.1, 0.3],
            "p_holm": [np.nan, 0.01, 0.06],
            "detectable": [np.nan, 0.1, 0.2],
        }
    )
    found = cells.run("06_ablations", "of_sweeps = []", sweeps={"window": table, "none": table.iloc[[0, 2]]})
    line, none = found.of_sweeps
    assert line.startswith("- window: of 2 settings, ROC AUC against the baseline")
    assert line.endswith(": b -0.200 (-0.300 to -0.100) (differences from 0.150 would be seen)")
    assert none.endswith("none differs from the baseline (differences from 0.200 would be seen)")
    (tmp_path / "window").mkdir()
    table.to_csv(tmp_path / "window" / "comparison.csv")
    assert list(ablation.finished(tmp_path)) == ["window"]
