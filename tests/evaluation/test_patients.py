"""The patient is the unit: with several scans of one, shares, splits, folds and intervals never take one apart.

Where every patient has the same scan n times over, closed forms say what must come out: what the scans once give.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from e2d_lib import bootstrap
from e2d_lib.evaluation import ablation, frozen, metrics, multirun, sampling, scoring, sources
from e2d_lib.method import reduction
from e2d_lib.network import experiments, training
from e2d_lib.network.features import Features
from e2d_lib.network.recipe import Recipe
from e2d_lib.network.slices import ScanSlices, few_shot
from tests.evaluation.test_sources import auc_difference


@pytest.fixture
def table(rng) -> pd.DataFrame:
    """90 scans of 40 patients, 1 to 4 each, mixed; some patients have scans of both classes."""
    patients = np.concatenate([np.arange(40), rng.integers(40, size=50)])
    labels = patients % 2 | (rng.random(90) < 0.1)
    order = rng.permutation(90)
    found = pd.DataFrame({"patient": [f"P{p}" for p in patients], "label": labels.astype(int)}).iloc[order]
    found.insert(0, "scan_id", [f"scan {k:02}" for k in range(90)])
    return found.assign(fold=np.where(found["patient"].str[1:].astype(int) < 30, 1, 5), source="a", split="train")


@pytest.fixture
def slices(table) -> ScanSlices:
    return ScanSlices.from_arrays(
        [np.zeros((9, 8, 8), np.uint8)] * 90, [np.arange(1, 10)] * 90, table["label"], table["scan_id"],
        patients=table["patient"],
    )  # fmt: skip


def whole(chosen: pd.DataFrame, table: pd.DataFrame) -> bool:
    return len(chosen) == table["patient"].isin(chosen["patient"]).sum()


class TestShares:
    @pytest.mark.parametrize("fraction", [0.05, 0.3, 1.0])
    def test_are_of_patients_of_each_class(self, table, fraction):
        rows = few_shot(table["scan_id"].tolist(), table["label"], fraction, 3, patients=table["patient"])
        chosen = table.iloc[rows]
        assert whole(chosen, table)
        counts = [frame.groupby("patient")["label"].max().value_counts() for frame in (chosen, table)]
        assert all(counts[0][value] == math.ceil(round(fraction * counts[1][value], 6)) for value in (0, 1))

    def test_names_of_patients_with_one_scan_do_not_matter(self, table):
        known = table["scan_id"].tolist(), table["label"].to_numpy(), 0.3
        named = few_shot(*known, patients=[f"Q{k % 7}{k}" for k in range(90)])
        np.testing.assert_array_equal(few_shot(*known), named)

    def test_reach_the_training_scans_of_a_job(self, slices, table):
        train, valid = experiments.parts(slices, table, experiments.Job(5, 0.3, 1))
        here = table.set_index("scan_id").loc[list(train.scan_ids)].reset_index()
        assert whole(here, table) and set(here["fold"]) == {1}
        assert not set(train.patients) & set(valid.patients)


def test_no_patient_is_in_the_training_and_in_its_inner_split(slices, table):
    parts = training.split(slices, None, Recipe(select="inner", inner_fraction=0.25))
    assert not set(parts["train"].patients) & set(parts["inner"].patients)
    of = table.groupby("patient")["label"].max()
    counts = of[sorted(set(parts["inner"].patients))].value_counts()
    assert counts[0] == math.ceil((of == 0).sum() / 4) and counts[1] == math.ceil((of == 1).sum() / 4)
    assert len(parts["train"]) + len(parts["inner"]) == 90


class TestFrozen:
    def test_replicates_and_inner_folds_take_no_patient_apart(self, table, monkeypatch, rng):
        values = rng.standard_normal((90 * 10, 6)).astype(np.float16)
        areas = tuple(np.arange(1, 11) for _ in range(90))
        features = Features(tuple(table["scan_id"]), values, np.arange(90) * 10, np.full(90, 10), areas, {})
        data = frozen.data({True: features}, table)
        met = []

        def head(train, labels, test, patients):
            assert train.shape[:2] == labels.shape == patients.shape
            for row, own, folds in zip(patients, labels, frozen._inner_folds(labels, patients), strict=True):
                met.append(table[table["patient"].isin(set(row))])
                assert len(met[-1]) == len(row) and sorted(met[-1]["label"]) == sorted(own)
                assert all(len(set(folds[row == patient])) == 1 for patient in set(row))
                assert len(set(folds)) == 5
            return torch.zeros(test.shape[:2]).numpy()

        monkeypatch.setattr(frozen, "scan_head", head)
        one = {name: (value[0],) for name, value in frozen.AXES.items()} | {"few_shot": (0.5,)}
        frozen.run(data, frozen.settings(one), replicates=6)
        assert len(met) == 6 and len({len(chosen) for chosen in met}) > 1  # as many patients, not as many scans

    def test_replicates_of_unequal_size_keep_their_own_scores(self, table, rng):
        """A replicate's probabilities are those of scikit-learn's head, whichever are fitted beside it."""
        values = rng.standard_normal((90 * 10, 6)).astype(np.float16)
        areas = tuple(np.arange(1, 11) for _ in range(90))
        features = Features(tuple(table["scan_id"]), values, np.arange(90) * 10, np.full(90, 10), areas, {})
        data = frozen.data({True: features}, table)
        settings = frozen.settings({name: (v[0],) for name, v in frozen.AXES.items()} | {"few_shot": (0.5,)})
        many, few = (frozen.run(data, settings, replicates=n)[0] for n in (6, 2))
        np.testing.assert_allclose(many[:2], few, atol=1e-5)


class TestAcrossReplicates:
    @pytest.mark.parametrize("metric", multirun.METRICS)
    def test_copies_of_a_patients_scan_say_nothing_new(self, metric, rng):
        labels, scores = np.repeat([0, 1], [23, 31]), rng.random((4, 54)).round(1)
        once = metrics.runs(labels, scores, metric)
        many = metrics.runs(
            np.tile(labels, 3), np.tile(scores, 3), metric, patients=np.tile(np.arange(54).astype(str), 3)
        )
        np.testing.assert_allclose(many.values, once.values)
        # leaving one of 3 scans out is not quite a third of leaving all out, where the metric is no mean
        np.testing.assert_allclose(
            many.parts @ many.parts.T, once.parts @ once.parts.T, rtol=1e-12 if metric == "roc_auc" else 0.02, atol=1e-5
        )

    def test_roc_auc_is_obuchowskis(self, table, rng):
        """Its variance by Obuchowski (1997), in loops; patients with scans of both classes have a term of their own."""
        labels, scores, of = table["label"].to_numpy(), rng.random(90), table["patient"].to_numpy()
        found = metrics.runs(labels, scores, patients=of)
        pos, neg = scores[labels == 1], scores[labels == 0]
        auc, (m, n) = roc_auc_score(labels, scores), (len(pos), len(neg))
        sums = {}
        for p in sorted(set(of)):
            a = sum((neg < s).mean() - auc for s in scores[(of == p) & (labels == 1)])
            b = sum((pos > s).mean() - auc for s in scores[(of == p) & (labels == 0)])
            sums[p] = a, b
        i10, i01 = (len({p for p, y in zip(of, labels, strict=True) if y == value}) for value in (1, 0))
        s10 = i10 / (i10 - 1) / m * sum(a * a for a, _ in sums.values())
        s01 = i01 / (i01 - 1) / n * sum(b * b for _, b in sums.values())
        s11 = math.sqrt(i10 * i01 / (i10 - 1) / (i01 - 1)) * sum(a * b for a, b in sums.values())
        assert float((found.parts @ found.parts.T).item()) == pytest.approx(s10 / m + s01 / n + 2 * s11 / m / n)

    def test_two_scans_of_one_patient_are_no_class(self):
        with pytest.raises(ValueError, match="2 positive and 2 negative scans of 1 and 2 patients"):
            metrics.runs([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9], patients=["a", "b", "c", "c"])


def predictions(rng, n: int, copies: int, shift: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Chapter 4's slices of n patients' scans, each scan there ``copies`` times, and the cohort."""
    p = np.clip(0.5 + 0.2 * (np.arange(n) % 2 - 0.5) + rng.normal(0, 0.2, n) + shift * rng.normal(0, 1, n), 0, 1)
    rows = [
        (1.0, 0, 5, "valid", f"s{k:03}-{c}", 0, p[k], k % 2, f"P{k}", "hospital")
        for k in range(n)
        for c in range(copies)
    ]
    names = ["fraction", "seed", "fold", "part", "scan_id", "index", "probability", "label", "patient", "source"]
    found = pd.DataFrame(rows, columns=names)
    return found.drop(columns=["patient", "source"]), found[["scan_id", "patient", "source"]]


