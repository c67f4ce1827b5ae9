"""Thresholds from training folds, aggregations, paired runs, worst errors, scores beside known ones, their errors."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from e2d_lib.evaluation import metrics, scoring
from e2d_lib.evaluation.scoring import EvaluationError
from e2d_lib.network.model import ModelConfig
from tests import cells

SMALL = ModelConfig("test_efficientnet", pretrained=False)


def slices(scans, *, part="valid", fraction=1.0, seed=0, fold=5):
    """Chapter 4's table: ``scans`` maps a name to its label and its slices' probabilities."""
    rows = [
        (fraction, seed, fold, part, name, index, p, label)
        for name, (label, probabilities) in scans.items()
        for index, p in enumerate(probabilities)
    ]
    return pd.DataFrame(rows, columns=["fraction", "seed", "fold", "part", "scan_id", "index", "probability", "label"])


def cohort_of(predictions, source="a"):
    names = sorted(predictions["scan_id"].unique())
    return pd.DataFrame({"scan_id": names, "source": [source] * len(names)})


INNER = {"i0": (0, [0.1, 0.3]), "i1": (0, [0.3]), "i2": (1, [0.6]), "i3": (1, [0.7, 0.9])}
INNER |= {f"i{k}": (k % 2, [0.1 + 0.8 * (k % 2)]) for k in range(4, 10)}  # farther off: they move no threshold


def made(rng, n=40, *, inner=True, **run):
    """A run's predictions of n scans of each part: scores that tell the classes somewhat apart."""
    tables = []
    for part in ("valid", "inner") if inner else ("valid",):
        scans = {}
        for k in range(n):
            label = k % 2
            logits = rng.normal(label - 0.4, 1.0) + rng.normal(0, 0.8, 6)
            scans[f"{part} {k:03}"] = (label, 1 / (1 + np.exp(-logits)))
        tables.append(slices(scans, part=part, **run))
    return pd.concat(tables, ignore_index=True)


class TestThresholds:
    def test_the_middle_between_the_classes_of_the_scans_held_out(self):
        table = scoring.thresholds(slices(INNER, part="inner"))
        # scan means 0.2, 0.3 | 0.6, 0.8
        assert table["threshold"].item() == pytest.approx(0.45)
        assert table[["scans", "positives", "reason"]].iloc[0].tolist() == [10, 5, ""]

    def test_it_follows_the_aggregation(self):
        table = scoring.thresholds(slices(INNER, part="inner"), how="max")
        assert table["threshold"].item() == pytest.approx(0.45)  # 0.3, 0.3 | 0.6, 0.9
        other = {**INNER, "i0": (0, [0.1, 0.5])}
        assert scoring.thresholds(slices(other, part="inner"), how="max")["threshold"].item() == pytest.approx(0.55)

    def test_the_reported_fold_takes_no_part(self, rng):
        predictions = made(rng)
        turned = predictions.copy()
        valid = turned["part"] == "valid"
        turned.loc[valid, "label"] = 1 - turned.loc[valid, "label"]
        turned.loc[valid, "probability"] = rng.random(valid.sum())
        pd.testing.assert_frame_equal(scoring.thresholds(predictions), scoring.thresholds(turned))

    def test_each_run_has_its_own(self):
        first = slices(INNER, part="inner", fold=1)
        second = slices({k: (label, [p / 2 for p in ps]) for k, (label, ps) in INNER.items()}, part="inner", fold=2)
        table = scoring.thresholds(pd.concat([first, second])).set_index("fold")["threshold"]
        assert table.to_dict() == pytest.approx({1: 0.45, 2: 0.225})

    @pytest.mark.parametrize(
        ("held", "reason"),
        [
            ({}, "no scans held out of the training folds, 10 are needed"),
            ({name: INNER[name] for name in list(INNER)[:9]}, "9 scans held out of the training folds, 10 are needed"),
            ({name: (1, ps) for name, (_, ps) in INNER.items()}, "one class only among the scans held out"),
        ],
    )
    def test_a_half_and_why_with_fewer_than_ten_scans_or_one_class(self, held, reason):
        predictions = pd.concat([slices({"v": (1, [0.5])}), slices(held, part="inner")])
        row = scoring.thresholds(predictions).iloc[0]
        assert (row["threshold"], row["scans"], row["reason"]) == (0.5, len(held), reason)
        assert not scoring.has_chosen(scoring.scan_scores(predictions, cohort_of(predictions)))


