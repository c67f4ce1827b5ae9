"""The frozen tier: heads on features that a pretrained network gave once: a setting costs a fraction of a second.

A setting is a sampler, a window, crop or none, and a share of the training scans. Every setting is fitted in
replicates: replicate r has its own subset of the training scans and its own draws of all scans' slices, and is the same
r in every setting, so that settings are compared replicate by replicate (`multirun`).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from e2d_lib.evaluation import metrics, multirun, sampling
from e2d_lib.method import preprocess
from e2d_lib.method.ssfl import slice_window
from e2d_lib.network.features import Features, extract
from e2d_lib.network.slices import few_shot, stream
from e2d_lib.progress import bar
from e2d_lib.scans.patients import classes, patient_of

AXES: dict[str, tuple[Any, ...]] = {
    "method": ("kds", "random", "systematic", "spaced"),
    "n_samples": (8, 4, 16),
    "n_intervals": (4, 8),
    "fraction": (0.5, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0),
    "crop": (True, False),
    "few_shot": (1.0, 0.5, 0.3, 0.1, 0.05, 0.03, 0.01),
}
"""The full factorial; the first of each is the paper's choice."""

PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""C of scikit-learn's logistic regression to choose from, of features scaled to a mean square norm of one."""

INTERCEPT = 100.0
"""Prior variance of the intercept beside C times the weights': large, so that it is next to free."""

Head = Literal["scan", "slice"]


class Data(NamedTuple):
    """Scans to train on and to score, by position among the features' scans.

    features: by crop, of the same scans; labels: (n,) 0 or 1; patients: (n,), whose; train, valid: positions.
    """

    features: Mapping[bool, Features]
    labels: np.ndarray
    patients: np.ndarray
    train: np.ndarray
    valid: np.ndarray


def data(features: Mapping[bool, Features], cohort: pd.DataFrame, fold: int = 5) -> Data:
    """Of the scans with label and fold, those in ``fold`` to be scored and all others to train on.

    Raises ValueError where features with and without crop are of other scans, or a class is missing on either side.
    """
    names = [one.scan_ids for one in features.values()]
    if any(one != names[0] for one in names):
        raise ValueError("features with and without the crop are of other scans; extract both of the same ones")
    table = cohort.set_index("scan_id", drop=False).loc[list(names[0])]
    known = table[["label", "fold"]].notna().all(axis=1).to_numpy()
    labels = table["label"].fillna(-1).to_numpy(dtype=np.int64)
    here = table["fold"].eq(fold).fillna(False).to_numpy(dtype=bool)
    found = Data(features, labels, patient_of(table), np.flatnonzero(known & ~here), np.flatnonzero(known & here))
    for side, rows in (("train on", found.train), (f"score in fold {fold}", found.valid)):
        if len(np.unique(labels[rows])) < 2:
            raise ValueError(f"{len(rows)} scans to {side}: both classes are needed")
    return found


def settings(axes: Mapping[str, Sequence[Any]] = AXES) -> pd.DataFrame:
    """Every combination, one a row; n_intervals is <NA> for samplers without, and never above n_samples."""
    samplers = sampling.settings(axes["method"], axes["n_samples"], axes["n_intervals"])
    rest = itertools.product(*(axes[name] for name in ("crop", "fraction", "few_shot")))
    rows = [{**one, "crop": c, "fraction": f, "few_shot": share} for c, f, share in rest for one in samplers]
    return pd.DataFrame(rows).astype({"n_intervals": "Int64"})


def draws(
    features: Features, sampler: Mapping[str, Any], fraction: float, *, replicates: int, seed: int = 0
) -> np.ndarray:
    """(replicates, n, n_samples) rows of ``features.values``: drawn from the window of each scan.

    They depend on the scan's areas and name, sampler, fraction and seed: with and without the crop they are the same.
    """
    found = []
    n_intervals = None if pd.isna(sampler["n_intervals"]) else int(sampler["n_intervals"])
    for name, first, areas in zip(features.scan_ids, features.starts, features.areas, strict=True):
        start, stop = slice_window(areas, fraction)
        rng = stream(seed, "frozen", name, sampler["method"], sampler["n_samples"], n_intervals or 0, f"{fraction:g}")
        groups = sampling.design(areas[start:stop], sampler["n_samples"], n_intervals, sampler["method"])
        found.append(sampling.draws(groups, redraws=replicates, rng=rng) + first + start)
    return np.stack(found, axis=1)


