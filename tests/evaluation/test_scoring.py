"""Thresholds from training folds, aggregations, paired runs, worst errors, heat maps, the model card, their errors."""

from dataclasses import asdict, replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score
from torch import nn

from e2d_lib import io
from e2d_lib.evaluation import metrics, scoring
from e2d_lib.evaluation.scoring import EvaluationError
from e2d_lib.method import preprocess
from e2d_lib.network import experiments, gradcam, training
from e2d_lib.network.model import E2D, CheckpointError, ModelConfig, ModelError, build
from e2d_lib.network.slices import ScanSlices
from e2d_lib.network.training import Recipe, TrainingError
from e2d_lib.scans.cohort import read_cohort
from e2d_lib.study import modelcard

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


class TestAggregations:
    def test_every_way_by_numpy(self, rng):
        predictions = made(rng)
        table, _ = scoring.aggregations(predictions, cohort_of(predictions), n_boot=20, k=2)
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
        table, tests = scoring.aggregations(predictions, cohort_of(predictions), n_boot=100)
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


def write_scan(folder, n, seed):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for k in range(n):
        image = np.full((48, 48), 20, np.uint8)
        image[4:44, 4:44] = 200
        image[12:36, 10:30] = 40 + rng.integers(0, 60)
        cv2.imwrite(str(folder / f"{k}.png"), image)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two scans through preprocessing, at 96 pixels: three cells a side of the last maps."""
    root = tmp_path_factory.mktemp("scans")
    for number, label in enumerate(("negative", "positive")):
        write_scan(root / "data" / "valid" / label / "ct_scan_0", 12 + number, number)
    cohort = read_cohort(root / "data")
    return cohort, preprocess.run(cohort, root / "cache", preprocess.Params(size=96), n_jobs=1)


class TestAnotherRun:
    def test_of_the_same_scans_is_let_through(self, prepared):
        _, done = prepared
        scoring.check_same_scans(done.scans, done.scans.iloc[:1])

    def test_other_scans_of_the_same_names(self, prepared):
        _, done = prepared
        mine = done.scans.assign(n_files=done.scans["n_files"] + [0, 3])
        with pytest.raises(
            EvaluationError, match="is about other data: 1 of 2 scans of the same name have another number"
        ):
            scoring.check_same_scans(mine, done.scans)


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
        return scoring.worst_errors(scoring.mean_over_seeds(scores), predictions, **options)

    def test_worst_first_with_the_loudest_wrong_slice(self):
        table = self.errors()
        assert table["scan_id"].tolist() == ["missed", "false alarm", "nearly"]  # off by 0.8, 0.65, 0.51
        assert table["error"].tolist() == ["false negative", "false positive", "false positive"]
        assert table["index"].tolist() == [1, 1, 0]
        assert table["slice_probability"].tolist() == pytest.approx([0.1, 0.95, 0.52])

    def test_at_most_n_and_at_the_threshold(self):
        assert self.errors(n=1)["scan_id"].tolist() == ["missed"]
        assert self.errors(threshold=0.6)["scan_id"].tolist() == ["missed", "false alarm"]

    def test_none(self):
        table = self.errors(threshold=0.0).query("label == 1")
        assert table.empty and {"error", "index", "slice_probability"} <= set(table.columns)
        predictions = slices({"a": (1, [0.9]), "b": (0, [0.1])})
        scores = scoring.mean_over_seeds(scoring.scan_scores(predictions, cohort_of(predictions)))
        table = scoring.worst_errors(scores, predictions)
        assert table.empty and gradcam.of_errors(table, pd.DataFrame({"fold": [5], "checkpoint": ["x"]}), None) == []

    def test_blank_inputs_have_no_slice(self):
        predictions = slices({"short": (1, [0.2, 0.2])}).assign(index=-1)
        scores = scoring.mean_over_seeds(scoring.scan_scores(predictions, cohort_of(predictions)))
        table = scoring.worst_errors(scores, predictions)
        assert table["index"].tolist() == [-1] and np.isnan(table["slice_probability"].item())


class Known(nn.Module):
    """A backbone whose maps are known: two channels, x and 1 - x for a grey x in [0, 1]."""

    head_hidden_size = 2

    def __init__(self, *, last=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)  # passes on what comes, in evaluation mode
        if last:
            self.output_fmt = "NHWC"
        mean, std = 0.485, 0.229  # of ImageNet's first channel: undo the network's normalisation
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:, 0, 0, 0] = torch.tensor([std, -std])
            self.conv.bias.copy_(torch.tensor([mean, 1 - mean]))

    def forward_features(self, x):
        maps = self.norm(self.conv(x))
        return maps.permute(0, 2, 3, 1) if hasattr(self, "output_fmt") else maps

    def forward_head(self, maps):
        return maps.mean((1, 2)) if hasattr(self, "output_fmt") else maps.mean((2, 3))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def known_net(weights=(2.0, 0.5), **options):
    """logit = w0 · mean(x) + w1 · mean(1 - x)."""
    net = E2D(replace(SMALL, hidden=2), Known(**options))
    with torch.no_grad():
        net.hidden.weight.copy_(torch.eye(2))
        net.logit.weight.copy_(torch.tensor([weights]))
    return net.eval()


def spread(image):
    """Grad-CAM's scaling of one map: from 0 to 1."""
    image = np.maximum(image, 0)
    return (image - image.min()) / (image - image.min()).max()


