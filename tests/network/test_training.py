"""The recipe and its released quirks, the loop, checkpoints that resume exactly, prediction."""

import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from e2d_lib.network import slices as batched
from e2d_lib.network import training
from e2d_lib.network.checkpoint import SELECTED, STATE, load, read_state
from e2d_lib.network.model import ModelConfig, build
from e2d_lib.network.recipe import Recipe, RecipeError
from e2d_lib.network.slices import BLANK, ScanSlices
from e2d_lib.network.training import TrainingError, fit, predict
from tests.conftest import ROOT

SMALL = ModelConfig("test_efficientnet", pretrained=False)
SIZE = 32


def toy(n=16, *, seed=0, labels=None, widths=None, size=SIZE):
    """Scans of noise; the positive ones carry a bright square on every slice."""
    rng = np.random.default_rng(seed)
    labels = [k % 2 for k in range(n)] if labels is None else labels
    widths = rng.integers(9, 15, n) if widths is None else widths
    images = []
    for label, width in zip(labels, widths, strict=True):
        image = rng.integers(0, 120, (width, size, size), dtype=np.uint8)
        if label == 1:
            image[:, 8:20, 8:20] = 220
        images.append(image)
    areas = [rng.integers(100, 1000, width) for width in widths]
    return ScanSlices.from_arrays(images, areas, labels, [f"toy {seed} {k}" for k in range(n)])


def mapped(slices):
    """The same slices as one array a scan, as those are that do not fit in memory."""
    return replace(slices, pixels=tuple(part.numpy() for part in slices.pixels.split(slices.widths.tolist())))


def quick(**changes):
    """A recipe for tests: a few steps on the toy."""
    return Recipe.preset(**{"epochs": 2, "lr": 3e-3, "scans_per_step": 8, "select": "last", "ema": 0.0} | changes)


def run(tmp_path, train=None, valid=None, **changes):
    train = toy() if train is None else train
    valid = toy(8, seed=1) if valid is None else valid
    return fit(train, valid, model=SMALL, recipe=quick(**changes), out_dir=tmp_path)


