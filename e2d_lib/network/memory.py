"""Memory before a run: what a step holds, what is free, and how many slices go through the network at once."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from e2d_lib.network.device import TrainingError
from e2d_lib.network.model import ModelConfig, build

ROOM = 0.75
"""Share of the free memory that a step may fill; the rest is for gradients on their way and the libraries' own."""
PIXEL_BYTES = 10_000
"""More than networks for such slices keep for a pixel (EfficientNet-B3: 3,400): what fits so needs no measuring."""


@lru_cache
def held(config: ModelConfig, images: int, size: int, dtype: torch.dtype | None) -> tuple[int, int]:
    """Bytes of activations that a forward pass keeps for the backward pass, and the number of weights.

    images: (images, 1, size, size); dtype: of autocast, None for none. Nothing is computed: the tensors are fake, and
    hooks on what autograd saves add up each storage once. The network's own weights do not count.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    net = build(replace(config, pretrained=False, size=size))
    with FakeTensorMode() as fake, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        own = {name: fake.from_tensor(value) for name, value in [*net.named_parameters(), *net.named_buffers()]}
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits = torch.func.functional_call(net, own, torch.empty(images, 1, size, size))
    for value in own.values():
        found.pop(value.untyped_storage()._cdata, None)
    del logits  # until here it held what was saved
    return sum(storage.nbytes() for storage in found.values()), sum(weight.numel() for weight in net.parameters())


def fitting(config: ModelConfig, images: int, size: int, dtype: torch.dtype | None, room: float) -> int:
    """How many of a step's images go through the network at once in ``room`` bytes: equal parts, as few as do.

    >>> fitting(ModelConfig("test_efficientnet"), 64, 96, None, 1e12)
    64
    """
    if images * size * size * PIXEL_BYTES <= ROOM * room:
        return images
    activations, weights = held(config, images, size, dtype)
    # A weight comes with its gradient, two moments and its average, 4 bytes each.
    at_once = (ROOM * room - 20 * weights) * images / activations
    if at_once >= images:
        return images
    parts = -(-images // max(1, int(at_once)))
    return -(-images // parts)


@contextlib.contextmanager
def told(images: int, size: int) -> Iterator[None]:
    """Say in one line which settings to change where memory runs out; TrainingError then."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator has no class of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"out of memory with {images} slices of {size}×{size} pixels at once: set micro_batch (the same step in "
            "parts), fewer scans_per_step, a smaller size in chapter 2, or amp='bf16'; `e2d plan` shows what fits"
        ) from error
