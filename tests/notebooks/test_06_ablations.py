"""Chapter 6: the comparison, the samplers' tests and what is said of them, against the saved scores and each other."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests import cells
from tests.conftest import ROOT
from tests.notebooks.conftest import asked, holm, in_order, points, read_json

pytestmark = pytest.mark.notebook
CHAPTER = "06_ablations"
METRICS = {"roc_auc": "ROC AUC", "macro_f1": "macro F1"}
SETTING = ["method", "n_samples", "n_intervals"]
# What a reader is told of, by the name in the table, and whether more is better.
TOLD = {
    "ks": ("Kolmogorov", False),
    "wasserstein": ("Wasserstein", False),
    "coverage": ("mean distance to a drawn slice", False),
    "lesion": ("lesion slice drawn", True),
    "mean_area_error": ("RMS error", False),
    "position_sd": ("SD of the mean position", False),
}


@pytest.fixture(scope="module")
def comparison(ci_run) -> pd.DataFrame:
    return ci_run.numbers(CHAPTER, "comparison").set_index(["cell", "metric"])


def test_setting_as_set_is_scored_from_the_saved_scores(ci_run, comparison):
    scores = ci_run.parquet(CHAPTER, "scores")
    draws = {draw: points(t["label"], t["probability"]) for draw, t in scores.groupby("draw")}
    assert len(draws) == asked(CHAPTER)["redraws"]
    spread = scores.groupby("scan_id")["probability"].std(ddof=1).mean()
    for metric in ("roc_auc", "macro_f1"):
        row = comparison.loc[("as set", metric)]
        assert row["value"] == pytest.approx(draws[0][metric]) and row["n"] == scores["scan_id"].nunique()
        assert row["redraw_sd"] == pytest.approx(np.std([d[metric] for d in draws.values()], ddof=1), abs=1e-9)
        assert row["score_sd"] == pytest.approx(spread)
        assert np.isnan(row["low"]) or row["low"] <= row["value"] <= row["high"]  # none where every replicate is equal
        assert np.isnan(row["difference"]) and pd.isna(row["baseline"])
    labels = ci_run.cohort().set_index("scan_id")["label"]
    assert (scores["label"] == scores["scan_id"].map(labels)).all()


def test_variations_are_compared_with_the_setting_as_set(ci_run, comparison):
    varied = [changes["recipe"] for changes in asked(CHAPTER)["vary"]]  # nothing else is varied here
    names = [", ".join(f"{k} = {v}" for k, v in changes.items()) for changes in varied]
    assert names and list(comparison.index.unique("cell")) == ["as set", *names]
    for name, changes in zip(names, varied, strict=True):
        for metric in ("roc_auc", "macro_f1"):
            row = comparison.loc[(name, metric)]
            less = row["value"] - comparison.loc[("as set", metric), "value"]
            assert row["difference"] == pytest.approx(less, abs=1e-9) and row["baseline"] == "as set"
            assert {key: row[key] for key in changes} == changes
    for _, part in comparison.groupby("metric"):
        np.testing.assert_allclose(part["p_holm"], holm(part["p_value"]))
    # the same training as chapter 4's, found and not repeated; and one more for each variation
    trained = len(list((ci_run.dir / "04_training" / "runs").iterdir()))
    assert trained == len(ci_run.table("04_training", "runs")) + len(names)


def test_setting_is_the_parameters(ci_run):
    setting, wanted = read_json(ci_run.dir / CHAPTER / "setting.json"), asked(CHAPTER)
    for name in ("ssfl", "few_shot", "backbone", "variant", "aggregation"):
        assert setting[name] == wanted[name]
    names = ("method", "n_samples", "n_intervals", "epochs", "lr", "scans_per_step")
    assert {name: setting["recipe"][name] for name in names} == {name: wanted[name] for name in names}
    assert setting["preprocessing"]["fraction"] == wanted["fraction"]


def test_headline(ci_run, comparison):
    row, headline = comparison.loc[("as set", "roc_auc")], ci_run.headline(CHAPTER)
    scores = ci_run.parquet(CHAPTER, "scores")
    aucs = [points(t["label"], t["probability"])["roc_auc"] for _, t in scores.groupby("draw")]
    assert headline["roc_auc"]["value"] == pytest.approx(aucs[0])
    assert headline["roc_auc"]["ci95"] == [row["low"], row["high"]] and headline["roc_auc"]["n"] == row["n"]
    assert headline["roc_auc_redraw_sd"]["value"] == pytest.approx(np.std(aucs, ddof=1), abs=1e-9)
    assert headline["sweeps"]["value"] == len(list(ci_run.dir.glob("ablations/*/comparison.csv"))) == 0
    assert set(headline) == {"roc_auc", "roc_auc_redraw_sd", "sweeps"}


def test_random_sampling_is_measured_as_theory_has_it(ci_run):
    """A simple random sample of 8 has no bias, and its mean varies by sd sqrt((1/8 - 1/n) n / (n - 1))."""
    table = ci_run.table(CHAPTER, "sampler_quality")
    random = table[(table["method"] == "random") & (table["n_samples"] == 8)].set_index("measure")
    scans = ci_run.scans()
    n = (scans["stop"] - scans["start"])[scans["status"] != "excluded"]
    sd = np.sqrt(np.maximum(1 / 8 - 1 / n, 0) * n / (n - 1))
    assert random.loc["mean_area_sd", "value"] == pytest.approx(sd.mean(), rel=1e-6)
    assert random.loc["mean_area_bias", "value"] == pytest.approx(0, abs=1e-9)
    assert random.loc["mean_area_sd", "n"] == len(n)


@pytest.mark.parametrize(("name", "baseline"), [("sampler_tests", "random"), ("sampler_tests_spaced", "spaced")])
def test_sampler_tests_are_differences_of_the_measured_means(ci_run, name, baseline):
    quality = ci_run.numbers(CHAPTER, "sampler_quality").set_index([*SETTING, "measure"])["value"]
    quality = {tuple(None if pd.isna(k) else k for k in key): value for key, value in quality.items()}
    tests = ci_run.numbers(CHAPTER, name)
    assert set(tests["baseline"]) == {baseline}
    assert set(tests["method"]) == {"random", "spaced", "systematic", "kds"} - {baseline}
    for row in tests.itertuples():
        intervals = None if row.method in ("random", "spaced") or pd.isna(row.n_intervals) else row.n_intervals
        own = quality[row.method, row.n_samples, intervals, row.measure]
        less = own - quality[baseline, row.n_samples, None, row.measure]
        assert row.difference == pytest.approx(less, abs=1e-9), (row.method, row.measure)
    np.testing.assert_allclose(tests["p_holm"], holm(tests["p_value"]))


def test_answer_gives_the_comparison(ci_run, comparison):
    lines = ci_run.said(CHAPTER)[-1].splitlines()
    row = comparison.loc[("as set", "roc_auc")]
    numbers = [int(row["n"]), *(f"{row[name]:.3f}" for name in ("value", "low", "high", "redraw_sd"))]
    assert in_order(next(line for line in lines if "as set" in line), *numbers)
    for name, metric in itertools.product(comparison.index.unique("cell")[1:], ("roc_auc", "macro_f1")):
        row = comparison.loc[(name, metric)]
        signed = [f"{row[column]:+.3f}" for column in ("difference", "difference_low", "difference_high")]
        (line,) = [line for line in lines if f"- {name}: {METRICS[metric]} " in line]
        assert in_order(line, *signed, f"{row['p_holm']:.3f}", f"{row['detectable']:.3f}")
    assert asked(CHAPTER)["seeds"] == [0] and "- 1 seed, so that seeds are not in the intervals" in lines


@pytest.mark.parametrize(("name", "baseline"), [("sampler_tests", "random"), ("sampler_tests_spaced", "spaced")])
def test_answer_calls_better_and_worse_what_the_tests_do(ci_run, name, baseline):
    tests = ci_run.numbers(CHAPTER, name)
    tests = tests[tests["n_samples"].eq(8) & tests["n_intervals"].fillna(4).eq(4)].set_index(["method", "measure"])
    lines = [line for line in ci_run.said(CHAPTER)[-1].splitlines() if f"against {baseline}" in line]
    assert [line.split()[1] for line in lines] == list(tests.index.unique("method"))
    for line in lines:
        parts = line.partition(": ")[2].split("; ")
        assert len(parts) == len(TOLD)
        for measure, (words, more_is_better) in TOLD.items():
            (part,) = [p for p in parts if words in p]
            row = tests.loc[(line.split()[1], measure)]
            assert in_order(part, *(f"{row[column]:+.3f}" for column in ("difference", "low", "high")))
            clear = row["p_holm"] < 0.05 and row["low"] * row["high"] > 0
            verdict = ("better" if (row["difference"] > 0) == more_is_better else "worse") if clear else "no different"
            assert part.endswith(verdict), part


def test_register_holds_what_chapter_3_found(ci_run):
    ours, theirs = (ci_run.table(c, "register") for c in (CHAPTER, "03_reduction_statistics"))
    columns = ["id", "claim", "checked", "holds"]  # results and effects are of other draws
    pd.testing.assert_frame_equal(ours[columns], theirs[columns])


def test_frozen_effects_are_differences_of_the_settings_and_all_that_survive_are_told(ci_run):
    settings = ci_run.table(CHAPTER, "frozen_settings").set_index("method")
    effects = ci_run.numbers(CHAPTER, "frozen_effects")
    assert set(effects["axis"]) == {"method"} and set(effects["scope"]) == {"paper", "average"}
    lines = ci_run.said(CHAPTER)[-1].splitlines()
    for row in effects.itertuples():
        own = settings.loc["random", row.metric] - settings.loc["kds", row.metric]
        assert row.difference == pytest.approx(own, abs=1e-9) and row.low <= row.difference <= row.high
        metric = METRICS[row.metric]
        where = "as in the paper" if row.scope == "paper" else "over all"
        (line,) = [text for text in lines if text.startswith(f"- method, {metric}") and where in text]
        assert (f"random {row.difference:+.3f}" in line) == (row.p_holm < 0.05)
        assert ("none differs" in line) == (row.p_holm >= 0.05)
    for _, part in effects.groupby(["scope", "metric", "axis"]):
        np.testing.assert_allclose(part["p_holm"], holm(part["p_value"]))


# The samplers on patients' windows


@pytest.fixture(scope="module")
def patients() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """year/scan -> (areas of the window, released draw in it), windows of 8 and more, from the released files."""
    found = {}
    for year, areas, scans in (
        (2025, "areas_2025", "scans_2025"),
        (2024, "window_areas_2024", "windows_2024"),
    ):
        folder = ROOT / "results" / "published" / "real_areas"
        parts = pd.read_parquet(folder / f"{areas}.parquet").groupby("scan")["area"]
        curves = {scan: part.to_numpy(float) for scan, part in parts}
        for scan in pd.read_parquet(folder / f"{scans}.parquet").itertuples():
            curve = curves[scan.scan]
            window = curve[scan.start : scan.stop] if year == 2025 else curve
            if len(window) >= 8:
                found[f"{year}/{scan.scan:04d}"] = window, np.asarray(scan.released_draw, int) - scan.start
    wanted = asked(CHAPTER)["patients"]
    return {scan: found[scan] for scan in list(found)[:: len(found) // wanted]}


def test_samplers_on_patients_in_closed_form(ci_run, patients):
    table = ci_run.numbers(CHAPTER, "sampler_quality_patients").set_index(["measure", "method", "n_samples"])
    lengths = np.array([len(window) for window, _ in patients.values()])
    for s in (4, 8, 16):
        row = table.loc[("mean_area_error", "random", s)].squeeze()
        n = np.maximum(lengths, s)  # a window of fewer slices is drawn whole
        exact = np.sqrt((n - s) / np.maximum(n - 1, 1) / s)
        short = lengths < s
        assert row["n"] == len(patients) and (short.any() or row["value"] == pytest.approx(exact.mean(), rel=1e-9))
        assert row["low"] <= row["value"] <= row["high"]
    assert not table.index.get_level_values("measure").str.contains("lesion").any()


def test_order_of_the_samplers_here_and_on_patients(ci_run):
    keys = [*SETTING, "measure"]
    ours, theirs = (ci_run.numbers(CHAPTER, name) for name in ("sampler_quality", "sampler_quality_patients"))
    both = ours.merge(theirs, on=keys, suffixes=("", "_patients"))
    ranks = ci_run.numbers(CHAPTER, "sampler_ranks_patients").set_index(["measure", "n_samples"])
    for key, part in both.groupby(["measure", "n_samples"]):
        if min(np.ptp(part["value"]), np.ptp(part["value_patients"])) < 1e-12:  # all slices drawn: no order
            assert key not in ranks.index
            continue
        expected = np.corrcoef(part["value"].rank(), part["value_patients"].rank())[0, 1]
        assert ranks.loc[key, "samplers"] == len(part)
        assert ranks.loc[key, "rank_correlation"] == pytest.approx(expected)
    assert len(ranks) >= 9
    (text,) = [said for said in ci_run.said(CHAPTER) if "windows of patients" in said]
    few = theirs[(theirs["n_samples"] == 8) & (theirs["measure"] == "ks")].groupby("method")["value"].first()
    least = ranks["rank_correlation"].min()
    for method in ("random", "spaced"):
        assert f"{method} {few[method]:.3f}" in text
    assert in_order(text, f"{ranks['rank_correlation'].median():.2f}", f"{least:.2f}")


def test_groups_and_released_draws_of_patients(ci_run, patients):
    table = ci_run.numbers(CHAPTER, "sampler_groups_patients")
    assert table.groupby(["by", "method", table["n_intervals"].fillna(0)])["n"].sum().eq(len(patients)).all()
    years = table[(table["by"] == "year") & (table["method"] == "random")].set_index("group")
    for year in ("2024", "2025"):
        n = np.array([len(window) for scan, (window, _) in patients.items() if scan.startswith(year)])
        row = years.loc[int(year) if years.index.dtype.kind == "i" else year]
        assert row["n"] == len(n) and row["mean_area_error"] == pytest.approx(np.sqrt((n - 8) / (n - 1) / 8).mean())
    released = ci_run.numbers(CHAPTER, "released_draws_patients").set_index("year")
    for year in (2024, 2025):
        pairs = [pair for scan, pair in patients.items() if scan.startswith(str(year))]
        ks = np.mean([stats.ks_2samp(window[draw], window).statistic for window, draw in pairs])
        bias = np.mean([(window[draw].mean() - window.mean()) / window.std() for window, draw in pairs])
        assert released.loc[year, "ks"] == pytest.approx(ks) and released.loc[year, "bias"] == pytest.approx(bias)


def test_scans_of_one_patient_count_as_one(rng):
    """The samplers' cell, run on 12 windows and on each of them three times over, as scans of one patient."""
    areas = [rng.integers(1, 5000, rng.integers(9, 40)) for _ in range(12)]
    found = []
    for copies in (1, 3):
        names = {f"s{k:02}-{c}": k for k in range(12) for c in range(copies)}
        scans = pd.DataFrame(
            {"scan_id": list(names), "patient": list(names.values()), "status": "kept", "start": 0, "stop": 1}
        )
        chapter = cells.Chapter()
        chapter.data_root = None
        done = SimpleNamespace(scans=scans, areas=lambda name, n=names: areas[n[name]])
        quiet = SimpleNamespace(of_scans=lambda *a, **k: {}, of_windows=lambda *a: {})
        given = {"done": done, "cohort": scans, "lesions": quiet, "n_boot": 200, "sampler_redraws": 1}
        given |= {"chapter": chapter, "rng": np.random.default_rng(0)}
        cells.run(CHAPTER, "def sampler_quality", "of_windows(", **given)
        found.append([t[t["measure"] == "position_sd"].reset_index(drop=True) for t in chapter.tables.values()])
    for once, many in zip(*found, strict=True):
        assert (many["n"] == 3 * once["n"]).all() and "low" in once
        kept = [c for c in ("value", "difference", "p_value", "detectable", "n_differ") if c in once]
        pd.testing.assert_frame_equal(many[kept], once[kept])
        assert (many["high"] - many["low"]).to_numpy() == pytest.approx(once["high"] - once["low"], rel=0.2)
