"""Comparisons over scans and replicates: against DeLong's and the jackknife's plain forms, and by simulation."""

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp
from sklearn.metrics import f1_score, roc_auc_score

from benchmarks.false_positives import simulate
from e2d_lib.evaluation import comparison, metrics, multirun
from e2d_lib.evaluation.multirun import Runs
from tests.evaluation.test_metrics import brute


@pytest.fixture
def scored(rng):
    labels = np.repeat([0, 1], [23, 31])
    return labels, np.clip(0.4 + 0.2 * labels + 0.15 * rng.standard_normal((4, 54)).round(1), 0, 1)


def test_roc_auc_is_scikit_learns_and_its_covariance_delongs(scored):
    labels, scores = scored
    found = metrics.runs(labels, scores)
    np.testing.assert_allclose(found.values, [roc_auc_score(labels, row) for row in scores])
    np.testing.assert_allclose(found.parts @ found.parts.T, brute(labels, scores)[1])


def test_macro_f1_is_scikit_learns_and_its_covariance_the_jackknifes(scored):
    labels, scores = scored
    found = metrics.runs(labels, scores, "macro_f1")
    plain = [[f1_score(np.delete(labels, k), np.delete(row, k) >= 0.5, average="macro") for k in range(54)]
             for row in scores]  # fmt: skip
    np.testing.assert_allclose(found.values, [f1_score(labels, row >= 0.5, average="macro") for row in scores])
    expected = sum(
        (m - 1) / m * (part - part.mean(1, keepdims=True)) @ (part - part.mean(1, keepdims=True)).T
        for part in (np.array(plain)[:, labels == value] for value in (0, 1))
        for m in [part.shape[1]]
    )
    np.testing.assert_allclose(found.parts @ found.parts.T, expected, atol=1e-12)


def test_one_run_each_is_delongs_paired_test(scored, rng):
    labels, scores = scored
    found = multirun.test(metrics.runs(labels, scores[1]) - metrics.runs(labels, scores[0]))
    plain = comparison.compare(labels, scores[0], scores[1], rng=rng, n_boot=10).set_index("metric").loc["roc_auc"]
    for name in ("difference", "low", "high", "p_value"):
        assert found[name] == pytest.approx(plain[name])
    assert np.isnan(found["replicate_sd"])


def test_scans_that_do_not_matter_leave_the_replicates_t_test(rng):
    values = rng.normal(0.1, 1, 6)
    found = multirun.test(Runs(values, np.zeros((6, 10))))
    assert found["p_value"] == pytest.approx(ttest_1samp(values, 0).pvalue)
    error = values.std(ddof=1) / np.sqrt(6)
    assert found["detectable"] == pytest.approx(error * (t.ppf(0.975, 5) + t.ppf(0.8, 5)))


def test_replicates_of_their_own_are_welchs_test(rng):
    from scipy.stats import ttest_ind

    a, b = rng.normal(0, 1, 5), rng.normal(0.3, 3, 8)
    found = multirun.test(Runs(a, np.zeros((5, 3))), Runs(b, np.zeros((8, 3))))
    assert found["p_value"] == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue)


def test_variance_by_hand():
    """Two replicates, one scan part: s²/R + (c'Σc - (diagonal - off)/R) = 0.02/2 + 0.0225 - 0.005/2."""
    runs = Runs(np.array([0.1, 0.3]), np.array([[0.1], [0.2]]))
    found = multirun.test(runs)
    variance = 0.02 / 2 + 0.15**2 - 0.005 / 2
    freedom = variance**2 / (0.02 / 2) ** 2
    assert found["p_value"] == pytest.approx(2 * t.sf(0.2 / np.sqrt(variance), freedom))


def test_means_over_settings_share_scans_and_over_cohorts_do_not(rng):
    one, two = (Runs(rng.random(3), rng.random((3, 4))) for _ in range(2))
    together, apart = multirun.mean([one, two]), multirun.mean([one, two], same_scans=False)
    np.testing.assert_allclose(together.values, apart.values)
    cov = lambda runs: runs.parts @ runs.parts.T  # noqa: E731
    cross = one.parts @ two.parts.T
    np.testing.assert_allclose(cov(apart), (cov(one) + cov(two)) / 4)
    np.testing.assert_allclose(cov(together), (cov(one) + cov(two) + cross + cross.T) / 4)


def test_equal_runs_do_not_differ(scored):
    runs = metrics.runs(*scored)
    assert multirun.test(runs - runs)["p_value"] == 1


def test_two_scans_of_each_class_are_needed():
    with pytest.raises(ValueError, match="1 positive and 2 negative scans"):
        metrics.runs([0, 1, 0], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("seed_sd", [0.0, 0.018, 0.032])
def test_nominal_five_percent_is_five_percent_over_seeds(seed_sd):
    """800 comparisons: three standard errors are 2.3 %. DeLong's test over scans alone errs far more often."""
    found = simulate(replicates=5, seed_sd=seed_sd, times=800, rng=np.random.default_rng(7))
    assert found["counted"] == pytest.approx(0.05, abs=0.024)
    if seed_sd > 0.03:
        assert found["nominal"] > 0.12