class TestAtThresholds:
    def test_values_at_both_are_scikit_learns(self, rng):
        predictions = pd.concat(
            [made(rng, fold=1), made(rng, fold=2).replace({"scan_id": r"$"}, {"scan_id": "b"}, regex=True)]
        )
        scores = scoring.scan_scores(predictions, cohort_of(predictions))
        assert scores.groupby("fold")["chosen"].nunique().tolist() == [1, 1] and scores["chosen"].nunique() == 2
        table = scoring.at_thresholds(scores, n_boot=50).set_index(["at", "metric"])["value"]
        labels, p = scores["label"], scores["probability"]
        for at, called in (("0.5", p >= 0.5), ("chosen", p >= scores["chosen"])):
            assert table[at, "macro_f1"] == pytest.approx(f1_score(labels, called, average="macro"))
            assert table[at, "sensitivity"] == pytest.approx(recall_score(labels, called))
            assert table[at, "specificity"] == pytest.approx(recall_score(labels, called, pos_label=0))
            assert table[at, "accuracy"] == pytest.approx(accuracy_score(labels, called))
        assert table["0.5", "roc_auc"] == pytest.approx(roc_auc_score(labels, p))
        assert ("chosen", "roc_auc") not in table.index  # no threshold in it

    def test_equal_decisions_have_equal_intervals(self, rng):
        predictions = made(rng)
        scores = scoring.scan_scores(predictions, cohort_of(predictions)).assign(chosen=0.5)
        table = scoring.at_thresholds(scores, n_boot=200).set_index(["at", "metric"])
        for metric in scoring.AT_A_CUT:
            assert table.loc[("0.5", metric), "low"] == table.loc[("chosen", metric), "low"]
            assert table.loc[("0.5", metric), "high"] == table.loc[("chosen", metric), "high"]

    def test_only_the_given_one_where_a_run_chose_none(self, rng):
        predictions = pd.concat([made(rng), made(rng, inner=False, seed=1)])
        scores = scoring.scan_scores(predictions, cohort_of(predictions))
        assert set(scoring.at_thresholds(scores, threshold=0.4, n_boot=20)["at"]) == {"0.4"}

    def test_seeds_are_averaged(self, rng):
        predictions = pd.concat([made(rng, seed=0), made(rng, seed=1)])
        scores = scoring.scan_scores(predictions, cohort_of(predictions))
        auc = [roc_auc_score(part["label"], part["probability"]) for _, part in scores.groupby("seed")]
        row = scoring.at_thresholds(scores, n_boot=20).set_index("metric").loc["roc_auc"]
        assert row["value"] == pytest.approx(np.mean(auc)) and row["seed_sd"] == pytest.approx(np.std(auc, ddof=1))
        together = scoring.mean_over_seeds(scores).set_index("scan_id")["probability"]
        want = scores.pivot(index="scan_id", columns="seed", values="probability").mean(axis=1)
        pd.testing.assert_series_equal(together, want, check_names=False)

    def test_by_run_is_each_run_alone(self, rng):
        predictions = pd.concat([made(rng, fraction=0.1), made(rng, fraction=1.0)])
        scores = scoring.scan_scores(predictions, cohort_of(predictions))
        table = scoring.by_run(scores, n_boot=20).set_index(["fraction", "at", "metric"])["value"]
        for fraction, part in scores.groupby("fraction"):
            assert table[fraction, "0.5", "roc_auc"] == pytest.approx(roc_auc_score(part["label"], part["probability"]))
        assert scoring.largest(scores)["fraction"].unique().tolist() == [1.0]

    def test_a_group_of_one_class_or_one_scan_keeps_its_rows_with_a_reason(self, rng):
        predictions = made(rng)
        scores = scoring.scan_scores(predictions, cohort_of(predictions))
        positive = scores["label"] == 1
        scores["source"] = np.where(positive, "covid", "")
        scores.loc[scores.index[positive][0], "source"] = "lone"
        table = scoring.by_group(scores, "source", n_boot=20).set_index(["source", "metric"])
        assert set(table.index.get_level_values("source")) == {"covid", "unknown", "lone"}
        assert all(len(part) == len(metrics.METRICS) for _, part in table.groupby("source"))
        assert table.loc[("covid", "roc_auc"), "reason"] == "no negative scans"
        assert table.loc[("unknown", "sensitivity"), "reason"] == "no positive scans"
        assert np.isnan(table.loc[("lone", "macro_f1"), "value"]) and table.loc[("lone", "sensitivity"), "n"] == 1
        assert table[table["value"].isna()]["reason"].ne("").all()


