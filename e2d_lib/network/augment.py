"""The paper's augmentation (method/README.md §5), for a batch on its device, each slice with parameters of its own."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Augmentation:
    """Strengths and probabilities of method/README.md §5, per slice and in this order."""

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
        # Reflection with aligned corners: beyond the edge the image is mirrored, as in the released library.
        mirrored = {"padding_mode": "reflection", "align_corners": True}
        self.steps: list[tuple[float, Any]] = [
            (s.flip_p, K.RandomHorizontalFlip(p=1.0)),
            (s.affine_p, K.RandomAffine(s.rotate, (s.shift,) * 2, (1 - s.scale, 1 + s.scale), p=1.0, **mirrored)),
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
