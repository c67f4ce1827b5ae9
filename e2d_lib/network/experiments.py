"""Training runs over folds, few-shot fractions and seeds: one folder each, resumable, their tables put together."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from e2d_lib import io
from e2d_lib.network import training
from e2d_lib.network.model import ModelConfig
from e2d_lib.network.prediction import PREPROCESSING, TRAINED_ON
from e2d_lib.network.slices import ScanSlices, few_shot
from e2d_lib.progress import bar


@dataclass(frozen=True)
class Job:
    """One training run: the fold it is scored on, the share of the training scans it sees, its seed."""

    fold: int
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """
        >>> Job(5, 0.03, 0).name
        'fold 5, 3 %, seed 0'
        """
        return f"fold {self.fold}, {100 * self.fraction:g} %, seed {self.seed}"

    @property
    def folder(self) -> str:
        return f"fold{self.fold}-{100 * self.fraction:g}pc-seed{self.seed}"


class Outcome(NamedTuple):
    """Tables over all runs; each begins with the columns run, fold, fraction, seed.

    runs: train, inner, valid (scans), epoch (the selected one), epoch_by (what selected it), checkpoint
    (path). history: as of ``training.Fit``.
    predictions: slice by slice, with part "valid" (the reported fold) or "inner" (held out of the training scans).
    """

    runs: pd.DataFrame
    history: pd.DataFrame
    predictions: pd.DataFrame


def jobs(folds: Sequence[int], fractions: Sequence[float], seeds: Sequence[int]) -> list[Job]:
    """Every combination, the largest fraction first, so that what matters most is done first."""
    ordered = sorted(fractions, reverse=True)
    return [Job(int(fold), float(f), int(seed)) for f in ordered for fold in folds for seed in seeds]


def parts(slices: ScanSlices, cohort: pd.DataFrame, job: Job) -> tuple[ScanSlices, ScanSlices]:
    """Training and validation scans of a job: all other folds (thinned to the fraction), and the job's fold.

    slices: the labelled scans that preprocessing kept; cohort: scan_id, fold. Fractions of one seed are nested.
    Raises TrainingError for a fold that has no scans.
    """
    fold = cohort.set_index("scan_id").loc[list(slices.scan_ids), "fold"]
    here = fold.eq(job.fold).fillna(False).to_numpy(dtype=bool)
    if not here.any():
        known = sorted(int(f) for f in fold.dropna().unique())
        raise training.TrainingError(f"no scans in fold {job.fold}; this cohort has folds {known}")
    others = slices.subset(np.flatnonzero(fold.notna().to_numpy() & ~here))
    chosen = few_shot(others.scan_ids, others.labels, job.fraction, job.seed, patients=others.patients)
    return others.subset(chosen), slices.subset(np.flatnonzero(here))


def run(
    todo: Sequence[Job],
    slices: ScanSlices,
    cohort: pd.DataFrame,
    *,
    model: ModelConfig,
    recipe: training.Recipe,
    out_dir: str | Path,
    preprocessing: dict[str, Any] | None = None,
    data: str = "",
    tensorboard: bool = False,
    show: Callable[[pd.DataFrame], None] | None = None,
) -> Outcome:
    """Train every job, or pick up what an earlier run with the same settings and data left.

    A job's folder is named by fold, fraction and seed, and by a hash of model, recipe and ``preprocessing`` (the
    parameters of ``preprocess.Params``, kept beside the checkpoint for prediction), so that runs with other settings
    live side by side. ``data``, the name of what is trained on, is kept there too: whoever predicts is told.
    ``show`` gets the history so far.
    """
    tables: dict[str, list[pd.DataFrame]] = {"runs": [], "history": [], "predictions": []}
    for job in bar(todo, desc="runs", unit="run"):
        train, valid = parts(slices, cohort, job)
        own = replace(recipe, seed=job.seed)
        key = io.digest([asdict(model), {**asdict(own), "device": ""}, preprocessing], length=8)
        folder = Path(out_dir) / f"{job.folder}-{key}"

        def so_far(history: pd.DataFrame, job: Job = job) -> None:
            if show:
                show(pd.concat([*tables["history"], _tagged(history, job)], ignore_index=True))

        fit = training.fit(
            train, valid, model=model, recipe=own, out_dir=folder, callback=so_far, tensorboard=tensorboard
        )
        if preprocessing:
            io.write_json(folder / PREPROCESSING, preprocessing)
        if data:
            positive = int(np.sum(train.labels))
            io.write_json(folder / TRAINED_ON, {"data": data, "scans": len(train), "positive": positive})
        predictions, held = [fit.predictions.assign(part="valid")], len(fit.inner) if fit.inner else 0
        if fit.inner:
            inner = training.predict(fit.model, fit.inner, recipe=own)
            predictions.append(inner.assign(part="inner"))
        counts = {"train": len(train) - held, "inner": held, "valid": len(valid), "epoch": fit.epoch}
        counts["epoch_by"] = fit.epoch_by
        tables["runs"].append(_tagged(pd.DataFrame([{**counts, "checkpoint": fit.path.as_posix()}]), job))
        tables["history"].append(_tagged(fit.history, job))
        tables["predictions"].append(_tagged(pd.concat(predictions, ignore_index=True), job))
    return Outcome(**{name: pd.concat(found, ignore_index=True) for name, found in tables.items()})


def _tagged(table: pd.DataFrame, job: Job) -> pd.DataFrame:
    tags: dict[str, Any] = {"run": job.name, **asdict(job)}
    return pd.concat([pd.DataFrame([tags] * len(table), index=table.index), table], axis=1)
