"""Sources left out: who is trained on whom, and chapter 8's cells, against scikit-learn and by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import brier_score_loss, f1_score, recall_score, roc_auc_score

from e2d_lib.evaluation import sources
from e2d_lib.network.model import ModelConfig, build
from e2d_lib.network.slices import ScanSlices
from tests import cells

CHAPTER = "08_across_sources"
THRESHOLDS = ("0.5", "carried", "anew")


@pytest.fixture(scope="module")
def scans() -> pd.DataFrame:
    """Three hospitals of 10, 12 and 9 scans; the last one has negatives only."""
    rows = [("a", k % 2) for k in range(10)] + [("b", int(k < 5)) for k in range(12)] + [("c", 0)] * 9
    table = pd.DataFrame(rows, columns=["source", "label"]).astype({"label": "Int64"})
    return table.assign(scan_id=[f"s{k}" for k in range(len(table))])


@pytest.fixture(scope="module")
def features(scans) -> np.ndarray:
    """Two replicates: a scan's number, and a score that goes with the label."""
    rng = np.random.default_rng(5)
    score = 1 / (1 + np.exp(-rng.normal(scans["label"].astype(float) * 1.5 - 0.7, 1, (2, len(scans)))))
    return np.stack([np.broadcast_to(np.arange(len(scans)), score.shape), score], axis=2)


class TestDesign:
    def design(self, cohort, excluded=(), empty=()):
        """The chapter's scans and its table of sources."""
        done = cohort[["scan_id"]].assign(status="kept", start=0, stop=1)
        done.loc[done["scan_id"].isin(excluded), "status"] = "excluded"
        done.loc[done["scan_id"].isin(empty), "stop"] = 0
        chapter = cells.Chapter()
        chapter.cohort, chapter.preprocessed = cohort, lambda: SimpleNamespace(scans=done)

        def require(condition, reason):
            if not condition:
                raise ValueError(reason)

        chapter.require = require
        opened = SimpleNamespace(open=lambda name, parameters: chapter)
        found = cells.run(CHAPTER, 'save_table("sources"', Chapter=opened)
        return found.scans, found.table

    def test_counts(self, scans):
        unknown = pd.DataFrame({"source": ["", None, "a"], "label": [1, 0, pd.NA], "scan_id": ["x", "y", "z"]})
        used, got = self.design(pd.concat([scans, unknown]), excluded=["s1", "s2"], empty=["s30"])
        assert got.to_numpy().tolist() == [["a", 8, 4, 4, 2], ["b", 12, 5, 7, 2], ["c", 8, 0, 8, 1]]
        assert set(used["scan_id"]) == set(scans["scan_id"]) - {"s1", "s2", "s30"}

    def test_source_that_is_the_label(self, scans):
        each = scans[scans["source"].ne("b")].query("source == 'c' or label == 1")
        with pytest.raises(ValueError, match="one class only: the source is the label"):
            self.design(each)

    def test_one_source(self, scans):
        with pytest.raises(ValueError, match="1 sources with labelled scans: two are needed"):
            self.design(scans[scans["source"] == "a"])


