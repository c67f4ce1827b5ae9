"""Metrics against scikit-learn, brute force and closed forms; intervals and tests against theirs."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom, norm
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from statsmodels.stats.multitest import multipletests

from e2d_lib import bootstrap
from e2d_lib.evaluation import metrics
from tests import cells

# Ten scans worked by hand below: one positive missed, two negatives called, a tie across classes at 0.6.
LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
AT_A_CUT = {"sensitivity", "specificity", "accuracy"}
SCORES = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.6, 0.4, 0.2, 0.1, 0.0])


def scans(rng, n=80, *, shift=0.25, decimals=2):
    """Labels and overlapping scores with ties."""
    labels = (np.arange(n) % 3 == 0).astype(int)
    return labels, np.clip(rng.uniform(0, 0.75, n) + shift * labels, 0, 1).round(decimals)


def by_scikit_learn(labels, scores, weights):
    """All but the calibration error, which scikit-learn has not."""
    called, weighted = scores >= 0.5, {"sample_weight": weights}
    return {
        "macro_f1": sk.f1_score(labels, called, average="macro", **weighted),
        "roc_auc": sk.roc_auc_score(labels, scores, **weighted),
        "pr_auc": sk.average_precision_score(labels, scores, **weighted),
        "sensitivity": sk.recall_score(labels, called, **weighted),
        "specificity": sk.recall_score(labels, called, pos_label=0, **weighted),
        "accuracy": sk.accuracy_score(labels, called, **weighted),
        "brier": sk.brier_score_loss(labels, scores, **weighted),
    }


def row_of(table, metric):
    return table.set_index("metric").loc[metric]


def evaluate(labels, scores, **options):
    """`metrics.pooled` of one run: its first columns."""
    table = pd.DataFrame({"label": labels, "probability": scores}).assign(fold=1)
    table["scan_id"] = [f"{i:06d}" for i in range(len(table))]
    if (groups := options.pop("groups", None)) is not None:
        table["patient"] = groups
    if options.get("weights") is not None:
        table["weights"] = options["weights"]
        options["weights"] = "weights"
    return metrics.pooled(table, **options)[["metric", "value", "low", "high", "n", "method", "reason"]]


class TestPointMetrics:
    def test_hand_worked(self):
        m = metrics.point_metrics(LABELS, SCORES)
        # TP 3, FN 1, FP 2, TN 4
        assert m["macro_f1"] == pytest.approx((6 / 9 + 8 / 11) / 2)
        assert m["sensitivity"] == pytest.approx(3 / 4)
        assert m["specificity"] == pytest.approx(4 / 6)
        assert m["accuracy"] == pytest.approx(7 / 10)
        # pairs won by each positive: 6, 6, 4 + one tie, 3
        assert m["roc_auc"] == pytest.approx((6 + 6 + 4.5 + 3) / 24)
        # precision where recall rises: 1/1, 2/2, 3/5 (both scans at 0.6 come together), 4/7
        assert m["pr_auc"] == pytest.approx((1 + 1 + 3 / 5 + 4 / 7) / 4)
        assert m["brier"] == pytest.approx(sum((s - y) ** 2 for s, y in zip(SCORES, LABELS, strict=True)) / 10)

    def test_ece_by_hand(self):
        # ten bins; [0.3, 0.4): labels 0 1, gap |1 - 0.7|; [0.5, 0.6): 0, gap 0.5; [0.9, 1]: 1 1, gap |2 - 1.95|
        m = metrics.point_metrics([0, 1, 0, 1, 1], [0.32, 0.38, 0.5, 0.95, 1.0])
        assert m["ece"] == pytest.approx((0.3 + 0.5 + 0.05) / 5)

    def test_ece_bins_are_closed_below(self):
        # 0.5 belongs to [0.5, 0.6): alone there its gap is 0.5; with 0.45 in one bin the gaps would cancel in part
        assert metrics.point_metrics([0, 1], [0.45, 0.5])["ece"] == pytest.approx((0.45 + 0.5) / 2)

    def test_a_score_at_the_threshold_is_positive(self):
        assert metrics.point_metrics([1, 0], [0.5, 0.4])["sensitivity"] == 1
        assert metrics.point_metrics([1, 0], [0.5, 0.4], threshold=0.51)["sensitivity"] == 0

    def test_threshold_per_scan(self):
        m = metrics.point_metrics([1, 0], [0.5, 0.4], threshold=[0.6, 0.3])
        assert (m["sensitivity"], m["specificity"]) == (0, 0)

    def test_weights_repeat_scans(self, rng):
        labels, scores = scans(rng)
        counts = rng.integers(1, 6, len(labels))
        weighted = metrics.point_metrics(labels, scores, weights=counts)
        repeated = metrics.point_metrics(np.repeat(labels, counts), np.repeat(scores, counts))
        assert weighted == pytest.approx(repeated, rel=1e-12)
        assert weighted != pytest.approx(metrics.point_metrics(labels, scores), rel=1e-3)

    def test_weight_zero_leaves_out(self, rng):
        labels, scores = scans(rng)
        weights = np.arange(len(labels)) % 2
        kept = weights == 1
        assert metrics.point_metrics(labels, scores, weights=weights) == pytest.approx(
            metrics.point_metrics(labels[kept], scores[kept])
        )

    def test_order_of_scans_does_not_matter(self, rng):
        labels, scores = scans(rng)
        order = rng.permutation(len(labels))
        assert metrics.point_metrics(labels[order], scores[order]) == pytest.approx(
            metrics.point_metrics(labels, scores), rel=1e-12
        )

    def test_swapped_classes(self, rng):
        """Negating labels and scores swaps sensitivity and specificity and keeps what treats classes alike."""
        labels, scores = scans(rng)
        scores = scores + 0.001  # none at the threshold, nor at 1 - threshold
        one, other = metrics.point_metrics(labels, scores), metrics.point_metrics(1 - labels, 1 - scores)
        assert (one["sensitivity"], one["specificity"]) == (other["specificity"], other["sensitivity"])
        for metric in ("macro_f1", "roc_auc", "accuracy", "brier"):
            assert one[metric] == pytest.approx(other[metric], rel=1e-12)

    @pytest.mark.parametrize(
        ("labels", "undefined"),
        [
            ([1, 1, 1], {"macro_f1", "roc_auc", "pr_auc", "specificity"}),
            ([0, 0, 0], {"macro_f1", "roc_auc", "pr_auc", "sensitivity"}),
            ([], set(metrics.METRICS)),
        ],
    )
    def test_absent_class(self, labels, undefined):
        m = metrics.point_metrics(labels, [0.2, 0.6, 0.9][: len(labels)])
        assert {name for name, value in m.items() if math.isnan(value)} == undefined

    @pytest.mark.parametrize(
        ("labels", "scores", "options", "message"),
        [
            ([0, 2], [0.1, 0.2], {}, "labels must be 0 or 1"),
            (pd.array([0, None], dtype="Int64"), [0.1, 0.2], {}, "1 of 2 scans have no label"),
            ([0, 1], [0.1], {}, "2 labels but probabilities of shape"),
            ([0, 1], [0.1, np.nan], {}, "NaN or outside"),
            ([0, 1], [0.1, 0.2], {"weights": [1, -1]}, "weights must be 2"),
            ([0, 1], [0.1, 0.2], {"threshold": [0.5] * 3}, "threshold must be"),
        ],
    )
    def test_bad_input(self, labels, scores, options, message):
        with pytest.raises(ValueError, match=message):
            metrics.point_metrics(labels, scores, **options)

    def test_labels_from_a_cohort_table(self):
        labels = pd.Series([0, 1, 1], dtype="Int64")
        assert metrics.point_metrics(labels, pd.Series([0.1, 0.9, 0.2]))["accuracy"] == pytest.approx(2 / 3)


class TestBestThreshold:
    @pytest.mark.parametrize("decimals", [1, 3])
    def test_no_other_cut_is_better(self, decimals, rng):
        labels, scores = scans(rng, 40, decimals=decimals)

        def value(cut):
            return sk.f1_score(labels, scores >= cut, average="macro")

        best = metrics.best_threshold(labels, scores)
        inner = np.linspace(scores.min() + 0.05, scores.max(), 1000)  # both sides of the cut hold scans
        assert value(best) == pytest.approx(max(value(cut) for cut in inner))

    def test_nearest_to_a_half_among_equals(self):
        # cuts at 0.15 and at 0.8 give the same confusion counts, mirrored
        assert metrics.best_threshold([0, 1, 0, 1], [0.1, 0.2, 0.7, 0.9]) == pytest.approx(0.8)
        assert metrics.best_threshold([0, 1, 0, 1], [0.1, 0.35, 0.9, 1.0]) == pytest.approx(0.225)

    def test_neighbouring_floats(self):
        low = np.nextafter(0.3, 0)
        cut = metrics.best_threshold([0, 1], [low, 0.3])
        assert low < cut <= 0.3

    def test_constant_scores(self):
        assert metrics.best_threshold([0, 1], [0.3, 0.3]) == 0.5

    def test_one_class(self):
        with pytest.raises(ValueError, match="2 positive and 0 negative"):
            metrics.best_threshold([1, 1], [0.3, 0.4])


class TestReplicates:
    """The vectorised kernel behind the bootstrap."""

    def test_equals_scikit_learn_for_every_weighting(self, rng):
        labels, scores = scans(rng, 50, decimals=1)
        data = metrics.checked(labels, scores, 0.5, None)
        weights = rng.integers(0, 4, (30, 50)).astype(float)
        weights[:, :4] += 1  # both classes
        many = metrics._weighted_metrics(data, weights, metrics.METRICS)
        for i, w in enumerate(weights):
            single = by_scikit_learn(labels, scores, w)
            assert {name: many[name][i] for name in single} == pytest.approx(single, rel=1e-10)
            assert metrics.point_metrics(labels, scores, weights=w) == pytest.approx(
                {name: values[i] for name, values in many.items()}, rel=1e-12
            )

    def test_a_resample_without_the_highest_scores(self):
        """They are neither called nor missed there: precision is of the scans that were drawn."""
        labels, scores, weights = np.array([1, 0, 1, 0]), np.array([0.9, 0.9, 0.4, 0.3]), np.array([0.0, 0, 2, 1])
        found = metrics._weighted_metrics(metrics.checked(labels, scores, 0.5, None), weights[None], ["pr_auc"])
        assert found["pr_auc"].tolist() == [sk.average_precision_score(labels, scores, sample_weight=weights)] == [1]

    def test_blocks_do_not_change_the_law(self, rng, monkeypatch):
        """Small blocks give n_boot replicates too, with the same spread."""
        labels, scores = scans(rng)
        data = metrics.checked(labels, scores, 0.5, None)
        whole = metrics.replicates([data], np.random.default_rng(1), 1500, only=["brier"])["brier"]
        monkeypatch.setattr(bootstrap, "BLOCK", 700)
        parts = metrics.replicates([data], np.random.default_rng(2), 1500, only=["brier"])["brier"]
        assert len(whole) == len(parts) == 1500
        assert parts.std() == pytest.approx(whole.std(), rel=0.1)

    def test_spread_is_that_of_the_closed_form(self, rng):
        """Brier score: stratified variance Σ over classes of (share)² · variance inside / size."""
        labels, scores = scans(rng, 120)
        data = metrics.checked(labels, scores, 0.5, None)
        brier = metrics.replicates([data], rng, 6000, only=["brier"])["brier"]
        losses = (scores - labels) ** 2
        variance = sum((np.mean(labels == c) ** 2) * losses[labels == c].var() / (labels == c).sum() for c in (0, 1))
        assert brier.std() == pytest.approx(math.sqrt(variance), rel=0.04)


class TestEvaluate:
    def test_values_n_and_order(self, rng):
        table = evaluate(LABELS, SCORES, rng=rng, n_boot=200)
        assert table.metric.tolist() == list(metrics.METRICS)
        assert dict(zip(table.metric, table.value, strict=True)) == pytest.approx(metrics.point_metrics(LABELS, SCORES))
        assert table.n.tolist() == [10, 10, 10, 4, 6, 10, 10, 10]
        assert row_of(table, "ece").reason == "resampling adds to its bias"
        table = table[table.metric != "ece"]
        assert (table.low <= table.value).all() and (table.value <= table.high).all()
        assert (table.reason == "").all()

    def test_same_seed_same_table(self, rng):
        labels, scores = scans(rng)
        one, other = (evaluate(labels, scores, rng=np.random.default_rng(7), n_boot=300) for _ in range(2))
        pd.testing.assert_frame_equal(one, other)

    def test_clopper_pearson_by_its_definition(self, rng):
        """At the lower bound, 3 or more successes of 4 have probability 2.5 %; at the upper, 3 or fewer."""
        row = row_of(evaluate(LABELS, SCORES, rng=rng, n_boot=100), "sensitivity")
        assert binom.sf(2, 4, row.low) == pytest.approx(0.025)
        assert binom.cdf(3, 4, row.high) == pytest.approx(0.025)

    def test_auc_interval_is_symmetric_in_log_odds(self, rng):
        labels, scores = scans(rng)
        row = row_of(evaluate(labels, scores, rng=rng, n_boot=10), "roc_auc")
        auc, covariance = delong(labels, scores)
        log_odds = [math.log(p / (1 - p)) for p in (row.low, row.value, row.high)]
        reach = 1.959964 * math.sqrt(covariance[0, 0]) / (auc[0] * (1 - auc[0]))
        assert log_odds[1] - log_odds[0] == pytest.approx(reach)
        assert log_odds[2] - log_odds[1] == pytest.approx(reach)

    def test_weights_use_the_bootstrap_alone(self, rng):
        labels, scores = scans(rng)
        table = evaluate(labels, scores, rng=rng, n_boot=200, weights=np.arange(1, 81))
        assert table.method[table.metric != "ece"].str.fullmatch("stratified bootstrap(, logit scale)?").all()

    def test_resamples_keep_the_weights(self, rng):
        """The long scans are the wrong ones: the unweighted scores lie far outside the weighted intervals."""
        labels, scores = scans(rng, 200)
        wrong = (scores >= 0.5) != labels
        table = evaluate(labels, scores, rng=rng, n_boot=300, weights=np.where(wrong, 50, 1))
        plain = metrics.point_metrics(labels, scores)
        for metric in ("macro_f1", "roc_auc", "accuracy", "brier"):
            row = row_of(table, metric)
            assert row.low <= row.value <= row.high
            assert not row.low <= plain[metric] <= row.high

    def test_equal_weights_change_no_value(self, rng):
        labels, scores = scans(rng)
        plain = evaluate(labels, scores, rng=np.random.default_rng(3), n_boot=200)
        doubled = evaluate(labels, scores, rng=np.random.default_rng(3), n_boot=200, weights=np.full(80, 2))
        np.testing.assert_allclose(doubled.value, plain.value)
        for metric in ("macro_f1", "pr_auc", "brier"):
            assert row_of(doubled, metric)[["low", "high"]].tolist() == pytest.approx(
                row_of(plain, metric)[["low", "high"]].tolist()
            )

    def test_coverage_of_macro_f1(self, rng):
        """Decisions right with known chances: a 90 % interval holds the true macro F1 in about 90 % of 200 studies."""
        se, sp, n, hits = 0.85, 0.75, 150, 0
        truth = se / (2 * se + 1 - sp + 1 - se) + sp / (2 * sp + 1 - sp + 1 - se)  # mean of 2 TP / (2 TP + FP + FN)
        labels = np.repeat([0, 1], n)
        for _ in range(200):
            right = rng.random(2 * n) < np.where(labels == 1, se, sp)
            data = metrics.checked(labels, np.where(right, labels, 1 - labels), 0.5, None)
            values = metrics.replicates([data], rng, 300, only=["macro_f1"])["macro_f1"]
            low, high = np.quantile(values, [0.05, 0.95])
            hits += low <= truth <= high
        # 200 draws at 0.9: standard error 0.021; within 4 of them
        assert 0.815 < hits / 200 < 0.985

    def test_coverage_of_auc(self, rng):
        """Normal distributions two deviations apart, 30 scans each: AUC is Φ(√2), and the interval covers it."""
        truth, hits = norm.cdf(math.sqrt(2)), 0
        labels = np.repeat([0, 1], 30)
        for _ in range(400):
            scores = norm.cdf(rng.normal(size=60) + 2 * labels, scale=4)
            low, high, *_ = metrics._auc_interval([metrics.checked(labels, scores, 0.5, None)])
            hits += low <= truth <= high
        # standard error 0.011; DeLong without the logit covers 0.89 here
        assert 0.915 < hits / 400 < 0.99

    def test_coverage_of_average_precision_and_brier(self, rng):
        """Calibrated scores of two normal distributions, 22 scans of each class, where percentiles cover 0.83, 0.89."""

        def cohort(n):
            labels = np.repeat([1, 0], n)
            return labels, expit(2.6 * rng.normal(2.6 * labels - 1.3))

        many, hits = cohort(200_000), np.zeros(2)
        truth = np.array([sk.average_precision_score(*many), sk.brier_score_loss(*many)])
        for _ in range(200):
            table = evaluate(*cohort(22), rng=rng, n_boot=300).set_index("metric").loc[["pr_auc", "brier"]]
            hits += (table["low"].le(truth) & table["high"].ge(truth)).to_numpy()
        assert (hits / 200 > [0.9, 0.87]).all()  # standard error 0.016

    def test_no_replicates(self, rng):
        with pytest.raises(ValueError, match="n_boot=0"):
            evaluate(LABELS, SCORES, rng=rng, n_boot=0)


class TestDegenerate:
    """No crash and no interval that claims what the data cannot say; a reason instead."""

    @pytest.mark.parametrize(
        ("labels", "scores", "unknown"),
        [
            pytest.param([1], [0.3], set(metrics.METRICS) - {"sensitivity", "accuracy"}, id="one scan"),
            pytest.param(
                [0, 1], [0.1, 0.9], {"macro_f1", "roc_auc", "pr_auc", "brier", "ece"}, id="one scan of each class"
            ),
            pytest.param(
                [1, 0, 0, 0, 0],
                [0.6, 0.1, 0.3, 0.8, 0.2],
                {"macro_f1", "roc_auc", "pr_auc", "brier", "ece"},
                id="one positive scan",
            ),
            pytest.param(
                [1, 1, 1, 1],
                [0.2, 0.6, 0.7, 0.9],
                {"macro_f1", "roc_auc", "pr_auc", "specificity", "ece"},
                id="no negatives",
            ),
            pytest.param([0, 0, 0, 1, 1, 1], [0.4] * 6, set(metrics.METRICS) - AT_A_CUT, id="constant scores"),
            pytest.param(
                [0, 0, 0, 1, 1, 1],
                [0.1, 0.2, 0.3, 0.7, 0.8, 0.9],
                {"macro_f1", "pr_auc", "ece"},
                id="perfect separation of scores",
            ),
        ],
    )
    def test_where_the_interval_is_missing_a_reason_is_given(self, labels, scores, unknown, rng):
        table = evaluate(labels, scores, rng=rng, n_boot=200)
        assert set(table.metric[table.low.isna()]) == set(table.metric[table.high.isna()]) == unknown
        assert set(table.metric[table.reason != ""]) == unknown
        assert set(table.metric[table.method == ""]) == unknown
        assert (table.high > table.low)[table.low.notna()].all()

    def test_reasons(self, rng):
        assert row_of(evaluate([1, 1], [0.2, 0.7], rng=rng), "macro_f1").reason == "no negative scans"
        assert row_of(evaluate([0, 0], [0.2, 0.7], rng=rng), "macro_f1").reason == "no positive scans"
        assert row_of(evaluate([0, 0, 1, 1], [0.5] * 4, rng=rng), "roc_auc").reason == "constant scores"
        faultless = row_of(evaluate([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], rng=rng), "macro_f1")
        assert (faultless.value, faultless.reason) == (1, "every replicate gives the same value")
        assert "one positive scan" in row_of(evaluate([0, 0, 1], [0.1, 0.3, 0.2], rng=rng), "pr_auc").reason

    def test_perfect_auc_is_bounded_by_disjoint_pairs(self, rng):
        """7 positives above 5 negatives: 5 disjoint pairs all right, so the lower bound p has p⁵ = 2.5 %."""
        row = row_of(evaluate([0] * 5 + [1] * 7, [0.1] * 5 + [0.9] * 7, rng=rng, n_boot=10), "roc_auc")
        assert (row.value, row.high, row.method) == (1, 1, "exact, disjoint pairs")
        assert row.low == pytest.approx(0.025 ** (1 / 5))

    def test_auc_zero_mirrors_auc_one(self, rng):
        row = row_of(evaluate([1] * 5 + [0] * 7, [0.1] * 5 + [0.9] * 7, rng=rng, n_boot=10), "roc_auc")
        assert (row.value, row.low) == (0, 0)
        assert row.high == pytest.approx(1 - 0.025 ** (1 / 5))

    def test_one_weighted_class_has_no_slice_rows(self, rng):
        table = evaluate([0, 1, 1], [0.2, 0.3, 0.9], rng=rng, weights=[0, 3, 4], n_boot=50)
        assert row_of(table, "roc_auc").reason == "no negative scans"


def delong(labels, scores):
    """AUCs and their covariance."""
    values, parts = metrics.runs(labels, scores)
    return values, parts @ parts.T


def brute(labels, scores):
    """Structural components by their definition: each scan's share of pairs won."""
    wins = [[np.mean([(x > y) + 0.5 * (x == y) for y in s[labels == 0]]) for x in s[labels == 1]] for s in scores]
    losses = [[np.mean([(x > y) + 0.5 * (x == y) for x in s[labels == 1]]) for y in s[labels == 0]] for s in scores]
    covariance = np.cov(wins) / len(wins[0]) + np.cov(losses) / len(losses[0])
    return np.mean(wins, axis=1), covariance


