"""The GPU's path without a GPU: the whole step on a device that holds no numbers, and what CUDA answers by mocks.

On ``meta`` nothing is computed, so that whatever reads a value fails, or is counted here. `Watch` adds what torch does
not notice there: tensors of two devices in one operation. Not covered: kernels, CUDA's autocast, loss scaling, speed.
"""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from e2d_lib.network import device, gradcam, inference, slices, training
from e2d_lib.network.model import build
from tests.network.test_training import SMALL, quick, toy

META = torch.device("meta")
COPIES = ("_to_copy", "copy_")


class Watch(TorchDispatchMode):
    """Raises where an operation mixes devices, and counts values read from the device (each a synchronisation)."""

    def __init__(self):
        super().__init__()
        self.operations = self.read = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        places = {tensor.device.type for tensor in tensors if tensor.ndim}  # torch takes scalars of the CPU anywhere
        if len(places) > 1 and name not in COPIES:
            raise RuntimeError(f"{name} has tensors on {sorted(places)}")
        on_device = any(tensor.device.type == "meta" for tensor in tensors)
        self.operations += on_device
        if on_device and name == "_local_scalar_dense":
            self.read += 1
            return 0.5
        if on_device and name == "_to_copy" and (kwargs or {}).get("device", META).type == "cpu":
            self.read += 1
            return torch.zeros(tensors[0].shape, dtype=(kwargs or {}).get("dtype") or tensors[0].dtype)
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run on the stand-in, its slices resident there."""
    monkeypatch.setattr(training, "resolve_device", lambda name: META)
    average = training.ModelEmaV3  # its generator, for rounding bfloat16, cannot be made for meta
    monkeypatch.setattr(training, "ModelEmaV3", lambda net, **how: average(build(SMALL), **how).to(META))
    monkeypatch.setattr(slices, "ahead", iter)  # a mode watches its own thread only
    images = toy()
    images = replace(images, pixels=images.pixels.to(META))
    recipe = quick(ema=0.9, epochs=1, scans_per_step=4)
    run = training.begin({"train": images}, SMALL, recipe, tmp_path)
    return run, images


def test_an_epoch_reads_one_value_a_step_and_mixes_no_devices(begun):
    run, images = begun
    assert all(weight.device == META for weight in [*run.net.parameters(), *run.evaluated.parameters()])
    with Watch() as watch:
        loss = training.train_epoch(run, images, 1, lambda count: None)
    assert run.steps_an_epoch == 4
    assert watch.read == 4 + 1  # the loss of each step, one step late, and the epoch's
    assert loss == 0.5 / 128
    assert watch.operations > 1000


def test_a_step_in_parts_reads_no_more(begun):
    run, images = begun
    run.at_once = 5
    with Watch() as watch:
        training.train_epoch(run, images, 1, lambda count: None)
    assert watch.read == 5


def test_prediction_stays_on_the_device(begun):
    run, images = begun
    what = slices.plan(images, np.arange(len(images)), run.recipe, "score")
    with Watch() as watch:
        logits = inference.infer(run.evaluated, images, what, run.recipe, META)
    assert (logits.device, logits.shape, watch.read) == (META, (16, 8), 0)


def test_slices_that_are_not_resident_go_to_the_device(begun):
    run, _ = begun
    images = toy()
    images = replace(images, pixels=tuple(p.numpy() for p in images.pixels.split(images.widths.tolist())))
    with Watch() as watch:
        training.train_epoch(run, images, 1, lambda count: None)
    assert watch.read == 5


def test_heat_maps_read_the_device_once_they_are_made():
    net = build(SMALL).eval().to(META)
    with Watch() as watch:
        maps = gradcam.heat_maps(net, np.zeros((2, 32, 32), np.uint8), [0, 1])
    assert maps.shape == (2, 32, 32) and watch.read <= 3  # scores, activations, gradients


@pytest.mark.parametrize("use", [lambda t, i: t.index_select(0, i), lambda t, i: t[i], lambda t, i: t.gather(0, i)])
def test_the_watch_sees_an_index_on_another_device(use):
    pixels, index = torch.zeros(4, device=META), torch.tensor([1, 2])
    with Watch(), pytest.raises(RuntimeError, match="'cpu', 'meta'"):
        use(pixels, index)


def test_the_watch_counts_hidden_readings():
    value = torch.zeros(3, device=META)
    with Watch() as watch:
        value.sum().item()
        float(value[0])
        value.cpu().numpy()
    assert watch.read == 3


# --- what CUDA answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((7, 0), torch.float16), ((8, 0), torch.bfloat16), ((8, 9), torch.bfloat16)],
)
def test_bf16_only_where_it_is_not_emulated(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # it counts emulation
    assert device.precision("auto", torch.device("cuda:1")) == dtype


def test_drop_path_is_seeded_on_the_runs_own_gpu(monkeypatch):
    current, seeded = [], []

    @contextlib.contextmanager
    def on(place):
        current.append(place)
        yield
        current.pop()

    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append((seed, *current)))
    with torch.random.fork_rng(devices=[]), device.seeded(torch.device("cuda:1"), 7):
        assert seeded == [(7, torch.device("cuda:1"))]


def test_memory_that_torch_holds_but_does_not_use_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda place: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda place: 12)
    assert device.free(torch.device("cuda:1")) == 28
