"""Ablations: one setting of the whole method trained and scored, and any number of them compared on the same scans.

A :class:`Setting` names every choice from SSFL++ to the recipe. :func:`run` carries it out, :func:`compare` puts
results side by side with paired tests. Chapter 6 does both in its cells; ``e2d sweep`` runs the chapter once for each
cell of a grid, and ``e2d compare`` reads what they left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from e2d_lib import io, words
from e2d_lib.evaluation import metrics, multirun
from e2d_lib.evaluation.multirun import METRICS
from e2d_lib.method import preprocess
from e2d_lib.network import experiments, training
from e2d_lib.network.model import ModelConfig
from e2d_lib.network.scores import scan_scores
from e2d_lib.network.slices import ScanSlices
from e2d_lib.scans.patients import patient_of

SSFL: dict[str, dict[str, Any]] = {
    "both": {},
    "spatial": {"fraction": 1.0},
    "slice": {"crop": False},
    "off": {"crop": False, "fraction": 1.0},
}
"""Which steps of SSFL++ are done, as parameters of `preprocess.Params`."""

FILES = ("setting.json", "scores.parquet")


@dataclass(frozen=True)
class Setting:
    """Every choice of one run.

    ssfl: "both", "spatial", "slice" or "off". preprocessing: parameters of `preprocess.Params`. few_shot: share of the
    training scans, in (0, 1]. backbone, pretrained: of `model.ModelConfig`. variant: the recipe's preset. recipe:
    settings of `training.Recipe` over the preset. aggregation: how slices make a scan's score (`scores.scan_scores`).

    >>> Setting(ssfl="off").params.crop
    False
    """

    ssfl: str = "both"
    preprocessing: dict[str, Any] = field(default_factory=dict)
    few_shot: float = 1.0
    backbone: str = "test_efficientnet"
    pretrained: bool | str = False
    variant: str = "corrected"
    recipe: dict[str, Any] = field(default_factory=dict)
    aggregation: str = "mean"

    def __post_init__(self) -> None:
        if self.ssfl not in SSFL:
            raise ValueError(f"ssfl is one of {', '.join(SSFL)}, got {self.ssfl!r}")

    @property
    def params(self) -> preprocess.Params:
        return preprocess.Params(**{**self.preprocessing, **SSFL[self.ssfl]})

    def but(
        self, *, preprocessing: Mapping[str, Any] | None = None, recipe: Mapping[str, Any] | None = None, **own: Any
    ) -> "Setting":
        """This setting with changes of its own, and of single settings of the preprocessing and the recipe.

        >>> Setting(recipe={"epochs": 2}).but(few_shot=0.1, recipe={"method": "random"}).recipe
        {'epochs': 2, 'method': 'random'}
        """
        inner = {"preprocessing": self.preprocessing | (preprocessing or {}), "recipe": self.recipe | (recipe or {})}
        return replace(self, **inner, **own)


class Result(NamedTuple):
    """What a setting gave. scores: one row for each seed, fold, draw of the slices, and scan of the reported fold:
    seed, fold, draw, scan_id, patient, label, probability. runs: `experiments.Outcome`'s; empty if read from disk."""

    setting: dict[str, Any]
    scores: pd.DataFrame
    runs: pd.DataFrame = pd.DataFrame()