class TestGradCam:
    @pytest.mark.parametrize("last", [False, True])
    def test_a_map_known_by_hand(self, last, rng):
        images = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
        x = images / 255
        maps = gradcam.heat_maps(known_net(last=last), images, [1, 1, 1])
        assert maps.shape == (3, 8, 8) and maps.dtype == np.float32
        # the channels' weights are the gradients, w / 64 each: the sum of w · channel, scaled
        for got, one in zip(maps, x, strict=True):
            np.testing.assert_allclose(got, spread(2.0 * one + 0.5 * (1 - one)), atol=1e-4)

    def test_the_other_class_has_the_other_sign(self, rng):
        images = rng.integers(0, 256, (2, 8, 8), dtype=np.uint8)
        x = images / 255
        net = known_net((1.0, -1.0))  # 2 x - 1: bright speaks for the disease, dark against it
        for toward, sign in ((1, 1), (0, -1)):
            maps = gradcam.heat_maps(net, images, [toward] * 2)
            for got, one in zip(maps, x, strict=True):
                np.testing.assert_allclose(got, spread(sign * (2 * one - 1)), atol=1e-4)
        mixed = gradcam.heat_maps(net, images, [1, 0])
        np.testing.assert_allclose(mixed[1], spread(1 - 2 * x[1]), atol=1e-4)

    def test_no_evidence_is_no_heat(self, rng):
        images = rng.integers(0, 256, (1, 8, 8), dtype=np.uint8)
        assert not gradcam.heat_maps(known_net((1.0, 2.0)), images, [0]).any()  # nothing speaks against it

    def test_a_uniform_map_is_no_place(self):
        assert not gradcam.heat_maps(known_net(), np.full((1, 8, 8), 90, np.uint8), [1]).any()

    def test_a_slice_does_not_depend_on_the_others(self, rng):
        net = build(SMALL, seed=1).eval()
        images = rng.integers(0, 256, (3, 64, 64), dtype=np.uint8)
        whole = gradcam.heat_maps(net, images, [1, 0, 1])
        np.testing.assert_allclose(whole[1], gradcam.heat_maps(net, images[1:2], [0])[0], atol=1e-4)

    def test_the_network_is_left_as_it_was(self, rng):
        net = build(SMALL, seed=1).train()
        weight = net.logit.weight
        weight.grad = torch.full_like(weight, 7.0)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        gradcam.heat_maps(net, rng.integers(0, 256, (2, 64, 64), dtype=np.uint8), [1, 0])
        assert net.training and weight.requires_grad and (weight.grad == 7).all()
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert not any(module._forward_hooks or module._backward_hooks for module in net.modules())

    @pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_convnext", "test_byobnet"])
    def test_cut_at_the_last_maps_it_is_the_same_network(self, backbone, rng):
        net = build(ModelConfig(backbone, pretrained=False, drop_path=0.0), seed=2).eval()
        pixels = torch.from_numpy(rng.integers(0, 256, (2, 1, 64, 64), dtype=np.uint8))
        with torch.no_grad():
            whole = net(pixels)
        torch.testing.assert_close(gradcam._Split(net)(pixels).detach(), whole)
        cells = gradcam.cells(net, 64)
        assert 1 < cells < 64 and gradcam.feature_maps(net, pixels).shape[-1] == cells

    def test_tokens_have_no_map(self, rng):
        net = build(ModelConfig("test_vit", pretrained=False, drop_path=0.0, size=160))
        message = r"Grad-CAM needs feature maps .* test_vit ends in tokens .*: use a convolutional backbone"
        with pytest.raises(ModelError, match=message):
            gradcam.heat_maps(net, rng.integers(0, 256, (1, 160, 160), dtype=np.uint8), [1])

    def test_one_class_a_slice(self, rng):
        with pytest.raises(ValueError, match=r"one class, 0 or 1, for each of 2 slices, got \[1\]"):
            gradcam.heat_maps(known_net(), rng.integers(0, 256, (2, 8, 8), dtype=np.uint8), [1])

    def test_nothing_to_explain(self):
        assert gradcam.heat_maps(known_net(), np.zeros((0, 8, 8), np.uint8), []).shape == (0, 8, 8)