class TestChapter5:
    def test_intervals_are_those_of_patients(self):
        """ROC AUC's against a plain bootstrap of patients: each drawn patient brings all scans."""
        slices, cohort = predictions(np.random.default_rng(4), 60, 4)
        scores = scoring.scan_scores(slices, cohort)
        found = scoring.at_thresholds(scores, n_boot=2000).set_index("metric")
        blind = scoring.at_thresholds(scores.drop(columns="patient"), n_boot=2000).set_index("metric")
        assert set(found.loc[["roc_auc", "sensitivity"], "method"]) == {"stratified bootstrap of groups"}
        of_class = [[part for _, part in own.groupby("patient")] for _, own in scores.groupby("label")]
        rng, values = np.random.default_rng(0), []
        for _ in range(300):
            drawn = pd.concat([ones[k] for ones in of_class for k in rng.integers(len(ones), size=len(ones))])
            values.append(roc_auc_score(drawn["label"], drawn["probability"]))
        low, high = np.percentile(values, [2.5, 97.5])
        own = found.loc["roc_auc", "high"] - found.loc["roc_auc", "low"]
        assert own == pytest.approx(high - low, rel=0.15)
        assert own / (blind.loc["roc_auc", "high"] - blind.loc["roc_auc", "low"]) == pytest.approx(2, rel=0.15)

    def test_two_runs_are_compared_over_patients(self):
        many, once = (
            scoring.paired(
                *(scoring.scan_scores(*predictions(np.random.default_rng(4), 60, copies, shift)) for shift in (0, 0.3))
            ).set_index("metric")
            for copies in (4, 1)
        )
        np.testing.assert_allclose(many["difference"], once["difference"])
        assert set(many["method"]) == {"paired bootstrap"}
        width, alone = (table.loc["roc_auc", "high"] - table.loc["roc_auc", "low"] for table in (many, once))
        assert width == pytest.approx(alone, rel=0.15)

    def test_one_scan_a_patient_is_as_without_patients(self):
        slices, cohort = predictions(np.random.default_rng(4), 60, 1)
        scores = scoring.scan_scores(slices, cohort)
        named, blind = (scoring.at_thresholds(t, n_boot=100) for t in (scores, scores.drop(columns="patient")))
        pd.testing.assert_frame_equal(named, blind, check_exact=True)