def run(
    setting: Setting,
    cohort: pd.DataFrame,
    *,
    cache: str | Path,
    runs: str | Path,
    folds: Sequence[int] = (5,),
    seeds: Sequence[int] = (0,),
    redraws: int = 1,
    n_jobs: int = -1,
    data: str = "",
) -> Result:
    """Preprocess, train on the other folds with every seed, and score the reported folds ``redraws`` times.

    cohort: with scan_id, path, format, label, fold. cache, runs: folders of preprocessed slices and of trained runs;
    what is there from earlier is used again. data: the cohort's name, kept beside each checkpoint. Scans whose window
    is empty cannot be drawn from and are left out, unless the recipe leaves them blank (released). The first of the
    redraws gives the scores that are compared.

    Raises ValueError for unknown settings, and what preprocessing and training raise.
    """
    params = setting.params
    recipe = training.Recipe.preset(setting.variant, **setting.recipe)
    done = preprocess.run(cohort, cache, params, n_jobs=n_jobs, wait=True)
    usable = cohort["label"].notna() & cohort["fold"].notna()
    if recipe.short_scans == "repeat":
        width = done.scans.set_index("scan_id").eval("stop - start")
        usable &= cohort["scan_id"].map(width).gt(0)
    slices = ScanSlices.from_preprocessed(done, cohort[usable], device=training.resolve_device(recipe.device))
    outcome = experiments.run(
        experiments.jobs(folds, [setting.few_shot], seeds),
        slices,
        cohort,
        model=ModelConfig(backbone=setting.backbone, pretrained=setting.pretrained),
        recipe=recipe,
        out_dir=runs,
        preprocessing=asdict(params),
        data=data,
    )
    predictions = []
    for job in outcome.runs.itertuples():
        _, valid = experiments.parts(slices, cohort, experiments.Job(job.fold, job.fraction, job.seed))
        drawn = training.predict(job.checkpoint, valid, draws=redraws, device=recipe.device)
        predictions.append(drawn.assign(fold=job.fold, seed=job.seed))
    keys = ["seed", "fold", "draw", "scan_id"]
    scores = scan_scores(pd.concat(predictions, ignore_index=True), how=setting.aggregation, by=keys)
    scores["patient"] = scores["scan_id"].map(dict(zip(slices.scan_ids, slices.patients, strict=True)))
    return Result(asdict(setting), scores[[*keys, "patient", "label", "probability"]], outcome.runs)


def save(result: Result, folder: str | Path) -> None:
    io.write_json(Path(folder) / FILES[0], result.setting)
    io.write_parquet(Path(folder) / FILES[1], result.scores)


def load(folder: str | Path) -> Result:
    return Result(io.read_json(Path(folder) / FILES[0]), pd.read_parquet(Path(folder) / FILES[1]))


def find(folders: Sequence[str | Path]) -> dict[str, Result]:
    """Every result at or below the folders, by its folder's name (by its path from there where names repeat)."""
    found = [(Path(top), path.parent) for top in folders for path in sorted(Path(top).rglob(FILES[0]))]
    found = [(top, path) for top, path in found if (path / FILES[1]).is_file()]
    names = [path.name for _, path in found]
    if not found:
        raise ValueError(f"no results ({' beside '.join(FILES)}) below {', '.join(map(str, folders))}")
    if len(set(names)) < len(names):
        names = [path.relative_to(top.parent).as_posix() for top, path in found]
    return {name: load(path) for name, (_, path) in zip(names, found, strict=True)}


