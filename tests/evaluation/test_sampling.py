"""Quality of samplers against SciPy, brute enumeration, closed forms, and many calls of `kds.sample`."""

from collections import Counter
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from e2d_lib.evaluation import sampling
from e2d_lib.method import kds, preprocess
from e2d_lib.phantom import lesions, phantom
from e2d_lib.scans import cohort
from tests import cells, reference

BELL = np.round(30_000 * np.exp(-(np.linspace(-1, 1.1, 40) ** 2))).astype(np.int64)
TIES = np.repeat([3, 500, 520, 9_000], [5, 4, 3, 4])
UNEQUAL = np.array([0, 1, 10, 11, 12, 13, 14, 15, 40])  # systematic counts 2, 6, 0, 1
SHORT = np.array([40, 10, 30])
EQUAL = np.full(12, 7)
ALL = {"random": None, "systematic": 4, "kds": 4}


def _quality(areas, *, lesions=None, redraws=50, seed=0, **setting):
    lesions = None if lesions is None else {"a": lesions}
    rng = np.random.default_rng(seed)
    table = sampling.quality({"a": areas}, [setting], lesions=lesions, redraws=redraws, rng=rng)
    return table.iloc[0]


def _outcomes(groups):
    """Every draw of a design, each as likely as the next: the groups' combinations, brought together."""
    per_group = [list(combinations(slices.tolist(), quota)) for slices, quota in groups]
    return [sorted(sum(parts, ())) for parts in product(*per_group)]


def _setting(method, n_samples=8, n_intervals=4):
    return {"method": method, "n_samples": n_samples, "n_intervals": ALL[method] and n_intervals}


class TestSettings:
    def test_default(self):
        found = [tuple(setting.values()) for setting in sampling.settings()]
        assert found == [
            (method, samples, intervals)
            for samples in (4, 8, 16)
            for method, intervals in [("random", None)]
            + [(m, k) for m in ("systematic", "kds") for k in (4, 8) if k <= samples]
        ]

    def test_methods_without_intervals_come_once(self):
        assert len(sampling.settings(("spaced", "random"), n_samples=(4, 8))) == 4


