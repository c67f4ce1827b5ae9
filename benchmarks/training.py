"""Does the input keep up? Images a second of training, against two yardsticks, measured in turns in one run.

    python benchmarks/training.py                                                  # EfficientNet-B3 at 384
    python benchmarks/training.py --backbone test_efficientnet --size 96           # a model so small that input shows

step         the same training step on one random batch that already lies on the device: what the model alone allows
study        e2d_lib.training: slices drawn, gathered, augmented on the device, then the same step
input_alone  that without the step: what the input costs when nothing hides it
usual        JPEG files decoded one by one, per-image torchvision augmentation, a DataLoader's workers, the same step

Prints each in images/s, median and range over rounds, and the ratios study/step (1: input never waits) and study/usual.
On a machine that does other work meanwhile, two threads wait for each other and the clock says little: there set
OMP_NUM_THREADS=1 and read input_alone's share of the processor time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from e2d_lib.network import training
from e2d_lib.network.device import resolve_device
from e2d_lib.network.model import ModelConfig
from e2d_lib.network.recipe import Recipe
from e2d_lib.network.slices import Batch, ScanSlices, batch, plan


def cohort(scans: int, size: int, device: torch.device) -> ScanSlices:
    """Blurred noise, so that JPEG has something to compress, in windows of 24 slices."""
    rng = np.random.default_rng(0)
    arrays = [
        np.stack(
            [cv2.GaussianBlur(image, (7, 7), 0) for image in rng.integers(0, 256, (24, size, size), dtype=np.uint8)]
        )
        for _ in range(scans)
    ]
    areas = [rng.integers(100, 1000, 24) for _ in range(scans)]
    return ScanSlices.from_arrays(
        arrays, areas, [k % 2 for k in range(scans)], [f"scan {k}" for k in range(scans)], device=device
    )


class Jpegs(Dataset):
    """The usual way: one file an item, decoded and augmented by itself (method.md §5's set in torchvision's terms)."""

    def __init__(self, folder: Path, slices: ScanSlices) -> None:
        folder.mkdir()
        self.paths = []
        for k, image in enumerate(slices.pixels.cpu().numpy()):
            self.paths.append(str(folder / f"{k}.jpg"))
            cv2.imwrite(self.paths[-1], image)
        self.transform = v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomApply(
                    [v2.RandomAffine(30, (0.2, 0.2), (0.8, 1.2), interpolation=v2.InterpolationMode.BILINEAR)]
                ),
                v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.2)]),
                v2.RandomErasing(0.2, scale=(0.0035, 0.0035), ratio=(1.0, 1.0)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> torch.Tensor:
        image = cv2.imread(self.paths[k], cv2.IMREAD_GRAYSCALE)
        return self.transform(torch.from_numpy(image)[None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_b3")
    parser.add_argument("--size", type=int, default=384, help="side of a slice, pixels")
    parser.add_argument("--scans-per-step", type=int, default=20, help="8 slices each; at least 2 scans in all")
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of the usual loader")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", default="auto", choices=["auto", "off", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()

    device = resolve_device(options.device)
    slices = cohort(options.scans_per_step * options.steps, options.size, device)
    recipe = Recipe.preset(
        scans_per_step=options.scans_per_step,
        select="last",
        epochs=10_000,
        device=str(device),
        amp=options.amp,
        compile=options.compile,
    )
    images_a_step = options.scans_per_step * recipe.n_samples
    images = images_a_step * options.steps
    model = ModelConfig(options.backbone, pretrained=False, size=options.size)

    with tempfile.TemporaryDirectory() as folder:
        run = training.begin({"train": slices}, model, recipe, Path(folder) / "run")
        jpegs = Jpegs(Path(folder) / "jpegs", slices)
        workers = {"num_workers": options.workers, "prefetch_factor": 2, "pin_memory": device.type == "cuda"}
        lead = 2 * options.workers + 1
        targets = torch.randint(0, 2, (images_a_step,), device=device).float()
        blank = torch.zeros(images_a_step, dtype=torch.bool, device=device)
        resident = torch.rand(images_a_step, 1, options.size, options.size, device=device)

        def seconds(work: Callable[[], None]) -> tuple[float, float]:
            """On the clock, and of processor time in this process."""
            clock, processor = time.perf_counter(), time.process_time()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - clock, time.process_time() - processor

        def train_on(pixels: torch.Tensor) -> None:
            pixels = pixels.to(device, non_blocking=True)
            training.step(run, pixels, Batch(pixels, targets, blank), 0)

        def step(number: int) -> tuple[float, float]:
            run.trained.train()
            return seconds(lambda: [train_on(resident) for _ in range(options.steps)])

        def study(number: int) -> tuple[float, float]:
            return seconds(lambda: training.train_epoch(run, slices, number + 1, lambda count: None))

        def input_alone(number: int) -> tuple[float, float]:
            rows = np.array_split(np.arange(len(slices)), options.steps)
            plans = (plan(slices, part, recipe, "train", number + 1) for part in rows)
            generator = torch.Generator().manual_seed(number)
            return seconds(lambda: [run.augment(batch(slices, p, device).pixels, generator) for p in plans])

        def usual(number: int) -> tuple[float, float]:
            # Timed in the workers' stride: after the batches made while they had a lead, and with more still to make.
            run.trained.train()
            order = RandomSampler(jpegs, num_samples=(options.steps + 2 * lead) * images_a_step, replacement=True)
            batches = iter(DataLoader(jpegs, batch_size=images_a_step, sampler=order, **workers))
            for _ in range(lead):
                train_on(next(batches))
            return seconds(lambda: [train_on(next(batches)) for _ in range(options.steps)])

        speeds: dict[str, list[tuple[float, float]]] = {}
        # The loader's processes linger, so its rounds come last. The first round of each warms up.
        for ways in ((step, study, input_alone), (usual,)):
            for number in range(options.rounds + 1):
                for way in ways:
                    taken = way(number)
                    if number:
                        speeds.setdefault(way.__name__, []).append(tuple(images / t for t in taken))

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{options.backbone} at {options.size}, {images_a_step} images a step, {name}, {recipe.amp=}")
    clock = {way: [speed for speed, _ in values] for way, values in speeds.items()}
    for way, values in clock.items():
        print(f"{way:11} {np.median(values):9.1f} images/s  ({min(values):.1f} to {max(values):.1f})")
    for other in ("step", "usual"):
        median, fastest = (of(clock["study"]) / of(clock[other]) for of in (np.median, max))
        print(f"study/{other:5} {median:.3f} by the median, {fastest:.3f} by the fastest round")
    processor = {way: np.median([speed for _, speed in values]) for way, values in speeds.items()}
    share = {"clock": {way: np.median(values) for way, values in clock.items()}, "processor": processor}
    for time_of, speed in share.items():
        print(f"input alone takes {speed['step'] / speed['input_alone']:.1%} of a step's {time_of} time")


if __name__ == "__main__":
    main()
