"""Where the network runs, in which precision, and torch's switches for the length of a run."""

import contextlib
import os
from collections.abc import Iterator

import torch

from e2d_lib.network.recipe import Recipe


class TrainingError(ValueError):
    """Training that cannot start, or cannot go on."""


def resolve_device(name: str = "auto") -> torch.device:
    """A torch device; "auto" is CUDA, then Apple's GPU, then CPU."""
    if name == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device {name!r} asked for, but torch finds no CUDA: use device='auto' or 'cpu'")
    return device


def precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type, None for full precision. fp16 needs CUDA, and is off elsewhere."""
    if amp == "auto":
        amp = ("bf16" if has_bfloat16(device) else "fp16") if device.type == "cuda" else "off"
    if amp == "fp16" and device.type != "cuda":
        amp = "off"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes with bfloat16; elsewhere (before compute capability 8.0) it is emulated, and slow."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def free(device: torch.device) -> int:
    """Bytes that are free on a GPU, or in the machine's memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    import psutil

    return psutil.virtual_memory().available


def autocast(dtype: torch.dtype | None, device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


@contextlib.contextmanager
def settled(recipe: Recipe) -> Iterator[None]:
    """torch's global switches for the length of a run: deterministic algorithms, or cuDNN's search for fast ones."""
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with a fixed workspace
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(recipe.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not recipe.deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """torch's default generators of the CPU and of this device, seeded for a while; drop path draws from them."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):  # else the current device is seeded, not cuda:1
                torch.cuda.manual_seed(seed)
        yield
