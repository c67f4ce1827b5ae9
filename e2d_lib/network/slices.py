"""Slices ready to train on: windows as one uint8 tensor, the draw of a scan's slices, batched augmentation.

Where the windows fit they lie on the training device, so that a batch is one gather; where they do not, they stay
memory-mapped. There is no loader process; where it helps, a thread works one batch ahead (:func:`ahead`).
"""

import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pandas as pd
import torch

from e2d_lib.method import kds
from e2d_lib.progress import bar

if TYPE_CHECKING:
    from e2d_lib.method.preprocess import Preprocessed

T = TypeVar("T")
BLANK = -1
"""Index of an input without a slice: zero after ImageNet normalisation, with label 0 (method.md §4, released)."""
UNKNOWN = -1
"""Label of a scan whose class is not known."""


class DatasetError(ValueError):
    """Slices that cannot be used as asked."""


@dataclass(frozen=True)
class ScanSlices:
    """The windows of some scans. Subsets (folds, few-shot fractions) share the pixels.

    scan_ids: n names; labels: (n,) int64, 1 COVID, 0 not, -1 unknown; n_slices: (n,) int64, slices of the whole scan
    (the released code's weight of a scan); starts, widths: (n,) int64, scan i's window is the flat range
    ``[starts[i], starts[i] + widths[i])``; areas: one (width,) int array a scan, pixels; size: side of a slice, pixels;
    pixels: (total, size, size) uint8 tensor, or where that does not fit the memory-mapped arrays one after another.
    """

    scan_ids: tuple[str, ...]
    labels: np.ndarray
    n_slices: np.ndarray
    starts: np.ndarray
    widths: np.ndarray
    areas: tuple[np.ndarray, ...]
    size: int
    pixels: torch.Tensor | tuple[np.ndarray, ...]

    @classmethod
    def from_arrays(
        cls,
        arrays: Sequence[np.ndarray],
        areas: Sequence[np.ndarray],
        labels: Sequence[int | None],
        scan_ids: Sequence[str],
        *,
        n_slices: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
        resident: bool | Literal["auto"] = "auto",
    ) -> "ScanSlices":
        """From one (width, S, S) uint8 array a scan (a memmap is fine) and the lung area of each slice.

        n_slices defaults to the widths. resident: keep the pixels on the device; "auto" does so where they take at most
        60 % of a GPU's free memory, or half of the machine's on CPU.
        Raises DatasetError when lengths, shapes or dtypes disagree.
        """
        counts = {"arrays": len(arrays), "areas": len(areas), "labels": len(labels), "scan_ids": len(scan_ids)}
        if len(set(counts.values())) != 1:
            raise DatasetError(f"one array, area curve, label and name a scan, got {counts}")
        sizes = {array.shape[1:] for array in arrays}
        square = all(len(shape) == 2 and shape[0] == shape[1] for shape in sizes)
        if len(sizes) > 1 or not square or any(array.dtype != np.uint8 for array in arrays):
            kinds = sorted({f"{array.dtype}{array.shape}" for array in arrays})[:3]
            raise DatasetError(f"slices must be uint8 (width, S, S) with one S for all scans, got {kinds}")
        for name, array, curve in zip(scan_ids, arrays, areas, strict=True):
            if len(array) != len(curve):
                raise DatasetError(f"{name}: {len(array)} slices but {len(curve)} areas")
        widths = np.array([len(array) for array in arrays], dtype=np.int64)
        size = sizes.pop()[0] if sizes else 0
        if resident == "auto":
            resident = int(widths.sum()) * size * size <= _budget(torch.device(device))
        return cls(
            scan_ids=tuple(str(name) for name in scan_ids),
            labels=np.array([UNKNOWN if pd.isna(label) else int(label) for label in labels], dtype=np.int64),
            n_slices=widths if n_slices is None else np.asarray(n_slices, dtype=np.int64),
            starts=np.cumsum(widths) - widths,
            widths=widths,
            areas=tuple(np.asarray(curve) for curve in areas),
            size=size,
            pixels=_to_device(arrays, widths, size, torch.device(device)) if resident else tuple(arrays),
        )

    @classmethod
    def from_preprocessed(
        cls,
        pre: "Preprocessed",
        cohort_rows: pd.DataFrame,
        *,
        device: str | torch.device = "cpu",
        resident: bool | Literal["auto"] = "auto",
    ) -> "ScanSlices":
        """The scans of ``cohort_rows`` (scan_id, label) out of the preprocessing cache.

        Scans that preprocessing excluded are left out; ``pre.scans`` says which and why.
        """
        scans = pre.scans.set_index("scan_id")
        if missing := [name for name in cohort_rows["scan_id"] if name not in scans.index]:
            raise DatasetError(
                f"{len(missing)} scans are not in the preprocessing cache, the first is {missing[0]!r}: preprocess them"
            )
        rows = cohort_rows[scans.loc[cohort_rows["scan_id"], "status"].ne("excluded").to_numpy()]
        names = list(rows["scan_id"])
        return cls.from_arrays(
            [pre.pixels(name) for name in names],
            [pre.areas(name) for name in names],
            list(rows["label"]) if "label" in rows else [None] * len(rows),
            names,
            n_slices=scans.loc[names, "n_slices"].to_numpy(dtype=np.int64),
            device=device,
            resident=resident,
        )

    def __len__(self) -> int:
        return len(self.scan_ids)

    def subset(self, rows: Sequence[int] | np.ndarray) -> "ScanSlices":
        """The scans at ``rows`` (positions, or a boolean mask), in that order, sharing the pixels."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return replace(
            self,
            scan_ids=tuple(self.scan_ids[row] for row in rows),
            areas=tuple(self.areas[row] for row in rows),
            **{name: getattr(self, name)[rows] for name in ("labels", "n_slices", "starts", "widths")},
        )

    def gather(self, flat: np.ndarray, device: torch.device) -> torch.Tensor:
        """(N,) flat slice numbers -> (N, 1, S, S) uint8 on the device."""
        if isinstance(self.pixels, torch.Tensor):
            index = torch.from_numpy(flat).to(self.pixels.device, non_blocking=True)
            return self.pixels[index].unsqueeze(1).to(device)
        batch = np.empty((len(flat), 1, self.size, self.size), np.uint8)
        ends = np.cumsum([len(array) for array in self.pixels])
        for k, (number, scan) in enumerate(zip(flat, np.searchsorted(ends, flat, side="right"), strict=True)):
            batch[k, 0] = self.pixels[scan][number - ends[scan]]  # negative: counted from the scan's end
        host = torch.from_numpy(batch)
        return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _budget(device: torch.device) -> int:
    """Bytes that pixels may take on a device, leaving room for the model."""
    if device.type == "cuda":
        return int(0.6 * torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _to_device(arrays: Sequence[np.ndarray], widths: np.ndarray, size: int, device: torch.device) -> torch.Tensor:
    pixels = torch.empty((int(widths.sum()), size, size), dtype=torch.uint8, device=device)
    parts = pixels.split(widths.tolist())
    for part, array in zip(parts, bar(arrays, desc="slices to memory", unit="scan"), strict=True):
        part.copy_(torch.from_numpy(np.array(array)))  # a copy: torch refuses a read-only memmap
    return pixels


# --- which slices of a scan ---------------------------------------------------------------------------------------


def stream(seed: int, *keys: int | str) -> np.random.Generator:
    """A generator that depends on its keys alone (purpose, epoch, scan …), never on what was drawn before.

    A resumed run therefore continues with the very numbers of an undisturbed one, and nothing need be stored.

    >>> bool(stream(0, "draw", 3).integers(1000) == stream(0, "draw", 3).integers(1000))
    True
    """
    return np.random.default_rng([seed, *(zlib.crc32(k.encode()) if isinstance(k, str) else k for k in keys)])


def draw(
    areas: np.ndarray,
    *,
    n_samples: int = 8,
    n_intervals: int = 4,
    method: str = "kds",
    variant: str = "corrected",
    short_scans: Literal["repeat", "blank_zero"] = "repeat",
    rng: np.random.Generator,
) -> np.ndarray:
    """(n_samples,) int64 positions in the window, sorted; a blank input is -1.

    areas: (width,) int, pixels. What the sampler cannot fill is repeated ("repeat"), or left blank ("blank_zero": as
    released, where a window no wider than n_samples is blank altogether; method.md §4).

    >>> draw(np.array([5, 9, 7]), n_samples=5, rng=np.random.default_rng(0)).tolist()
    [0, 0, 1, 1, 2]
    >>> draw(np.array([5, 9, 7]), n_samples=5, short_scans="blank_zero", rng=np.random.default_rng(0)).tolist()
    [-1, -1, -1, -1, -1]
    """
    if short_scans == "blank_zero" and len(areas) <= n_samples:
        return np.full(n_samples, BLANK)
    if len(areas) == 0:
        raise DatasetError("an empty window has no slice to draw: widen the window, or use short_scans='blank_zero'")
    drawn = kds.sample(areas, n_samples, n_intervals, method=method, variant=variant, rng=rng)
    if short_scans == "repeat":
        return np.sort(np.resize(drawn, n_samples))
    return np.concatenate([drawn, np.full(n_samples - len(drawn), BLANK)])


def few_shot(scan_ids: Sequence[str], labels: Sequence[int], fraction: float, seed: int = 0) -> np.ndarray:
    """Sorted positions of a stratified share of the scans: ceil(fraction · n) of each class, in (0, 1].

    Nested: for one seed the 1 % lies inside the 3 %, and so on. Independent of the order of the scans.

    >>> few_shot(["a", "b", "c", "d"], [0, 0, 1, 1], 0.5).size
    2
    """
    if not 0 < fraction <= 1:
        raise DatasetError(f"a fraction of the scans lies in (0, 1], got {fraction}")
    labels = np.asarray(labels)
    chosen: list[int] = []
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: scan_ids[row])
        order = stream(seed, "few-shot", int(label) + 1).permutation(len(members))
        # 1e-9: 0.07 * 100 is 7.000000000000001, and must not become 8 scans.
        chosen += [members[k] for k in order[: math.ceil(fraction * len(members) - 1e-9)]]
    return np.sort(np.array(chosen, dtype=np.int64))


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, the next one being made in a thread while the caller works on this one."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="e2d-batches") as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item


# --- augmentation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """Strengths and probabilities of method.md §5, per slice and in this order."""

    flip_p: float = 0.5  # left-right
    shift: float = 0.2  # of the side, either way
    scale: float = 0.2  # 0.8 to 1.2
    rotate: float = 30.0  # degrees, either way
    affine_p: float = 0.5  # shift, scale and rotation together
    value: float = 0.2  # of 255 grey levels, as released: next to nothing. Hue and saturation are void on grey images.
    value_p: float = 0.5
    brightness: float = 0.2  # of full scale, either way
    contrast: float = 0.2  # factor 0.8 to 1.2
    light_p: float = 0.5  # brightness and contrast together
    holes: int = 8  # black squares: the released library's default, 8 of 8 x 8 pixels …
    hole_side: float = 8 / 384  # … on a side of 384, kept in proportion at other sizes
    holes_p: float = 0.2


class CoarseDropout(torch.nn.Module):
    """Black squares of one size at random places; kornia's RandomErasing draws one rectangle only."""

    def __init__(self, holes: int, side: float) -> None:
        super().__init__()
        self.holes, self.side = holes, side

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1, S, S) -> the same with ``holes`` squares of ``side`` · S pixels set to 0, wholly inside the image."""
        n, _, size, _ = images.shape
        side = max(1, round(self.side * size))
        first = torch.randint(0, size - side + 1, (2, n, self.holes, 1)).to(images.device, non_blocking=True)
        at = torch.arange(size, device=images.device)
        rows, columns = ((at >= first) & (at < first + side)).float()  # (N, holes, S) each
        return images.masked_fill(torch.bmm(rows.mT, columns).unsqueeze(1) > 0, 0.0)


class Augment:
    """Augments a batch on its device; each sample has its own parameters.

    kornia computes an operation for the whole batch and then discards what was not selected, so the selection is made
    here and each operation gets its own samples only. It draws its parameters on the CPU from torch's default
    generator: that one is seeded from ``generator`` and put back afterwards.
    """

    def __init__(self, strengths: Augmentation) -> None:
        import kornia.augmentation as K  # a slow import, not needed for inference

        s = strengths
        self.steps: list[tuple[float, Any]] = [
            (s.flip_p, K.RandomHorizontalFlip(p=1.0)),
            # Reflection with aligned corners: beyond the edge the image is mirrored, as in the released library.
            (
                s.affine_p,
                K.RandomAffine(
                    s.rotate,
                    (s.shift, s.shift),
                    (1 - s.scale, 1 + s.scale),
                    p=1.0,
                    padding_mode="reflection",
                    align_corners=True,
                ),
            ),
            (s.value_p, K.RandomBrightness((1 - s.value / 255, 1 + s.value / 255), p=1.0)),
            # order: contrast (1) first, then brightness (0)
            (s.light_p, K.ColorJiggle(brightness=s.brightness, contrast=s.contrast, p=1.0, order=(1, 0))),
            (s.holes_p, CoarseDropout(s.holes, s.hole_side)),
        ]

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(N, 1, S, S) uint8 -> (N, 1, S, S) float in [0, 1]."""
        images = images.float().div_(255)
        # Parts stay in a CPU's cache: at 384 pixels twice the speed of the whole batch; smaller ones cost in calls.
        part_size = 32 if images.device.type == "cpu" else len(images)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for probability, step in self.steps:
                selected = (torch.rand(len(images)) < probability).nonzero().squeeze(1)
                for part in selected.split(part_size):
                    if len(part):
                        index = part.to(images.device, non_blocking=True)
                        images.index_copy_(0, index, step(images.index_select(0, index)))
        return images