def run(
    data: Data,
    table: pd.DataFrame,
    *,
    head: Head = "scan",
    replicates: int = 10,
    seed: int = 0,
) -> np.ndarray:
    """(settings, replicates, valid) float32 probabilities of every setting in ``table`` (`settings`).

    head: "scan", logistic regression on the mean of a scan's drawn features; "slice", on every drawn slice with its
    scan's label, probabilities averaged (the paper's form). The penalty is chosen inside the training scans.
    """
    scores = np.empty((len(table), replicates, len(data.valid)), np.float32)
    drawn_alike = ["method", "n_samples", "n_intervals", "fraction", "crop"]
    with bar(total=len(table) * replicates, desc=f"{head} head", unit="fit") as progress:
        for _, same in table.reset_index(drop=True).groupby(drawn_alike, sort=False, dropna=False):
            one = same.iloc[0]
            features = data.features[bool(one["crop"])]
            drawn = draws(features, one, float(one["fraction"]), replicates=replicates, seed=seed)
            inputs = torch.from_numpy(features.values)[torch.from_numpy(drawn)]  # (replicates, n, s, d)
            inputs = inputs.mean(2, dtype=torch.float32) if head == "scan" else inputs
            for row, share in same["few_shot"].items():
                scores[row] = _fitted(data, inputs, float(share), head=head, seed=seed)
                progress.update(replicates)
    return scores


def _fitted(data: Data, inputs: torch.Tensor, share: float, *, head: Head, seed: int) -> np.ndarray:
    """(replicates, valid) probabilities of one setting."""
    names = [data.features[next(iter(data.features))].scan_ids[row] for row in data.train]
    train = names, data.labels[data.train], share
    patients = data.patients[data.train]
    subsets = [
        data.train[few_shot(*train, int(stream(seed, "subset", r).integers(2**31)), patients=patients)]
        for r in range(len(inputs))
    ]
    scores = np.empty((len(inputs), len(data.valid)), np.float32)
    sizes = np.array([len(rows) for rows in subsets])
    for size in np.unique(sizes):  # as many patients, but not always as many scans
        same = np.flatnonzero(sizes == size)
        rows = np.stack([subsets[r] for r in same])
        seen, unseen = inputs[torch.from_numpy(same)[:, None], torch.from_numpy(rows)], inputs[same][:, data.valid]
        fit = scan_head if head == "scan" else slice_head
        scores[same] = fit(seen, data.labels[rows], unseen, data.patients[rows])
    return scores


def scan_head(train: torch.Tensor, labels: np.ndarray, test: torch.Tensor, patients: np.ndarray) -> np.ndarray:
    """L2-penalised logistic regressions, many at once: (R, m, d), (R, m), (R, k, d), (R, m) -> (R, k) float32
    probabilities.

    Features are standardised by the training scans. Few scans have many features, so the fit is in the scans' kernel,
    where it is the same (Rasmussen & Williams, Gaussian Processes for Machine Learning, MIT Press 2006, algorithm 3.1,
    Newton steps). The penalty has the least log loss over stratified inner folds of patients, of `PENALTIES`.
    """
    centre = train.mean(1, keepdim=True)
    spread = train.std(1, keepdim=True, correction=0)
    spread = spread + spread.mean(2, keepdim=True) * 0.1 + 1e-12
    train, test = ((part - centre) / spread for part in (train, test))
    scale = train.square().sum(2).mean(1)[:, None, None]
    kernel, cross = (part @ train.mT / scale for part in (train, test))
    y = torch.from_numpy(labels).float()
    penalty = _penalty(kernel, y, _inner_folds(labels, patients))
    kernel, cross, y = kernel.double(), cross.double(), y.double()
    dual = _newton(_with_intercept(kernel, penalty), y, torch.ones_like(y))
    return torch.sigmoid((_with_intercept(cross, penalty) @ dual[..., None])[..., 0]).float().numpy()


def _inner_folds(labels: np.ndarray, patients: np.ndarray, n_folds: int = 5) -> np.ndarray:
    """(R, m) labels, patients -> (R, m) folds: each class's patients dealt out in turn; where a class has fewer than
    `n_folds`, one patient a fold."""
    places, fewest = np.empty(labels.shape, np.int64), n_folds
    for row, own, whose in zip(places, labels, patients, strict=True):
        of, found = classes(whose, own)
        turn = np.where(found == 1, np.cumsum(found == 1), np.cumsum(found == 0)) - 1
        row[:], fewest = turn[of], min(fewest, int((found == 1).sum()), int((found == 0).sum()))
    return places % max(1, fewest)


