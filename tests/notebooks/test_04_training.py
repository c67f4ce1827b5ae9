"""Chapter 4: runs, history, recipe and predictions, against each other and the parameters."""

import itertools

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from tests.notebooks.conftest import asked, in_order

pytestmark = pytest.mark.notebook
CHAPTER = "04_training"


@pytest.fixture(scope="module")
def usable(ci_run):
    """The cohort's scans that can be trained on: kept, labelled, with a fold."""
    scans = ci_run.scans()
    cohort = ci_run.cohort().dropna(subset=["label", "fold"])
    return cohort[cohort["scan_id"].isin(scans.loc[scans["n_slices"] >= 5, "scan_id"])]


def test_headline(ci_run, usable):
    runs = ci_run.table(CHAPTER, "runs")
    weights = load_file(ci_run.dir / runs["checkpoint"].iloc[0])
    trained = {
        k: v for k, v in weights.items() if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    assert ci_run.values(CHAPTER) == {
        "runs": np.prod([len(asked(CHAPTER)[name]) for name in ("folds", "fractions", "seeds")]),
        "scans": len(usable),
        "parameters": sum(v.size for v in trained.values()),
    }


def test_runs_are_every_fold_share_and_seed_on_the_right_scans(ci_run, usable):
    wanted, runs = asked(CHAPTER), ci_run.table(CHAPTER, "runs")
    product = set(itertools.product(wanted["folds"], wanted["fractions"], wanted["seeds"]))
    assert set(runs[["fold", "fraction", "seed"]].itertuples(index=False, name=None)) == product
    predictions = ci_run.parquet(CHAPTER, "predictions")
    for run in runs.itertuples():
        own = predictions[predictions["run"] == run.run]
        seen = {"inner": set()} | {part: set(table["scan_id"]) for part, table in own.groupby("part")}
        assert seen["valid"] == set(usable.loc[usable["fold"] == run.fold, "scan_id"])
        assert seen["inner"] <= set(usable.loc[usable["fold"] != run.fold, "scan_id"])
        assert (run.inner, run.valid) == (len(seen["inner"]), len(seen["valid"]))
        training = (usable["fold"] != run.fold).sum()
        assert run.train + run.inner == pytest.approx(run.fraction * training, abs=1.01)
        # 40 % of each class held out: of a run on all scans 10 and more, which choose; of the others none do
        assert (run.inner >= 10) if run.fraction == 1 else (run.inner == 0 and run.epoch == wanted["epochs"])
        assert run.epoch_by.startswith(
            f"loss of {run.inner} scans held out" if run.inner else "last epoch: too few scans"
        )
        assert f"{100 * run.fraction:g} %" in run.run and f"fold {run.fold}" in run.run
    assert (own.groupby(["part", "scan_id"]).size() == wanted["n_samples"]).all()
    labels = ci_run.cohort().set_index("scan_id")["label"]
    assert (predictions["label"] == predictions["scan_id"].map(labels)).all()
    np.testing.assert_allclose(predictions["probability"], 1 / (1 + np.exp(-predictions["logit"])), rtol=1e-5)


def test_history_at_the_kept_epoch_is_what_the_predictions_give(ci_run):
    history, predictions = ci_run.numbers(CHAPTER, "history"), ci_run.parquet(CHAPTER, "predictions")
    for run in ci_run.table(CHAPTER, "runs").itertuples():
        epochs = history[history["run"] == run.run].set_index("epoch")
        assert list(epochs.index) == list(range(1, asked(CHAPTER)["epochs"] + 1))
        for part in ("valid", "inner") if run.inner else ("valid",):
            own = predictions[(predictions["run"] == run.run) & (predictions["part"] == part)]
            scans = own.groupby("scan_id").agg(label=("label", "first"), p=("probability", "mean"))
            kept = epochs.loc[run.epoch]
            assert kept[f"{part}_auc"] == pytest.approx(roc_auc_score(scans["label"], scans["p"]))
            assert kept[f"{part}_f1"] == pytest.approx(f1_score(scans["label"], scans["p"] >= 0.5, average="macro"))
            if part == "valid":
                assert kept["valid_loss"] == pytest.approx(log_loss(own["label"], own["probability"]), rel=1e-3)


def test_learns_something_at_ci_size(ci_run):
    for _, run in ci_run.table(CHAPTER, "history").groupby("run"):
        assert run["loss"].iloc[-1] < run["loss"].iloc[0]


def test_recipe_is_the_parameters_beside_the_released_one(ci_run):
    table = pd.read_csv(ci_run.dir / CHAPTER / "tables" / "recipe.csv", dtype=str, keep_default_na=False)
    assert list(table["differs"] == "True") == list(table["this run"] != table["released"])
    ours, wanted = table.set_index("setting")["this run"], asked(CHAPTER)
    names = ["variant", "epochs", "lr", "scans_per_step", "n_samples", "n_intervals", "method", "device"]
    assert {name: ours[name] for name in names} == {name: str(wanted[name]) for name in names}


def test_answer_names_each_run_with_its_last_epoch(ci_run):
    history = ci_run.table(CHAPTER, "history")
    lines, runs = ci_run.said(CHAPTER)[-1].splitlines(), ci_run.table(CHAPTER, "runs").set_index("run")
    assert in_order(lines[0], history["run"].nunique())
    for name, run in history.groupby("run"):
        (line,) = [line for line in lines if name in line]
        last = run.loc[run["epoch"].idxmax()]
        kept = runs.loc[name]
        assert in_order(line.partition(name)[2], f"{last['loss']:.3f}", f"{last['valid_auc']:.3f}", kept["epoch"])
        assert line.endswith(f"is kept, by the {kept['epoch_by']}")


def test_one_batch_is_shown_and_three_steps_are_made_on_it(ci_run):
    steps = ci_run.table(CHAPTER, "one_batch")  # the chapter itself holds its first loss against the library's
    assert list(steps["step"]) == [1, 2, 3] and steps["loss"].gt(0).all() and steps["loss"].nunique() == 3
    assert steps["loss"].iloc[0] == pytest.approx(np.log(2), abs=0.3)  # an untrained network's answer is a half
    for name in ("batch", "batch_augmented"):
        assert (ci_run.dir / CHAPTER / "figures" / f"{name}.png").is_file()
