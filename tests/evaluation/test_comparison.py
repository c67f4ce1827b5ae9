"""Paired comparisons against brute force, closed forms and what must be equal."""

import math

import numpy as np
import pandas as pd
import pytest

from e2d_lib.evaluation import comparison
from tests.evaluation.test_metrics import LABELS, SCORES, brute, row_of, scans


class TestCompare:
    def test_delong_by_brute_force(self, rng):
        labels, a = scans(rng)
        b = np.clip(a + rng.normal(0, 0.2, len(a)), 0, 1).round(1)
        row = row_of(comparison.compare(labels, a, b, rng=rng, n_boot=50), "roc_auc")
        auc, covariance = brute(labels, np.stack([a, b]))
        error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        assert row.difference == pytest.approx(auc[1] - auc[0])
        assert row.p_value == pytest.approx(math.erfc(abs(auc[1] - auc[0]) / error / math.sqrt(2)))
        # at a difference of that size, a normal estimate is beyond 1.96 errors with a probability of 0.8
        assert math.erfc((1.959964 - row.detectable / error) / math.sqrt(2)) / 2 == pytest.approx(0.8, abs=1e-4)
        assert row.high - row.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)

    def test_delong_of_means_over_seeds_by_brute_force(self, rng):
        """Three runs against two: the variance of a sum of AUCs, from their covariances."""
        labels, a = scans(rng)
        runs = np.stack([np.clip(a + rng.normal(0, 0.3, len(a)), 0, 1).round(1) for _ in range(5)], axis=1)
        row = row_of(comparison.compare(labels, runs[:, :3], runs[:, 3:], rng=rng, n_boot=50), "roc_auc")
        auc, covariance = brute(labels, runs.T)
        shares = np.array([-1 / 3, -1 / 3, -1 / 3, 1 / 2, 1 / 2])
        error = math.sqrt(sum(covariance[i, j] * shares[i] * shares[j] for i in range(5) for j in range(5)))
        assert row.a == pytest.approx(auc[:3].mean()) and row.difference == pytest.approx(auc @ shares)
        assert row.p_value == pytest.approx(math.erfc(abs(auc @ shares) / error / math.sqrt(2)))
        assert row.high - row.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)

    def test_what_would_be_seen_is_from_the_interval(self, rng):
        labels, a = scans(rng, 400)
        table = comparison.compare(labels, a, np.clip(a + rng.normal(0, 0.2, 400), 0, 1), rng=rng, n_boot=4000)
        np.testing.assert_allclose(table["detectable"], 2.801585 * (table["high"] - table["low"]) / 3.919928, rtol=0.05)

    def test_a_run_repeated_counts_once(self, rng):
        labels, a = scans(rng)
        b = rng.random(len(a))
        once = comparison.compare(labels, a, b, rng=np.random.default_rng(1), n_boot=200)
        twice = comparison.compare(labels, np.stack([a, a], 1), b[:, None], rng=np.random.default_rng(1), n_boot=200)
        columns = ["a", "b", "difference", "low", "high"]
        np.testing.assert_allclose(twice[columns], once[columns])
        for metric in ("roc_auc", "macro_f1"):
            assert row_of(twice, metric).p_value == pytest.approx(row_of(once, metric).p_value)

    def test_thresholds_of_each_seed(self, rng):
        labels, a = scans(rng)
        scores, cuts = np.stack([a, 1 - a], 1), np.stack([np.full(len(a), 0.3), np.full(len(a), 0.8)], 1)
        table = comparison.compare(labels, scores, a, rng=rng, thresholds=(cuts, 0.5), n_boot=50)
        accuracy = [((a >= 0.3) == labels).mean(), ((1 - a >= 0.8) == labels).mean()]
        assert row_of(table, "accuracy").a == pytest.approx(np.mean(accuracy))

    def test_mcnemar_is_a_sign_test(self, rng):
        """9 scans only b gets right, 2 only a: two-sided binomial tail of 2 of 11 at one half."""
        labels = np.array([0, 1] * 20)
        a, b = labels.copy(), labels.copy()
        a[:9] = 1 - a[:9]
        b[9:11] = 1 - b[9:11]
        row = row_of(comparison.compare(labels, a, b, rng=rng, n_boot=100), "accuracy")
        assert row.p_value == pytest.approx(2 * sum(math.comb(11, i) for i in range(3)) / 2**11)
        assert row.difference == pytest.approx(7 / 40)

    def test_swapping_runs_changes_the_sign_only(self, rng):
        labels, a = scans(rng)
        b = rng.random(len(a))
        one = comparison.compare(labels, a, b, rng=np.random.default_rng(1), n_boot=200)
        other = comparison.compare(labels, b, a, rng=np.random.default_rng(1), n_boot=200)
        np.testing.assert_allclose(other.difference, -one.difference)
        np.testing.assert_allclose(other.low, -one.high)
        np.testing.assert_allclose(other.p_value, one.p_value)

    def test_thresholds_of_their_own(self, rng):
        labels, a = scans(rng)
        table = comparison.compare(labels, a, a, rng=rng, thresholds=(0.5, 0.3), n_boot=100)
        assert row_of(table, "roc_auc").difference == 0
        assert row_of(table, "accuracy").b == pytest.approx(((a >= 0.3) == labels).mean())

    def test_a_clear_difference_is_found_and_none_is_not(self, rng):
        labels = np.repeat([0, 1], 100)
        good = np.clip(0.4 * labels + rng.uniform(0, 0.6, 200), 0, 1)
        coin = rng.random(200)
        assert (comparison.compare(labels, coin, good, rng=rng, n_boot=500).p_value < 0.01).all()
        assert (comparison.compare(labels, good, np.roll(good, 1), rng=rng, n_boot=500).p_value > 0.01).all()

    def test_false_alarms_of_the_bootstrap(self, rng):
        """Two coins of equal bias: macro F1 differs at p ≤ 0.1 in about a tenth of 80 comparisons."""
        labels = np.repeat([0, 1], 60)
        alarms = 0
        for _ in range(80):
            a, b = ((rng.random(120) < 0.75) == labels for _ in range(2))
            table = comparison.compare(labels, a.astype(float), b.astype(float), rng=rng, n_boot=200)
            alarms += row_of(table, "macro_f1").p_value <= 0.1
        # 4 standard errors of 0.034 above 0.1
        assert alarms / 80 < 0.235

    def test_patients_of_equal_scans_count_once(self, rng):
        labels, a = scans(rng)
        b = np.clip(a + rng.normal(0, 0.2, len(a)), 0, 1).round(2)
        once, many = (
            comparison.compare(
                np.repeat(labels, n),
                np.repeat(a, n),
                np.repeat(b, n),
                rng=np.random.default_rng(1),
                groups=np.repeat(np.arange(len(a)), n),
            ).drop(columns="n")
            for n in (2, 5)
        )
        pd.testing.assert_frame_equal(once, many)
        assert set(once.method) == {"paired bootstrap"}
        delong = row_of(comparison.compare(labels, a, b, rng=rng), "roc_auc")
        own = row_of(once, "roc_auc")
        assert own.difference == pytest.approx(delong.difference)
        assert own.high - own.low == pytest.approx(delong.high - delong.low, rel=0.1)

    def test_equal_runs(self, rng):
        table = comparison.compare(LABELS, SCORES, SCORES, rng=rng)
        assert (table.difference == 0).all() and (table.p_value == 1).all()
        assert table.low.isna().all() and (table.reason != "").all()

    def test_same_order_other_scale(self, rng):
        row = row_of(comparison.compare(LABELS, SCORES, SCORES / 2, rng=rng, n_boot=50), "roc_auc")
        assert (row.difference, row.p_value) == (0, 1)

    @pytest.mark.parametrize("labels", [[], [1], [1, 1, 1], [0, 1], [0, 0, 1, 1]])
    def test_degenerate(self, labels, rng):
        n = len(labels)
        a = np.array(labels, dtype=float)
        table = comparison.compare(labels, a, 1 - a, rng=rng, n_boot=50)
        assert table.metric.tolist() == ["roc_auc", "accuracy", "macro_f1"]
        assert (table.reason[table.low.isna()] != "").all()
        assert (table.n == n).all()
        if n:  # every scan is right in a, wrong in b
            assert row_of(table, "accuracy").p_value == pytest.approx(2 * 0.5**n)

    def test_misalignedscans(self, rng):
        labels = pd.Series(LABELS, index=list("abcdefghij"))
        scores = pd.Series(SCORES, index=list("abcdefghij"))
        with pytest.raises(ValueError, match="align them by scan"):
            comparison.compare(labels, scores, scores[::-1], rng=rng)