def test_settings_are_compared_over_patients():
    labels, rng = np.repeat([0, 1], 30), np.random.default_rng(1)
    scores = {name: np.clip(0.4 + 0.2 * labels + rng.normal(0, 0.2, 60), 0, 1) for name in ("a", "b")}

    def results(copies: int) -> dict[str, ablation.Result]:
        k = np.repeat(np.arange(60), copies)
        known = pd.DataFrame({"seed": 0, "fold": 5, "draw": 0, "scan_id": [f"s{i:04}" for i in range(len(k))]})
        known["patient"], known["label"] = [f"P{i}" for i in k], labels[k]
        return {name: ablation.Result({"name": name}, known.assign(probability=p[k])) for name, p in scores.items()}

    tables = [ablation.compare(results(n), rng=np.random.default_rng(0), n_boot=500) for n in (1, 4)]
    once, many = (table.set_index(["cell", "metric"]).loc[("b", "roc_auc")] for table in tables)
    for column in ("difference", "difference_low", "difference_high", "p_value"):
        assert many[column] == pytest.approx(once[column])
    assert many["high"] - many["low"] == pytest.approx(once["high"] - once["low"], rel=0.2)


class TestSamplers:
    """The ways to draw slices, against each other: of 40 patients with 1 to 4 scans each, mixed."""

    @pytest.fixture
    def quality(self, table, rng):
        own = rng.normal(size=40)[table["patient"].str[1:].astype(int)]  # what scans of one patient share
        parts = []
        for method, values in (("random", np.zeros(90)), ("spaced", 0.2 + own + rng.normal(0, 0.3, 90))):
            part = table[["scan_id", "patient"]].assign(method=method, n_samples=8, n_intervals=pd.NA)
            parts.append(part.astype({"n_intervals": "Int64"}).assign(ks=values))
        return pd.concat(parts, ignore_index=True)

    def test_are_compared_over_patients(self, quality):
        of = quality[quality["method"] == "spaced"].groupby("patient")["ks"]
        patients, n = [part.to_numpy() for _, part in of], len(of)
        rng, how = np.random.default_rng(0), {"measures": ["ks"], "n_boot": 4000}
        plain = [np.concatenate([patients[k] for k in rng.integers(n, size=n)]).mean() for _ in range(4000)]
        found = sampling.paired(quality, rng=rng, **how).iloc[0]
        value = sampling.summary(quality, rng=rng, **how).set_index("method").loc["spaced"]
        ends = np.quantile(plain, [0.025, 0.975])
        for row in (found, value):
            assert [row["low"], row["high"]] == pytest.approx(ends, abs=0.03 * np.ptp(ends))
        assert found["p_value"] == pytest.approx(stats.wilcoxon([part.mean() for part in patients]).pvalue)
        assert (found["n"], found["n_differ"], value["n"]) == (90, 40, 90)
        assert found["detectable"] == pytest.approx((1.959964 + 0.841621) * np.std(plain), rel=0.05)
        blind = sampling.paired(quality.drop(columns="patient"), rng=rng, **how).iloc[0]
        assert found["detectable"] > 1.2 * blind["detectable"] and found["p_value"] > 2 * blind["p_value"]

    def test_scans_of_one_patient_have_no_interval(self, quality):
        own = quality[quality["patient"] == quality["patient"].mode()[0]]
        found = sampling.paired(own, rng=np.random.default_rng(0), measures=["ks"]).iloc[0]
        assert found["n"] > 1 and found["n_differ"] == 1
        assert found[["low", "high", "detectable"]].isna().all()

    def test_one_scan_a_patient_is_to_the_last_bit_as_scans_drawn(self, quality):
        values = quality.loc[quality["method"] == "spaced", "ks"].to_numpy()
        drawn = np.random.default_rng(0).multinomial(90, np.full(90, 1 / 90), size=2000) / 90
        ends = [*np.quantile(drawn @ values, [0.025, 0.975]), metrics.detectable(values.std(ddof=1) / np.sqrt(90))]
        for table in (quality.assign(patient="P" + quality["scan_id"]), quality.drop(columns="patient")):
            row = sampling.paired(table, rng=np.random.default_rng(0), measures=["ks"]).iloc[0]
            assert [row["low"], row["high"], row["detectable"]] == ends
            assert row["p_value"] == stats.wilcoxon(values).pvalue