class TestDraws:
    @pytest.mark.parametrize("method", ["random", "systematic", "kds"])
    @pytest.mark.parametrize("areas", [UNEQUAL, TIES, SHORT, EQUAL[:9]], ids=["unequal", "ties", "short", "equal"])
    def test_distributed_as_samples(self, areas, method):
        """Each design's draws, enumerated, are the outcomes of kds.sample, and as frequent (chi-square)."""
        n_samples = 4
        expected = Counter(map(tuple, _outcomes(sampling.design(areas, n_samples, 2, method))))
        total = sum(expected.values())
        rng = np.random.default_rng(3)
        many = [tuple(kds.sample(areas, n_samples, 2, method, rng=rng).tolist()) for _ in range(3000)]
        drawn = sampling.draws(sampling.design(areas, n_samples, 2, method), redraws=3000, rng=rng)
        for sample in (Counter(many), Counter(map(tuple, drawn.tolist()))):
            assert set(sample) <= set(expected)
            if len(expected) == 1:
                continue
            # outcomes are pooled to about 40 cells, so that none expects few
            order = sorted(expected)
            cell = np.arange(len(order)) * min(40, len(order)) // len(order)
            observed = np.bincount(cell, [sample[outcome] for outcome in order])
            ideal = np.bincount(cell, [3000 * expected[outcome] / total for outcome in order])
            assert stats.chisquare(observed, ideal).pvalue > 1e-5

    def test_every_index_of_a_large_window_as_often_as_expected(self):
        # 8 of 40, from the plain reference's intervals and quotas
        groups = reference.members(BELL.tolist(), reference.kds_edges(BELL.tolist(), 4), last_closed=True)
        quotas = reference.quotas([len(group) for group in groups], 8)
        expected = np.zeros(40)
        for group, quota in zip(groups, quotas, strict=True):
            expected[group] = quota / len(group)
        drawn = sampling.draws(sampling.design(BELL), redraws=20_000, rng=np.random.default_rng(0))
        assert drawn.shape == (20_000, 8)
        assert (np.diff(drawn, axis=1) > 0).all()
        shares = np.bincount(drawn.ravel(), minlength=40) / 20_000
        sd = np.sqrt(expected * (1 - expected) / 20_000)
        assert (np.abs(shares - expected) <= 5 * sd).all()

    def test_spaced_takes_one_of_each_run(self, rng):
        drawn = sampling.draws(sampling.design(BELL, 8, None, "spaced"), redraws=500, rng=rng)
        assert (drawn // 5 == np.arange(8)).all()
        assert set(drawn.ravel().tolist()) == set(range(40))

    @pytest.mark.parametrize(
        ("areas", "arguments", "message"),
        [
            ([], {}, "no slice"),
            ([1, 2], {"method": "uniform"}, "'uniform'"),
            ([1, 2], {"n_samples": 0}, "n_samples is 0"),
            ([1, -2], {}, "negative"),
        ],
    )
    def test_bad_arguments(self, areas, arguments, message):
        with pytest.raises(ValueError, match=message):
            sampling.design(areas, **arguments)


class TestDistances:
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the p-value that scipy computes beside the distance
    @hypothesis_settings(max_examples=150, deadline=None, derandomize=True)
    @given(
        st.one_of(st.lists(st.integers(0, 40_000), min_size=1, max_size=50), st.lists(st.integers(0, 4), min_size=1)),
        st.data(),
    )
    def test_as_scipy(self, areas, data):
        index = st.integers(0, len(areas) - 1)
        size = data.draw(st.integers(1, 12))
        drawn = np.array([data.draw(st.lists(index, min_size=size, max_size=size)) for _ in range(3)])
        ks, wasserstein = sampling.distances(areas, drawn)
        areas = np.array(areas)
        for row, d, w in zip(drawn, ks, wasserstein, strict=True):
            assert d == pytest.approx(stats.ks_2samp(areas[row], areas, method="asymp").statistic, abs=1e-12)
            assert w == pytest.approx(stats.wasserstein_distance(areas[row], areas), rel=1e-9, abs=1e-7)

    @hypothesis_settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.integers(1, 40), st.data())
    def test_cover_as_by_hand(self, n, data):
        drawn = sorted(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
        nearest = [min(abs(i - j) for j in drawn) for i in range(n)]
        mean, largest = sampling.cover(n, [drawn])
        assert mean[0] == pytest.approx(sum(nearest) / n)
        assert largest[0] == max(nearest)


class TestExact:
    @pytest.mark.parametrize("method", ["random", "systematic", "kds"])
    @pytest.mark.parametrize("areas", [UNEQUAL, TIES, SHORT, EQUAL], ids=["unequal", "ties", "short", "equal"])
    def test_as_enumerated(self, areas, method):
        """Means and SDs over all draws there are."""
        rng = np.random.default_rng(4)
        lesions = rng.random(len(areas)) < 0.3
        lesions[1] = True
        row = _quality(areas, lesions=lesions, redraws=2, **_setting(method, 4, 2))
        outcomes = np.array(_outcomes(sampling.design(areas, 4, 2, method)))
        sd = areas.std() or 1
        means, positions, bearing = areas[outcomes].mean(1), outcomes.mean(1), lesions[outcomes]
        expected = {
            "largest_area": (areas[outcomes] == areas.max()).any(1).mean(),
            "lesion": bearing.any(1).mean(),
            "expected_lesion_slices": bearing.sum(1).mean(),
            "lesion_share_sd": bearing.mean(1).std(),
            "mean_area_bias": (means.mean() - areas.mean()) / sd,
            "mean_area_sd": means.std() / sd,
            "mean_area_error": np.sqrt(((means - areas.mean()) ** 2).mean()) / sd,
            "position_sd": positions.std() / len(areas),
        }
        assert set(expected) == set(sampling.EXACT)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name

    def test_random_is_hypergeometric(self):
        lesions = np.arange(40) < 6
        row = _quality(BELL, lesions=lesions, **_setting("random"))
        law = stats.hypergeom(40, 6, 8)
        assert row["lesion"] == pytest.approx(1 - law.pmf(0))
        assert row["expected_lesion_slices"] == pytest.approx(law.mean())
        assert row["lesion_share_sd"] == pytest.approx(law.std() / 8)
        # sampling of a finite population: variance (N - n) / (N - 1) / n of the population's
        assert row["mean_area_sd"] == pytest.approx(np.sqrt(32 / 39 / 8))
        assert row["mean_area_bias"] == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("method", ["random", "systematic", "kds"])
    def test_as_simulated_with_kds_sample(self, method):
        lesions = np.arange(40) > 33
        row = _quality(BELL, lesions=lesions, redraws=2000, **_setting(method))
        rng = np.random.default_rng(9)
        drawn = np.array([kds.sample(BELL, method=method, rng=rng) for _ in range(2000)])
        seen = lesions[drawn].any(1)
        assert row["lesion"] == pytest.approx(seen.mean(), abs=5 * np.sqrt(0.25 / 2000))
        assert row["mean_area_sd"] == pytest.approx(BELL[drawn].mean(1).std() / BELL.std(), rel=0.1)
        assert row["position_sd"] == pytest.approx(drawn.mean(1).std() / 40, rel=0.1)
        # the estimated measures, from other draws and SciPy
        ks = [stats.ks_2samp(BELL[d], BELL, method="asymp").statistic for d in drawn[:600]]
        assert row["ks"] == pytest.approx(np.mean(ks), abs=5 * np.std(ks) / np.sqrt(500))
        wasserstein = [stats.wasserstein_distance(BELL[d], BELL) / BELL.std() for d in drawn[:600]]
        assert row["wasserstein"] == pytest.approx(np.mean(wasserstein), abs=5 * np.std(wasserstein) / np.sqrt(500))
        nearest = np.abs(np.arange(40)[:, None] - drawn[:, None]).min(2) / 40
        assert row["coverage"] == pytest.approx(nearest.mean(), rel=0.03)
        assert row["fill"] == pytest.approx(nearest.max(1).mean(), rel=0.03)


class TestQuality:
    def test_rows_and_columns(self, rng):
        settings = sampling.settings(n_samples=(4, 8))
        table = sampling.quality({"b": BELL, "a": TIES}, settings, redraws=3, rng=rng)
        assert list(table.columns) == ["scan_id", *sampling.SETTING, "window", *sampling.MEASURES]
        assert table["scan_id"].tolist() == ["b"] * len(settings) + ["a"] * len(settings)
        assert table["window"].unique().tolist() == [40, 16]
        assert table["n_intervals"].isna().tolist() == [s["n_intervals"] is None for s in settings] * 2
        assert table.groupby(sampling.SETTING, dropna=False).size().eq(2).all()

    def test_same_generator_same_table(self):
        tables = [
            sampling.quality({"a": BELL}, sampling.settings(), redraws=5, rng=np.random.default_rng(seed))
            for seed in (1, 1, 2)
        ]
        pd.testing.assert_frame_equal(tables[0], tables[1])
        assert not tables[0][list(sampling.ESTIMATED)].equals(tables[2][list(sampling.ESTIMATED)])
        pd.testing.assert_frame_equal(tables[0][list(sampling.EXACT)], tables[2][list(sampling.EXACT)])

    @pytest.mark.parametrize("lesions", [None, {"b": [True]}, {"a": np.zeros(40, bool)}])
    def test_no_lesion_is_no_number(self, lesions, rng):
        row = sampling.quality({"a": BELL}, [_setting("kds")], lesions=lesions, redraws=2, rng=rng).iloc[0]
        about_lesions = ["lesion", "expected_lesion_slices", "lesion_share_sd"]
        assert row[about_lesions].isna().all()
        assert row[[name for name in sampling.MEASURES if name not in about_lesions]].notna().all()

    def test_a_window_drawn_whole_is_told_without_error(self):
        row = _quality(BELL[:8], lesions=np.arange(8) == 3, **_setting("kds"))
        expected = dict.fromkeys(sampling.MEASURES, 0.0)
        expected |= {"largest_area": 1, "lesion": 1, "expected_lesion_slices": 1}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-12), name

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"windows": {"a": []}}, "window of scan 'a' is empty"),
            ({"lesions": {"a": [True]}}, r"shape \(1,\), its window 40"),
            ({"redraws": 0}, "redraws is 0"),
        ],
    )
    def test_bad_arguments(self, arguments, message, rng):
        with pytest.raises(sampling.SamplingError, match=message):
            sampling.quality(**{"windows": {"a": BELL}, "settings": sampling.settings(), "rng": rng} | arguments)


