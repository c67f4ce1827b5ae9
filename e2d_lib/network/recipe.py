"""Every setting of a training run as one dataclass, with the released code's settings beside ours."""

from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from e2d_lib import io
from e2d_lib.network.augment import Augmentation

PRESETS: dict[str, dict[str, Any]] = io.shipped("e2d_lib.network", "recipes.yaml")

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]

LEAST_TO_CHOOSE = 10
"""Scans, of both classes, that choose an epoch or a threshold; on fewer the first epoch is often the best."""


class RecipeError(ValueError):
    """A recipe that asks for something unknown."""


@dataclass(frozen=True, config={"strict": True, "extra": "forbid"})
class Recipe:
    """Every setting of a training run. The defaults are ours; :meth:`preset` gives the released code's too.

    A value of another type, or out of its range, is a ValueError (pydantic's; `preset` gives it in one line).
    """

    variant: str = "corrected"  # the preset this came from; a name only
    # which slices
    n_samples: Count = 8  # slices a scan
    n_intervals: Count = 4  # of KDS
    method: Literal["kds", "systematic", "random"] = "kds"
    sampler: Literal["corrected", "paper", "released"] = "corrected"
    redraw: bool = True  # draw anew each epoch; released: once
    short_scans: Literal["repeat", "blank_zero"] = "repeat"  # windows the draw cannot fill; released: blank and label 0
    # what an epoch is
    visits: Literal["scan", "slice_row"] = "scan"  # released: a scan is visited once for each of its slices
    scans_per_step: Count = 20  # 20 scans x 8 slices = 160 images
    drop_last: bool = False  # leave out an epoch's last, smaller step
    epochs: Count = 24
    # input
    normalise: Literal["once", "twice"] = "once"
    augment: bool = True
    strengths: Augmentation = field(default_factory=Augmentation)
    # optimiser
    optimiser: Literal["adamw", "adam"] = "adamw"  # adam: weight decay as L2
    lr: float = 1e-4
    weight_decay: float = 1e-2
    schedule: Literal["cosine", "none"] = "cosine"
    warmup: Share = 0.05  # share of the steps over which the rate rises
    ema: Share = 0.99  # decay of the averaged weights that are evaluated and kept; 0 for none
    # which epoch is kept
    select: Literal["inner", "reported_fold", "last"] = "inner"  # reported_fold: as released, on the fold it reports
    select_by: Literal["loss", "auc", "f1"] = "loss"
    inner_fraction: Annotated[Share, Field(gt=0)] = 0.15  # of the training scans, when select is "inner"
    inner_least: Count = LEAST_TO_CHOOSE  # scans of an inner set; where it would have fewer, the last epoch is kept
    score_by: Literal["scan", "slice_row"] = "scan"  # slice_row: as released, scores weigh a scan by its slices
    # machine
    device: str = "auto"  # auto: CUDA, then Apple's GPU, then CPU
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"  # auto: bf16 or else fp16 on CUDA, off elsewhere
    channels_last: bool = True
    compile: bool = False
    micro_batch: int = 0  # slices at once, gradients added up to the step; 0: as many of them as free memory holds
    deterministic: bool = False  # slower on a GPU; on a CPU runs repeat anyway
    seed: int = 42

    @classmethod
    def preset(cls, variant: str = "corrected", **changes: Any) -> "Recipe":
        """The named preset with some settings changed; an unknown setting is an error.

        corrected: ours, each scan once an epoch, fresh draws, no information from the reported fold. released: what the
        released code does (method/README.md §4, §5; 24 epochs stand there in a comment).

        >>> Recipe.preset("released", epochs=1).normalise
        'twice'
        """
        if variant not in PRESETS:
            raise RecipeError(f"a recipe's variant is one of {', '.join(PRESETS)}, got {variant!r}")
        known = {item.name for item in fields(cls)}
        if unknown := sorted(changes.keys() - known):
            raise RecipeError(f"a recipe has no setting {unknown}; it has {sorted(known)}")
        try:
            return cls(**{"variant": variant, **PRESETS[variant], **changes})
        except ValidationError as error:
            wrong = [f"{one['loc'][0]}: {one['msg']}, got {one['input']!r}" for one in error.errors()]
            raise RecipeError("; ".join(wrong)) from None
