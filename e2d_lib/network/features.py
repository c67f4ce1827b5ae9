"""Pooled features of every slice by a frozen, pretrained backbone, extracted once: what the frozen tier works on.

They lie beside the cache of `preprocess` that they are of, so that its size and its steps are part of their address::

    <out_dir>/<params.key>/features/<key>/about.json             backbone, weights, precision, and what that changes
                                          <scan>-<input>.npy     (slices, d) float16, one file a scan

Give `preprocess.run` fraction=1.0 and all slices of a scan are there: any window and any draw is then a choice of rows.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from e2d_lib import io, progress
from e2d_lib.method.preprocess import Preprocessed, stem
from e2d_lib.network.device import has_bfloat16, resolve_device
from e2d_lib.network.model import E2D, ModelConfig, build
from e2d_lib.network.slices import ahead

FORMAT = 1
"""Raise it when the same network gives other features."""

GROUP = 2048
"""Slices read at a time: batches are then full whatever the length of the scans."""


@dataclass(frozen=True)
class Features:
    """Features of some scans, all of their cached slices.

    scan_ids: n names; values: (slices, d) float16, scan after scan; starts, counts: (n,) int64, scan i's rows are
    ``values[starts[i]:starts[i] + counts[i]]``; areas: one (count,) int array a scan, pixels, of the same slices.
    about: backbone, weights (SHA-256), precision, ``difference`` (of the precision from float32, root mean square as a
    share of the features' SD).
    """

    scan_ids: tuple[str, ...]
    values: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    areas: tuple[np.ndarray, ...]
    about: dict[str, str | float]


def extract(
    done: Preprocessed,
    scan_ids: Sequence[str] | None = None,
    *,
    backbone: str = "tf_efficientnet_lite2",
    weights: bool | str = "package",
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    batch: int = 64,
) -> Features:
    """Features of the scans' cached slices; what is there from earlier is read.

    scan_ids: all by default; excluded scans and empty windows are left out. backbone: any of timm's, with its own
    pooling. weights: "package", a file, True (timm's hub), or False for none, as `ModelConfig.pretrained`. precision:
    "auto" takes bfloat16 where the device computes with it, and says in ``about`` what that changes.

    Raises WeightsUnavailable, CheckpointError and ModelError as `model.build` does; ValueError for features beyond
    float16.
    """
    net = frozen_network(backbone, weights, size=done.params.size, device=device)
    place = net.scale.device
    precision = _settled(precision, place)
    about = {"backbone": backbone, "weights": _digest(net.backbone), "precision": precision, "format": FORMAT}
    folder = done.folder / "features" / io.digest(about)
    usable = done.scans[done.scans["status"].ne("excluded") & done.scans["stop"].gt(done.scans["start"])]
    usable = usable.set_index("scan_id")
    names = [name for name in (usable.index if scan_ids is None else scan_ids) if name in usable.index]
    paths = {name: folder / _file_name(done, name) for name in names}
    todo = [name for name in names if not paths[name].is_file()]
    if todo and not (folder / "about.json").is_file():
        sample = torch.from_numpy(np.array(done.pixels(todo[0])[:batch])).unsqueeze(1).to(place)
        half, full = (forward(net, sample, kind).float() for kind in (precision, "float32"))
        about |= {"difference": float((half - full).square().mean().sqrt() / full.std())}
        io.write_json(folder / "about.json", about)
    with progress.bar(total=len(names), initial=len(names) - len(todo), desc="features", unit="scan") as bar:
        for group in ahead(_groups(done, todo)):
            pixels = torch.from_numpy(np.concatenate([part for _, part in group])).unsqueeze(1)
            found = [forward(net, part.to(place), precision).half().cpu() for part in pixels.split(batch)]
            values = torch.cat(found).numpy()
            if not np.isfinite(values).all():
                raise ValueError(f"{backbone} gives features beyond float16's range")
            ends = np.cumsum([len(part) for _, part in group])[:-1]
            for (name, _), own in zip(group, np.split(values, ends), strict=True):
                io.write_array(paths[name], own)
                bar.update()
    parts = _read(tuple(paths.values()))
    counts = np.array([len(part) for part in parts], dtype=np.int64)
    return Features(
        scan_ids=tuple(names),
        values=np.concatenate(parts),
        starts=np.cumsum(counts) - counts,
        counts=counts,
        areas=tuple(done.areas(name) for name in names),
        about=io.read_json(folder / "about.json"),
    )


@functools.lru_cache(maxsize=4)
def _read(paths: tuple[Path, ...]) -> list[np.ndarray]:
    return [np.load(path, allow_pickle=False) for path in paths]


def frozen_network(backbone: str, weights: bool | str, *, size: int, device: str = "auto") -> E2D:
    """A backbone with its own pooling and weights (as in `extract`), on its device, laid out as `forward` is fastest.

    Raises WeightsUnavailable, CheckpointError and ModelError as `model.build` does.
    """
    net = build(ModelConfig(backbone=backbone, pretrained=weights, drop_path=0.0, size=size))
    return net.to(resolve_device(device), memory_format=torch.channels_last).eval()


def _settled(precision: str, device: torch.device) -> str:
    return precision if precision != "auto" else "bfloat16" if has_bfloat16(device) else "float32"


@torch.inference_mode()
def forward(net: E2D, pixels: torch.Tensor, precision: str = "auto") -> torch.Tensor:
    """(N, 1, S, S) uint8 -> (N, d) pooled features, on the network's device. precision: as in `extract`."""
    half = _settled(precision, pixels.device) == "bfloat16"
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=half):
        return net.backbone(net.normalise(pixels).contiguous(memory_format=torch.channels_last))


def _groups(done: Preprocessed, names: Sequence[str]) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Scans and their (slices, S, S) pixels, some `GROUP` slices together."""
    widths = done.scans.set_index("scan_id").eval("stop - start").loc[list(names)].cumsum()
    for _, group in itertools.groupby(names, key=lambda name: math.ceil(widths[name] / GROUP)):
        yield [(name, np.array(done.pixels(name))) for name in group]


def _file_name(done: Preprocessed, scan_id: str) -> str:
    """Of the scan, and of the files it was made from: pixels that changed have features of another name."""
    name = stem(scan_id)
    return f"{name}-{io.read_json(done.folder / 'scans' / f'{name}.json')['fingerprint'][:8]}.npy"


def _digest(module: torch.nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(value.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
