"""Slice-level predictions of one network, for any scans."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from e2d_lib.network.checkpoint import load
from e2d_lib.network.device import autocast, precision
from e2d_lib.network.model import E2D
from e2d_lib.network.recipe import Recipe
from e2d_lib.network.slices import Plan, ScanSlices, batches, plan
from e2d_lib.progress import bar


def predict(
    model: E2D | str | Path,
    slices: ScanSlices,
    *,
    recipe: Recipe | None = None,
    draws: int = 1,
    device: str = "auto",
) -> pd.DataFrame:
    """Slice-level predictions: scan_id, draw, index (position in the window, -1 blank), logit, probability, label.

    model: a network, or the path of a checkpoint, whose recipe is then the default. draws: how often to draw a scan's
    slices. label is -1 where the class is unknown. A recipe that draws once (released) sees the same slices in every
    draw. device: of a checkpoint's network; another stays on its own. A scan's rows do not depend on the other scans.
    """
    net, stored = (model, Recipe.preset()) if isinstance(model, E2D) else load(model, device=device)
    recipe, place = recipe or stored, next(net.parameters()).device
    tables = [pd.DataFrame(columns=["scan_id", "draw", "index", "logit", "probability", "label"])]
    for turn in bar(range(draws if len(slices) else 0), desc="prediction", unit="draw"):
        what = plan(slices, np.arange(len(slices)), recipe, "score", turn)
        logit = infer(net, slices, what, recipe, place).cpu().numpy().astype(np.float64).ravel()
        table = {
            "scan_id": np.repeat(np.array(slices.scan_ids, dtype=object), recipe.n_samples),
            "draw": turn,
            "index": what.positions.ravel(),
            "logit": logit,
            "probability": 1 / (1 + np.exp(-logit)),
            "label": np.repeat(slices.labels, recipe.n_samples),
        }
        tables.append(pd.DataFrame(table))
    return pd.concat(tables[1:] or tables, ignore_index=True)


@torch.inference_mode()
def infer(net: nn.Module, slices: ScanSlices, what: Plan, recipe: Recipe, device: torch.device) -> torch.Tensor:
    """(n, n_samples) float32 logits of the planned slices, in evaluation mode."""
    was_training = net.training
    net.eval()
    starts = range(0, len(what.rows), recipe.scans_per_step)
    parts = [Plan(*(each[k : k + recipe.scans_per_step] for each in what)) for k in starts]
    out = []
    for now in batches(slices, parts, device):
        with autocast(precision(recipe.amp, device), device):
            out.append(net(now.pixels, now.blank).float())
    net.train(was_training)
    return torch.cat(out).view(what.positions.shape)
