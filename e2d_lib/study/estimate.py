"""What chapter 4 will take, before it runs: memory, disk, hours, and what to set on which card."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from e2d_lib.network import memory
from e2d_lib.network.device import free, precision, resolve_device
from e2d_lib.network.model import ModelConfig, build
from e2d_lib.network.recipe import Recipe
from e2d_lib.network.slices import RESIDENT

GIB = 2**30
CARDS = (16, 24, 40, 80)
"""Sizes of GPUs, as sold; of them 97 % are there for a program."""
SLICES = 286
"""Slices a scan where they cannot be counted: the paper's cohort has 481,075 in 1,684 scans."""


def cards(config: ModelConfig, images: int, size: int, slices: int) -> pd.DataFrame:
    """One row a card: whether the slices stay on it, and the micro_batch with which a step in bfloat16 fits."""
    rows = []
    for card in CARDS:
        room = 0.97 * card * GIB
        stays = slices * size * size <= RESIDENT * room
        left = room - stays * slices * size * size
        at_once = memory.fitting(config, images, size, torch.bfloat16, left)
        advice = "nothing" if at_once == images else f"micro_batch={at_once} (chosen by itself)"
        rows.append((f"{card} GB", "on it" if stays else "on disk", at_once, advice))
    return pd.DataFrame(rows, columns=["card", "slices", "at once", "set"])


def rate(config: ModelConfig, size: int, recipe: Recipe) -> float:
    """Images a second of forward and backward passes on this machine, four of them measured after one to warm up."""
    device = resolve_device(recipe.device)
    net = build(config).to(device).train()
    pixels = torch.zeros(4, 1, size, size, device=device)
    for _ in range(2):
        began = time.perf_counter()
        with torch.autocast(device.type, dtype=precision(recipe.amp, device), enabled=device.type == "cuda"):
            logits = net(pixels)
        logits.sum().backward()
        net.logit.bias.grad.sum().item()  # waits for a GPU
    return len(pixels) / (time.perf_counter() - began)


def slice_count(chapter1: Mapping[str, Any]) -> tuple[int, int, str]:
    """Scans, slices, and how the slices were counted."""
    if not chapter1["data_root"]:
        scans = chapter1["n_scans"]
        return scans, scans * (chapter1["slices_min"] + chapter1["slices_max"]) // 2, "of the phantom, on average"
    from e2d_lib.scans.cohort import read_cohort

    cohort = read_cohort(chapter1["data_root"], labels=chapter1["labels"])
    folders = [Path(path) for path in cohort["path"]]
    if all(folder.is_dir() for folder in folders):
        return len(cohort), sum(sum(1 for _ in folder.iterdir()) for folder in folders), "files in the scans' folders"
    return len(cohort), len(cohort) * SLICES, f"{SLICES} a scan, as in the paper's cohort"


def report(parameters: Mapping[str, Mapping[str, Any]], images_a_second: float = 0.0) -> str:
    """The plan in lines. parameters: of each chapter; images_a_second: of your card, 0 to measure this machine."""
    first, second, own = (next(v for k, v in parameters.items() if k[:2] == n) for n in ("01", "02", "04"))
    names = ("epochs", "scans_per_step", "n_samples", "n_intervals", "method", "device")
    recipe = Recipe.preset(own["variant"], **{name: own[name] for name in names}, **own["settings"])
    config = ModelConfig(own["backbone"], pretrained=False, normalise=recipe.normalise)
    size, images = second["size"], recipe.scans_per_step * recipe.n_samples
    scans, slices, counted = slice_count(first)
    kept = round(slices * second["fraction"])
    half, weights = memory.held(config, images, size, torch.bfloat16)
    whole, _ = memory.held(config, images, size, None)
    runs = len(own["folds"]) * len(own["fractions"]) * len(own["seeds"])
    seen = 0.8 * scans * sum(own["fractions"]) * len(own["folds"]) * len(own["seeds"])  # four of five folds
    seen *= recipe.n_samples * recipe.epochs * (1 - recipe.inner_fraction * (recipe.select == "inner"))
    speed = images_a_second or rate(config, size, recipe)
    where = "given" if images_a_second else f"measured here, on {resolve_device(recipe.device)}"
    here = memory.fitting(config, images, size, None, free(torch.device("cpu")))
    table = cards(config, images, size, kept).to_string(index=False)
    return "\n".join(
        [
            f"{own['backbone']} at {size}×{size}, {images} slices a step, {runs} runs of {recipe.epochs} epochs",
            f"slices       {scans:,} scans, {slices:,} slices ({counted}), about {kept:,} in their windows",
            f"resident     {kept * size * size / GIB:.1f} GiB for the windows, on the card or, mapped, on disk",
            f"activations  {half / GIB:.1f} GiB a step in bf16 or fp16, {whole / GIB:.1f} GiB in full precision",
            f"weights      {20 * weights / GIB:.2f} GiB with gradients, moments and average",
            f"disk         {(kept * size * size + runs * 4 * weights) / GIB:.1f} GiB: windows, and a checkpoint a run",
            f"hours        {seen / speed / 3600:,.1f} at {speed:,.1f} images/s ({where}), {seen:,.0f} images",
            f"on this CPU  {here} slices at once as memory is free now",
            "",
            table,
        ]
    )