class TestSources:
    def test_folds_hold_whole_patients(self, table, rng):
        scans = table.assign(source=np.where(table["patient"].str[1:].astype(int) < 20, "a", "b"))
        of = dict(enumerate(scans["patient"]))
        features = np.arange(90.0)[None, :, None]

        def head(x, labels, unseen):
            assert not {of[k] for k in x[:, 0]} & {of[k] for k in unseen[:, 0]}
            return np.full(len(unseen), 0.5)

        found = sources.scores(features, scans, head, designs=("within", "mixed"))
        assert len(found) == 180 and set(found["patient"]) == set(scans["patient"])

    def test_differences_are_over_patients(self):
        rng = np.random.default_rng(0)
        labels = np.arange(60) % 2
        p, q = (np.clip(0.3 + 0.3 * labels + rng.normal(0, 0.3, 60), 0, 1) for _ in range(2))
        found = []
        for copies in (1, 5):
            k = np.repeat(np.arange(60), copies)
            known = pd.DataFrame({"scan_id": [f"s{i:04}" for i in range(len(k))], "patient": k, "source": "a"})
            known = known.assign(label=labels[k], replicate=0)
            tables = known.assign(probability=p[k]), known.assign(probability=q[k])
            found.append(auc_difference(*tables, 4000, seed=1))
        once, many = found
        assert many["difference"] == pytest.approx(once["difference"])
        assert many["high"] - many["low"] == pytest.approx(once["high"] - once["low"], rel=0.02)


def test_the_reduction_table_resamples_patients(rng):
    """Scans that are the same three times over: intervals of the patients once."""
    boxes = rng.integers(5, 40, 20)
    tables = []
    for copies in (1, 3):
        k = np.repeat(np.arange(20), copies)
        names = [f"s{a:02}-{c}" for c, a in zip(np.tile(range(copies), 20), k, strict=True)]
        slices = pd.DataFrame({"scan_id": names, "index": 0, "height": 50, "width": 50, "row0": 0, "col0": 0})
        slices = slices.assign(row1=boxes[k], col1=50)
        scans = pd.DataFrame({"scan_id": names, "n_slices": 1, "start": 0, "stop": 1, "status": "used"})
        cohort = pd.DataFrame({"scan_id": names, "split": "train", "label": 1, "patient": [f"P{a}" for a in k]})
        tables.append(
            reduction.reduction_table(slices, scans, cohort, rounding=None, rng=np.random.default_rng(0), n_boot=300)
        )
    columns = ["area_delta", "area_delta_low", "area_delta_high"]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns])


def test_the_mean_of_a_group_of_patients(rng):
    values = rng.normal(size=30)
    once = bootstrap.mean_interval(values, np.random.default_rng(0), n_boot=4000)
    many = bootstrap.mean_interval(
        np.repeat(values, 4), np.random.default_rng(0), n_boot=4000, groups=np.repeat(np.arange(30), 4)
    )
    assert many == pytest.approx(once)