class TestDeLong:
    @pytest.mark.parametrize("decimals", [8, 1])
    def test_equals_brute_force(self, decimals, rng):
        labels, a = scans(rng, 60, decimals=decimals)
        scores = np.stack([a, (a + rng.normal(0, 0.2, 60)).round(decimals), rng.random(60).round(decimals)])
        auc, covariance = delong(labels, scores)
        brute_auc, brute_covariance = brute(labels, scores)
        np.testing.assert_allclose(auc, brute_auc, rtol=1e-12)
        np.testing.assert_allclose(covariance, brute_covariance, rtol=1e-10)

    def test_hand_worked(self):
        """Positives 0.35, 0.8 over negatives 0.1, 0.4: V10 = (1/2, 1), V01 = (1, 1/2); each variance 1/8, over 2."""
        auc, covariance = delong([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        assert auc[0] == 0.75
        assert covariance[0, 0] == pytest.approx(1 / 8 / 2 + 1 / 8 / 2)

    def test_auc_is_scikit_learns(self, rng):
        labels, scores = scans(rng, 200, decimals=1)
        assert delong(labels, scores)[0][0] == pytest.approx(sk.roc_auc_score(labels, scores))

    def test_variance_near_the_bootstraps(self, rng):
        labels, scores = scans(rng, 300)
        data = metrics.checked(labels, scores, 0.5, None)
        resampled = metrics.replicates([data], rng, 4000, only=["roc_auc"])["roc_auc"]
        assert resampled.std() == pytest.approx(math.sqrt(delong(labels, scores)[1][0, 0]), rel=0.05)

    def test_invariant_to_increasing_maps_and_order(self, rng):
        labels, scores = scans(rng)
        order = rng.permutation(len(labels))
        auc, covariance = delong(labels, scores)
        for one_labels, one_scores in ((labels, np.exp(3 * scores) - 7), (labels[order], scores[order])):
            other, other_covariance = delong(one_labels, one_scores)
            np.testing.assert_allclose([other[0], other_covariance[0, 0]], [auc[0], covariance[0, 0]], rtol=1e-12)


def _runs(rng, seeds=(0, 1, 2), n=63):
    """Out-of-fold predictions of 3 folds for each seed, rows shuffled."""
    labels, scores = scans(rng, n)
    parts = [
        pd.DataFrame(
            {
                "seed": seed,
                "fold": np.arange(n) // 3 % 3 + 1,
                "scan_id": [f"scan_{i:03d}" for i in range(n)],
                "label": labels,
                "probability": np.clip(scores + rng.normal(0, 0.1, n), 0, 1),
                "n_slices": np.arange(n) % 7 + 1,
            }
        )
        for seed in seeds
    ]
    return pd.concat(parts).sample(frac=1, random_state=0, ignore_index=True)


class TestPooled:
    def test_one_seed_is_all_folds_together(self, rng):
        runs = _runs(rng, seeds=(5,))
        ordered = runs.sort_values("scan_id")
        expected = evaluate(ordered.label, ordered.probability, rng=np.random.default_rng(1), n_boot=200)
        result = metrics.pooled(runs, rng=np.random.default_rng(1), n_boot=200)
        pd.testing.assert_frame_equal(result[expected.columns], expected)
        assert result.seed_sd.isna().all()

    def test_patients_of_equal_scans_count_once(self, rng):
        """Every scan four times over under one patient: as sure as of the scans once, and not twice as sure."""
        labels, scores = scans(rng, 90)
        plain, twice, many, blind = (
            evaluate(
                np.repeat(labels, n), np.repeat(scores, n), rng=np.random.default_rng(2), n_boot=1500, groups=groups
            ).assign(n=0)
            for n, groups in [(n, np.repeat(np.arange(90), n)) for n in (1, 2, 4)] + [(4, None)]
        )
        pd.testing.assert_frame_equal(twice, many)
        drawn = many[many.metric != "ece"]
        assert drawn.method.str.fullmatch("stratified bootstrap of groups(, logit scale)?").all()
        width = (drawn.high - drawn.low) / (blind.high - blind.low)[drawn.index]
        assert width.between(1.5, 2.6).all()  # the root of 4
        alone = evaluate(labels, scores, rng=np.random.default_rng(2), n_boot=1500)
        pd.testing.assert_frame_equal(plain, alone.assign(n=0))  # one scan a patient: no groups

    def test_one_patient_of_a_class_has_no_interval(self, rng):
        table = evaluate([0, 0, 0, 1, 1], [0.1, 0.4, 0.6, 0.7, 0.3], rng=rng, groups=["a", "b", "c", "d", "d"])
        assert row_of(table, "roc_auc").reason == "one group of positive scans: its class cannot be resampled"
        assert table.low.isna().all()

    def test_means_over_seeds_and_runs(self, rng):
        runs = _runs(rng)
        result = row_of(metrics.pooled(runs, rng=rng, n_boot=50), "macro_f1")
        called = runs.assign(called=runs.probability >= 0.5)
        by_seed = [sk.f1_score(p.label, p.called, average="macro") for _, p in called.groupby("seed")]
        by_run = [sk.f1_score(p.label, p.called, average="macro") for _, p in called.groupby(["seed", "fold"])]
        assert result.value == pytest.approx(np.mean(by_seed))
        assert result.seed_sd == pytest.approx(np.std(by_seed, ddof=1))
        assert result.run_mean == pytest.approx(np.mean(by_run))
        assert result.run_sd == pytest.approx(np.std(by_run, ddof=1))
        assert result.n_runs == 9

    def test_order_of_rows_does_not_matter(self, rng):
        runs = _runs(rng)
        one = metrics.pooled(runs, rng=np.random.default_rng(1), n_boot=50)
        other = metrics.pooled(runs[::-1], rng=np.random.default_rng(1), n_boot=50)
        pd.testing.assert_frame_equal(one, other, rtol=1e-12)

    def test_seeds_that_agree_say_no_more_than_one(self, rng):
        """The same predictions under three seeds: the interval must not shrink as if scans were three times as many."""
        runs = _runs(rng, seeds=(0,))
        three = pd.concat([runs.assign(seed=s) for s in range(3)])
        one = metrics.pooled(runs, rng=np.random.default_rng(1), n_boot=100)
        same = metrics.pooled(three, rng=np.random.default_rng(1), n_boot=100)
        for metric in ("macro_f1", "roc_auc", "pr_auc", "brier"):
            assert row_of(same, metric)[["value", "low", "high"]].tolist() == pytest.approx(
                row_of(one, metric)[["value", "low", "high"]].tolist()
            )
        assert same.seed_sd.tolist() == pytest.approx([0] * len(same), abs=1e-12)

    def test_means_over_seeds_are_no_binomial_counts(self, rng):
        """Clopper-Pearson counts scans; a mean over seeds is resampled, and without spread has no interval."""
        table = metrics.pooled(_runs(rng), rng=rng, n_boot=50).set_index("metric")
        assert set(table.method[["sensitivity", "specificity", "accuracy"]]) == {"stratified bootstrap"}
        faultless = _runs(rng).assign(probability=lambda t: t.label * 0.8 + 0.1)
        row = metrics.pooled(faultless, rng=rng, n_boot=50).set_index("metric").loc["macro_f1"]
        assert (row.value, row.reason) == (1, "every replicate gives the same value")
        assert math.isnan(row.low)

    def test_thresholds_of_each_run(self, rng):
        runs = _runs(rng, seeds=(0,))
        runs["threshold"] = runs.fold.map({1: 0.2, 2: 0.5, 3: 0.8})
        called = runs.probability >= runs.threshold
        result = row_of(metrics.pooled(runs, rng=rng, n_boot=50), "accuracy")
        assert result.value == pytest.approx((called == runs.label).mean())

    def test_slice_row_counting(self, rng):
        runs = _runs(rng, seeds=(0,))
        repeated = runs.loc[runs.index.repeat(runs.n_slices)]
        expected = sk.roc_auc_score(repeated.label, repeated.probability)
        assert row_of(metrics.pooled(runs, rng=rng, n_boot=50, weights="n_slices"), "roc_auc").value == pytest.approx(
            expected
        )

    def test_folds_without_a_class_are_not_counted(self, rng):
        runs = _runs(rng, seeds=(0,))
        runs.loc[runs.fold == 2, "label"] = 0
        result = metrics.pooled(runs, rng=rng, n_boot=50)
        assert row_of(result, "roc_auc").n_runs == 2
        assert row_of(result, "specificity").n_runs == 3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: pd.concat([t, t.head(1)]), "predicted twice"),
            (lambda t: t.drop(index=0), "other scans or labels"),
            (lambda t: t.assign(label=t.label.where(t.index != 0, 1 - t.label)), "other scans or labels"),
            (lambda t: t.head(0), "no runs"),
            (lambda t: t.drop(columns="label"), r"lacks the columns \['label'\]"),
            (lambda t: t.drop(columns=["seed", "fold"]), "needs a column seed or fold"),
        ],
    )
    def test_bad_input(self, change, message, rng):
        with pytest.raises(ValueError, match=message):
            metrics.pooled(change(_runs(rng)), rng=rng)


