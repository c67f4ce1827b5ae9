"""Training E2D: the recipe as one dataclass, the loop, checkpoints that resume exactly, prediction.

Random numbers come from `slices.stream`, keyed by seed, purpose, epoch and step. A checkpoint at an
epoch's end therefore needs no generator state: the seed and the epoch are that state.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from e2d_lib import io
from e2d_lib.network.model import E2D, CheckpointError, ModelConfig, ModelError, build
from e2d_lib.network.slices import BLANK, UNKNOWN, Augment, Augmentation, ScanSlices, ahead, draw, few_shot, stream
from e2d_lib.progress import bar

FORMAT = "e2d-1"
SELECTED = "model.safetensors"
STATE = "training.safetensors"


class RecipeError(ValueError):
    """A recipe that asks for something unknown."""


class TrainingError(ValueError):
    """Training that cannot start, or cannot go on."""


# --- recipe -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run. The defaults are ours; :meth:`released` is what the released code does."""

    variant: str = "corrected"  # the preset this came from; a name only
    # which slices
    n_samples: int = 8  # slices a scan
    n_intervals: int = 4  # of KDS
    method: Literal["kds", "systematic", "random"] = "kds"
    sampler: Literal["corrected", "paper", "released"] = "corrected"
    redraw: bool = True  # draw anew each epoch; released: once
    short_scans: Literal["repeat", "blank_zero"] = "repeat"  # windows the draw cannot fill; released: blank and label 0
    # what an epoch is
    visits: Literal["scan", "slice_row"] = "scan"  # released: a scan is visited once for each of its slices
    scans_per_step: int = 20  # 20 scans x 8 slices = 160 images
    drop_last: bool = False  # leave out an epoch's last, smaller step
    epochs: int = 24
    # input
    normalise: Literal["once", "twice"] = "once"
    augment: bool = True
    strengths: Augmentation = field(default_factory=Augmentation)
    # optimiser
    optimiser: Literal["adamw", "adam"] = "adamw"  # adam: weight decay as L2
    lr: float = 1e-4
    weight_decay: float = 1e-2
    schedule: Literal["cosine", "none"] = "cosine"
    warmup: float = 0.05  # share of the steps over which the rate rises
    ema: float = 0.99  # decay of the averaged weights that are evaluated and kept; 0 for none
    # which epoch is kept
    select: Literal["inner", "reported_fold", "last"] = "inner"  # reported_fold: as released, on the fold it reports
    select_by: Literal["loss", "auc", "f1"] = "loss"
    inner_fraction: float = 0.15  # of the training scans, when select is "inner"
    score_by: Literal["scan", "slice_row"] = "scan"  # slice_row: as released, scores weigh a scan by its slices
    # machine
    device: str = "auto"  # auto: CUDA, then Apple's GPU, then CPU
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"  # auto: bf16 or else fp16 on CUDA, off elsewhere
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False  # slower on a GPU; on a CPU runs repeat anyway
    seed: int = 42

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if choices := getattr(item.type, "__args__", None):  # of a Literal
                if value not in choices:
                    raise RecipeError(f"{item.name} is one of {', '.join(map(repr, choices))}, got {value!r}")
            elif type(value) is not item.type and not (item.type is float and type(value) is int):
                raise RecipeError(f"{item.name} is {item.type.__name__}, got {value!r} ({type(value).__name__})")
        for name in ("n_samples", "n_intervals", "scans_per_step", "epochs"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is at least 1, got {getattr(self, name)}")
        if not (0 <= self.ema < 1 and 0 <= self.warmup < 1 and 0 < self.inner_fraction < 1):
            raise RecipeError(
                f"ema and warmup lie in [0, 1), inner_fraction in (0, 1); got {self.ema}, {self.warmup} and "
                f"{self.inner_fraction}"
            )

    @classmethod
    def corrected(cls, **changes: Any) -> "Recipe":
        """Ours: each scan once an epoch, fresh draws, no information from the reported fold."""
        return cls.preset("corrected", **changes)

    @classmethod
    def released(cls, **changes: Any) -> "Recipe":
        """What the released code does (method.md §4, §5; 24 epochs stand there in a comment)."""
        return cls.preset("released", **changes)

    @classmethod
    def preset(cls, variant: str, **changes: Any) -> "Recipe":
        """The named preset with some settings changed; an unknown setting is an error.

        >>> Recipe.preset("released", epochs=1).normalise
        'twice'
        """
        if variant not in PRESETS:
            raise RecipeError(f"a recipe's variant is one of {', '.join(PRESETS)}, got {variant!r}")
        known = {item.name for item in fields(cls)}
        if unknown := sorted(changes.keys() - known):
            raise RecipeError(f"a recipe has no setting {unknown}; it has {sorted(known)}")
        return cls(**{"variant": variant, **PRESETS[variant], **changes})


PRESETS: dict[str, dict[str, Any]] = {
    "corrected": {},
    "released": {
        "sampler": "released",
        "redraw": False,
        "short_scans": "blank_zero",
        "visits": "slice_row",
        "drop_last": True,
        "epochs": 3,
        "normalise": "twice",
        "optimiser": "adam",
        "weight_decay": 5e-4,
        "schedule": "none",
        "warmup": 0.0,
        "ema": 0.0,
        "select": "reported_fold",
        "score_by": "slice_row",
        "amp": "fp16",
    },
}


# --- batches ------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """pixels: (N, 1, S, S) uint8; targets: (N,) float; blank: (N,) bool, no slice there. All on the device."""

    pixels: torch.Tensor
    targets: torch.Tensor
    blank: torch.Tensor


class Plan(NamedTuple):
    """Slices of some scans: positions in their windows, (n, n_samples) int64, -1 for blank; and the scans' rows."""

    rows: np.ndarray
    positions: np.ndarray


def visits(slices: ScanSlices, recipe: Recipe, epoch: int) -> list[np.ndarray]:
    """The scans of each step of an epoch: arrays of at most ``scans_per_step`` rows, shuffled."""
    times = slices.n_slices if recipe.visits == "slice_row" else 1
    rows = stream(recipe.seed, "order", epoch).permutation(np.repeat(np.arange(len(slices)), times))
    steps = [rows[k : k + recipe.scans_per_step] for k in range(0, len(rows), recipe.scans_per_step)]
    return [step for step in steps if not recipe.drop_last or len(step) == recipe.scans_per_step]


def plan(slices: ScanSlices, rows: np.ndarray, recipe: Recipe, purpose: str, turn: int = 0) -> Plan:
    """Draw the slices of the scans at ``rows``. A scan's draw depends on seed, purpose, turn and its name alone."""
    options = {k: getattr(recipe, k) for k in ("n_samples", "n_intervals", "method", "short_scans")}
    turn = turn if recipe.redraw else 0

    def one(row: int) -> np.ndarray:
        rng = stream(recipe.seed, purpose, turn, slices.scan_ids[row])
        return draw(slices.areas[row], variant=recipe.sampler, rng=rng, **options)

    return Plan(np.asarray(rows), np.stack([one(row) for row in rows]))


def every_slice(slices: ScanSlices, rows: np.ndarray) -> list[Plan]:
    """All slices of the windows of the scans at ``rows``, a plan for each scan."""
    return [Plan(np.array([row]), np.arange(slices.widths[row])[None]) for row in rows if slices.widths[row]]


def batch(slices: ScanSlices, what: Plan, device: torch.device, *, rank: int = 0, world: int = 1) -> Batch:
    """The planned slices, flattened scan by scan; of these the share of one process among ``world``."""
    blank = what.positions == BLANK
    flat = np.where(blank, 0, slices.starts[what.rows, None] + what.positions)  # (n, n_samples)
    targets = np.where(blank, 0, slices.labels[what.rows, None])  # a blank input is labelled 0 whatever the class
    flat, targets, blank = (np.array_split(part.ravel(), world)[rank] for part in (flat, targets, blank))
    return Batch(
        slices.gather(flat, device),
        torch.from_numpy(targets.astype(np.float32)).to(device, non_blocking=True),
        torch.from_numpy(blank).to(device, non_blocking=True),
    )


def batches(
    slices: ScanSlices, plans: Iterable[Plan], device: torch.device, *, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """The batches of the plans, made one ahead in a thread.

    Not where the slices lie in the CPU's memory and are used there: the gathering takes next to no time, and torch's
    workers for a second thread would take a quarter of the speed from those of the model.
    """
    made = (batch(slices, what, device, rank=rank, world=world) for what in plans)
    on_cpu = device.type == "cpu" and isinstance(slices.pixels, torch.Tensor)
    return made if on_cpu else ahead(made)


# --- machine ------------------------------------------------------------------------------------------------------


def resolve_device(name: str = "auto") -> torch.device:
    """A torch device; "auto" is CUDA, then Apple's GPU, then CPU."""
    if name == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device {name!r} asked for, but torch finds no CUDA: use device='auto' or 'cpu'")
    return device


def precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type, None for full precision. fp16 needs CUDA, and is off elsewhere."""
    if amp == "auto":
        amp = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if device.type == "cuda" else "off"
    if amp == "fp16" and device.type != "cuda":
        amp = "off"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def autocast(dtype: torch.dtype | None, device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


@contextlib.contextmanager
def settled(recipe: Recipe) -> Iterator[None]:
    """torch's global switches for the length of a run: deterministic algorithms, or cuDNN's search for fast ones."""
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with a fixed workspace
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(recipe.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not recipe.deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


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


# --- checkpoints --------------------------------------------------------------------------------------------------


def save(path: str | Path, net: nn.Module, recipe: Recipe, **info: Any) -> None:
    """Weights, model and recipe in one safetensors file, written atomically; :func:`load` reads it."""
    about = {"model": asdict(net.config), "recipe": asdict(recipe), **info}
    _write(Path(path), dict(net.state_dict()), about)


def load(path: str | Path, *, device: str = "cpu") -> tuple[E2D, Recipe]:
    """The network of a checkpoint, in evaluation mode, and the recipe that it was trained with.

    Raises CheckpointError for a file that is missing, is no checkpoint of ours, or whose weights do not fit.
    """
    weights, about = _read(Path(path))
    try:
        config = ModelConfig(**about["model"])
        recipe = Recipe(**{**about["recipe"], "strengths": Augmentation(**about["recipe"]["strengths"])})
    except (KeyError, TypeError, RecipeError, ModelError) as error:
        raise CheckpointError(f"{path} was written by another version: {error}") from error
    net = build(replace(config, pretrained=False))
    net.config = config
    _restore(net, weights, str(path))
    return net.eval().to(resolve_device(device)), recipe


def _write(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with io.replacing(path) as tmp:
        save_file(tensors, tmp, metadata={"format": FORMAT, "about": io.dumps(about, indent=None)})


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: train first, or give the path of a {SELECTED}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no E2D checkpoint: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    return tensors, json.loads(metadata["about"])


def _restore(net: nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
    own = net.state_dict()
    different = sorted(own.keys() ^ weights.keys())
    different += [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if different:
        raise CheckpointError(
            f"{name} does not fit {net.config.backbone}: {len(different)} weights differ, first {different[:3]}"
        )
    net.load_state_dict(weights)


# --- the run ------------------------------------------------------------------------------------------------------


@dataclass
class Fit:
    """What a run leaves: the selected network, its validation predictions, the history, the checkpoint's path."""

    model: E2D
    recipe: Recipe
    history: pd.DataFrame  # epoch (from 1), lr, loss, valid_loss, valid_auc, valid_f1, and inner_* with an inner split
    predictions: pd.DataFrame  # as of predict, of the validation scans, with label and (as trained on) target
    epoch: int  # the selected one
    path: Path


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

    Writes ``model.safetensors`` (selected weights) and ``training.safetensors`` (to resume) to out_dir at each epoch's
    end; on a CPU with as many threads a resumed run ends with the very weights of an undisturbed one. callback gets the
    history so far. Under ``accelerate launch`` or ``torchrun`` the processes share each step.
    Raises TrainingError: empty or one-class training or validation scans, other settings or data than those of the run
    found in out_dir, a loss that is not finite.
    """
    with settled(recipe):
        return Run(slices_train, slices_valid, model, recipe, Path(out_dir)).go(callback, tensorboard)


class Run:
    """The state of one run: network, averaged weights, optimiser, scaler, history."""

    def __init__(
        self, train: ScanSlices, valid: ScanSlices | None, model: ModelConfig, recipe: Recipe, out_dir: Path
    ) -> None:
        from accelerate import Accelerator  # one process or many: it reads the launcher's environment

        check_classes(train, "training set")
        if valid is not None:
            check_classes(valid, "validation fold")
        self.recipe, self.out_dir = recipe, out_dir
        self.parts = {"train": train} | ({} if valid is None else {"valid": valid})
        if recipe.select == "inner":
            held = few_shot(train.scan_ids, train.labels, recipe.inner_fraction, recipe.seed)
            self.parts |= {
                "train": train.subset(np.setdiff1d(np.arange(len(train)), held)),
                "inner": train.subset(held),
            }
            check_classes(self.parts["train"], "training set without its inner split (use select='last')")
        if recipe.select == "reported_fold" and valid is None:
            raise TrainingError("select='reported_fold' needs a validation fold")
        self.steps_an_epoch = len(visits(self.parts["train"], recipe, 1))
        if not self.steps_an_epoch:
            raise TrainingError(
                f"{len(self.parts['train'])} training scans do not fill one step of {recipe.scans_per_step}: "
                "use a smaller scans_per_step, or drop_last=False"
            )

        wanted = resolve_device(recipe.device)
        self.accelerator = Accelerator(cpu=wanted.type == "cpu", mixed_precision="no")
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if self.world > 1 else wanted
        self.dtype = precision(recipe.amp, self.device)

        self.config = replace(model, normalise=recipe.normalise, size=train.size)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"epoch": 0, "score": None}
        saved = self._saved_state()
        self.net = build(replace(self.config, pretrained=False) if saved else self.config, seed=recipe.seed)
        self.net.config = self.config
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.net.to(self.device, memory_format=layout)
        self.optimiser = _optimiser(self.net, recipe, self.device)
        self.average = _average(self.net, recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if saved:
            self._resume(*saved)
        # What is called in training; the weights are the network's own.
        self.trained = self.accelerator.prepare_model(self.net) if self.world > 1 else self.net
        if recipe.compile:
            self.trained = torch.compile(self.trained)
        self.augment = Augment(recipe.strengths) if recipe.augment else None

    def go(self, callback: Callable[[pd.DataFrame], None] | None, tensorboard: bool) -> Fit:
        """All epochs that are still to do: train, score, keep, log."""
        recipe, train = self.recipe, self.parts["train"]
        images = sum(len(step) for step in visits(train, recipe, 1)) * recipe.n_samples
        done = len(self.history)
        with (
            bar(
                total=images * recipe.epochs, initial=images * done, desc="training", unit="img", unit_scale=True
            ) as shown,
            _writer(self.out_dir if tensorboard and self.rank == 0 else None) as log,
        ):
            for epoch in range(done + 1, recipe.epochs + 1):
                loss = self.train_epoch(epoch, shown)
                row = {"epoch": epoch, "lr": self._rate(epoch * self.steps_an_epoch - 1), "loss": loss}
                for name, part in self.parts.items():
                    if name != "train":
                        row |= {f"{name}_{key}": value for key, value in self._score(part, epoch).items()}
                self.history.append(row)
                self._keep(epoch)
                for key, value in row.items():
                    log(key, value, epoch)
                shown.set_postfix({key: f"{value:.3g}" for key, value in row.items() if key != "lr"})
                if callback:
                    callback(self.table())
        net, _ = load(self.out_dir / SELECTED, device=str(self.device))
        return Fit(
            model=net,
            recipe=recipe,
            history=self.table(),
            predictions=self._predictions(net),
            epoch=self.best["epoch"],
            path=self.out_dir / SELECTED,
        )

    def train_epoch(self, epoch: int, shown: Any) -> float:
        """One pass over the training scans; the mean loss over its images."""
        recipe, train = self.recipe, self.parts["train"]
        steps = visits(train, recipe, epoch)
        plans = (plan(train, rows, recipe, "train", epoch) for rows in steps)
        coming = batches(train, plans, self.device, rank=self.rank, world=self.world)
        generator = _torch_generator(recipe.seed, "augment", epoch, self.rank)
        total, previous = torch.zeros((), device=self.device), None
        self.trained.train()
        with _seeded(self.device, recipe.seed, "drop path", epoch, self.rank):
            for number, (rows, now) in enumerate(zip(steps, coming, strict=True)):
                images = self.augment(now.pixels, generator) if self.augment else now.pixels
                count = len(rows) * recipe.n_samples
                loss = self.step(images, now, count, (epoch - 1) * self.steps_an_epoch + number)
                self._check_finite(previous, epoch, number)  # one step late: a GPU then has the next step waiting
                total, previous = total + loss, loss
                shown.update(count)
        self._check_finite(previous, epoch, len(steps))
        return self._sum(total) / (sum(map(len, steps)) * recipe.n_samples)

    def step(self, images: torch.Tensor, now: Batch, count: int, number: int) -> torch.Tensor:
        """One step of the optimiser, ``number`` counted over the run; the summed loss of this process's images.

        images: (N, 1, S, S), augmented; count: images of the step in all processes.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(number)
        with autocast(self.dtype, self.device):
            logits = self.trained(images, now.blank)
        loss = F.binary_cross_entropy_with_logits(logits.float(), now.targets, reduction="sum")
        self.scaler.scale(loss / count * self.world).backward()  # processes average their gradients
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.net, step=number)
        return loss.detach()

    def _rate(self, number: int) -> float:
        return learning_rate(number, self.recipe.epochs * self.steps_an_epoch, self.recipe)

    def _check_finite(self, values: torch.Tensor | np.ndarray | None, epoch: int, step: int) -> None:
        """Stop when a loss, or a logit at the epoch's end, is not a number."""
        if values is None or np.isfinite(values if isinstance(values, np.ndarray) else values.item()).all():
            return
        kept = f"the last good checkpoint is {self.out_dir / SELECTED}, of epoch {self.best['epoch']}"
        raise TrainingError(
            f"the loss is not finite at epoch {epoch}, step {step} of {self.steps_an_epoch}: lower lr (now "
            f"{self.recipe.lr:g}) or set amp='off'; {kept if self.best['epoch'] else 'there is no checkpoint yet'}"
        )

    # --- scoring ---

    @property
    def evaluated(self) -> nn.Module:
        return self.average.module if self.average else self.net

    def _sum(self, value: torch.Tensor) -> Any:
        """Over the processes; a float for a scalar, else an array."""
        if self.world > 1:
            value = self.accelerator.reduce(value, "sum")
        return value.item() if value.ndim == 0 else value.cpu().numpy()

    def _logits(self, net: nn.Module, slices: ScanSlices, what: Plan) -> np.ndarray:
        """(n, n_samples) logits, each process computing its share of the scans."""
        mine = np.array_split(np.arange(len(what.rows)), self.world)[self.rank]
        logits = torch.zeros(what.positions.shape, device=self.device)
        part = Plan(what.rows[mine], what.positions[mine])
        if len(mine):
            logits[torch.from_numpy(mine).to(self.device)] = _infer(net, slices, part, self.recipe, self.device)
        return self._sum(logits)

    def _score(self, slices: ScanSlices, epoch: int) -> dict[str, float]:
        what = plan(slices, np.arange(len(slices)), self.recipe, "score")
        targets = np.where(what.positions == BLANK, 0, slices.labels[:, None])
        weights = slices.n_slices if self.recipe.score_by == "slice_row" else np.ones(len(slices))
        logits = self._logits(self.evaluated, slices, what).astype(np.float64)
        self._check_finite(logits, epoch, self.steps_an_epoch)
        return scores(logits, targets, weights)

    def _predictions(self, net: nn.Module) -> pd.DataFrame:
        if "valid" not in self.parts:
            return _table([], [], [], [], [])
        slices = self.parts["valid"]
        what = plan(slices, np.arange(len(slices)), self.recipe, "score")
        logits = self._logits(net, slices, what)
        table = _table([slices], [what], [logits], [0], [slices.labels])
        return table.assign(target=np.where(what.positions == BLANK, 0, slices.labels[:, None]).ravel())

    # --- keeping ---

    def _keep(self, epoch: int) -> None:
        """Write the selected weights if this epoch is the one, then the state to resume from."""
        recipe, row = self.recipe, self.history[-1]
        score = None
        if recipe.select != "last":
            score = row[f"{'inner' if recipe.select == 'inner' else 'valid'}_{recipe.select_by}"]
            if math.isnan(score):
                raise TrainingError(
                    f"epoch {epoch} cannot be selected by {recipe.select_by}: it is not a number (one class only?)"
                )
        chosen = recipe.select == "last" or better(score, self.best["score"], recipe.select_by)
        if chosen:
            self.best = {"epoch": epoch, "score": score}
        if self.rank == 0:
            if chosen:
                save(self.out_dir / SELECTED, self.evaluated, recipe, epoch=epoch, score=score)
            finished = epoch == recipe.epochs
            _write(self.out_dir / STATE, {} if finished else self._tensors(), self._about())
        self.accelerator.wait_for_everyone()

    def _about(self) -> dict[str, Any]:
        def clean(row: dict[str, float]) -> dict[str, float | None]:
            return {key: None if math.isnan(value) else value for key, value in row.items()}

        return {
            **self._identity(),
            "history": [clean(row) for row in self.history],
            "best": self.best,
            "scaler": self.scaler.state_dict(),
        }

    def _identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be the same run."""
        data = [[part.scan_ids, part.labels, part.widths, part.n_slices] for part in self.parts.values()]
        same = {"model": asdict(self.config), "recipe": asdict(self.recipe), "scans": {"digest": io.digest(data)}}
        return {**same, "machine": {"processes": self.world}}

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"net.{key}": value for key, value in self.net.state_dict().items()}
        if self.average:
            tensors |= {f"average.{key}": value for key, value in self.average.module.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{key}": value for key, value in state.items()}
        return tensors

    def _saved_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The state of an earlier run in out_dir, refused when it is another run's."""
        if not (self.out_dir / STATE).is_file():
            return None
        tensors, about = _read(self.out_dir / STATE)
        mine = json.loads(io.dumps(self._identity()))
        changed = [
            f"{part}.{key}: {about[part].get(key)!r} -> {mine[part].get(key)!r}"
            for part in mine
            for key in sorted(mine[part].keys() | about[part].keys())
            if mine[part].get(key) != about[part].get(key) and key != "device"
        ]
        if changed:
            raise TrainingError(
                f"{self.out_dir} holds another run ({'; '.join(changed)}): use another out_dir, or delete this one"
            )
        return tensors, about

    def _resume(self, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        self.history = [{k: math.nan if v is None else v for k, v in row.items()} for row in about["history"]]
        self.best = about["best"]
        if not tensors:  # finished: nothing left to train
            return
        groups: dict[str, dict[str, torch.Tensor]] = {"net": {}, "average": {}, "optimiser": {}}
        for name, value in tensors.items():
            group, _, key = name.partition(".")
            groups[group][key] = value
        _restore(self.net, groups["net"], str(self.out_dir / STATE))
        if self.average:
            self.average.module.load_state_dict(groups["average"])
        weights, state = list(self.net.parameters()), {}
        for name, value in groups["optimiser"].items():
            number, _, key = name.partition(".")
            weight = weights[int(number)]
            # The fused optimiser walks through memory, so its state has to lie there as the weight does.
            fitting = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
            state.setdefault(int(number), {})[key] = fitting
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.scaler.load_state_dict(about["scaler"])

    def table(self) -> pd.DataFrame:
        """The history; columns in a fixed order, which a resumed run would not have from JSON."""
        measured = [f"{part}_{key}" for part in self.parts if part != "train" for key in ("loss", "auc", "f1")]
        return pd.DataFrame(self.history, columns=["epoch", "lr", "loss", *measured])


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


def _optimiser(net: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser]
    fused = device.type in ("cuda", "cpu")  # one pass over all weights in place of a loop
    return kind(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def _average(net: nn.Module, recipe: Recipe) -> Any:
    from timm.utils import ModelEmaV3

    return ModelEmaV3(net, decay=recipe.ema, use_warmup=True) if recipe.ema else None


def _torch_generator(*keys: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(int(stream(*keys).integers(2**62)))


@contextlib.contextmanager
def _seeded(device: torch.device, *keys: int | str) -> Iterator[None]:
    """Drop path draws from torch's default generators: seed them, and put them back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed = int(stream(*keys).integers(2**62))
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def _writer(out_dir: Path | None) -> Iterator[Callable[[str, float, int], None]]:
    """A function (name, value, epoch) that logs to TensorBoard, or does nothing."""
    if out_dir is None:
        yield lambda name, value, epoch: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(out_dir / "tensorboard") as writer:
        yield writer.add_scalar


# --- prediction ---------------------------------------------------------------------------------------------------


def predict(
    model: E2D | str | Path,
    slices: ScanSlices,
    *,
    recipe: Recipe | None = None,
    draws: int | Literal["all"] = 1,
    device: str | None = None,
) -> pd.DataFrame:
    """Slice-level predictions: scan_id, draw, index (position in the window, -1 blank), logit, probability, label.

    model: a network, or the path of a checkpoint, whose recipe is then the default. draws: how often to draw a scan's
    slices ("all": each slice of the window once). label is -1 where the class is unknown. A recipe that draws once
    (released) sees the same slices in every draw. device: by default a network's own, and "auto" for a checkpoint.
    A scan's rows do not depend on the other scans.
    """
    if isinstance(model, E2D):
        net, stored = model, Recipe.corrected()
        place = resolve_device(device) if device else next(net.parameters()).device
    else:
        net, stored = load(model)
        place = resolve_device(device or "auto")
    net.to(place)
    recipe = recipe or stored
    rows = np.arange(len(slices))
    if draws == "all":
        plans = every_slice(slices, rows)
    else:
        plans = [plan(slices, rows, recipe, "score", turn) for turn in range(draws)] if len(rows) else []
    logits = [
        _infer(net, slices, what, recipe, place).cpu().numpy() for what in bar(plans, desc="prediction", unit="draw")
    ]
    turns = [0 if draws == "all" else turn for turn in range(len(plans))]
    return _table([slices] * len(plans), plans, logits, turns, [slices.labels] * len(plans))


@torch.inference_mode()
def _infer(net: nn.Module, slices: ScanSlices, what: Plan, recipe: Recipe, device: torch.device) -> torch.Tensor:
    """(n, n_samples) float32 logits of the planned slices, in evaluation mode."""
    was_training = net.training
    net.eval()
    width = what.positions.shape[1]
    scans = max(1, recipe.scans_per_step * recipe.n_samples // width)
    parts = [Plan(what.rows[k : k + scans], what.positions[k : k + scans]) for k in range(0, len(what.rows), scans)]
    out = []
    for now in batches(slices, parts, device):
        with autocast(precision(recipe.amp, device), device):
            out.append(net(now.pixels, now.blank).float())
    net.train(was_training)
    return torch.cat(out).view(-1, width)


def _table(
    slices: list[ScanSlices], plans: list[Plan], logits: list[np.ndarray], turns: list[int], labels: list[np.ndarray]
) -> pd.DataFrame:
    columns = ["scan_id", "draw", "index", "logit", "probability", "label"]
    tables = []
    for part, what, values, turn, label in zip(slices, plans, logits, turns, labels, strict=True):
        width = what.positions.shape[1]
        logit = values.astype(np.float64).ravel()
        tables.append(
            pd.DataFrame(
                {
                    "scan_id": np.repeat(np.array(part.scan_ids, dtype=object)[what.rows], width),
                    "draw": turn,
                    "index": what.positions.ravel(),
                    "logit": logit,
                    "probability": 1 / (1 + np.exp(-logit)),
                    "label": np.repeat(label[what.rows], width),
                }
            )
        )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
