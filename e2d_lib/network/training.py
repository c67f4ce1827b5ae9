"""Training E2D: epochs of train, score, keep; a killed run goes on as if it had not been killed.

Random numbers come from `slices.stream`, keyed by seed, purpose, epoch and step. A state at an epoch's end therefore
needs no generator: the seed and the epoch are that state.
"""

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.utils import ModelEmaV3
from torch.nn import functional as F

from e2d_lib import io
from e2d_lib.network import memory
from e2d_lib.network.augment import Augment
from e2d_lib.network.checkpoint import SELECTED, STATE, load, read_state, save, write_state
from e2d_lib.network.device import TrainingError, autocast, free, precision, resolve_device, seeded, settled
from e2d_lib.network.inference import infer, predict
from e2d_lib.network.model import E2D, ModelConfig, build
from e2d_lib.network.recipe import Recipe
from e2d_lib.network.slices import BLANK, UNKNOWN, Batch, ScanSlices, batches, few_shot, plan, stream, visits
from e2d_lib.progress import bar

__all__ = ["Fit", "ModelConfig", "Recipe", "TrainingError", "fit", "load", "predict", "resolve_device", "save"]


# --- scores -------------------------------------------------------------------------------------------------------


def scores(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Loss over slices, AUC and macro F1 over scans. logits, targets: (n, n_samples); weights: (n,) of the scans.

    A scan's probability is the mean of its slices' sigmoids, cut at 0.5; its label the mean of its targets, likewise
    (the released loader can leave 7/8 there). AUC is NaN where one class is missing.
    """
    from sklearn.metrics import f1_score, roc_auc_score

    loss = np.logaddexp(0, logits) - targets * logits  # BCE with logits
    probability = (1 / (1 + np.exp(-logits))).mean(axis=1)
    label = targets.mean(axis=1) > 0.5
    auc = roc_auc_score(label, probability, sample_weight=weights) if len(np.unique(label)) == 2 else math.nan
    f1 = f1_score(label, probability >= 0.5, average="macro", sample_weight=weights, zero_division=0.0)
    return {"loss": float(np.average(loss.mean(axis=1), weights=weights)), "auc": float(auc), "f1": float(f1)}


def better(new: float, old: float | None, criterion: str) -> bool:
    """Strictly, so that of equal epochs the first is kept."""
    return old is None or (new < old if criterion == "loss" else new > old)


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear rise over the warm-up, then half a cosine down to zero, or constant."""
    rise = round(recipe.warmup * steps)
    if step < rise:
        return recipe.lr * (step + 1) / (rise + 1)
    if recipe.schedule == "none":
        return recipe.lr
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


# --- the run ------------------------------------------------------------------------------------------------------


@dataclass
class Fit:
    """What a run leaves: the selected network, its validation predictions, the history, the checkpoint's path."""

    model: E2D
    history: pd.DataFrame  # epoch (from 1), lr, loss, valid_loss, valid_auc, valid_f1, and inner_* with an inner split
    predictions: pd.DataFrame  # as of predict, of the validation scans, with label and (as trained on) target
    epoch: int  # the selected one
    epoch_by: str  # what selected it
    path: Path
    inner: ScanSlices | None  # the training scans that were held out, to choose the epoch and thresholds by


def fit(
    slices_train: ScanSlices,
    slices_valid: ScanSlices | None,
    *,
    model: ModelConfig,
    recipe: Recipe,
    out_dir: str | Path,
    callback: Callable[[pd.DataFrame], None] | None = None,
    tensorboard: bool = False,
) -> Fit:
    """Train, score every epoch, keep the selected one; continue where a killed run stopped.

    Writes ``model.safetensors`` (selected weights) and ``training.pt`` (to resume) to out_dir at each epoch's end; on a
    CPU with as many threads a resumed run ends with the very weights of an undisturbed one. callback gets the history
    so far. A run has one device; several GPUs take several runs.
    Raises TrainingError: empty or one-class training or validation scans, other settings or data than those of the run
    found in out_dir, a loss that is not finite.
    """
    with settled(recipe):
        parts = split(slices_train, slices_valid, recipe)
        run = begin(parts, replace(model, normalise=recipe.normalise, size=slices_train.size), recipe, Path(out_dir))
        images = sum(len(step) for step in visits(parts["train"], recipe, 1)) * recipe.n_samples
        done = len(run.history)
        shown = bar(total=images * recipe.epochs, initial=images * done, desc="training", unit="img", unit_scale=True)
        told = memory.told(run.at_once, slices_train.size)
        if run.at_once < run.images_a_step:
            shown.write(
                f"{run.images_a_step} slices a step go through the network {run.at_once} at a time: "
                "the same loss, but batch normalisation sees the smaller batches"
            )
        with told, shown, _writer(run.out_dir) if tensorboard else contextlib.nullcontext() as log:
            for epoch in range(done + 1, recipe.epochs + 1):
                row = {"epoch": epoch, "lr": run.rate(epoch * run.steps_an_epoch - 1)}
                row["loss"] = train_epoch(run, parts["train"], epoch, shown.update)
                for name in ("valid", "inner"):
                    if name in parts:
                        row |= {f"{name}_{key}": value for key, value in score(run, parts[name], epoch).items()}
                run.history.append(row)
                keep(run, epoch)
                for key, value in row.items() if log else ():
                    log.add_scalar(key, value, epoch)
                shown.set_postfix({key: f"{value:.3g}" for key, value in row.items() if key != "lr"})
                if callback:
                    callback(pd.DataFrame(run.history))
        net, _ = load(run.out_dir / SELECTED, device=str(run.device))
        found = predict(net, parts.get("valid", slices_train.subset([])), recipe=recipe)
        found["target"] = found["label"].where(found["index"] != BLANK, 0)
    inner, chosen, history = parts.get("inner"), run.best["epoch"], pd.DataFrame(run.history)
    return Fit(net, history, found, chosen, selection(recipe, inner), run.out_dir / SELECTED, inner)


def split(train: ScanSlices, valid: ScanSlices | None, recipe: Recipe) -> dict[str, ScanSlices]:
    """``train``, ``valid`` where there is one, and ``inner``: training patients held out, if the recipe asks for it.

    An inner set under ``recipe.inner_least`` scans, or of one class, chooses nothing: all scans are then trained on.
    Raises TrainingError where a class is missing, or there is nothing to select an epoch by.
    """
    check_classes(train, "training set")
    parts = {"train": train}
    if valid is not None:
        check_classes(valid, "validation fold")
        parts["valid"] = valid
    if recipe.select == "inner":
        held = few_shot(train.scan_ids, train.labels, recipe.inner_fraction, recipe.seed, patients=train.patients)
        if len(held) >= recipe.inner_least and len(set(train.labels[held])) == 2:
            parts |= {"train": train.subset(np.setdiff1d(np.arange(len(train)), held)), "inner": train.subset(held)}
            check_classes(parts["train"], "training set without its inner split (use select='last')")
    if recipe.select == "reported_fold" and valid is None:
        raise TrainingError("select='reported_fold' needs a validation fold")
    return parts


def selection(recipe: Recipe, inner: ScanSlices | None) -> str:
    """What selects the epoch, in words.

    >>> selection(Recipe(), None)
    'last epoch: too few scans to hold 10 of both classes out'
    """
    if recipe.select == "last":
        return "last epoch"
    if recipe.select == "inner" and inner is None:
        return f"last epoch: too few scans to hold {recipe.inner_least} of both classes out"
    return f"{recipe.select_by} of " + (f"{len(inner)} scans held out" if inner else "the reported fold")


@dataclass
class State:
    """Of one run: network, averaged weights, optimiser, scaler, history."""

    net: E2D
    recipe: Recipe
    device: torch.device
    out_dir: Path
    steps_an_epoch: int
    at_once: int  # slices in one forward and backward pass
    same: dict[str, Any]  # what makes it this run
    history: list[dict[str, float]]  # one row an epoch
    best: dict[str, Any]  # epoch and score

    def __post_init__(self) -> None:
        net, recipe, kind = self.net, self.recipe, self.device.type
        self.trained = torch.compile(net) if recipe.compile else net  # what is called in training
        self.average = ModelEmaV3(net, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        optimiser = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser]
        fused = kind in ("cuda", "cpu")  # one pass over all weights in place of a loop
        self.optimiser = optimiser(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
        self.scaler = torch.amp.GradScaler(kind, enabled=precision(recipe.amp, self.device) == torch.float16)
        self.augment = Augment(recipe.strengths) if recipe.augment else None

    def rate(self, number: int) -> float:
        return learning_rate(number, self.recipe.epochs * self.steps_an_epoch, self.recipe)

    @property
    def trained_parts(self) -> dict[str, Any]:
        """What a state to resume from holds."""
        parts = {"net": self.net, "optimiser": self.optimiser, "scaler": self.scaler}
        return parts | ({"average": self.average.module} if self.average else {})

    @property
    def images_a_step(self) -> int:
        return self.recipe.scans_per_step * self.recipe.n_samples

    @property
    def evaluated(self) -> E2D:
        return self.average.module if self.average else self.net


def begin(parts: dict[str, ScanSlices], config: ModelConfig, recipe: Recipe, out_dir: Path) -> State:
    """A new run, or where an earlier one of the same settings and data was left; another one's folder is refused."""
    steps = len(visits(parts["train"], recipe, 1))
    if not steps:
        raise TrainingError(
            f"{len(parts['train'])} training scans do not fill one step of {recipe.scans_per_step}: "
            "use a smaller scans_per_step, or drop_last=False"
        )
    data = [[part.scan_ids, part.labels, part.widths, part.n_slices] for part in parts.values()]
    same = {"model": asdict(config), "recipe": asdict(recipe), "scans": {"digest": io.digest(data)}}
    same = json.loads(io.dumps(same))
    saved = read_state(out_dir / STATE) or {}
    if saved:
        check_same(saved["same"], same, out_dir)
    device = resolve_device(recipe.device)
    net = build(replace(config, pretrained=False) if saved else config, seed=recipe.seed)
    net.config = config
    net.to(device, memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)
    at_once = recipe.micro_batch or saved.get("at_once")  # a resumed run goes on as it began
    if not at_once:
        images, dtype = recipe.scans_per_step * recipe.n_samples, precision(recipe.amp, device)
        at_once = memory.fitting(config, images, parts["train"].size, dtype, free(device))
    history, best = saved.get("history", []), saved.get("best", {"epoch": 0, "score": None})
    run = State(net, recipe, device, out_dir, steps, at_once, same, history, best)
    if "net" in saved:  # else it begins, or is finished and nothing is left to train
        for name, part in run.trained_parts.items():
            part.load_state_dict(saved[name])
    return run


def train_epoch(run: State, train: ScanSlices, epoch: int, shown: Callable[[int], Any]) -> float:
    """One pass over the training scans; the mean loss over its images."""
    recipe = run.recipe
    steps = visits(train, recipe, epoch)
    plans = (plan(train, rows, recipe, "train", epoch) for rows in steps)
    generator = torch.Generator().manual_seed(int(stream(recipe.seed, "augment", epoch, 0).integers(2**62)))
    previous, total = None, torch.zeros((), device=run.device)
    run.trained.train()
    with seeded(run.device, int(stream(recipe.seed, "drop path", epoch, 0).integers(2**62))):
        for number, (rows, now) in enumerate(zip(steps, batches(train, plans, run.device), strict=True)):
            images = run.augment(now.pixels, generator) if run.augment else now.pixels
            loss = step(run, images, now, (epoch - 1) * run.steps_an_epoch + number)
            check_finite(run, previous, epoch, number)  # one step late: a GPU then has the next step waiting
            total, previous = total + loss, loss
            shown(len(rows) * recipe.n_samples)
    check_finite(run, previous, epoch, len(steps))
    return total.item() / (sum(map(len, steps)) * recipe.n_samples)


def step(run: State, images: torch.Tensor, now: Batch, number: int) -> torch.Tensor:
    """One step of the optimiser, ``number`` counted over the run; the summed loss. images: (N, 1, S, S), augmented."""
    for group in run.optimiser.param_groups:
        group["lr"] = run.rate(number)
    total = torch.zeros((), device=run.device)
    parts = (whole.split(run.at_once) for whole in (images, now.blank, now.targets))
    for pixels, blank, targets in zip(*parts, strict=True):
        with autocast(precision(run.recipe.amp, run.device), run.device):
            logits = run.trained(pixels, blank)
        loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
        run.scaler.scale(loss / len(now.targets)).backward()  # gradients of the parts add up to the step's
        total += loss.detach()
    run.scaler.step(run.optimiser)
    run.scaler.update()
    run.optimiser.zero_grad(set_to_none=True)
    if run.average:
        run.average.update(run.net, step=number)
    return total


def score(run: State, slices: ScanSlices, epoch: int) -> dict[str, float]:
    """Loss, AUC and macro F1 of the evaluated weights on some scans."""
    what = plan(slices, np.arange(len(slices)), run.recipe, "score")
    targets = np.where(what.positions == BLANK, 0, slices.labels[:, None])
    weights = slices.n_slices if run.recipe.score_by == "slice_row" else np.ones(len(slices))
    logits = infer(run.evaluated, slices, what, run.recipe, run.device).cpu()
    check_finite(run, logits, epoch, run.steps_an_epoch)
    return scores(logits.numpy().astype(np.float64), targets, weights)


def keep(run: State, epoch: int) -> None:
    """Write the selected weights if this epoch is the one, then the state to resume from."""
    recipe, row = run.recipe, run.history[-1]
    # no such score: select is "last", or there were too few scans for an inner set
    score = row.get(f"{'valid' if recipe.select == 'reported_fold' else recipe.select}_{recipe.select_by}")
    if score is not None and math.isnan(score):
        raise TrainingError(
            f"epoch {epoch} cannot be selected by {recipe.select_by}: it is not a number (one class only?)"
        )
    if score is None or better(score, run.best["score"], recipe.select_by):
        run.best = {"epoch": epoch, "score": score}
        save(run.out_dir / SELECTED, run.evaluated, recipe, epoch=epoch, score=score, at_once=run.at_once)
    state: dict[str, Any] = {"same": run.same, "history": run.history, "best": run.best, "at_once": run.at_once}
    if epoch < recipe.epochs:
        state |= {name: part.state_dict() for name, part in run.trained_parts.items()}
    write_state(run.out_dir / STATE, state)


def check_finite(run: State, values: torch.Tensor | None, epoch: int, number: int) -> None:
    """Stop when a loss, or a logit at the epoch's end, is not a number."""
    if values is None or values.isfinite().all():
        return
    kept = f"the last good checkpoint is {run.out_dir / SELECTED}, of epoch {run.best['epoch']}"
    raise TrainingError(
        f"the loss is not finite at epoch {epoch}, step {number} of {run.steps_an_epoch}: lower lr (now "
        f"{run.recipe.lr:g}) or set amp='off'; {kept if run.best['epoch'] else 'there is no checkpoint yet'}"
    )


def check_same(theirs: dict[str, Any], mine: dict[str, Any], out_dir: Path) -> None:
    """Raise TrainingError where out_dir holds a run of other settings or scans; the device may be another."""
    changed = [
        f"{part}.{key}: {theirs[part].get(key)!r} -> {mine[part].get(key)!r}"
        for part in mine
        for key in sorted(mine[part].keys() | theirs[part].keys())
        if mine[part].get(key) != theirs[part].get(key) and key != "device"
    ]
    if changed:
        raise TrainingError(
            f"{out_dir} holds another run ({'; '.join(changed)}): use another out_dir, or delete this one"
        )


def check_classes(slices: ScanSlices, what: str) -> None:
    """Raise TrainingError unless both classes are there and every label is known."""
    negative, positive, unknown = (int((slices.labels == label).sum()) for label in (0, 1, UNKNOWN))
    if unknown:
        raise TrainingError(f"{what}: {unknown} of {len(slices)} scans have no label")
    if not (negative and positive):
        missing = "no scan at all" if not len(slices) else "no positive scan" if negative else "no negative scan"
        raise TrainingError(
            f"{what}: {missing} among {len(slices)} ({positive} positive, {negative} negative); "
            "training and AUC need both classes"
        )


def _writer(out_dir: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(out_dir / "tensorboard")