class TestScores:
    def test_who_is_trained_on(self, scans, features):
        seen: list[tuple] = []

        def head(x, labels, unseen):
            seen.append((set(x[:, 0].astype(int)), set(unseen[:, 0].astype(int))))
            assert labels.tolist() == scans["label"].iloc[x[:, 0].astype(int)].tolist()
            return unseen[:, 1]

        of = scans["source"].to_numpy()
        for name, allowed in (("within", 1), ("mixed", 3), ("left out", 2)):
            seen.clear()
            got = sources.scores(features, scans, head, designs=[name], n_folds=3)
            assert all(not train & test for train, test in seen)
            assert all(len({of[k] for k in train}) <= allowed for train, _ in seen)
            for train, test in seen:
                if name == "within":
                    assert len({of[k] for k in train | test}) == 1
            counted = got.groupby("replicate")["scan_id"].agg(["size", "nunique"]).to_numpy().tolist()
            assert counted == [[22, 22], [22, 22]] if name == "within" else counted == [[31, 31], [31, 31]]
        # Of the last design, the fits that predict: all scans of the other sources, and no other.
        whole = [(train, test) for train, test in seen if len(train) + len(test) == len(scans)]
        assert len(whole) == 2 * 3
        assert all({of[k] for k in train}.isdisjoint({of[k] for k in test}) for train, test in whole)

    def test_thresholds_are_the_best_of_those_allowed(self, scans, features):
        got = sources.scores(features, scans, lambda x, labels, unseen: unseen[:, 1], designs=["left out"], n_folds=3)
        for (replicate, source), own in got.groupby(["replicate", "source"]):
            train = scans["source"].ne(source).to_numpy()
            y, p = scans.loc[train, "label"].to_numpy(int), features[replicate, train, 1]
            cuts = np.r_[np.sort(p)[:-1] + np.diff(np.sort(p)) / 2, 0.5]
            best = max(f1_score(y, p >= cut, average="macro") for cut in cuts)
            (carried,) = set(own["carried"])
            assert f1_score(y, p >= carried, average="macro") == pytest.approx(best, abs=1e-12)
            # chosen anew by folds of the source itself, or 0.5 where it has one class
            assert set(own["anew"]) == {0.5} if source == "c" else own["anew"].nunique() <= 3
        np.testing.assert_array_equal(
            got["probability"], features[got["replicate"], got["scan_id"].str[1:].astype(int), 1]
        )

    def test_fewer_than_ten_scans_choose_no_threshold(self, scans, features):
        """Of the 31 scans a source leaves 19 and more, which choose; its own others are 9 or fewer in two folds."""
        got = sources.scores(features, scans, lambda x, labels, unseen: unseen[:, 1], designs=["left out"], n_folds=2)
        assert set(got["anew"]) == {0.5} and not set(got["carried"]) & {0.5}

    def test_shifted_scans_are_predicted_and_train_nothing(self, scans, features):
        met = []

        def head(x, labels, unseen):
            met.append(x)
            return unseen[:, 1]

        options = {"designs": ["mixed"], "n_folds": 3}
        plain = sources.scores(features, scans, head, **options)
        shifted = sources.scores(
            features, scans, head, shifted=np.dstack([features[:, :, 0], 1 - features[:, :, 1]]), **options
        )
        np.testing.assert_allclose(shifted["probability"], 1 - plain["probability"])
        np.testing.assert_array_equal(shifted["carried"], plain["carried"])
        for one, other in zip(met[: len(met) // 2], met[len(met) // 2 :], strict=True):
            np.testing.assert_array_equal(one, other)

    def test_weights_and_more_scans_reach_the_head(self, scans, features):
        met: list[tuple] = []

        def head(x, labels, unseen):
            met.append((x, labels))
            return unseen[:, 1]

        options = {"designs": ["left out"], "n_folds": 2}
        more = features + 1000
        sources.scores(
            features[:1], scans, head, weigh=lambda t: 1 + t["label"].to_numpy(int), extra=more[:1], **options
        )
        n = (scans["source"] != "c").sum() + scans["label"].sum()  # each positive twice
        both = [pair for pair in met if len(pair[0]) == 2 * n]
        assert both and all((x[:n, 0] + 1000 == x[n:, 0]).all() and (y[:n] == y[n:]).all() for x, y in both)
        assert all(y.sum() == 2 * 2 * scans["label"].sum() for _, y in both)


@pytest.fixture(scope="module")
def scored(scans, features) -> pd.DataFrame:
    return sources.scores(features, scans, lambda x, labels, unseen: unseen[:, 1], n_folds=3)


def test_by_source_against_scikit_learn(scored):
    chapter = cells.Chapter()
    given = {"sources": SimpleNamespace(scores=lambda *_, **__: scored), "features": None, "scans": None, "head": None}
    got = cells.run(CHAPTER, 'save_table("by_source"', chapter=chapter, **given).by_source
    assert chapter.tables["scores.parquet"] is scored
    got = got.set_index(["design", "source"])
    for (name, source), own in scored.groupby(["design", "source"]):
        parts = [part for _, part in own.groupby("replicate")]
        y = parts[0]["label"].to_numpy(int)
        row = got.loc[(name, source)]
        assert (row["scans"], row["positive"]) == (len(y), y.sum())
        assert row["brier"] == pytest.approx(np.mean([brier_score_loss(y, part["probability"]) for part in parts]))
        called = [(part["probability"] >= part["carried"]).to_numpy(int) for part in parts]
        assert row["specificity"] == pytest.approx(np.mean([recall_score(y, c, pos_label=0) for c in called]))
        if y.any():
            assert row["roc_auc"] == pytest.approx(np.mean([roc_auc_score(y, part["probability"]) for part in parts]))
            assert row["sensitivity"] == pytest.approx(np.mean([recall_score(y, c) for c in called]))
            f1 = [f1_score(y, part["probability"] >= 0.5, average="macro") for part in parts]
            assert row["macro_f1_0.5"] == pytest.approx(np.mean(f1))
        else:
            assert np.isnan(row["roc_auc"]) and np.isnan(row["slope"])


def test_challenge_score_with_and_without_the_absent_class():
    table = pd.DataFrame(
        {
            "design": "left out", "replicate": 0, "scan_id": list("pqrstu"), "source": ["a"] * 4 + ["b"] * 2,
            "label": [1, 1, 0, 0, 0, 0], "probability": [0.9, 0.2, 0.1, 0.6, 0.1, 0.7],
            "carried": 0.15, "anew": 0.65,
        }
    )  # fmt: skip
    got = cells.run(CHAPTER, "def challenge_score", scored=table, thresholds=THRESHOLDS).challenge
    got = got.set_index(["threshold", "absent_class"])["value"]
    # at 0.5 source a has one right and one wrong of each class: F1 1/2 and 1/2; b calls one of two wrongly: 2/3, and 0
    assert got["0.5", "counted as 0"] == pytest.approx((1 / 2 + (2 / 3 + 0) / 2) / 2)
    assert got["0.5", "left out"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    # at 0.15: positive 2 of 2 found, one false: F1 4/5, negatives 1 of 2: 2/3; b as before
    assert got["carried", "left out"] == pytest.approx(((4 / 5 + 2 / 3) / 2 + 2 / 3) / 2)
    # at 0.65: one positive found, none false: 2/3; negatives 2 found and one missed: 4/5; b: one called positive
    assert got["anew", "left out"] == pytest.approx(((2 / 3 + 4 / 5) / 2 + 2 / 3) / 2)


def auc_difference(first, second, n_boot, seed=0):
    found = cells.run(CHAPTER, "def wins", "def auc_difference", n_boot=n_boot)
    return found.auc_difference(first, second, np.random.default_rng(seed))


class TestDifference:
    def of(self, seed: int, gain: float) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        rows = [
            {
                "source": s,
                "scan_id": f"{s}{k}",
                "label": k % 2,
                "replicate": r,
                "probability": rng.normal(gain * (k % 2)),
            }
            for r in range(3)
            for s in "ab"
            for k in range(14)
        ]
        return pd.DataFrame(rows)

    def test_value_interval_and_sign(self):
        first, second = self.of(0, 2.0), self.of(1, 0.5)
        got = auc_difference(first, second, 4000)

        def mean(table: pd.DataFrame) -> float:
            keys = table.groupby(["source", "replicate"])
            return float(np.mean([roc_auc_score(part["label"], part["probability"]) for _, part in keys]))

        assert got["difference"] == pytest.approx(mean(first) - mean(second), abs=1e-12)
        back = auc_difference(second, first, 4000)
        assert (back["difference"], back["low"], back["high"]) == pytest.approx(
            (-got["difference"], -got["high"], -got["low"]), abs=1e-9
        )
        # Plain resampling: two of three replicates, and scans within source and class, both with replacement.
        of = {
            (sign, *key): part["probability"].to_numpy()
            for sign, table in ((1, first), (-1, second))
            for key, part in table.groupby(["source", "replicate"])
        }
        rng, drawn = np.random.default_rng(1), []
        for _ in range(400):
            taken, value = rng.integers(0, 3, 2), 0.0
            for source in "ab":
                negative, positive = (rng.choice(np.arange(label, 14, 2), 7) for label in (0, 1))
                for sign, replicate in ((sign, r) for sign in (1, -1) for r in taken):
                    p = of[sign, source, replicate]
                    value += sign * (p[positive][:, None] > p[negative]).mean() / 4
            drawn.append(value)
        assert got["high"] - got["low"] == pytest.approx(np.ptp(np.quantile(drawn, [0.025, 0.975])), rel=0.2)

    def test_nothing_between_equals(self):
        got = auc_difference(self.of(0, 1), self.of(0, 1), 50)
        assert got == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "detectable": 0.0}

    def test_sources_of_one_class(self):
        one = self.of(0, 1).assign(label=0)
        with pytest.raises(ValueError, match="no source has both classes"):
            auc_difference(one, one, 5)


@pytest.mark.parametrize("change", [None, lambda images, scan: 255 - images], ids=["plain", "changed"])
def test_features_are_means_over_the_drawn_slices(change, monkeypatch):
    monkeypatch.setattr("e2d_lib.network.features.has_bfloat16", lambda device: False)  # the same on every machine
    rng = np.random.default_rng(3)
    arrays = [rng.integers(0, 256, (width, 32, 32), dtype=np.uint8) for width in (4, 7)]
    scans = ScanSlices.from_arrays(arrays, [np.ones(len(a), int) for a in arrays], [0, 1], ["p", "q"])
    net = build(ModelConfig(backbone="test_efficientnet", pretrained=False, drop_path=0.0, size=32)).eval()
    drawn = np.array([[[0, 1, 3], [0, 2, 6]], [[1, 1, 2], [3, 4, 5]]])
    got = cells.run(CHAPTER, "def scan_features", net=net).scan_features(scans, drawn, change)
    assert got.shape[:2] == (2, 2)
    for replicate, scan in np.ndindex(2, 2):
        images = torch.from_numpy(arrays[scan][drawn[replicate, scan]]).unsqueeze(1)
        images = images if change is None else change(images, scan)
        with torch.inference_mode():
            expected = torch.stack([net.backbone(net.normalise(image[None]))[0] for image in images]).mean(0)
        np.testing.assert_allclose(got[replicate, scan], expected, rtol=1e-4, atol=1e-5)


def test_matched_slices_have_the_mean_and_spread_of_all():
    rng = np.random.default_rng(4)
    arrays = [np.clip(rng.normal(level, 12, (5, 32, 32)), 0, 255).astype(np.uint8) for level in (80, 120, 150)]
    slices = ScanSlices.from_arrays(arrays, [np.ones(5, int)] * 3, [0, 1, 1], ["p", "q", "r"])
    drawn = np.array([[[0, 2, 3], [1, 1, 4], [0, 3, 4]]])
    changes = []
    given = {
        "slices": slices,
        "drawn": drawn,
        "n_samples": 3,
        "features": np.zeros((1, 3, 2)),
        "scan_features": lambda slices, drawn, change=None: changes.append(change) or np.zeros((1, 3, 2)),
        "scans": pd.DataFrame({"scan_id": list(slices.scan_ids), "label": slices.labels}),
        "done": SimpleNamespace(
            slices=pd.DataFrame({"scan_id": np.repeat(["p", "q", "r"], 5), "name": [f"{k}.jpg" for k in range(5)] * 3}),
            params=SimpleNamespace(size=32),
        ),
        "open_scan": lambda row: SimpleNamespace(names=[f"{k}.jpg" for k in range(5)], read=lambda k: arrays[0][k]),
    }
    cells.run(CHAPTER, "def matched", **given)
    own = [np.stack([array[k] for k in one]).astype(float) for array, one in zip(arrays, drawn[0], strict=True)]
    for scan, images in enumerate(own):
        grey = torch.from_numpy(images).float().unsqueeze(1)
        (change,) = [change for change in changes if change is not None]
        got = change(grey, np.full(3, scan))
        assert float(got.mean()) == pytest.approx(np.mean([one.mean() for one in own]), abs=0.01)
        assert float(got.std()) == pytest.approx(np.mean([one.std(ddof=1) for one in own]), abs=0.01)


def test_a_hospital_is_told_as_far_as_its_features_tell_it(scans):
    plain = np.array([[float(source == one) for one in "abc"] for source in scans["source"]])[None]
    inputs = {"its name": plain, "nothing": np.zeros_like(plain)}
    told = cells.run(CHAPTER, "teller = make_pipeline", inputs=inputs, scans=scans).told.set_index("input")
    assert told["accuracy"].to_dict() == {"its name": 1.0, "nothing": pytest.approx(12 / 31)}  # b, the commonest
    assert told["chance"].unique() == pytest.approx([12 / 31])


def test_the_answer_says_the_challenges_score_without_absent_classes():
    about = {"roc_auc": 0.8, "sensitivity": 0.5, "slope": 1.0, "intercept": 0.0}
    values = {"counted as 0": (0.41, 0.42, 0.43), "left out": (0.71, 0.72, 0.73)}
    rows = [("left out", cut, name, v) for name, own in values.items() for cut, v in zip(THRESHOLDS, own, strict=True)]
    given = {
        "by_source": pd.DataFrame([{"design": "left out", "source": source} | about for source in "ab"]),
        "challenge": pd.DataFrame(rows, columns=["design", "threshold", "absent_class", "value"]),
        "table": pd.DataFrame({"source": ["a", "b"]}),
        "scans": pd.DataFrame({"scan_id": list("pqrs")}),
        "chance": 0.5,
    }
    given |= dict.fromkeys(("costs", "told", "remedied", "moved"), pd.DataFrame())
    (said,) = cells.run(CHAPTER, "auc = by_source.groupby", **given).chapter.said
    assert "0.710 at threshold 0.5, 0.720 at threshold carried, 0.730 at threshold anew" in said and "0.42" not in said
