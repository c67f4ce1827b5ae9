"""Checkpoints and the state of a run: read as they were written, and refused where they are not ours."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from e2d_lib.network import checkpoint
from e2d_lib.network.checkpoint import FORMAT, SELECTED, STATE, load, read_state
from e2d_lib.network.model import CheckpointError, ModelError
from e2d_lib.network.training import predict
from tests.network.test_training import SIZE, quick, run, toy


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(tmp_path_factory.mktemp("trained"), epochs=1)


class TestCheckpoint:
    def test_load_gives_the_network_and_its_recipe(self, trained):
        net, recipe = load(trained.path)
        assert recipe == quick(epochs=1)
        assert net.config == trained.model.config and net.config.size == SIZE
        assert not net.training
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), trained.model.parameters(), strict=True))

    def test_missing_file(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no checkpoint .*nothing.safetensors"):
            load(tmp_path / "nothing.safetensors")

    def test_not_safetensors(self, tmp_path):
        (tmp_path / "a.safetensors").write_bytes(b"\0" * 100)
        with pytest.raises(CheckpointError, match="is no safetensors file"):
            load(tmp_path / "a.safetensors")

    def test_somebody_elses(self, tmp_path):
        save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match="is no E2D checkpoint"):
            load(tmp_path / "other.safetensors")

    def test_weights_that_do_not_fit(self, trained, tmp_path):
        weights, about = checkpoint.read(trained.path)
        weights["logit.weight"] = torch.zeros(1, 99)
        del weights["hidden.bias"]
        save_file(weights, tmp_path / "odd.safetensors", {"format": FORMAT, "about": json.dumps(about)})
        with pytest.raises(
            CheckpointError, match=r"does not fit test_efficientnet: .*hidden\.bias.*logit\.weight"
        ) as caught:
            load(tmp_path / "odd.safetensors")
        assert "\n" not in str(caught.value)

    def test_a_setting_this_version_does_not_know(self, trained, tmp_path):
        weights, about = checkpoint.read(trained.path)
        about["recipe"]["mixup"] = 0.1
        save_file(weights, tmp_path / "new.safetensors", {"format": FORMAT, "about": json.dumps(about)})
        with pytest.raises(CheckpointError, match=r"written by another version.*mixup"):
            load(tmp_path / "new.safetensors")

    def test_slices_of_another_size(self, trained):
        with pytest.raises(ModelError, match=r"side 32, got \(48, 48\): preprocess with size=32"):
            predict(trained.path, toy(2, size=48))

    def test_two_files_the_network_as_safetensors(self, trained):
        assert sorted(path.name for path in trained.path.parent.iterdir()) == [SELECTED, STATE]
        raw = trained.path.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        assert header["__metadata__"]["format"] == FORMAT

    def test_a_state_that_is_damaged_or_anothers(self, trained, tmp_path):
        whole = (trained.path.parent / STATE).read_bytes()
        assert read_state(tmp_path / "none.pt") is None
        for content, message in ((whole[: len(whole) // 2], "no state of"), (b"x" * 99, "no state of")):
            (tmp_path / "bad.pt").write_bytes(content)
            with pytest.raises(CheckpointError, match=f"{message} a training run: delete it, and the run begins again"):
                read_state(tmp_path / "bad.pt")
        torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match="no state of a training run"):
            read_state(tmp_path / "other.pt")

    def test_a_state_holds_no_code(self, tmp_path):
        torch.save({"format": FORMAT, "run": os.system}, tmp_path / "evil.pt")
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            read_state(tmp_path / "evil.pt")