class TestAdjust:
    def test_holm_by_hand(self):
        """Sorted 0.005 0.01 0.03 0.04 times 4, 3, 2, 1, never decreasing."""
        assert metrics.adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_as_statsmodels_has_it_with_ties(self):
        p = np.random.default_rng(0).integers(0, 20, 30) / 20
        assert metrics.adjust(p) == pytest.approx(multipletests(p, method="holm")[1])

    def test_nan_is_no_comparison(self):
        result = metrics.adjust([0.01, np.nan, 0.04])
        assert result[[0, 2]] == pytest.approx([0.02, 0.04])
        assert np.isnan(result[1])

    def test_nothing(self):
        assert metrics.adjust([]).size == 0
        assert np.isnan(metrics.adjust([np.nan])).all()


def test_every_labelling_of_five_scans():
    """AUC against all pairs, for every labelling with both classes and scores with ties."""
    scores = np.array([0.1, 0.4, 0.4, 0.4, 0.9])
    for labels in product((0, 1), repeat=5):
        labels = np.array(labels)
        if 0 < labels.sum() < 5:
            pairs = [(x > y) + 0.5 * (x == y) for x in scores[labels == 1] for y in scores[labels == 0]]
            assert metrics.point_metrics(labels, scores)["roc_auc"] == pytest.approx(np.mean(pairs))
            if 1 < labels.sum() < 4:
                assert delong(labels, scores)[0][0] == pytest.approx(np.mean(pairs))


