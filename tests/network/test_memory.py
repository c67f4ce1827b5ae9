"""A step's memory before it runs, the same step in parts, and the line that a user reads when memory runs out."""

import pytest
import torch

from e2d_lib.network import memory, training
from e2d_lib.network.checkpoint import load, read
from e2d_lib.network.model import ModelConfig, build
from tests.network.test_training import SMALL, quick, same_weights, toy

LAYER_NORM = ModelConfig("test_convnext", pretrained=False, drop_path=0.0)


def really_held(config, images, size):
    """Bytes of distinct storages that a real forward pass saves."""
    net, found = build(config), {}

    def save(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        logits = net(torch.rand(images, 1, size, size))
    assert logits.requires_grad
    own = {tensor.untyped_storage().data_ptr() for tensor in [*net.parameters(), *net.buffers()]}
    return sum(storage.nbytes() for key, storage in found.items() if key not in own)


@pytest.mark.parametrize("config", [SMALL, LAYER_NORM])
def test_fake_tensors_hold_what_real_ones_do(config):
    activations, weights = memory.held(config, 6, 32, None)
    assert activations == pytest.approx(really_held(config, 6, 32), rel=0.01)
    assert weights == sum(weight.numel() for weight in build(config).parameters())


def test_it_grows_with_the_images_and_shrinks_with_the_precision():
    whole, _ = memory.held(SMALL, 12, 32, None)
    assert whole == pytest.approx(2 * memory.held(SMALL, 6, 32, None)[0], rel=0.05)
    assert 0.4 * whole < memory.held(SMALL, 12, 32, torch.bfloat16)[0] < 0.8 * whole


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_as_many_at_once_as_fit_in_parts_of_one_size(parts, monkeypatch):
    monkeypatch.setattr(memory, "held", lambda config, images, size, dtype: (images * 1000, 10))
    room = (-(-24 // parts) * 1000 + 200) / memory.ROOM  # one part, and 20 bytes for each weight
    monkeypatch.setattr(memory, "PIXEL_BYTES", 10**9)
    assert memory.fitting(SMALL, 24, 32, None, room + 1) == -(-24 // parts)
    assert memory.fitting(SMALL, 24, 32, None, 0) == 1  # tried all the same: the message says what to set


def test_what_surely_fits_is_not_measured(monkeypatch):
    monkeypatch.setattr(memory, "held", lambda *_: pytest.fail("measured"))
    assert memory.fitting(SMALL, 64, 32, None, 10e9) == 64


def losses(tmp_path, config, micro_batch):
    recipe = quick(micro_batch=micro_batch, epochs=2)
    return training.fit(toy(), None, model=config, recipe=recipe, out_dir=tmp_path / str(micro_batch)).history["loss"]


def test_a_step_in_parts_has_the_same_loss_without_batch_norm(tmp_path):
    whole, parts = losses(tmp_path, LAYER_NORM, 64), losses(tmp_path, LAYER_NORM, 20)  # 20, 20, 20 and 4 slices
    assert parts.tolist() == pytest.approx(whole.tolist(), rel=2e-4)


def test_with_batch_norm_it_differs_and_a_line_says_so(tmp_path, capsys):
    whole = losses(tmp_path, SMALL, 64)
    assert "at a time" not in capsys.readouterr().out
    parts = losses(tmp_path, SMALL, 16)
    assert abs(whole - parts).max() > 1e-3
    assert "64 slices a step go through the network 16 at a time: the same loss, but batch norm" in (
        capsys.readouterr().out
    )


def test_chosen_from_what_is_free_and_kept_when_a_run_goes_on(tmp_path, monkeypatch):
    def stop(run, epoch):
        kept(run, epoch)
        raise KeyboardInterrupt

    def go(folder):
        return training.fit(toy(), None, model=SMALL, recipe=quick(), out_dir=tmp_path / folder)

    kept = training.keep
    monkeypatch.setattr(memory, "fitting", lambda *_: 24)
    go("undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(training, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            go("stopped")
    monkeypatch.setattr(memory, "fitting", lambda *_: 64)  # more is free now
    fit = go("stopped")
    assert read(fit.path)[1]["at_once"] == 24
    same_weights(fit.path, tmp_path / "undisturbed" / fit.path.name)
    assert load(fit.path)[1].micro_batch == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_is_a_line_that_names_the_settings(tmp_path, monkeypatch, error):
    def step(*_):
        raise error

    monkeypatch.setattr(training, "step", step)
    with pytest.raises(
        training.TrainingError, match=r"out of memory with 64 slices of 32×32 .*micro_batch.*amp"
    ) as told:
        training.fit(toy(), None, model=SMALL, recipe=quick(), out_dir=tmp_path)
    assert "\n" not in str(told.value)


def test_another_error_is_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shapes differ"), memory.told(1, 1):
        raise RuntimeError("shapes differ")