def aggregations(predictions, **given):
    """Chapter 5's two tables."""
    given |= {"predictions": predictions, "cohort": cohort_of(predictions)}
    left = cells.run("05_evaluation", "scoring.AGGREGATIONS", **given)
    return left.aggregations, left.against_mean


class TestAggregations:
    def test_every_way_by_numpy(self, rng):
        predictions = made(rng)
        table, _ = aggregations(predictions, options={"n_boot": 20}, top_k=2)
        got = table[table["at"] == "0.5"].set_index(["aggregation", "metric"])["value"]
        valid = predictions[predictions["part"] == "valid"].groupby("scan_id")
        labels = valid["label"].first()
        ways = {
            "mean": np.mean,
            "median": np.median,
            "max": np.max,
            "topk": lambda p: np.sort(p)[-2:].mean(),
            "logodds": lambda p: 1 / (1 + np.exp(-np.mean(np.log(p / (1 - p))))),
        }
        assert set(table["aggregation"]) == set(ways) == set(scoring.AGGREGATIONS)
        for how, way in ways.items():
            p = valid["probability"].apply(lambda values, way=way: way(values.to_numpy()))
            assert got[how, "roc_auc"] == pytest.approx(roc_auc_score(labels, p))
            assert got[how, "brier"] == pytest.approx(((p - labels) ** 2).mean())
            assert got[how, "macro_f1"] == pytest.approx(f1_score(labels, p >= 0.5, average="macro"))
        assert (table["low"].notna() == table["metric"].ne("ece")).all() and set(table["at"]) == {"0.5", "chosen"}

    def test_each_is_paired_with_the_mean_and_corrected_by_holm(self, rng):
        predictions = made(rng)
        table, tests = aggregations(predictions, options={"n_boot": 100})
        value = table[table["at"] == "0.5"].set_index(["aggregation", "metric"])["value"]
        auc = tests[tests["metric"] == "roc_auc"].set_index("aggregation")
        assert auc.index.tolist() == ["median", "max", "topk", "logodds"]
        for how, row in auc.iterrows():
            assert row["a"] == value["mean", "roc_auc"] and row["b"] == value[how, "roc_auc"]
        p = tests["p_value"].to_numpy()
        order, m, holm, so_far = np.argsort(p), len(p), np.empty(len(p)), 0.0
        for rank, place in enumerate(order):
            so_far = max(so_far, min(1.0, (m - rank) * p[place]))
            holm[place] = so_far
        np.testing.assert_allclose(tests["p_holm"], holm)
        assert m == 4 * 5 and (tests["p_holm"] >= p).all()