class TestCheckpoints:
    """Heat maps out of a run's folder, and one clear line for each thing that can be wrong there."""

    @pytest.fixture
    def checkpoint(self, prepared, tmp_path):
        def make(name, seed=0, params=prepared[1].params):
            net = build(replace(SMALL, size=params.size), seed=seed)
            training.save(tmp_path / name / training.SELECTED, net, Recipe.corrected())
            io.write_json(tmp_path / name / "preprocessing.json", asdict(params))
            return tmp_path / name / training.SELECTED

        return make

    def errors(self):
        names = ["valid/positive/ct_scan_0", "valid/negative/ct_scan_0", "valid/negative/ct_scan_0"]
        return pd.DataFrame({"scan_id": names, "label": [1, 0, 0], "fold": [5, 1, 1], "index": [2, 3, -1]})

    def test_slices_and_maps_of_the_errors_fold_by_fold(self, prepared, checkpoint):
        _, done = prepared
        runs = pd.DataFrame(
            {"fold": [5, 1, 1], "checkpoint": [checkpoint("a", 1), checkpoint("b", 3), checkpoint("c", 5)]}
        )
        got = gradcam.of_errors(self.errors(), runs, done, device="cpu")
        assert len(got) == 2  # the third has no slice
        np.testing.assert_array_equal(got[0][0], done.pixels("valid/positive/ct_scan_0")[2])
        image = np.asarray(done.pixels("valid/negative/ct_scan_0")[3])
        np.testing.assert_array_equal(got[1][0], image)
        nets = [training.load(path)[0] for path in runs["checkpoint"]]
        missed = gradcam.heat_maps(nets[0], got[0][0][None], [0])[0]  # what spoke against the disease
        np.testing.assert_allclose(got[0][1], missed, atol=1e-5)
        assert missed.max() > 0.5  # there is something to compare
        false_alarm = [gradcam.heat_maps(net, image[None], [1])[0] for net in nets[1:]]
        np.testing.assert_allclose(got[1][1], np.mean(false_alarm, axis=0), atol=1e-5)
        assert all(heat.min() >= 0 and heat.max() <= 1 for _, heat in got)

    def test_slices_made_otherwise(self, prepared, checkpoint):
        _, done = prepared
        other = checkpoint("a", params=replace(done.params, size=64, crop=False))
        message = r"was trained on slices made with size=64, not 96, crop=False, not True: preprocess them that way"
        with pytest.raises(CheckpointError, match=message):
            gradcam.of_checkpoints([other], done, [("valid/positive/ct_scan_0", 0)], [1])

    def test_a_cache_of_another_size_than_the_networks(self, prepared, checkpoint):
        cohort, done = prepared
        path = checkpoint("a", params=replace(done.params, size=64))
        with pytest.raises(ModelError, match=r"for slices of side 64, got \(96, 96\): preprocess with size=64"):
            training.predict(path, ScanSlices.from_preprocessed(done, cohort), device="cpu")

    def test_no_checkpoint_there(self, prepared, tmp_path):
        with pytest.raises(CheckpointError, match=r"no checkpoint .*model.safetensors: give the model.safetensors of"):
            gradcam.of_checkpoints([tmp_path / training.SELECTED], prepared[1], [], [])

    @pytest.mark.parametrize("kind", ["text", "pickle", "foreign"])
    def test_files_that_are_no_checkpoints(self, kind, prepared, checkpoint):
        path = checkpoint("a")
        if kind == "text":
            path.write_text("weights")
        elif kind == "pickle":
            torch.save({"weight": torch.zeros(2)}, path)
        else:
            save_file({"weight": torch.zeros(2)}, path)
        message = "is no E2D checkpoint: its format is None" if kind == "foreign" else "is no safetensors file"
        with pytest.raises(CheckpointError, match=message):
            gradcam.of_checkpoints([path], prepared[1], [("valid/positive/ct_scan_0", 0)], [1])

    def test_weights_of_another_architecture(self, prepared, checkpoint):
        path = checkpoint("a")
        net = build(replace(SMALL, size=32))
        net.config = replace(net.config, backbone="test_resnet")
        training.save(path, net, Recipe.corrected())
        with pytest.raises(CheckpointError, match=r"does not fit test_resnet: \d+ weights differ, first \["):
            gradcam.of_checkpoints([path], prepared[1], [("valid/positive/ct_scan_0", 0)], [1])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 0, 0], r"validation fold: no positive scan among 3 \(0 positive, 3 negative\)"),
            ([1, 1], r"validation fold: no negative scan among 2 \(2 positive, 0 negative\)"),
            ([0], r"validation fold: no positive scan among 1 \(0 positive, 1 negative\)"),
        ],
    )
    def test_a_fold_of_one_class_or_one_scan_is_not_scored(self, labels, message, rng, tmp_path):
        labels = [k % 2 for k in range(8)] + labels
        names = [f"scan {k}" for k in range(len(labels))]
        images = [rng.integers(0, 256, (9, 32, 32), dtype=np.uint8) for _ in labels]
        made = ScanSlices.from_arrays(images, [np.arange(1, 10)] * len(labels), labels, names)
        cohort = pd.DataFrame({"scan_id": names, "fold": [1] * 8 + [5] * (len(labels) - 8)})
        with pytest.raises(TrainingError, match=message):
            experiments.run(
                [experiments.Job(5, 1.0, 0)], made, cohort, model=SMALL, recipe=Recipe.corrected(), out_dir=tmp_path
            )


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
        return pd.DataFrame(rows, columns=["metric", "value", "low", "high"])

    def test_both_counts_beside_the_saved_ones_each_with_its_data(self):
        table = scoring.beside_known(self.SAVED, self.table(0.8), self.table(0.82), "phantom")
        own = table[table["data"] == "this run: phantom"].set_index(["metric", "counted_in"])["value"]
        assert own["roc_auc", "scans"] == 0.8 and own["roc_auc", "slice rows"] == 0.82
        saved = table[table["data"] == "saved: COV19-CT-DB"].set_index("run")
        assert saved.loc["job 1, validation split", "value"] == 0.98 and saved["low"].isna().all()
        assert "brier" not in set(table["metric"])