def _penalty(kernel: torch.Tensor, y: torch.Tensor, folds: np.ndarray) -> torch.Tensor:
    """(R,) the penalty of each; the middle one where a class has one scan, which leaves no inner folds."""
    grid = torch.tensor(PENALTIES)
    if folds.max() == 0:
        return grid[len(grid) // 2].expand(len(y))
    kept = torch.from_numpy(np.arange(folds.max() + 1)[:, None, None] != folds).float()  # (F, R, m)
    every = _with_intercept(kernel, grid[:, None].expand(-1, len(y)))[:, None]  # (C, 1, R, m, m)
    dual = _newton(every, y, kept)
    logit = (every @ dual[..., None])[..., 0]
    loss = torch.nn.functional.softplus(torch.where(y == 1, -logit, logit))
    return grid[(loss * (1 - kept)).sum((1, 3)).argmin(0)]


def _with_intercept(kernel: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return kernel * penalty[..., None, None] + INTERCEPT


def _newton(kernel: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, steps: int = 30) -> torch.Tensor:
    """(…, m) dual coefficients a of logits K a at the penalised maximum; scans of weight 0 are left out."""
    shape = torch.broadcast_shapes(kernel.shape[:-1], weights.shape)
    logit = torch.zeros(shape, dtype=kernel.dtype)
    tolerance = 1e-6 if kernel.dtype == torch.float64 else 1e-2
    for _ in range(steps):
        p = torch.sigmoid(logit)
        curvature = weights * p * (1 - p)
        root = curvature.sqrt()
        target = curvature * logit + weights * (y - p)
        curved = kernel * root[..., :, None]
        curved.mul_(root[..., None, :]).diagonal(dim1=-2, dim2=-1).add_(1)
        factor = torch.linalg.cholesky(curved)
        inner = root * (kernel @ target[..., None])[..., 0]
        dual = target - root * torch.cholesky_solve(inner[..., None], factor)[..., 0]
        before, logit = logit, (kernel @ dual[..., None])[..., 0]
        if (logit - before).abs().max() < tolerance:
            break
    return dual


def slice_head(train: torch.Tensor, labels: np.ndarray, test: torch.Tensor, patients: np.ndarray) -> np.ndarray:
    """As `scan_head`, on slices: (R, m, s, d), (R, m), (R, k, s, d), (R, m) -> (R, k), the mean of a scan's
    probabilities. By scikit-learn.
    """
    from sklearn.linear_model import LogisticRegression

    scores = np.empty(test.shape[:2], np.float32)
    for r, folds in enumerate(_inner_folds(labels, patients, 3)):
        centre, spread = train[r].mean((0, 1)), train[r].std((0, 1), correction=0)
        spread = spread + spread.mean() * 0.1 + 1e-12
        x, unseen = (((part[r] - centre) / spread).numpy() for part in (train, test))
        scale = np.sqrt(np.square(x).sum(-1).mean())
        x, unseen, y = x / scale, unseen / scale, np.repeat(labels[r][:, None], x.shape[1], axis=1)

        def fit(rows: np.ndarray, penalty: float, x: np.ndarray = x, y: np.ndarray = y) -> Any:
            head = LogisticRegression(C=penalty / x.shape[1], max_iter=300)
            return head.fit(x[rows].reshape(-1, x.shape[-1]), y[rows].ravel())

        losses = dict.fromkeys(PENALTIES, 0.0) if folds.max() else {PENALTIES[len(PENALTIES) // 2]: 0.0}
        for penalty, fold in itertools.product(losses, range(folds.max() + 1) if folds.max() else ()):
            own = folds == fold
            logit = fit(~own, penalty).decision_function(x[own].reshape(-1, x.shape[-1])).reshape(own.sum(), -1)
            losses[penalty] += float(np.logaddexp(0, np.where(y[own] == 1, -logit, logit)).sum())
        best = fit(np.ones(len(folds), bool), min(losses, key=losses.get))
        found = best.predict_proba(unseen.reshape(-1, x.shape[-1]))[:, 1]
        scores[r] = found.reshape(unseen.shape[:2]).mean(1)
    return scores


class Tier(NamedTuple):
    """What `study` gave. settings: one a row; labels, patients: (valid,); scores: (settings, replicates, valid)."""

    settings: pd.DataFrame
    labels: np.ndarray
    scores: np.ndarray
    about: dict[str, Any]
    patients: np.ndarray | None = None


def study(
    cohort: pd.DataFrame,
    cache: str | Path,
    params: preprocess.Params,
    axes: Mapping[str, Sequence[Any]],
    *,
    fold: int = 5,
    head: Head = "scan",
    replicates: int = 10,
    seed: int = 0,
    n_jobs: int = -1,
    **network: Any,
) -> Tier:
    """Preprocess whole scans, extract their features, fit every setting of the factorial.

    axes: those of `AXES` that vary, the baseline first; others have the paper's choice. network: of `features.extract`.
    Raises what these do: WeightsUnavailable where the network's weights cannot be had.
    """
    axes = {name: tuple(axes.get(name, values[:1])) for name, values in AXES.items()}
    found = {}
    for crop in axes["crop"]:
        done = preprocess.run(cohort, cache, replace(params, crop=crop, fraction=1.0), n_jobs=n_jobs, wait=True)
        found[crop] = extract(done, list(cohort.loc[cohort["label"].notna(), "scan_id"]), **network)
    scans, table = data(found, cohort, fold), settings(axes)
    scores = run(scans, table, head=head, replicates=replicates, seed=seed)
    about = found[axes["crop"][0]].about
    return Tier(table, scans.labels[scans.valid], scores, about, scans.patients[scans.valid])


def summary(tier: Tier) -> pd.DataFrame:
    """The settings with each metric's mean over replicates, and its SD (``_sd``)."""
    table = tier.settings.copy()
    for metric in multirun.METRICS:
        values = np.stack([metrics.runs(tier.labels, scores, metric).values for scores in tier.scores])
        table[metric] = values.mean(1)
        table[f"{metric}_sd"] = values.std(1, ddof=1) if values.shape[1] > 1 else np.nan
    return table


def effects(tiers: Sequence[Tier]) -> pd.DataFrame:
    """What each choice changes, tested over scans and replicates; of several cohorts the mean, their scans apart.

    One row a level of an axis (its first is its baseline), share of the training scans and metric, in two scopes:
    "paper", with all else as in the first setting, and "average", over all other choices at once. Columns scope, axis,
    level, baseline, few_shot, metric, settings (pairs), baseline_value, those of `multirun.test`, n, and p_holm,
    which corrects within scope, metric and axis.
    """
    table = tiers[0].settings
    measured = {
        metric: [[metrics.runs(tier.labels, s, metric, patients=tier.patients) for s in tier.scores] for tier in tiers]
        for metric in multirun.METRICS
    }
    first, rows = table.iloc[0], []
    for axis, (share, same) in itertools.product(AXES, table.groupby("few_shot", sort=False)):
        base = first[axis]
        same = table if axis == "few_shot" else same
        levels = [level for level in table[axis].dropna().unique() if level != base]
        for level, scope in itertools.product(levels, ("paper", "average")):
            pairs = _pairs(same, axis, level, base, None if scope == "average" else first)
            if not len(pairs) or (axis == "few_shot" and share != base):
                continue
            for metric, cohorts in measured.items():
                one, other = (
                    multirun.mean([multirun.mean([runs[i] for i in side]) for runs in cohorts], same_scans=False)
                    for side in (pairs["index_base"], pairs["index"])
                )
                row = {"scope": scope, "axis": axis, "level": str(level), "baseline": str(base), "metric": metric}
                row |= {"few_shot": level if axis == "few_shot" else share, "settings": len(pairs)}
                row |= {"baseline_value": one.values.mean(), **multirun.test(other - one), "n": one.parts.shape[1]}
                rows.append(row)
    found = pd.DataFrame(rows)
    found["p_holm"] = found.groupby(["scope", "metric", "axis"])["p_value"].transform(lambda p: metrics.adjust(p))
    return found


def _pairs(table: pd.DataFrame, axis: str, level: Any, base: Any, first: pd.Series | None) -> pd.DataFrame:
    """Settings at the level beside those at the baseline that are alike in all else: index, index_base.

    A sampler without intervals stands beside the first number of intervals.
    """
    intervals = table["n_intervals"].fillna(AXES["n_intervals"][0])
    table = table.assign(n_intervals=intervals).rename_axis("index").reset_index()
    rest = [name for name in AXES if name != axis]
    if first is not None:
        others = [name for name in rest if name != "few_shot"]
        table = table[(table[others] == first[others]).all(axis=1)]
    return table[table[axis] == level].merge(table[table[axis] == base], on=rest, suffixes=("", "_base"))