class TestPaired:
    def scores(self, rng, **run):
        predictions = made(rng, **run)
        return scoring.scan_scores(predictions, cohort_of(predictions))

    def test_mcnemar_is_a_sign_test_at_both_thresholds(self, rng):
        a, b = self.scores(rng), self.scores(rng)
        table = scoring.paired(a, b, n_boot=50).set_index(["metric", "at"])
        for at in ("0.5", "chosen"):
            cuts = (0.5, 0.5) if at == "0.5" else (a["chosen"].iloc[0], b["chosen"].iloc[0])
            right = [
                ((s["probability"] >= c) == (s["label"] == 1)).to_numpy() for s, c in zip((a, b), cuts, strict=True)
            ]
            only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
            row = table.loc[("accuracy", at)]
            assert row["p_value"] == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
            assert row["difference"] == pytest.approx((only_b - only_a) / len(a))
        assert table.index.tolist() == [
            ("roc_auc", ""), ("accuracy", "0.5"), ("macro_f1", "0.5"), ("accuracy", "chosen"), ("macro_f1", "chosen")
        ]  # fmt: skip

    def test_rows_are_matched_by_scan(self, rng):
        a, b = self.scores(rng), self.scores(rng)
        shuffled = b.sample(frac=1, random_state=1)
        pd.testing.assert_frame_equal(scoring.paired(a, b, n_boot=50), scoring.paired(a, shuffled, n_boot=50))

    def test_other_scans_are_told(self, rng):
        a, b = self.scores(rng), self.scores(rng, n=30)
        message = "these score 40 and 30 scans, 30 of them in both; give runs of the same folds and data"
        with pytest.raises(EvaluationError, match=message):
            scoring.paired(a, b)

    def test_other_labels_are_told(self, rng):
        a, b = self.scores(rng), self.scores(rng)
        b["label"] = 1 - b["label"]
        with pytest.raises(EvaluationError, match="two runs of other labels: valid 000 is 0 in the first"):
            scoring.paired(a, b)

    def test_one_class_gives_reasons(self, rng):
        a, b = (self.scores(rng).query("label == 1") for _ in range(2))
        table = scoring.paired(a, b, n_boot=20).set_index(["metric", "at"])
        assert np.isnan(table.loc[("roc_auc", ""), "p_value"])
        assert table.loc[("roc_auc", ""), "reason"] == "no negative scans"


class TestAnotherRun:
    SCANS = pd.DataFrame({"scan_id": ["a", "b"], "n_files": [12, 13]})

    def beside(self, mine, theirs):
        """Chapter 5's cell, with another run to compare with."""
        predictions = slices({"a": (1, [0.9]), "b": (0, [0.1])})
        other = SimpleNamespace(preprocessed=lambda: SimpleNamespace(scans=theirs), read=lambda *_: predictions)
        given = {"scores": predictions, "cohort": cohort_of(predictions), "done": SimpleNamespace(scans=mine)}
        given |= {"RunFolder": {"results/other": other}.__getitem__, "other_run": "results/other"}
        left = cells.run("05_evaluation", "if other_run:", **given)
        assert left.name == "this run less results/other" and left.few["probability"].tolist() == [0.9, 0.1]

    def test_of_the_same_scans_is_let_through(self):
        self.beside(self.SCANS, self.SCANS.iloc[:1])

    def test_other_scans_of_the_same_names(self):
        mine = self.SCANS.assign(n_files=[12, 16])
        with pytest.raises(
            EvaluationError, match="is about other data: 1 of 2 scans of the same name have another number"
        ):
            self.beside(mine, self.SCANS)


def worst_errors(scan_scores, drawn, **given):
    """Chapter 5's cell."""
    given |= {"labels": scan_scores["label"].to_numpy(), "probabilities": scan_scores["probability"].to_numpy()}
    given |= {"scan_scores": scan_scores, "drawn": drawn}
    return cells.run("05_evaluation", "errors = wrong.loc", **given).errors


