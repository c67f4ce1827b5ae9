"""The submission file: an ensemble's mean, a reason where there is none, and what the networks were trained on."""

from dataclasses import asdict, replace

import pandas as pd
import pytest

from e2d_lib import io
from e2d_lib.network import experiments, prediction, training
from e2d_lib.network.model import CheckpointError, ModelConfig, build
from e2d_lib.study import cli
from tests.network.conftest import PARAMS

SMALL = ModelConfig("test_efficientnet", pretrained=False)


def saved(folder, seed=0, params=PARAMS):
    """A checkpoint of random weights, with the preprocessing beside it."""
    training.save(folder / training.SELECTED, build(replace(SMALL, size=32), seed=seed), training.Recipe.preset())
    if params:
        io.write_json(folder / "preprocessing.json", asdict(params))
    return folder / training.SELECTED


def test_an_ensemble_gives_the_mean_of_its_networks(data, slices, tmp_path):
    paths = [saved(tmp_path / name, seed) for seed, name in enumerate("ab")]
    where = {"cache_dir": tmp_path / "cache", "device": "cpu", "n_jobs": 1}
    alone = [training.predict(path, slices, device="cpu").groupby("scan_id")["probability"].mean() for path in paths]
    mean = pd.concat(alone, axis=1).mean(axis=1)
    cut = float(mean.median())
    table = prediction.predict(paths, data, threshold=cut, **where).set_index("scan_id")
    assert table["probability"].to_dict() == pytest.approx(mean.to_dict(), abs=1e-6)
    assert len(table) == 24 and abs(alone[0] - alone[1]).min() > 1e-4  # two networks, not one twice
    assert (table["prediction"] == (table["probability"] >= cut)).all() and 0 < table["prediction"].sum() < 24
    assert (table["n_checkpoints"] == 2).all() and (table["trained_on"] == "not recorded").all()


def test_networks_of_slices_made_in_different_ways_are_no_ensemble(tmp_path):
    paths = [saved(tmp_path / "a"), saved(tmp_path / "b", params=replace(PARAMS, crop=False))]
    with pytest.raises(CheckpointError, match=r"trained on differently made slices: .*crop=False"):
        prediction.preprocessing_of(paths)


def test_a_checkpoint_must_say_how_its_slices_were_made(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no preprocessing\.json beside it"):
        prediction.preprocessing_of([saved(tmp_path / "a", params=None)])


@pytest.mark.slow
def test_checkpoints_score_unlabeled_scans_and_give_a_bad_one_a_reason(slices, cohort, data, tmp_path, capsys):
    recipe = training.Recipe.preset(epochs=2, scans_per_step=4, lr=3e-3, device="cpu", augment=False, inner_least=2)
    outcome = experiments.run(
        experiments.jobs([1, 5], [1.0], [0]),
        slices,
        cohort,
        model=ModelConfig(backbone="test_efficientnet", pretrained=False),
        recipe=recipe,
        out_dir=tmp_path / "runs",
        preprocessing=vars(PARAMS),
        data="phantom",
    )
    assert set(outcome.predictions["part"]) == {"valid", "inner"}
    assert list(outcome.runs["valid"]) == [4, 8]

    unlabeled = tmp_path / "new"
    for number, scan in enumerate(sorted((data / "valid").glob("*/*"))):
        (unlabeled / f"scan_{number}").mkdir(parents=True)
        for path in scan.iterdir():
            (unlabeled / f"scan_{number}" / path.name).write_bytes(path.read_bytes())
    (unlabeled / "scan_bad").mkdir()
    (unlabeled / "scan_bad" / "0.jpg").write_text("not a picture")
    checkpoints = list(outcome.runs["checkpoint"])
    arguments = ["--data", str(unlabeled), "--out", str(tmp_path / "p.csv"), "--device", "cpu", "--jobs", "1"]
    assert cli.main(["predict", "--checkpoint", *checkpoints, *arguments]) == 0
    table = pd.read_csv(tmp_path / "p.csv", dtype={"prediction": "Int64"}).set_index("scan_id")
    assert len(table) == 9 and table["probability"].notna().sum() == 8
    bad = table.loc["scan_bad"]
    assert pd.isna(bad["prediction"]) and "undecodable" in bad["reason"]
    scored = table.drop("scan_bad")
    assert (scored["n_checkpoints"] == 2).all()
    assert (scored["prediction"] == (scored["probability"] >= 0.5)).all()
    assert (table["trained_on"] == "phantom").all()
    assert "trained on the phantom, computed images: these predictions mean nothing" in capsys.readouterr().out

    capsys.readouterr()
    assert cli.main(["predict", "--checkpoint", str(tmp_path / "none.safetensors"), *arguments]) == 2
    assert cli.main(["predict", "--checkpoint", checkpoints[0], "--data", str(tmp_path / "x"), *arguments[2:]]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_what_checkpoints_were_trained_on_is_told(tmp_path):
    paths = [tmp_path / name / "model.safetensors" for name in "abc"]
    for path, record in zip(paths, ({"data": "ricord"}, {"data": "phantom"}, None), strict=True):
        path.parent.mkdir()
        if record:
            io.write_json(path.parent / "trained_on.json", record)
    told = {n: prediction.trained_on(paths[:n]) for n in (1, 2, 3)}
    assert told == {1: "ricord", 2: "phantom, ricord", 3: "not recorded, phantom, ricord"}
    assert "mean nothing for patients" in prediction.caution(told[2]) and "not a" not in prediction.caution(told[2])
    assert "is not recorded" in prediction.caution(prediction.trained_on(paths[2:]))
    assert "no prediction here is a diagnosis" in prediction.caution(told[1])
