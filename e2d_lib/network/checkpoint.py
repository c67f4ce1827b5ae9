"""What a run writes: the selected network as safetensors, and a state that it goes on from exactly."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from e2d_lib import io
from e2d_lib.network.augment import Augmentation
from e2d_lib.network.device import resolve_device
from e2d_lib.network.model import E2D, CheckpointError, ModelConfig, build
from e2d_lib.network.recipe import Recipe

FORMAT = "e2d-1"
SELECTED = "model.safetensors"
STATE = "training.pt"


def save(path: str | Path, net: nn.Module, recipe: Recipe, **info: Any) -> None:
    """Weights, model and recipe in one safetensors file, written atomically; :func:`load` reads it."""
    about = {"model": asdict(net.config), "recipe": asdict(recipe), **info}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
    with io.replacing(Path(path)) as tmp:
        save_file(tensors, tmp, metadata={"format": FORMAT, "about": io.dumps(about, indent=None)})


def load(path: str | Path, *, device: str = "cpu") -> tuple[E2D, Recipe]:
    """The network of a checkpoint, in evaluation mode, and the recipe that it was trained with.

    Raises CheckpointError for a file that is missing, is no checkpoint of ours, or whose weights do not fit.
    """
    weights, about = read(Path(path))
    try:
        config = ModelConfig(**about["model"])
        recipe = Recipe.preset(**{**about["recipe"], "strengths": Augmentation(**about["recipe"]["strengths"])})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} was written by another version: {error}") from error
    net = build(replace(config, pretrained=False))
    net.config = config
    restore(net, weights, str(path))
    return net.eval().to(resolve_device(device)), recipe


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, and what was written about them."""
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


def restore(net: nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Load weights that have the network's very names and shapes; else raise CheckpointError."""
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:  # torch's message lists each weight
        raise CheckpointError(f"{name} does not fit {net.config.backbone}: {shorten(str(error), 300)}") from error


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A state of tensors, numbers, text, lists and mappings, written atomically."""
    with io.replacing(path) as tmp:
        torch.save({"format": FORMAT, **state}, tmp)


def read_state(path: Path) -> dict[str, Any] | None:
    """What `write_state` wrote, on the CPU; None where there is none. Raises CheckpointError for another file."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True) if zipfile.is_zipfile(path) else {}
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): delete it, and the run begins again") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no state of a training run: delete it, and the run begins again")
    return state