class TestModelCard:
    def card(self, rng, *, data="phantom", inner=True, compared=True, change=None):
        predictions = pd.concat([made(rng, inner=inner), made(rng, inner=inner, fraction=0.1)])
        cohort = cohort_of(predictions, "hospital_1")
        cohort.loc[cohort["scan_id"].eq("valid 000"), "source"] = "hospital_2"
        scores = scoring.scan_scores(predictions, cohort)
        main = scoring.largest(scores)
        columns = {"fold": 5, "fraction": 1.0, "seed": 0, "train": 12, "inner": 12, "valid": 40, "epoch": 3}
        columns["epoch_by"] = "loss of 12 scans held out"
        table = scoring.at_thresholds(main, n_boot=20)
        text = modelcard.card(
            name="a network",
            data=data,
            config=asdict(SMALL),
            recipe=asdict(Recipe.corrected(**(change or {}))),
            parameters=12345,
            preprocessing=asdict(preprocess.Params()),
            scored=scoring.mean_over_seeds(main),
            runs=pd.DataFrame([columns]),
            aggregation="mean",
            metrics=table,
            by_source=scoring.by_group(main, "source", n_boot=20),
            thresholds=scoring.thresholds(predictions),
            comparison=scoring.paired(scores[scores["fraction"] == 0.1], main, n_boot=20).assign(name="all less few")
            if compared
            else pd.DataFrame(),
        )
        return text, table

    def test_every_section_is_there(self, rng):
        text, _ = self.card(rng)
        for section in (
            "Model details", "Intended use", "Training data", "Evaluation data", "Metrics", "Ethical considerations",
            "Caveats",
        ):  # fmt: skip
            assert f"\n## {section}\n" in text
        assert "### Out of scope\n\n**Not a medical device.**" in text
        assert "### By source" in text and "### Threshold" in text and "None" not in text and "nan" not in text

    @pytest.mark.parametrize(("data", "warned"), [("phantom", True), ("ricord", False)])
    def test_a_card_beside_one_checkpoint_says_what_it_was_trained_on(self, data, warned):
        run = {
            "fold": 5,
            "fraction": 0.1,
            "seed": 3,
            "train": 12,
            "inner": 0,
            "valid": 40,
            "epoch": 3,
            "epoch_by": "last epoch",
        }
        text = modelcard.brief(
            pd.DataFrame([run]),
            data=data,
            config=asdict(SMALL),
            recipe=asdict(Recipe.corrected()),
            parameters=12345,
            preprocessing=asdict(preprocess.Params()),
        )
        assert f"trained on {data}\n" in text and "**Not a medical device.**" in text and "1 checkpoint" in text
        assert ("They say nothing about its worth on patients' CT" in text) == warned
        assert "| 5 | 10 % | 3 | 12 | 0 | 40 | 3 | last epoch |" in text and "None" not in text

    def test_the_front_matter_is_the_hubs(self, rng):
        text, table = self.card(rng)
        front = yaml.safe_load(text.split("---\n")[1])
        assert front["library_name"] == "timm" and "not-for-clinical-use" in front["tags"]
        read = ModelCard(text)
        values = {result.metric_type: result.metric_value for result in read.data.eval_results}
        given = table[table["at"] == "0.5"].set_index("metric")["value"]
        assert values["roc_auc"] == pytest.approx(given["roc_auc"], abs=1e-4)
        assert values["f1"] == pytest.approx(given["macro_f1"], abs=1e-4)

    def test_numbers_are_the_tables(self, rng):
        text, table = self.card(rng)
        for row in table.to_dict("records"):
            interval = f"{row['low']:.3f} to {row['high']:.3f}"
            if row["metric"] == "ece":
                interval = "no interval: resampling adds to its bias"
            assert f"{row['value']:.3f} ({interval})" in text
        assert "12,345 parameters" in text and "Fold 5 of" in text and "40 scans (20 positive)" in text
        assert "| hospital_2 | 1 | undefined: no positive scans |" in text
        assert "Paired on the same scans: all less few." in text

    def test_a_phantom_is_called_one_and_other_data_are_not(self, rng):
        assert "**All numbers here are phantom numbers.**" in self.card(rng)[0]
        other, _ = self.card(rng, data="our hospital")
        assert "phantom" not in other.lower() and "Our hospital. Each run trains" in other

    def test_without_a_chosen_threshold_or_a_second_run(self, rng):
        text, _ = self.card(rng, inner=False, compared=False)
        assert "Only the given threshold is reported" in text and "no scans held out of the training folds" in text
        assert "Compared with" not in text and "as few as" not in text

    def test_an_epoch_chosen_on_the_reported_fold_is_told(self, rng):
        assert "none chose the epoch" in self.card(rng)[0]
        assert "they **chose the epoch**" in self.card(rng, change={"select": "reported_fold"})[0]
