"""Unlabeled scans in, one prediction a scan out: the challenge's submission file, by an ensemble of checkpoints."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from e2d_lib import io
from e2d_lib.method import preprocess
from e2d_lib.network import training
from e2d_lib.network.model import CheckpointError
from e2d_lib.network.scores import scan_scores
from e2d_lib.network.slices import ScanSlices
from e2d_lib.scans.cohort import read_cohort

PREPROCESSING = "preprocessing.json"
TRAINED_ON = "trained_on.json"
UNRECORDED = "not recorded"


def preprocessing_of(checkpoints: Sequence[str | Path]) -> preprocess.Params:
    """The preprocessing that the checkpoints were trained on, written beside each of them.

    Raises CheckpointError where a checkpoint has none, or where they differ: an ensemble sees one set of slices.
    """
    found = {}
    for checkpoint in map(Path, checkpoints):
        if not checkpoint.is_file():
            raise CheckpointError(f"no checkpoint {checkpoint}: give the model.safetensors of a training run")
        beside = checkpoint.parent / PREPROCESSING
        if not beside.is_file():
            raise CheckpointError(f"{checkpoint} has no {PREPROCESSING} beside it, which says how its slices were made")
        found[checkpoint] = preprocess.Params(**io.read_json(beside))
    if len(set(found.values())) > 1:
        raise CheckpointError(f"the checkpoints were trained on differently made slices: {set(found.values())}")
    return next(iter(found.values()))


def trained_on(checkpoints: Sequence[str | Path]) -> str:
    """The names of the data the checkpoints were trained on, as recorded beside them, or `UNRECORDED`."""
    records = [Path(checkpoint).parent / TRAINED_ON for checkpoint in checkpoints]
    return ", ".join(sorted({io.read_json(path)["data"] if path.is_file() else UNRECORDED for path in records}))


def caution(data: str) -> str:
    """What must be said with the predictions of a network trained on ``data``, as `trained_on` names it.

    >>> caution("ricord")
    'research only: no prediction here is a diagnosis'
    """
    if "phantom" in data.split(", "):
        return "trained on the phantom, computed images: these predictions mean nothing for patients"
    if UNRECORDED in data.split(", "):
        return "what a checkpoint was trained on is not recorded beside it: it may be the phantom, no patients"
    return "research only: no prediction here is a diagnosis"


def predict(
    checkpoints: Sequence[str | Path],
    data_root: str | Path,
    *,
    cache_dir: str | Path,
    aggregation: str = "mean",
    threshold: float = 0.5,
    draws: int = 1,
    device: str = "auto",
    n_jobs: int = -1,
) -> pd.DataFrame:
    """One row a scan of ``data_root``: scan_id, prediction (1, 0 or <NA>), probability, n_checkpoints, reason,
    trained_on (see `trained_on`).

    The scans go through the preprocessing that the checkpoints were trained on, are scored by each checkpoint (its
    slices' probabilities aggregated, method/README.md §5), and the scores are averaged. A scan that cannot be scored
    has no prediction and a reason. Raises CohortError for a data root without scans, CheckpointError for unfit
    checkpoints.
    """
    params = preprocessing_of(checkpoints)
    cohort = read_cohort(data_root).assign(label=pd.NA)  # whatever it says: nothing here may depend on it
    done = preprocess.run(cohort, cache_dir, params, n_jobs=n_jobs)
    scored = done.scans[(done.scans["status"] != "excluded") & (done.scans["stop"] > done.scans["start"])]
    table = done.scans.set_index("scan_id")[["reason"]].reindex(cohort["scan_id"]).assign(probability=float("nan"))
    if len(scored):
        place = training.resolve_device(device)
        slices = ScanSlices.from_preprocessed(done, cohort[cohort["scan_id"].isin(scored["scan_id"])], device=place)
        found = [training.predict(checkpoint, slices, draws=draws, device=device) for checkpoint in checkpoints]
        scores = [scan_scores(own, how=aggregation).set_index("scan_id")["probability"] for own in found]
        table["probability"] = pd.concat(scores, axis=1).mean(axis=1)
    known = table["probability"].notna()
    table["reason"] = table["reason"].mask(~known & table["reason"].eq(""), "empty window")
    table["prediction"] = table["probability"].ge(threshold).astype("Int64").where(known)
    table = table.assign(n_checkpoints=known * len(checkpoints), trained_on=trained_on(checkpoints)).reset_index()
    return table[["scan_id", "prediction", "probability", "n_checkpoints", "reason", "trained_on"]]
