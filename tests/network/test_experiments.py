"""Jobs over folds, fractions and seeds."""

import numpy as np
import pandas as pd
import pytest

from e2d_lib.network import experiments, training
from e2d_lib.network.model import ModelConfig
from e2d_lib.network.slices import ScanSlices
from e2d_lib.study import cli


def test_jobs_are_every_combination_the_whole_first():
    found = experiments.jobs([1, 5], [0.1, 1.0], [0, 1])
    assert [(j.fraction, j.fold, j.seed) for j in found[:4]] == [(1.0, 1, 0), (1.0, 1, 1), (1.0, 5, 0), (1.0, 5, 1)]
    assert len({j.folder for j in found}) == len(found) == 8


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_a_job_trains_on_the_other_folds_and_never_on_its_own(slices, cohort, fold):
    train, valid = experiments.parts(slices, cohort, experiments.Job(fold, 1.0, 0))
    held = set(cohort.loc[cohort["fold"] == fold, "scan_id"])
    assert set(valid.scan_ids) == held
    assert set(train.scan_ids) == set(cohort["scan_id"]) - held


def test_fractions_are_nested_and_stratified(slices, cohort):
    seen = None
    for fraction, expected in ((1.0, 8), (0.5, 4), (0.25, 2)):
        train, _ = experiments.parts(slices, cohort, experiments.Job(5, fraction, 3))
        assert (train.labels == 1).sum() == (train.labels == 0).sum() == expected
        assert seen is None or set(train.scan_ids) < seen
        seen = set(train.scan_ids)


def test_an_unknown_fold_is_told(slices, cohort):
    with pytest.raises(training.TrainingError, match="no scans in fold 7"):
        experiments.parts(slices, cohort, experiments.Job(7, 1.0, 0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 0], r"validation fold: no positive scan among 3 \(0 positive, 3 negative\)"),
        ([1, 1], r"validation fold: no negative scan among 2 \(2 positive, 0 negative\)"),
        ([0], r"validation fold: no positive scan among 1 \(0 positive, 1 negative\)"),
    ],
)
def test_a_fold_of_one_class_or_one_scan_is_not_scored(labels, message, rng, tmp_path):
    labels = [k % 2 for k in range(8)] + labels
    names = [f"scan {k}" for k in range(len(labels))]
    images = [rng.integers(0, 256, (9, 32, 32), dtype=np.uint8) for _ in labels]
    made = ScanSlices.from_arrays(images, [np.arange(1, 10)] * len(labels), labels, names)
    cohort = pd.DataFrame({"scan_id": names, "fold": [1] * 8 + [5] * (len(labels) - 8)})
    with pytest.raises(training.TrainingError, match=message):
        experiments.run(
            [experiments.Job(5, 1.0, 0)],
            made,
            cohort,
            model=ModelConfig("test_efficientnet", pretrained=False),
            recipe=training.Recipe.preset(),
            out_dir=tmp_path,
        )


def test_preprocess_command_names_an_unknown_parameter(data, tmp_path, capsys):
    assert cli.main(["preprocess", str(data), str(tmp_path), "-p", "sise=3"]) == 2
    assert "'sise'" in capsys.readouterr().err
    assert cli.main(["preprocess", str(data), str(tmp_path), "-p", "size=0"]) == 2
    assert cli.main(["preprocess", str(data), str(tmp_path), "-p", "size=16", "--jobs", "1"]) == 0
    assert "kept" in capsys.readouterr().out