def _table(**measures):
    """Quality of two methods on scans: method -> values, of one measure; the other measures are 0."""
    parts = []
    for method, values in measures.items():
        part = pd.DataFrame({"scan_id": [f"s{i}" for i in range(len(values))], "method": method, "n_samples": 8})
        part["n_intervals"] = pd.array([ALL[method]] * len(values), dtype="Int64")
        parts.append(part.assign(**dict.fromkeys(sampling.MEASURES, 0.0)).assign(ks=values))
    return pd.concat(parts, ignore_index=True)


class TestSummary:
    def test_mean_and_interval(self, rng):
        values = rng.normal(0.3, 0.1, 200)
        values[:3] = np.nan
        table = sampling.summary(_table(kds=values), rng=rng, measures=["ks"], n_boot=4000)
        row = table.iloc[0]
        known = values[3:]
        assert (row["n"], row["n_intervals"], row["measure"]) == (197, 4, "ks")
        assert row["value"] == pytest.approx(known.mean())
        # the interval of a mean of many: 1.96 standard errors
        half = 1.96 * known.std() / np.sqrt(197)
        assert row["low"] == pytest.approx(known.mean() - half, abs=0.15 * half)
        assert row["high"] == pytest.approx(known.mean() + half, abs=0.15 * half)

    def test_one_scan_has_no_interval_and_none_no_row(self, rng):
        table = sampling.summary(_table(kds=[0.5], random=[np.nan]), rng=rng, measures=["ks"])
        assert table["method"].tolist() == ["kds"]
        assert table[["low", "high"]].isna().all(axis=None)