def flat(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting's choices, or changes of them, by name, without the level that says whose they are.

    >>> flat({"few_shot": 0.1, "recipe": {"method": "random"}})
    {'few_shot': 0.1, 'method': 'random'}
    """
    plain = {}
    for name, value in setting.items():
        plain.update(value if isinstance(value, Mapping) else {name: value})
    return plain


def differences(settings: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a setting, one column for each choice in which they are not all alike; nested choices by their name."""
    table = pd.DataFrame([flat(setting) for setting in settings])
    return table.loc[:, [table[name].astype(str).nunique() > 1 for name in table]]


def stability(scores: pd.DataFrame) -> dict[str, float]:
    """Spread over redraws of the slices: SD of a scan's probability (mean over scans), and of each of `METRICS`.

    Each is the mean over seeds; NaN with one draw. KDS's claim is that they are small.
    """
    per_scan = scores.groupby(["seed", "fold", "scan_id"])["probability"].std(ddof=1).mean()
    points = scores.groupby(["seed", "draw"])[["label", "probability"]].apply(
        lambda one: pd.Series(metrics.point_metrics(one["label"], one["probability"]))
    )
    return {"probability": float(per_scan), **points.groupby("seed")[list(METRICS)].std(ddof=1).mean()}


def compare(
    results: Mapping[str, Result],
    baseline: str = "",
    *,
    against: Mapping[str, str] | None = None,
    rng: np.random.Generator,
    n_boot: int = 2000,
) -> pd.DataFrame:
    """Results side by side, tidy: one row for each result and each of `METRICS`.

    baseline: the name that the others are tested against (default: the first); against: another one for some names.

    Columns: cell, the choices that differ, metric, value (mean over seeds), low, high (95 %, scans resampled), seed_sd,
    redraw_sd, score_sd (of a scan's probability over redraws), n (scans); baseline, difference, difference_low,
    difference_high, p_value, detectable and p_holm, which compare the means over seeds on the scans that both have,
    scans and seeds both as a sample (`multirun.test`; of one seed each over scans alone). detectable: the smallest
    difference seen with 80 % power. p_holm corrects for all comparisons of the table on that metric.

    Raises ValueError for an unknown baseline.
    """
    baseline = baseline or next(iter(results))
    partners = dict.fromkeys(results, baseline) | dict(against or {})
    if unknown := sorted({*partners, *partners.values()} - set(results)):
        raise ValueError(f"no result {unknown[0]!r} to compare; there are {', '.join(results)}")
    varied = differences([result.setting for result in results.values()]).set_axis(list(results))
    tables = {}
    for name, result in results.items():
        first = result.scores[result.scores["draw"] == 0].drop(columns="draw")
        table = metrics.pooled(first, rng=rng, n_boot=n_boot).drop(columns="method")  # a choice may have that name
        spread = pd.Series(stability(result.scores))
        table = table.set_index("metric").loc[list(METRICS)].assign(redraw_sd=spread, baseline="")
        if partners[name] != name:
            paired = _paired(results[partners[name]].scores, result.scores)
            table = table.assign(baseline=partners[name]).join(paired)
        tables[name] = table.assign(score_sd=spread["probability"])
    columns = ["cell", *varied.columns, "metric", "value", "low", "high", "seed_sd", "redraw_sd", "score_sd", "n"]
    columns += ["baseline", "difference", "difference_low", "difference_high", "p_value", "detectable"]
    table = pd.concat(tables, names=["cell", "metric"]).reset_index().join(varied, on="cell").reindex(columns=columns)
    table["p_holm"] = table.groupby("metric")["p_value"].transform(lambda p: metrics.adjust(p))
    return table


def finished(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The comparisons of the sweeps in a folder, by the sweep's name."""
    return {path.parent.name: pd.read_csv(path) for path in sorted(Path(folder).glob("*/comparison.csv"))}


def effects(comparison: pd.DataFrame) -> pd.DataFrame:
    """Differences as `register.register` takes them: id (how the cell's name begins), metric, value, low, high, n."""
    rows = comparison[comparison["difference"].notna()]
    named = rows["metric"].map(words.name) + ", trained both ways, " + rows["cell"] + " less " + rows["baseline"]
    table = rows.assign(id=rows["cell"].str.extract(r"^([A-Z]\d+)")[0], metric=named).dropna(subset="id")
    names = {"difference": "value", "difference_low": "low", "difference_high": "high"}
    return table[["id", "metric", *names, "n"]].rename(columns=names).astype({"n": int})


def _paired(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Of the scans that both scored, the means over seeds compared: other - one, by metric.

    Equal seeds are pairs (of subset and initialisation); otherwise each side's seeds vary on their own.
    """
    tables = [
        scores[scores["draw"] == 0].pivot(index=["scan_id", "label"], columns="seed", values="probability")
        for scores in (one, other)
    ]
    both = tables[0].index.intersection(tables[1].index).sort_values()
    labels, first = both.get_level_values("label").to_numpy(), other.drop_duplicates("scan_id")
    patients = pd.Series(patient_of(first), index=first["scan_id"])[both.get_level_values("scan_id")].to_numpy()
    rows = {}
    for metric in METRICS:
        if min(len(set(patients[labels == value])) for value in (0, 1)) < 2:
            continue
        a, b = (metrics.runs(labels, t.loc[both].to_numpy().T, metric, patients=patients) for t in tables)
        paired = tables[0].columns.equals(tables[1].columns)
        rows[metric] = multirun.test(b - a) if paired else multirun.test(b, a)
    return pd.DataFrame.from_dict(rows, orient="index").rename(
        columns={"low": "difference_low", "high": "difference_high"}
    )