class TestCalibration:
    """Against the definitions: scikit-learn's unpenalised slope, the root of the score, the inverse information."""

    def data(self, n=400):
        rng = np.random.default_rng(2)
        logit = rng.normal(0, 1.5, n)
        return logit, (rng.random(n) < expit(0.4 + 0.6 * logit)).astype(int)

    def test_values_and_intervals(self):
        logit, y = self.data()
        got = metrics.calibration(y, expit(logit)).set_index("metric")
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], y)
        assert got.loc["slope", "value"] == pytest.approx(fit.coef_[0, 0], abs=1e-4)
        at_one = brentq(lambda a: (y - expit(a + logit)).sum(), -5, 5)
        assert got.loc["intercept", "value"] == pytest.approx(at_one, abs=1e-6)
        x = np.column_stack([np.ones(len(y)), logit])
        for name, design, p in (
            ("slope", x, fit.predict_proba(logit[:, None])[:, 1]),
            ("intercept", x[:, :1], expit(at_one + logit)),
        ):
            error = np.sqrt(np.linalg.inv((design.T * (p * (1 - p))) @ design)[-1, -1])
            row = got.loc[name]
            assert (row["low"], row["high"]) == pytest.approx(
                (row["value"] - 1.959964 * error, row["value"] + 1.959964 * error), abs=1e-3
            )
        assert list(got["n"]) == [400, 400] and list(got["reason"]) == ["", ""]

    def test_scans_of_one_patient_are_no_more_than_one(self):
        logit, y = self.data()
        once = metrics.calibration(y, expit(logit)).set_index("metric")
        twice = metrics.calibration(np.tile(y, 2), expit(np.tile(logit, 2)), groups=np.tile(np.arange(400), 2))
        width, doubled = (t["high"] - t["low"] for t in (once, twice.set_index("metric")))
        assert np.allclose(doubled / width, 1, atol=0.2)  # 0.71 were each scan a patient's

    @pytest.mark.parametrize(
        ("labels", "reasons"),
        [
            ([0, 0, 1, 1], ["", "the classes lie apart"]),
            ([1, 1, 0, 0], ["", "the classes lie apart"]),
            ([0, 0, 0, 0], ["one class only"] * 2),
        ],
    )
    def test_none_where_nothing_finite_fits(self, labels, reasons):
        table = metrics.calibration(labels, [0.1, 0.2, 0.7, 0.8])
        assert list(table["reason"]) == reasons and list(table["value"].isna()) == [bool(why) for why in reasons]