class TestWorstErrors:
    def errors(self, **options):
        predictions = slices(
            {
                "right": (1, [0.9, 0.8]),
                "false alarm": (0, [0.4, 0.95, 0.6]),
                "missed": (1, [0.3, 0.1, 0.2]),
                "nearly": (0, [0.52, 0.5]),
            }
        )
        scores = scoring.scan_scores(predictions, cohort_of(predictions))
        return worst_errors(scoring.mean_over_seeds(scores), predictions, **options)

    def test_worst_first_with_the_loudest_wrong_slice(self):
        table = self.errors()
        assert table["scan_id"].tolist() == ["missed", "false alarm", "nearly"]  # off by 0.8, 0.65, 0.51
        assert table["error"].tolist() == ["false negative", "false positive", "false positive"]
        assert table["index"].tolist() == [1, 1, 0]
        assert table["slice_probability"].tolist() == pytest.approx([0.1, 0.95, 0.52])

    def test_at_most_n_and_at_the_threshold(self):
        assert self.errors(worst=1)["scan_id"].tolist() == ["missed"]
        assert self.errors(threshold=0.6)["scan_id"].tolist() == ["missed", "false alarm"]

    def test_none(self):
        table = self.errors(threshold=0.0).query("label == 1")
        assert table.empty and {"error", "index", "slice_probability"} <= set(table.columns)
        predictions = slices({"a": (1, [0.9]), "b": (0, [0.1])})
        scores = scoring.mean_over_seeds(scoring.scan_scores(predictions, cohort_of(predictions)))
        assert worst_errors(scores, predictions).empty

    def test_blank_inputs_have_no_slice(self):
        predictions = slices({"short": (1, [0.2, 0.2])}).assign(index=-1)
        scores = scoring.mean_over_seeds(scoring.scan_scores(predictions, cohort_of(predictions)))
        table = worst_errors(scores, predictions)
        assert table["index"].tolist() == [-1] and np.isnan(table["slice_probability"].item())


class TestKnownScores:
    SAVED = pd.DataFrame(
        {
            "run": ["job 1", "job 2"],
            "validated_on": ["validation split", "unknown"],
            "metric": ["roc_auc", "macro_f1"],
            "value": [0.98, 0.91],
            "counted_in": ["slice rows", "unknown"],
        }
    )

    def table(self, auc):
        rows = [("roc_auc", auc, 0.7, 0.9), ("macro_f1", 0.7, 0.6, 0.8), ("brier", 0.1, 0.05, 0.2)]
        return pd.DataFrame(rows, columns=["metric", "value", "low", "high"]).assign(at="0.5")

    def test_both_counts_beside_the_saved_ones_each_with_its_data(self, tmp_path):
        asked = []
        pooled = SimpleNamespace(pooled=lambda counted, **how: asked.append((counted, how)) or self.table(0.82))
        scans = pd.DataFrame({"scan_id": ["a", "b"], "n_slices": [30, 50]})
        given = {"main": scans[["scan_id"]], "done": SimpleNamespace(scans=scans), "metrics": pooled}
        chosen = self.table(0.1).assign(at="chosen")
        given |= {"table": pd.concat([self.table(0.8), chosen]), "published_dir": tmp_path}
        self.SAVED.to_csv(tmp_path / "saved_scores.csv", index=False)
        table = cells.run("05_evaluation", "slice_rows = metrics.pooled", **given).chapter.tables["known_scores"]
        ((counted, how),) = asked
        assert counted["n_slices"].tolist() == [30, 50] and how["weights"] == "n_slices"
        own = table[table["data"] == "this run: phantom"].set_index(["metric", "counted_in"])["value"]
        assert own["roc_auc", "scans"] == 0.8 and own["roc_auc", "slice rows"] == 0.82
        saved = table[table["data"] == "saved: COV19-CT-DB"].set_index("run")
        assert saved.loc["job 1, validation split", "value"] == 0.98 and saved["low"].isna().all()
        assert "brier" not in set(table["metric"])
