"""The one resampling against counting, closed forms and binomial tails."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from e2d_lib import bootstrap


def drawn(rng, n_boot, n, **options):
    return np.concatenate(list(bootstrap.counts(rng, n_boot, n, **options)))


def test_without_strata_all_are_drawn_alike(rng):
    counts = drawn(rng, 4000, 6)
    assert counts.shape == (4000, 6) and (counts.sum(axis=1) == 6).all()
    # drawn 6 times at chance 1/6: mean 1, variance 5/6; 5 standard errors
    assert np.abs(counts.mean(axis=0) - 1).max() < 5 * math.sqrt(5 / 6 / 4000)
    assert counts.var(axis=0) == pytest.approx(np.full(6, 5 / 6), rel=0.15)


def test_a_stratum_keeps_its_size(rng):
    labels = np.array([0, 1, 1, 0, 1])
    counts = drawn(rng, 400, 5, strata=labels)
    np.testing.assert_array_equal(counts[:, labels == 1].sum(axis=1), 3)
    np.testing.assert_array_equal(counts[:, labels == 0].sum(axis=1), 2)
    # each of 3 is drawn 3 times at chance 1/3: mean 1, variance 2/3; 5 standard errors of 400 draws
    assert np.abs(counts[:, labels == 1].mean(axis=0) - 1).max() < 5 * math.sqrt(2 / 3 / 400)


def test_groups_are_drawn_whole_within_their_strata(rng):
    patients = np.array(["a", "b", "a", "c", "c", "c", "d", "e", "e"])
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1])  # e has scans of both classes: a stratum of its own
    counts = drawn(rng, 300, 9, strata=labels, groups=patients)
    for patient in "abcde":
        own = counts[:, patients == patient]
        assert (own == own[:, :1]).all()
    number = {patient: counts[:, patients == patient][:, 0] for patient in "abcde"}
    np.testing.assert_array_equal(number["a"] + number["b"], 2)
    np.testing.assert_array_equal(number["c"] + number["d"], 2)
    np.testing.assert_array_equal(number["e"], 1)
    assert {0, 1, 2} == set(number["a"]) == set(number["c"])


def test_blocks_hold_all_replicates(rng, monkeypatch):
    monkeypatch.setattr(bootstrap, "BLOCK", 70)
    assert [len(block) for block in bootstrap.counts(rng, 25, 7, strata=np.zeros(7))] == [10, 10, 5]
    with pytest.raises(ValueError, match="n_boot=0"):
        next(bootstrap.counts(rng, 0, 7))


def test_interval_of_a_mean_is_about_the_normal_one(rng):
    values = rng.normal(3, 2, 400)
    low, high = bootstrap.mean_interval(values, rng, n_boot=4000)
    reach = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.02)
    assert np.isnan(bootstrap.mean_interval([1.0], rng)).all()


def test_clopper_pearson_by_its_definition():
    """At the lower bound, 3 or more successes of 4 have probability 2.5 %; at the upper, 3 or fewer."""
    low, high = bootstrap.clopper_pearson(3, 4)
    assert binom.sf(2, 4, low) == pytest.approx(0.025)
    assert binom.cdf(3, 4, high) == pytest.approx(0.025)
    assert bootstrap.clopper_pearson(0, 5)[0] == 0 and bootstrap.clopper_pearson(5, 5)[1] == 1