class TestPaired:
    def test_difference_scan_by_scan(self, rng):
        base = rng.random(30)
        shift = rng.normal(-0.02, 0.02, 30)  # far less than the scans' own spread
        shuffled = _table(random=base, kds=base + shift).sample(frac=1, random_state=1)
        table = sampling.paired(shuffled, rng=rng)
        row = table[table["measure"] == "ks"].iloc[0]
        assert row["difference"] == pytest.approx(shift.mean())
        assert row["p_value"] == pytest.approx(stats.wilcoxon(shift).pvalue)
        assert row["low"] < shift.mean() < row["high"] < 0
        assert row["detectable"] == pytest.approx((1.959964 + 0.841621) * stats.sem(shift), rel=1e-5)
        assert (row["method"], row["baseline"], row["n_intervals"], row["n_differ"]) == ("kds", "random", 4, 30)
        # Holm: the smallest of as many p-values as there are measures
        assert row["p_holm"] == pytest.approx(min(1, len(sampling.MEASURES) * row["p_value"]))

    def test_no_difference(self, rng):
        table = sampling.paired(_table(random=[0.1, 0.2, 0.3], kds=[0.1, 0.2, 0.3 + 1e-15]), rng=rng)
        assert table[["difference", "low", "high", "n_differ"]].eq(0).all(axis=None)
        assert table[["p_value", "p_holm"]].eq(1).all(axis=None)

    def test_some_do_not_differ(self, rng):
        base, other = np.zeros(9), np.array([0, 0, 1, 2, 3, 4, 5, 6, 7.0])
        row = sampling.paired(_table(random=base, kds=other), rng=rng, measures=["ks"]).iloc[0]
        assert row["p_value"] == pytest.approx(2 / 2**7)  # all 7 of one sign
        assert (row["n"], row["n_differ"]) == (9, 7)

    def test_equal_counts_are_compared(self, rng):
        windows = {"a": BELL, "b": TIES, "c": BELL[5:]}
        table = sampling.quality(windows, sampling.settings(n_samples=(8, 16)), redraws=3, rng=rng)
        of_random = sampling.paired(table, rng=rng, measures=["ks"])
        assert len(of_random) == 2 * 2 * 2  # samples, methods, intervals
        of_systematic = sampling.paired(table, rng=rng, baseline="systematic", measures=["ks"])
        keys = of_systematic[["method", "n_samples", "n_intervals"]].itertuples(index=False, name=None)
        assert set(keys) == set(product(["random", "kds"], [8, 16], [4, 8]))
        one = of_systematic.query("method == 'kds' and n_samples == 16 and n_intervals == 8").iloc[0]
        means = table.groupby(sampling.SETTING, dropna=False)["ks"].mean()
        assert one["difference"] == pytest.approx(means["kds", 16, 8] - means["systematic", 16, 8])
        assert of_systematic["n"].eq(3).all()

    @pytest.mark.parametrize("baseline", ["random", "uniform"])
    def test_nothing_to_compare(self, baseline, rng):
        with pytest.raises(sampling.SamplingError, match="nothing to compare"):
            sampling.paired(_table(random=[1.0]), baseline=baseline, rng=rng)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small phantom, preprocessed; one of its slices cannot be read."""
    root = tmp_path_factory.mktemp("phantom")
    truth = phantom.write(root / "data", n_scans=8, matrix=64, slices=(20, 40), n_jobs=1)
    done = preprocess.run(cohort.read_cohort(root / "data"), root / "cache", preprocess.Params(size=16), n_jobs=1)
    return root / "data", truth.set_index("scan_id"), done


class TestCohort:
    def test_windows(self, prepared):
        _, _, done = prepared
        windows = sampling.windows(done)
        kept = done.scans[done.scans["status"] != "excluded"].set_index("scan_id")
        assert list(windows) == kept.index.tolist()
        for scan_id, areas in windows.items():
            table = done.slices[done.slices["scan_id"] == scan_id]
            expected = table["area"].to_numpy()[kept.loc[scan_id, "start"] : kept.loc[scan_id, "stop"]]
            np.testing.assert_array_equal(areas, expected)
        some = list(windows)[2:4]
        assert list(sampling.windows(done, some)) == some

    def test_lesions_are_the_truth_table_s(self, prepared):
        root, truth, _ = prepared
        found = lesions.of_scans(root, [*truth.index, "no/such/scan"])
        assert list(found) == truth.index.tolist()
        for scan_id, bearing in found.items():
            assert len(bearing) == truth.loc[scan_id, "n_slices"]
            assert np.flatnonzero(bearing).tolist() == [
                int(k) for k in str(truth.loc[scan_id, "lesion_slices"]).split()
            ]
        assert any(bearing.any() for bearing in found.values())

    def test_least_share_of_the_lung(self, prepared):
        root, truth, _ = prepared
        scan_id = truth["extent"].idxmax()
        with np.load(root / "truth" / "masks" / f"{scan_id.replace('/', '__')}.npz") as file:
            mask = file["mask"]
        shares = [((m == 2) | (m == 3)).sum() / max((m > 0).sum(), 1) for m in mask]
        least = float(np.median(shares))
        found = lesions.of_scans(root, [scan_id], least=least)[scan_id]
        assert found.tolist() == [share > least for share in shares]
        assert 0 < found.sum() < len(found)

    def test_cut_to_windows_by_name_where_slices_are_lost(self, prepared):
        _, truth, done = prepared
        scans = done.scans.set_index("scan_id")
        lost = scans.index[(scans["status"] != "excluded") & (scans["n_slices"] < scans["n_files"])]
        assert len(lost)
        marks = {scan_id: np.arange(truth.loc[scan_id, "n_slices"]) % 3 == 0 for scan_id in sampling.windows(done)}
        cut = lesions.of_windows(done, marks)
        assert cut.keys() == marks.keys()
        for scan_id, bearing in cut.items():
            names = done.slices.loc[done.slices["scan_id"] == scan_id, "name"]
            window = names.iloc[scans.loc[scan_id, "start"] : scans.loc[scan_id, "stop"]]
            assert bearing.tolist() == [int(name.removesuffix(".jpg")) % 3 == 0 for name in window]

    def test_together(self, prepared, rng):
        root, _, done = prepared
        windows = sampling.windows(done)
        bearing_of = lesions.of_windows(done, lesions.of_scans(root, windows))
        settings = sampling.settings(n_samples=(4, 8))
        table = sampling.quality(windows, settings, lesions=bearing_of, redraws=5, rng=rng)
        positive = {scan_id for scan_id, bearing in bearing_of.items() if bearing.any()}
        assert positive
        assert set(table.loc[table["lesion"].notna(), "scan_id"]) == positive
        summary = sampling.summary(table, rng=rng, n_boot=50)
        figure = cells.run("06_ablations", "def sampler_quality").sampler_quality(summary)
        assert isinstance(figure, Figure)
        drawn = [axis for axis in figure.axes if axis.has_data()]
        assert [axis.get_title() for axis in drawn] == list(sampling.MEASURES.values())

    @pytest.mark.parametrize(("options", "message"), [({"findings": ["tumour"]}, "tumour"), ({"least": 1.0}, "least")])
    def test_bad_arguments(self, options, message, prepared):
        with pytest.raises(ValueError, match=message):
            lesions.of_scans(prepared[0], [], **options)


def test_words_say_which_way_is_better():
    rows = [
        ("ks", -0.1, -0.2, -0.01, 0.001),
        ("lesion", 0.1, 0.01, 0.2, 0.001),
        ("coverage", 0.1, 0.01, 0.2, 0.001),
        ("mean_area_error", 0.1, -0.01, 0.2, 0.001),  # the test alone
        ("position_sd", 0.1, 0.01, 0.2, 0.2),  # the interval alone
    ]
    tests = pd.DataFrame(rows, columns=["measure", "difference", "low", "high", "p_holm"]).assign(
        method="kds", baseline="random", n_samples=8, n_intervals=4, detectable=0.14
    )

    def said(tests):
        given = {"tests": tests, "spaced": tests[:0], "sampler_redraws": 2}
        return cells.run("06_ablations", "of_samplers, higher_is_better = ", **given).of_samplers

    (line,) = said(tests)
    verdicts = [part.rsplit(", ", 1)[1] for part in line.split("; ")]
    assert verdicts == ["better", "better", "worse", "no different", "no different"]
    assert line.startswith("- kds against random, 8 slices: Kolmogorov") and line.count("0.140 would be seen") == 5
    assert said(tests.assign(n_samples=4)) == said(tests.assign(n_intervals=8)) == []