def net_benefit(labels, probabilities, *, n_boot):
    """Chapter 5's cell, of scans that are each one patient's."""
    given = {"labels": np.asarray(labels), "probabilities": np.asarray(probabilities), "n_boot": n_boot}
    return cells.run("05_evaluation", "resampled = ", groups={"groups": np.arange(len(labels))}, **given).use


class TestNetBenefit:
    def test_hand_worked(self):
        table = net_benefit(LABELS, SCORES, n_boot=50).set_index("threshold").loc[[0.25, 0.5]].reset_index()
        # at 0.25: 4 true, 3 false positives at a third each; at 0.5: 3 true, 2 false
        assert table["network"].tolist() == pytest.approx([(4 - 3 / 3) / 10, (3 - 2) / 10])
        assert table["treat_all"].tolist() == pytest.approx([(4 - 6 / 3) / 10, (4 - 6) / 10])
        assert table["treat_none"].tolist() == [0, 0] and table["threshold"].tolist() == [0.25, 0.5]

    def test_interval_is_the_binomials(self, rng):
        labels, p = scans(rng, 600)
        row = net_benefit(labels, p, n_boot=4000).set_index("threshold").loc[0.4]
        share, called = labels.mean(), p >= 0.4
        rates = [called[labels == value].mean() for value in (1, 0)]
        parts = [r * (1 - r) / (labels == value).sum() for r, value in zip(rates, (1, 0), strict=True)]
        error = np.sqrt(share**2 * parts[0] + ((1 - share) * 0.4 / 0.6) ** 2 * parts[1])
        assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.06)
        assert row["low"] < row["network"] < row["high"]

    def test_one_scan_of_a_class_has_no_interval(self):
        table = net_benefit([1, 0, 0], [0.9, 0.2, 0.6], n_boot=20)
        assert table[["low", "high"]].isna().all(axis=None)
        assert table.set_index("threshold").loc[0.5, "network"] == pytest.approx(0)
