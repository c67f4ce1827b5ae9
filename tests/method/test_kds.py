"""KDS against the plain reference, the golden draws of the released code, and the properties it promises."""

import inspect
import json

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from e2d_lib.method import kds
from tests import reference

METHODS = ["kds", "systematic", "random"]
VARIANTS = ["released", "paper", "corrected"]
thorough = settings(max_examples=200, deadline=None, derandomize=True)

curves = st.one_of(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=60),
    st.lists(st.integers(0, 5), min_size=1, max_size=40),  # many equal areas
    st.lists(st.sampled_from([0, 0, 0, 1, 30_000]), min_size=1, max_size=40),  # far apart, most at the bottom
)


def _bell(n, top=30_000):
    """The lung areas of a window as scans have them, all different."""
    x = np.linspace(-1, 1.1, n)
    return np.round(top * np.exp(-(x**2))).astype(np.int64) + np.arange(n)


class TestEdges:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(curves, st.integers(1, 9))
    @example([0, 1], 4)
    def test_follow_the_formula(self, areas, k):
        assume(min(areas) < max(areas))
        spread = max(areas) - min(areas)
        grid, pdf, cdf = kds.density(areas)
        expected_grid, expected_pdf, expected_cdf = reference.kds_cdf(areas)
        np.testing.assert_allclose(grid, expected_grid, rtol=1e-12)
        np.testing.assert_allclose(pdf, expected_pdf, rtol=1e-9, atol=1e-300)
        np.testing.assert_allclose(cdf, expected_cdf, rtol=1e-9, atol=1e-12)
        assert (cdf[0], cdf[-1]) == (0, 1)
        if min(np.diff(expected_cdf)) > 1e-6:  # where the CDF is flat its inverse is ill-conditioned
            np.testing.assert_allclose(
                kds.edges(areas, k), reference.kds_edges(areas, k), rtol=1e-9, atol=1e-7 * spread
            )
        np.testing.assert_allclose(
            kds.edges(areas, k, "systematic"), reference.systematic_edges(areas, k), rtol=1e-12, atol=1e-9
        )

    @thorough
    @given(curves, st.integers(1, 9), st.sampled_from(["kds", "systematic"]))
    def test_span_the_areas_in_order(self, areas, k, method):
        assume(min(areas) < max(areas))
        edges = kds.edges(areas, k, method)
        assert edges.shape == (k + 1,)
        assert (edges[0], edges[-1]) == (min(areas), max(areas))
        assert (np.diff(edges) >= 0).all()

    def test_intervals_have_equal_probability(self):
        grid, _, cdf = kds.density(_bell(80))
        np.testing.assert_allclose(np.interp(kds.edges(_bell(80), 5), grid, cdf), np.arange(6) / 5, atol=1e-12)

    def test_a_caller_may_write_into_them(self):
        edges = kds.edges(_bell(20))
        edges[:] = 0
        assert kds.edges(_bell(20)).max() == _bell(20).max()

    @pytest.mark.parametrize("areas", [[], [7], [7, 7, 7], [0, 0]])
    def test_equal_areas_have_no_density(self, areas):
        with pytest.raises(ValueError, match="no density"):
            kds.density(areas)


class TestQuotas:
    @thorough
    @given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(1, 20))
    def test_released_and_paper(self, counts, s):
        assume(sum(counts) and len(counts) <= s)
        for variant in ("released", "paper"):
            quotas = kds.quotas(counts, s, variant)
            assert quotas.tolist() == reference.quotas(counts, s)
            assert quotas.sum() == s
            assert quotas.min() >= 1

    @thorough
    @given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(1, 20))
    def test_corrected(self, counts, s):
        assume(sum(counts) >= s >= len(counts))
        quotas = kds.quotas(counts, s)
        assert quotas.sum() == s
        assert (quotas <= counts).all()
        assert ((quotas > 0) == (np.array(counts) > 0)).all()
        if (reference.quotas(counts, s) <= np.array(counts)).all():  # nothing to correct
            assert quotas.tolist() == reference.quotas(counts, s)

    def test_left_over_goes_to_the_fullest(self):
        assert kds.quotas([5, 1, 9, 5], 8, "paper").tolist() == [2, 1, 3, 2]  # shares 1, 0, 1, 1; one left
        assert kds.quotas([5, 5, 5, 5], 7, "paper").tolist() == [1, 2, 2, 2]

    @pytest.mark.parametrize(
        ("counts", "s", "variant", "message"),
        [
            ([1] * 9, 8, "paper", "9 intervals"),
            ([0, 0], 8, "released", "hold 0 slices"),
            ([2, 3], 8, "corrected", "hold 5 slices"),
            ([2, 3], 8, "best", "variant is 'best'"),
        ],
    )
    def test_impossible(self, counts, s, variant, message):
        with pytest.raises(ValueError, match=message):
            kds.quotas(counts, s, variant)


