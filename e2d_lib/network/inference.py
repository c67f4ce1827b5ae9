"""Slice-level predictions of one network, for any scans."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from e2d_lib.network.checkpoint import load
from e2d_lib.network.device import autocast, precision, resolve_device
from e2d_lib.network.model import E2D
from e2d_lib.network.recipe import Recipe
from e2d_lib.network.slices import Plan, ScanSlices, batches, every_slice, plan
from e2d_lib.progress import bar


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
        infer(net, slices, what, recipe, place).cpu().numpy() for what in bar(plans, desc="prediction", unit="draw")
    ]
    turns = [0] * len(plans) if draws == "all" else range(len(plans))
    tables = [_table(slices, *drawn) for drawn in zip(plans, logits, turns, strict=True)]
    columns = ["scan_id", "draw", "index", "logit", "probability", "label"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


@torch.inference_mode()
def infer(net: nn.Module, slices: ScanSlices, what: Plan, recipe: Recipe, device: torch.device) -> torch.Tensor:
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


def _table(slices: ScanSlices, what: Plan, logits: np.ndarray, turn: int) -> pd.DataFrame:
    width = what.positions.shape[1]
    logit = logits.astype(np.float64).ravel()
    return pd.DataFrame(
        {
            "scan_id": np.repeat(np.array(slices.scan_ids, dtype=object)[what.rows], width),
            "draw": turn,
            "index": what.positions.ravel(),
            "logit": logit,
            "probability": 1 / (1 + np.exp(-logit)),
            "label": np.repeat(slices.labels[what.rows], width),
        }
    )
