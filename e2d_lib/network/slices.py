"""Slices ready to train on: windows as one uint8 tensor, the draw of a scan's slices, batches of them.

Where the windows fit they lie on the training device, so that a batch is one gather; where they do not, they stay
memory-mapped. There is no loader process; where it helps, a thread works one batch ahead (:func:`ahead`).
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch

from e2d_lib.method import kds
from e2d_lib.network.device import free
from e2d_lib.network.recipe import Recipe
from e2d_lib.progress import bar
from e2d_lib.scans.patients import classes, patient_of

if TYPE_CHECKING:
    from e2d_lib.method.preprocess import Preprocessed

T = TypeVar("T")
BLANK = -1
"""Index of an input without a slice: zero after ImageNet normalisation, label 0 (method/README.md §4, released)."""
UNKNOWN = -1
"""Label of a scan whose class is not known."""
RESIDENT = 0.6
"""Share of a device's free memory that pixels may take, leaving room for the model."""


class DatasetError(ValueError):
    """Slices that cannot be used as asked."""


@dataclass(frozen=True)
class ScanSlices:
    """The windows of some scans. Subsets (folds, few-shot fractions) share the pixels.

    scan_ids: n names; patients: (n,) str, whose; labels: (n,) int64, 1 COVID, 0 not, -1 unknown; n_slices: (n,) int64,
    slices of the whole scan (the released code's weight of a scan); starts, widths: (n,) int64, scan i's window is the
    flat range ``[starts[i], starts[i] + widths[i])``; areas: one (width,) int array a scan, pixels; size: side of a
    slice, pixels; pixels: (total, size, size) uint8 tensor, or where that does not fit the memory-mapped arrays one
    after another.
    """

    scan_ids: tuple[str, ...]
    labels: np.ndarray
    n_slices: np.ndarray
    starts: np.ndarray
    widths: np.ndarray
    areas: tuple[np.ndarray, ...]
    size: int
    pixels: torch.Tensor | tuple[np.ndarray, ...]
    patients: np.ndarray

    @classmethod
    def from_arrays(
        cls,
        arrays: Sequence[np.ndarray],
        areas: Sequence[np.ndarray],
        labels: Sequence[int | None],
        scan_ids: Sequence[str],
        *,
        n_slices: Sequence[int] | None = None,
        patients: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
        resident: bool | Literal["auto"] = "auto",
    ) -> "ScanSlices":
        """From one (width, S, S) uint8 array a scan (a memmap is fine) and the lung area of each slice.

        n_slices defaults to the widths, patients to one a scan. resident: keep the pixels on the device; "auto" does so
        where they take at most 60 % of the memory that is free there.
        Raises DatasetError when shapes or dtypes disagree, or a scan has not an area for each slice; ValueError where
        there is not one array, area curve, label and name a scan.
        """
        size = arrays[0].shape[-1] if len(arrays) else 0
        if any(array.dtype != np.uint8 or array.shape[1:] != (size, size) for array in arrays):
            kinds = sorted({f"{array.dtype}{array.shape}" for array in arrays})[:3]
            raise DatasetError(f"slices must be uint8 (width, S, S) with one S for all scans, got {kinds}")
        for name, array, curve, _ in zip(scan_ids, arrays, areas, labels, strict=True):
            if len(array) != len(curve):
                raise DatasetError(f"{name}: {len(array)} slices but {len(curve)} areas")
        widths = np.array([len(array) for array in arrays], dtype=np.int64)
        if resident == "auto":
            resident = int(widths.sum()) * size * size <= RESIDENT * free(torch.device(device))
        return cls(
            scan_ids=tuple(str(name) for name in scan_ids),
            labels=np.array([UNKNOWN if pd.isna(label) else int(label) for label in labels], dtype=np.int64),
            n_slices=widths if n_slices is None else np.asarray(n_slices, dtype=np.int64),
            starts=np.cumsum(widths) - widths,
            widths=widths,
            areas=tuple(np.asarray(curve) for curve in areas),
            size=size,
            pixels=_to_device(arrays, widths, size, torch.device(device)) if resident else tuple(arrays),
            patients=np.asarray(scan_ids if patients is None else patients, dtype=object),
        )

    @classmethod
    def from_preprocessed(
        cls, pre: "Preprocessed", cohort_rows: pd.DataFrame, *, device: str | torch.device = "cpu"
    ) -> "ScanSlices":
        """The scans of ``cohort_rows`` (scan_id, label, patient) out of the preprocessing cache.

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
            list(rows["label"]),
            names,
            n_slices=scans.loc[names, "n_slices"].to_numpy(dtype=np.int64),
            patients=patient_of(rows),
            device=device,
        )

    def __len__(self) -> int:
        return len(self.scan_ids)

    def subset(self, rows: Sequence[int] | np.ndarray) -> "ScanSlices":
        """The scans at ``rows`` (positions, or a boolean mask), in that order, sharing the pixels."""
        rows = np.arange(len(self))[list(rows)]
        return replace(
            self,
            scan_ids=tuple(self.scan_ids[row] for row in rows),
            areas=tuple(self.areas[row] for row in rows),
            **{name: getattr(self, name)[rows] for name in ("labels", "n_slices", "starts", "widths", "patients")},
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
    released, where a window no wider than n_samples is blank altogether; method/README.md §4).

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


def few_shot(
    scan_ids: Sequence[str],
    labels: Sequence[int],
    fraction: float,
    seed: int = 0,
    *,
    patients: Sequence[str] | None = None,
) -> np.ndarray:
    """Sorted positions of a stratified share of the patients: ceil(fraction · n) of each class, in (0, 1].

    A patient comes with all scans; without ``patients`` each scan is one's. Nested: for one seed the 1 % lies inside
    the 3 %, and so on. Independent of the order of the scans.

    >>> few_shot(["a", "b", "c", "d", "e"], [0, 0, 1, 1, 1], 0.5, patients=["p", "q", "r", "r", "r"])
    array([1, 2, 3, 4])
    """
    if not 0 < fraction <= 1:
        raise DatasetError(f"a fraction of the scans lies in (0, 1], got {fraction}")
    rows = np.argsort(np.asarray(scan_ids, dtype=object), kind="stable")
    owners = np.asarray(scan_ids if patients is None else patients, dtype=object)
    of, found = classes(owners[rows], np.asarray(labels)[rows])
    chosen: list[int] = []
    for label in np.unique(found):
        members = np.flatnonzero(found == label)
        order = stream(seed, "few-shot", int(label) + 1).permutation(len(members))
        # 1e-9: 0.07 * 100 is 7.000000000000001, and must not become 8 patients.
        chosen += members[order[: math.ceil(fraction * len(members) - 1e-9)]].tolist()
    return np.sort(rows[np.isin(of, chosen)])


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, the next one being made in a thread while the caller works on this one."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="e2d-batches") as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item


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


def batch(slices: ScanSlices, what: Plan, device: torch.device) -> Batch:
    """The planned slices, flattened scan by scan."""
    blank = what.positions == BLANK
    flat = np.where(blank, 0, slices.starts[what.rows, None] + what.positions)  # (n, n_samples)
    targets = np.where(blank, 0, slices.labels[what.rows, None])  # a blank input is labelled 0 whatever the class
    return Batch(
        slices.gather(flat.ravel(), device),
        torch.from_numpy(targets.ravel().astype(np.float32)).to(device, non_blocking=True),
        torch.from_numpy(blank.ravel()).to(device, non_blocking=True),
    )


def batches(slices: ScanSlices, plans: Iterable[Plan], device: torch.device) -> Iterator[Batch]:
    """The batches of the plans, made one ahead in a thread.

    Not where the slices lie in the CPU's memory and are used there: the gathering takes next to no time, and torch's
    workers for a second thread would take a quarter of the speed from those of the model.
    """
    made = (batch(slices, what, device) for what in plans)
    on_cpu = device.type == "cpu" and isinstance(slices.pixels, torch.Tensor)
    return made if on_cpu else ahead(made)