class TestSample:
    def test_signature(self):
        assert str(inspect.signature(kds.sample)).startswith("(areas")
        defaults = {name: p.default for name, p in inspect.signature(kds.sample).parameters.items()}
        del defaults["areas"]
        assert list(defaults.items()) == [
            ("n_samples", 8),
            ("n_intervals", 4),
            ("method", "kds"),
            ("variant", "corrected"),
            ("rng", None),
        ]

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(
        curves,
        st.integers(1, 12),
        st.integers(1, 12),
        st.sampled_from(METHODS),
        st.sampled_from(VARIANTS),
        st.integers(0, 99),
    )
    @example([5, 5, 5, 5, 5, 5, 5, 5, 5], 8, 4, "kds", "corrected", 0)
    @example([0], 8, 4, "kds", "paper", 0)
    def test_promises(self, areas, s, k, method, variant, seed):
        if variant != "corrected":
            assume(k <= s)
        n = len(areas)
        indices = kds.sample(areas, s, k, method, variant, np.random.default_rng(seed))
        assert indices.dtype == np.int64
        assert (np.diff(indices) >= 0).all()
        assert indices.min() >= 0
        assert indices.max() < n
        distinct = len(set(indices.tolist()))
        if variant == "corrected":
            assert len(indices) == s
            assert distinct == min(n, s)
        if variant == "paper":
            assert distinct == len(indices) <= min(n, s)
        if variant == "released":
            assert len(indices) == s if n < s or method == "random" else len(indices) <= s
        # the same seed again, in each form a seed can have
        again = kds.sample(areas, s, k, method, variant, seed)
        np.testing.assert_array_equal(again, indices)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(curves, st.sampled_from(["kds", "systematic"]), st.integers(0, 9), st.sampled_from([4, 8]))
    @example([0, 1, 10, 11, 12, 13, 14, 15, 40], "systematic", 0, 4)  # counts 2, 6, 0, 0 and quotas 2, 4, 1, 1
    @example([0, 1, 10, 11, 12, 13, 14, 15, 40], "systematic", 1, 4)
    def test_released_draw_for_draw(self, areas, method, seed, k):
        assume(len(areas) >= 8 and min(areas) < max(areas))
        edges = kds.edges(areas, k, method).tolist()
        expected = reference.released_draw(areas, edges, 8, np.random.RandomState(seed))
        indices = kds.sample(areas, 8, k, method, "released", np.random.RandomState(seed))
        assert indices.tolist() == expected

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(
        "areas",
        [
            _bell(8),
            _bell(30),
            np.repeat([0, 10, 20], [20, 1, 4]),
            np.r_[np.zeros(25, int), 30_000],
            np.full(12, 5),
            np.arange(200) ** 2,
        ],
        ids=["8", "30", "ties", "one far", "equal", "200"],
    )
    def test_corrected_can_draw_every_slice(self, areas, method):
        # each slice's chance is at least 1 / n, so 40 n draws miss one with probability below n exp(-40)
        seen = set()
        rng = np.random.default_rng(1)
        for _ in range(40 * len(areas)):
            seen |= set(kds.sample(areas, method=method, rng=rng).tolist())
        assert seen == set(range(len(areas)))

    def test_corrected_takes_from_every_interval_that_holds_a_slice(self):
        areas = _bell(40)
        groups = reference.members(areas.tolist(), reference.kds_edges(areas.tolist(), 4), last_closed=True)
        for seed in range(50):
            drawn = set(kds.sample(areas, rng=seed).tolist())
            assert [len(drawn & set(group)) for group in groups] == reference.quotas([len(g) for g in groups], 8)

    def test_paper_is_short_where_an_interval_is_empty(self):
        areas = np.r_[np.arange(20), 10_000 + np.arange(3)]
        groups = reference.members(areas.tolist(), reference.systematic_edges(areas.tolist(), 4), last_closed=True)
        assert [len(group) for group in groups] == [20, 0, 0, 3]
        assert len(kds.sample(areas, method="systematic", variant="paper", rng=0)) == 6  # quotas 5, 1, 1, 1
        assert len(kds.sample(areas, method="systematic", rng=0)) == 8

    def test_released_slips(self):
        areas = np.r_[_bell(20), 40_000, 40_000]
        seen = {int(i) for seed in range(300) for i in kds.sample(areas, variant="released", rng=seed)}
        assert seen == set(range(20))  # never the largest area
        areas = np.r_[np.zeros(10, int), np.arange(1, 9)]
        draws = [kds.sample(areas, variant="released", rng=seed).tolist() for seed in range(50)]
        assert {i for draw in draws for i in draw} == {0, *range(10, 17)}  # equal areas are their first slice
        assert any(draw.count(0) > 1 for draw in draws)

    @pytest.mark.parametrize("method", METHODS)
    def test_released_short_windows(self, method):
        assert kds.sample([], method=method, variant="released").tolist() == [0] * 8
        assert kds.sample([9], method=method, variant="released").tolist() == [0] * 8
        for n in range(2, 8):
            expected = sorted(np.random.RandomState(3).choice(n, 8).tolist())
            drawn = kds.sample(_bell(n), method=method, variant="released", rng=np.random.RandomState(3))
            assert drawn.tolist() == expected

    @pytest.mark.parametrize("method", METHODS)
    def test_corrected_short_windows(self, method):
        assert kds.sample([4], method=method).tolist() == [0] * 8
        assert kds.sample([1, 2, 3], method=method).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
        assert kds.sample(_bell(7), method=method).tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
        assert kds.sample(_bell(8), method=method).tolist() == list(range(8))

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_equal_areas(self, variant):
        drawn = kds.sample(np.zeros(30, int), variant=variant, rng=0)
        assert len(set(drawn.tolist())) == 8
        assert drawn.tolist() != kds.sample(np.zeros(30, int), variant=variant, rng=1).tolist()

    def test_methods_differ_as_they_should(self):
        # 90 large areas and 10 small ones: "random" draws like the window, "systematic" halves the range
        areas = np.r_[np.arange(10), 20_000 + np.arange(90)]
        small = {
            method: np.mean([(kds.sample(areas, 8, 2, method, rng=seed) < 10).sum() for seed in range(200)])
            for method in METHODS
        }
        assert 0.5 < small["random"] < 1.1  # 0.8 expected
        assert small["systematic"] == 1  # one for its interval, none of the share
        assert small["kds"] >= 1

    def test_no_hidden_state(self):
        areas = _bell(50)
        np.random.seed(5)  # noqa: NPY002
        first = kds.sample(areas)
        np.random.seed(6)  # noqa: NPY002
        np.testing.assert_array_equal(kds.sample(areas), first)
        np.testing.assert_array_equal(kds.sample(areas, rng=np.random.default_rng(0)), first)
        rng = np.random.default_rng(0)
        assert kds.sample(areas, rng=rng).tolist() != kds.sample(areas, rng=rng).tolist()

    @pytest.mark.parametrize("variant", ["paper", "corrected"])
    @pytest.mark.parametrize("method", METHODS)
    def test_empty_window(self, method, variant):
        with pytest.raises(ValueError, match="no slice"):
            kds.sample([], method=method, variant=variant)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"method": "uniform"}, ValueError, "'uniform'.*'kds', 'systematic', 'random'"),
            ({"variant": "fixed"}, ValueError, "'fixed'.*'released', 'paper', 'corrected'"),
            ({"n_samples": 0}, ValueError, "n_samples is 0"),
            ({"n_intervals": -1}, ValueError, "n_intervals is -1"),
            ({"n_samples": 2.5}, TypeError, "float"),
            ({"n_intervals": 9, "variant": "paper"}, ValueError, "9 intervals"),
            ({"rng": "seed"}, TypeError, "str"),
            ({"areas": [1, 2, np.nan]}, ValueError, "non-finite"),
            ({"areas": [1, -2, 3]}, ValueError, "negative"),
            ({"areas": [[1, 2]]}, ValueError, "1-D"),
        ],
    )
    def test_bad_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            kds.sample(**{"areas": _bell(20), **arguments})


@pytest.mark.shared
class TestGolden:
    @pytest.mark.parametrize("k", [4, 8])
    def test_every_curve(self, shared, k):
        curves = json.loads((shared / "data" / "golden_slice_curves.json").read_text())
        assert len(curves) == 8
        for curve in curves:
            start, stop = curve["window_w0_5"]
            areas = curve["areas"][start:stop]
            assert kds.edges(areas, k).tolist() == pytest.approx(curve[f"kds_k{k}_edges"], rel=1e-12)
            drawn = start + kds.sample(areas, 8, k, "kds", "released", np.random.RandomState(0))
            assert drawn.tolist() == curve[f"kds_k{k}_indices_legacy_seed0"]