def python(*arguments):
    """A Python process that can import this file."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "E2D_PROGRESS": "off",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": paths,
    }
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT)


def same_weights(first, second):
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


class TestRecipe:
    def test_released_is_what_the_released_code_does(self):
        recipe = asdict(Recipe.preset("released"))
        # method/README.md §4 and §5, facts §2
        assert {key: recipe[key] for key in ("lr", "weight_decay", "optimiser", "schedule", "epochs")} == {
            "lr": 1e-4, "weight_decay": 5e-4, "optimiser": "adam", "schedule": "none", "epochs": 3
        }  # fmt: skip
        assert recipe["scans_per_step"] * recipe["n_samples"] == 160
        assert recipe["drop_last"] and not recipe["redraw"] and recipe["ema"] == 0
        assert recipe["normalise"] == "twice" and recipe["short_scans"] == "blank_zero"
        assert recipe["visits"] == recipe["score_by"] == "slice_row" and recipe["select"] == "reported_fold"

    def test_ours_differs_in_every_quirk(self):
        ours, theirs = asdict(Recipe.preset()), asdict(Recipe.preset("released"))
        quirks = ("sampler", "redraw", "short_scans", "visits", "normalise", "select", "score_by", "schedule")
        assert all(ours[key] != theirs[key] for key in quirks)

    def test_preset_by_name(self):
        assert Recipe.preset("released", epochs=1) == replace(Recipe.preset("released"), epochs=1)
        with pytest.raises(RecipeError, match="one of corrected, released, got 'best'"):
            Recipe.preset("best")

    def test_unknown_setting(self):
        with pytest.raises(RecipeError, match=r"no setting \['learning_rate'\]; it has .*'lr'"):
            Recipe.preset(learning_rate=1e-3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"normalise": "thrice"}, "normalise: .* 'once' or 'twice', got 'thrice'"),
            ({"lr": "1e-4"}, "lr: .*number, got '1e-4'"),  # YAML 1.1 reads 1e-4 as text
            ({"epochs": 2.5}, "epochs: .*integer, got 2.5"),
            ({"epochs": True}, "epochs: .*integer, got True"),
            ({"augment": 1}, "augment: .*boolean, got 1"),
            ({"epochs": 0, "n_samples": 0}, "n_samples: .*greater than or equal to 1, got 0; epochs: .*, got 0$"),
            ({"ema": 1.0}, "ema: .*less than 1, got 1.0"),
            ({"warmup": -0.1}, "warmup: .*greater than or equal to 0, got -0.1"),
            ({"inner_fraction": 0.0}, "inner_fraction: .*greater than 0, got 0.0"),
        ],
    )
    def test_wrong_values(self, change, message):
        with pytest.raises(RecipeError, match=message):
            Recipe.preset(**change)

    def test_a_whole_number_is_a_rate_too(self):
        assert Recipe.preset(weight_decay=0).weight_decay == 0


class TestEpoch:
    def test_ours_visits_each_scan_once(self):
        slices = toy(11)
        steps = batched.visits(slices, quick(), 1)
        assert [len(step) for step in steps] == [8, 3]
        assert sorted(np.concatenate(steps)) == list(range(11))

    def test_released_visits_a_scan_once_for_each_of_its_slices(self):
        slices = toy(4, widths=[10, 11, 12, 13])  # n_slices defaults to the width here
        steps = batched.visits(slices, quick(visits="slice_row", scans_per_step=1), 1)
        assert np.bincount(np.concatenate(steps)).tolist() == [10, 11, 12, 13]

    def test_drop_last(self):
        assert [len(step) for step in batched.visits(toy(11), quick(drop_last=True), 1)] == [8]

    def test_orders_differ_between_epochs_and_repeat(self):
        first, again, second = (np.concatenate(batched.visits(toy(), quick(), k)).tolist() for k in (1, 1, 2))
        assert first == again != second

    def test_drawn_anew_or_once(self):
        slices, rows = toy(widths=[30] * 16), np.arange(16)
        for recipe, same in ((quick(), False), (quick(redraw=False), True)):
            one, two = (batched.plan(slices, rows, recipe, "train", epoch).positions for epoch in (1, 2))
            assert np.array_equal(one, two) == same

    def test_a_draw_does_not_depend_on_the_other_scans(self):
        slices = toy()
        alone = batched.plan(slices.subset([5]), np.array([0]), quick(), "train", 1).positions[0]
        together = batched.plan(slices, np.arange(16), quick(), "train", 1).positions[5]
        np.testing.assert_array_equal(alone, together)


class TestBatch:
    def test_released_short_scans_are_blank_and_labelled_zero(self):
        slices = toy(3, labels=[1, 1, 1], widths=[8, 9, 20])  # all positive
        recipe = quick(short_scans="blank_zero", sampler="released")
        plan = batched.plan(slices, np.arange(3), recipe, "train")
        now = batched.batch(slices, plan, torch.device("cpu"))
        assert now.pixels.shape == (24, 1, SIZE, SIZE)
        blank, targets = now.blank.view(3, 8), now.targets.view(3, 8)
        assert blank[0].all() and not targets[0].any()
        assert not blank[2].any() and targets[2].all()
        assert torch.equal(blank, targets == 0)

    def test_ours_repeats_slices_and_keeps_the_label(self):
        slices = toy(1, labels=[1], widths=[3])
        now = batched.batch(slices, batched.plan(slices, np.array([0]), quick(), "train"), torch.device("cpu"))
        assert now.targets.eq(1).all() and not now.blank.any()
        assert len({image.numpy().tobytes() for image in now.pixels}) == 3

    def test_pixels_are_the_planned_slices(self):
        slices = toy(4)
        plan = batched.plan(slices, np.array([2, 0]), quick(), "train")
        now = batched.batch(slices, plan, torch.device("cpu"))
        want = [
            slices.pixels[slices.starts[row] + k] for row, ks in zip([2, 0], plan.positions, strict=True) for k in ks
        ]
        assert torch.equal(now.pixels[:, 0], torch.stack(want))

    @pytest.mark.parametrize("resident", [True, False])
    def test_a_thread_works_ahead_only_where_it_helps(self, resident):
        slices = toy(3)
        if not resident:
            slices = mapped(slices)
        plans = [batched.plan(slices, np.array([row]), quick(), "train") for row in range(3)]
        before = threading.active_count()
        coming = batched.batches(slices, plans, torch.device("cpu"))
        first = next(coming)
        assert threading.active_count() - before == (0 if resident else 1)
        everything = [first, *coming]
        assert torch.equal(torch.cat([now.pixels for now in everything]), torch.cat([
            batched.batch(toy(3), plan, torch.device("cpu")).pixels for plan in plans
        ]))  # fmt: skip


class TestScores:
    def test_by_hand(self):
        logits = np.log(
            np.array([[0.9, 0.7], [0.2, 0.4], [0.6, 0.2]]) / (1 - np.array([[0.9, 0.7], [0.2, 0.4], [0.6, 0.2]]))
        )
        targets = np.array([[1, 1], [0, 0], [1, 1]])
        got = training.scores(logits, targets, np.ones(3))
        loss = -np.log([0.9, 0.7, 0.8, 0.6, 0.6, 0.2]).mean()
        # scan probabilities 0.8, 0.3, 0.4 against 1, 0, 1: one positive is missed
        assert got["loss"] == pytest.approx(loss)
        assert got["auc"] == 1.0
        assert got["f1"] == pytest.approx((2 * 1 / (2 * 1 + 1) + 2 * 1 / (2 * 1 + 1)) / 2)

    def test_weights_are_repeated_scans(self, rng):
        logits, labels, times = rng.normal(size=(12, 8)), np.arange(12) % 2, rng.integers(1, 6, 12)
        targets = np.repeat(labels[:, None], 8, axis=1)
        weighted = training.scores(logits, targets, times)
        repeated = training.scores(logits.repeat(times, 0), targets.repeat(times, 0), np.ones(times.sum()))
        assert weighted == pytest.approx(repeated)

    def test_one_class_has_no_auc(self):
        assert math.isnan(training.scores(np.zeros((2, 8)), np.ones((2, 8)), np.ones(2))["auc"])

    def test_the_first_of_equal_epochs_is_better(self):
        assert training.better(0.5, None, "auc")
        assert not training.better(0.5, 0.5, "auc") and not training.better(0.5, 0.5, "loss")
        assert training.better(0.4, 0.5, "loss") and training.better(0.6, 0.5, "f1")


class TestRate:
    def test_cosine_with_warm_up(self):
        recipe = quick(lr=1.0, warmup=0.2)
        rates = [training.learning_rate(step, 20, recipe) for step in range(20)]
        np.testing.assert_allclose(rates[:4], [0.2, 0.4, 0.6, 0.8])
        assert rates[4] == 1.0 and rates[12] == pytest.approx(0.5)
        assert all(a > b for a, b in itertools.pairwise(rates[4:])) and rates[-1] > 0

    def test_released_is_constant(self):
        assert {training.learning_rate(step, 50, Recipe.preset("released")) for step in range(50)} == {1e-4}


class TestFit:
    def test_learns_what_is_there_to_learn(self, tmp_path):
        result = run(tmp_path, epochs=10, scans_per_step=4)  # 40 steps, so that batch norm's averages settle too
        assert result.history["valid_auc"].iloc[-1] == 1.0 == result.history["valid_f1"].iloc[-1]
        assert result.history["valid_loss"].iloc[-1] < 0.3
        assert list(result.history.columns) == ["epoch", "lr", "loss", "valid_loss", "valid_auc", "valid_f1"]

    def test_weight_decay_is_the_recipes(self, tmp_path, monkeypatch):
        """Heard where PyTorch gets it, and felt in the weights: much decay leaves smaller ones."""
        heard, plain = [], torch.optim.AdamW
        monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **k: heard.append(k["weight_decay"]) or plain(*a, **k))
        sizes = []
        for decay in (0.0, 50.0):
            result = run(tmp_path / str(decay), epochs=1, weight_decay=decay)
            weights = load_file(result.path)
            sizes.append(sum(float(w.float().square().sum()) for name, w in weights.items() if name.endswith("weight")))
        assert heard == [0.0, 50.0] and sizes[1] < 0.95 * sizes[0]

    def test_predictions_are_those_of_the_kept_weights(self, tmp_path):
        valid = toy(8, seed=1)
        result = run(tmp_path, valid=valid, ema=0.9)
        last = result.history.iloc[-1]
        table = result.predictions
        loss = -np.log(np.where(table["target"] == 1, table["probability"], 1 - table["probability"])).mean()
        assert loss == pytest.approx(last["valid_loss"], rel=1e-5)
        assert table.groupby("scan_id", sort=False).size().tolist() == [8] * 8
        pd.testing.assert_frame_equal(predict(result.path, valid), table.drop(columns="target"))

    @pytest.mark.parametrize("criterion", ["loss", "auc", "f1"])
    def test_released_keeps_the_best_epoch_of_the_reported_fold(self, tmp_path, criterion):
        result = run(tmp_path, epochs=4, select="reported_fold", select_by=criterion, lr=2e-2)
        column = result.history[f"valid_{criterion}"]
        assert result.epoch == 1 + (column.argmin() if criterion == "loss" else column.argmax())

    def test_inner_split_is_kept_out_of_training(self, tmp_path, monkeypatch):
        seen = set()
        planned = training.plan

        def spy(slices, rows, recipe, purpose, *turn):
            if purpose == "train":
                seen.update(slices.scan_ids[row] for row in rows)
            return planned(slices, rows, recipe, purpose, *turn)

        monkeypatch.setattr(training, "plan", spy)
        result = run(tmp_path, toy(40), select="inner", inner_fraction=0.25, select_by="auc", epochs=3)
        assert {"inner_loss", "inner_auc", "inner_f1"} <= set(result.history.columns)
        assert len(seen) == 30  # 40 scans, of each class a quarter held out: ten, as few as may choose
        assert result.epoch == 1 + result.history["inner_auc"].argmax() < 3  # or the last would do
        assert result.epoch_by == "auc of 10 scans held out"

    def test_an_inner_set_of_nine_chooses_nothing(self, tmp_path):
        train = toy(36, labels=[k % 4 == 0 for k in range(36)])  # a quarter of 9 and of 27: 3 and 7, or 2 and 7
        assert len(training.split(train, None, quick(select="inner", inner_fraction=0.25))["inner"]) == 10
        one_less = train.subset(np.delete(np.arange(36), [0, 4]))  # 7 and 27 scans: 2 and 7
        result = run(tmp_path, one_less, select="inner", inner_fraction=0.25, epochs=3)
        assert result.inner is None and "inner_loss" not in result.history
        assert result.epoch == 3 and result.epoch_by == "last epoch: too few scans to hold 10 of both classes out"
        kept = read_state(tmp_path / STATE)["best"]
        assert kept == {"epoch": 3, "score": None}

    def test_one_seed_one_result(self, tmp_path):
        first, again = (run(tmp_path / name, deterministic=True) for name in ("a", "b"))
        other = run(tmp_path / "c", seed=1)
        assert same_weights(first.path, again.path)
        pd.testing.assert_frame_equal(first.history, again.history, check_exact=True)
        assert not same_weights(first.path, other.path)
        assert not torch.are_deterministic_algorithms_enabled()

    def test_leaves_the_global_generators_alone(self, tmp_path):
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (it must stay untouched)
        run(tmp_path, epochs=1)
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002

    def test_memory_mapped_equals_resident(self, tmp_path):
        assert same_weights(run(tmp_path / "a", toy()).path, run(tmp_path / "b", mapped(toy())).path)

    def test_without_validation(self, tmp_path):
        result = fit(toy(), None, model=SMALL, recipe=quick(), out_dir=tmp_path)
        assert list(result.history.columns) == ["epoch", "lr", "loss"] and result.predictions.empty

    def test_released_recipe_runs_with_short_scans(self, tmp_path):
        train = toy(8, widths=[3, 20, 20, 3, 8, 12, 12, 8])
        valid = toy(8, seed=1, widths=[9, 9, 9, 4, 4, 9, 9, 9])
        recipe = Recipe.preset("released", epochs=1)
        result = fit(train, valid, model=SMALL, recipe=recipe, out_dir=tmp_path)
        assert build(result.model.config).config.normalise == "twice"
        table = result.predictions.groupby("scan_id", sort=False)
        blank = table["index"].max().eq(BLANK).to_numpy()
        assert blank.tolist() == [False] * 3 + [True] * 2 + [False] * 3
        assert table["logit"].nunique()[blank].tolist() == [1, 1]  # nothing to see: every input is the same grey
        assert table["target"].max().tolist() == [0, 1, 0, 0, 0, 1, 0, 1]  # scan 3 is positive, and labelled 0
        assert table["label"].first().tolist() == [0, 1] * 4

    def test_history_reaches_the_callback_each_epoch(self, tmp_path):
        seen = []
        fit(
            toy(), toy(8, seed=1), model=SMALL, recipe=quick(), out_dir=tmp_path, callback=lambda h: seen.append(len(h))
        )
        assert seen == [1, 2]

    def test_tensorboard_logs(self, tmp_path):
        fit(toy(8), None, model=SMALL, recipe=quick(epochs=1), out_dir=tmp_path, tensorboard=True)
        assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))

    @pytest.mark.parametrize("amp", ["off", "bf16"])
    def test_mixed_precision_on_the_cpu(self, tmp_path, amp):
        assert math.isfinite(run(tmp_path, epochs=1, amp=amp).history["loss"].iloc[0])


class TestErrors:
    def test_empty_training_set(self, tmp_path):
        with pytest.raises(TrainingError, match="training set: no scan at all among 0"):
            run(tmp_path, toy().subset([]))

    def test_no_positive_class(self, tmp_path):
        with pytest.raises(TrainingError, match=r"training set: no positive scan among 4 \(0 positive, 4 negative\)"):
            run(tmp_path, toy(4, labels=[0] * 4))

    def test_one_scan_fold(self, tmp_path):
        with pytest.raises(TrainingError, match=r"validation fold: no negative scan among 1 \(1 positive"):
            run(tmp_path, valid=toy().subset([1]))

    def test_unlabelled_scans(self, tmp_path):
        with pytest.raises(TrainingError, match="training set: 2 of 4 scans have no label"):
            run(tmp_path, toy(4, labels=[0, 1, None, None]))

    def test_an_inner_split_that_leaves_no_class(self, tmp_path):
        with pytest.raises(TrainingError, match=r"without its inner split .use select='last'.: no scan at all"):
            run(tmp_path, toy(10), select="inner", inner_fraction=0.99)

    def test_too_few_for_a_whole_step(self, tmp_path):
        with pytest.raises(TrainingError, match="6 training scans do not fill one step of 8"):
            run(tmp_path, toy(6), drop_last=True)

    def test_selection_on_the_reported_fold_needs_one(self, tmp_path):
        with pytest.raises(TrainingError, match="needs a validation fold"):
            fit(toy(), None, model=SMALL, recipe=quick(select="reported_fold"), out_dir=tmp_path)

    def test_loss_that_is_not_finite(self, tmp_path, monkeypatch):
        monkeypatch.setattr(training, "learning_rate", lambda step, steps, recipe: 1e-3 if step < 3 else 1e30)
        # 16 scans in steps of 8: the rate explodes at the last step of epoch 2, which its scores show
        with pytest.raises(
            TrainingError, match=r"not finite at epoch 2, step 2 of 2: .*model.safetensors, of epoch 1$"
        ):
            run(tmp_path, epochs=4)
        kept, _ = load(tmp_path / SELECTED)
        assert all(torch.isfinite(weight).all() for weight in kept.state_dict().values())

    def test_loss_that_is_not_finite_in_the_first_epoch(self, tmp_path):
        with pytest.raises(TrainingError, match=r"epoch 1, step \d of 8: lower lr \(now 1e\+30\).*no checkpoint yet$"):
            run(tmp_path, lr=1e30, scans_per_step=2, schedule="none", warmup=0.0)
        assert not (tmp_path / SELECTED).exists()

    @pytest.mark.parametrize("wrong", [math.nan, math.inf])
    def test_one_value_that_is_not_finite_is_enough(self, tmp_path, wrong):
        started = training.begin({"train": toy()}, SMALL, quick(), tmp_path)
        training.check_finite(started, torch.tensor([[0.5, 1.0]]), 1, 1)
        with pytest.raises(TrainingError, match="not finite at epoch 1, step 1"):
            training.check_finite(started, torch.tensor([[0.5, wrong]]), 1, 1)

    def test_cuda_that_is_not_there(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(TrainingError, match="torch finds no CUDA: use device='auto' or 'cpu'"):
            training.resolve_device("cuda")
        assert training.resolve_device("auto").type in ("cpu", "mps")


@pytest.fixture(scope="module")
def net():
    return build(SMALL, seed=3).eval()


class TestPredict:
    def test_draws(self, net):
        slices = toy(3, widths=[30] * 3)
        table = predict(net, slices, draws=2)
        assert table.groupby(["draw", "scan_id"]).size().tolist() == [8] * 6
        assert not np.array_equal(*(table.loc[table["draw"] == k, "index"] for k in (0, 1)))
        once = predict(net, slices, draws=2, recipe=quick(redraw=False))
        np.testing.assert_array_equal(*(once.loc[once["draw"] == k, "index"] for k in (0, 1)))
        logits = net(slices.pixels[:, None]).detach().numpy()
        flat = slices.starts.repeat(8)[None].repeat(2, 0).ravel() + table["index"].to_numpy()
        np.testing.assert_allclose(table["logit"], logits[flat], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(-table["logit"])))

    def test_a_scan_does_not_depend_on_the_others(self, net):
        slices = toy(6)
        whole, alone = predict(net, slices), predict(net, slices.subset([4]))
        part = whole[whole["scan_id"] == slices.scan_ids[4]].reset_index(drop=True)
        assert part["index"].tolist() == alone["index"].tolist()
        np.testing.assert_allclose(part["logit"], alone["logit"], rtol=1e-4, atol=1e-5)

    def test_unlabelled_scans(self, net):
        assert predict(net, toy(2, labels=[None, None]))["label"].tolist() == [-1] * 16

    def test_no_scans(self, net):
        table = predict(net, toy().subset([]))
        assert table.empty and list(table.columns) == ["scan_id", "draw", "index", "logit", "probability", "label"]


class TestResume:
    def test_a_finished_run_is_read_not_trained(self, tmp_path):
        first = run(tmp_path)
        written = first.path.stat().st_mtime_ns
        again = run(tmp_path)
        assert first.path.stat().st_mtime_ns == written
        pd.testing.assert_frame_equal(again.history, first.history, check_exact=True)
        pd.testing.assert_frame_equal(again.predictions, first.predictions, check_exact=True)
        assert again.epoch == first.epoch

    def test_another_recipe_or_other_scans_are_refused(self, tmp_path):
        run(tmp_path)
        with pytest.raises(TrainingError, match=r"recipe.lr: 0.003 -> 0.1.*another out_dir"):
            run(tmp_path, lr=0.1)
        with pytest.raises(TrainingError, match=r"scans.digest"):
            run(tmp_path, toy(seed=5))
        with pytest.raises(TrainingError, match=r"model.hidden: 224 -> 8"):
            fit(
                toy(),
                toy(8, seed=1),
                model=ModelConfig("test_efficientnet", False, hidden=8),
                recipe=quick(),
                out_dir=tmp_path,
            )

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["mid-epoch", "between the two files"])
    def test_killed_and_resumed_equals_undisturbed(self, tmp_path, moment):
        settings = {"epochs": 3, "ema": 0.9}
        script = f"""
            import os, signal
            from e2d_lib.network import training
            from tests.network.test_training import run

            def kill():
                os.kill(os.getpid(), signal.SIGKILL)

            if {moment!r} == "mid-epoch":
                calls, train = [], training.Augment.__call__
                def step(self, *args):
                    calls.append(1)
                    if len(calls) == 4:  # two steps an epoch: the second step of the second epoch
                        kill()
                    return train(self, *args)
                training.Augment.__call__ = step
            else:
                kept, write = [], training.write_state
                def second(path, state):
                    kept.append(path.name)
                    if len(kept) == 2:  # the second epoch's weights are written, its state is not
                        kill()
                    write(path, state)
                training.write_state = second
            run({str(tmp_path / "killed")!r}, **{settings!r})
        """
        assert python("-c", textwrap.dedent(script)).returncode == -signal.SIGKILL
        state = read_state(tmp_path / "killed" / STATE)
        assert len(state["history"]) == 1
        # Fresh processes, as a rerun is one: libraries that other tests load may change the last bits of sums here.
        for name in ("killed", "straight"):
            script = f"from tests.network.test_training import run; run({str(tmp_path / name)!r}, **{settings!r})"
            assert python("-c", script).returncode == 0
        assert same_weights(tmp_path / "killed" / SELECTED, tmp_path / "straight" / SELECTED)
        resumed, undisturbed = run(tmp_path / "killed", **settings), run(tmp_path / "straight", **settings)  # read back
        pd.testing.assert_frame_equal(resumed.history, undisturbed.history, check_exact=True)
        pd.testing.assert_frame_equal(resumed.predictions, undisturbed.predictions, check_exact=True)
