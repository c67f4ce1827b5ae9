"""Heat maps: known by hand, of a network left as it was, of the errors of a run's checkpoints."""

from dataclasses import asdict, replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from e2d_lib import io
from e2d_lib.method import preprocess
from e2d_lib.network import gradcam, training
from e2d_lib.network.model import E2D, CheckpointError, ModelConfig, ModelError, build
from e2d_lib.network.slices import ScanSlices
from e2d_lib.network.training import Recipe
from e2d_lib.scans.cohort import read_cohort
from tests import cells

SMALL = ModelConfig("test_efficientnet", pretrained=False)


def write_scan(folder, n, seed):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for k in range(n):
        image = np.full((48, 48), 20, np.uint8)
        image[4:44, 4:44] = 200
        image[12:36, 10:30] = 40 + rng.integers(0, 60)
        cv2.imwrite(str(folder / f"{k}.png"), image)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two scans through preprocessing, at 96 pixels: three cells a side of the last maps."""
    root = tmp_path_factory.mktemp("scans")
    for number, label in enumerate(("negative", "positive")):
        write_scan(root / "data" / "valid" / label / "ct_scan_0", 12 + number, number)
    cohort = read_cohort(root / "data")
    return cohort, preprocess.run(cohort, root / "cache", preprocess.Params(size=96), n_jobs=1)


class Known(nn.Module):
    """A backbone whose maps are known: two channels, x and 1 - x for a grey x in [0, 1]."""

    head_hidden_size = 2

    def __init__(self, *, last=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)  # passes on what comes, in evaluation mode
        if last:
            self.output_fmt = "NHWC"
        mean, std = 0.485, 0.229  # of ImageNet's first channel: undo the network's normalisation
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:, 0, 0, 0] = torch.tensor([std, -std])
            self.conv.bias.copy_(torch.tensor([mean, 1 - mean]))

    def forward_features(self, x):
        maps = self.norm(self.conv(x))
        return maps.permute(0, 2, 3, 1) if hasattr(self, "output_fmt") else maps

    def forward_head(self, maps):
        return maps.mean((1, 2)) if hasattr(self, "output_fmt") else maps.mean((2, 3))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def known_net(weights=(2.0, 0.5), **options):
    """logit = w0 · mean(x) + w1 · mean(1 - x)."""
    net = E2D(replace(SMALL, hidden=2), Known(**options))
    with torch.no_grad():
        net.hidden.weight.copy_(torch.eye(2))
        net.logit.weight.copy_(torch.tensor([weights]))
    return net.eval()


def spread(image):
    """Grad-CAM's scaling of one map: from 0 to 1."""
    image = np.maximum(image, 0)
    return (image - image.min()) / (image - image.min()).max()


class TestGradCam:
    @pytest.mark.parametrize("last", [False, True])
    def test_a_map_known_by_hand(self, last, rng):
        images = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
        x = images / 255
        maps = gradcam.heat_maps(known_net(last=last), images, [1, 1, 1])
        assert maps.shape == (3, 8, 8) and maps.dtype == np.float32
        # the channels' weights are the gradients, w / 64 each: the sum of w · channel, scaled
        for got, one in zip(maps, x, strict=True):
            np.testing.assert_allclose(got, spread(2.0 * one + 0.5 * (1 - one)), atol=1e-4)

    def test_the_other_class_has_the_other_sign(self, rng):
        images = rng.integers(0, 256, (2, 8, 8), dtype=np.uint8)
        x = images / 255
        net = known_net((1.0, -1.0))  # 2 x - 1: bright speaks for the disease, dark against it
        for toward, sign in ((1, 1), (0, -1)):
            maps = gradcam.heat_maps(net, images, [toward] * 2)
            for got, one in zip(maps, x, strict=True):
                np.testing.assert_allclose(got, spread(sign * (2 * one - 1)), atol=1e-4)
        mixed = gradcam.heat_maps(net, images, [1, 0])
        np.testing.assert_allclose(mixed[1], spread(1 - 2 * x[1]), atol=1e-4)

    def test_no_evidence_is_no_heat(self, rng):
        images = rng.integers(0, 256, (1, 8, 8), dtype=np.uint8)
        assert not gradcam.heat_maps(known_net((1.0, 2.0)), images, [0]).any()  # nothing speaks against it

    def test_a_uniform_map_is_no_place(self):
        assert not gradcam.heat_maps(known_net(), np.full((1, 8, 8), 90, np.uint8), [1]).any()

    def test_a_slice_does_not_depend_on_the_others(self, rng):
        net = build(SMALL, seed=1).eval()
        images = rng.integers(0, 256, (3, 64, 64), dtype=np.uint8)
        whole = gradcam.heat_maps(net, images, [1, 0, 1])
        np.testing.assert_allclose(whole[1], gradcam.heat_maps(net, images[1:2], [0])[0], atol=1e-4)

    def test_the_network_is_left_as_it_was(self, rng):
        net = build(SMALL, seed=1).train()
        weight = net.logit.weight
        weight.grad = torch.full_like(weight, 7.0)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        gradcam.heat_maps(net, rng.integers(0, 256, (2, 64, 64), dtype=np.uint8), [1, 0])
        assert net.training and weight.requires_grad and (weight.grad == 7).all()
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert not any(module._forward_hooks or module._backward_hooks for module in net.modules())

    @pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_convnext", "test_byobnet"])
    def test_cut_at_the_last_maps_it_is_the_same_network(self, backbone, rng):
        net = build(ModelConfig(backbone, pretrained=False, drop_path=0.0), seed=2).eval()
        pixels = torch.from_numpy(rng.integers(0, 256, (2, 1, 64, 64), dtype=np.uint8))
        with torch.no_grad():
            whole = net(pixels)
        torch.testing.assert_close(gradcam._Split(net)(pixels).detach(), whole)
        cells = gradcam.cells(net, 64)
        assert 1 < cells < 64 and gradcam.feature_maps(net, pixels).shape[-1] == cells

    def test_tokens_have_no_map(self, rng):
        net = build(ModelConfig("test_vit", pretrained=False, drop_path=0.0, size=160))
        message = r"Grad-CAM needs feature maps .* test_vit ends in tokens .*: use a convolutional backbone"
        with pytest.raises(ModelError, match=message):
            gradcam.heat_maps(net, rng.integers(0, 256, (1, 160, 160), dtype=np.uint8), [1])

    def test_one_class_a_slice(self, rng):
        with pytest.raises(ValueError, match=r"one class, 0 or 1, for each of 2 slices, got \[1\]"):
            gradcam.heat_maps(known_net(), rng.integers(0, 256, (2, 8, 8), dtype=np.uint8), [1])

    def test_nothing_to_explain(self):
        assert gradcam.heat_maps(known_net(), np.zeros((0, 8, 8), np.uint8), []).shape == (0, 8, 8)


class TestCheckpoints:
    """Heat maps out of a run's folder, and one clear line for each thing that can be wrong there."""

    @pytest.fixture
    def checkpoint(self, prepared, tmp_path):
        def make(name, seed=0, params=prepared[1].params):
            net = build(replace(SMALL, size=params.size), seed=seed)
            training.save(tmp_path / name / training.SELECTED, net, Recipe.preset())
            io.write_json(tmp_path / name / "preprocessing.json", asdict(params))
            return tmp_path / name / training.SELECTED

        return make

    def errors(self):
        names = ["valid/positive/ct_scan_0", "valid/negative/ct_scan_0", "valid/negative/ct_scan_0"]
        return pd.DataFrame({"scan_id": names, "label": [1, 0, 0], "fold": [5, 1, 1], "index": [2, 3, -1]})

    def test_slices_and_maps_of_the_errors_fold_by_fold(self, prepared, checkpoint):
        _, done = prepared
        runs = pd.DataFrame(
            {"fold": [5, 1, 1], "checkpoint": [checkpoint("a", 1), checkpoint("b", 3), checkpoint("c", 5)]}
        )
        runs = runs.astype({"checkpoint": str})
        given = {"wrong": [], "labels": [], "errors": self.errors(), "runs": runs, "done": done, "device": "cpu"}
        left = cells.run("05_evaluation", "gradcam.of_checkpoints(", **given)
        assert list(left.heat) == [1, 0]  # the third has no slice
        got = [(done.pixels(row["scan_id"])[row["index"]], left.heat[k]) for k, row in left.shown.iterrows()]
        np.testing.assert_array_equal(got[0][0], done.pixels("valid/positive/ct_scan_0")[2])
        image = np.asarray(done.pixels("valid/negative/ct_scan_0")[3])
        np.testing.assert_array_equal(got[1][0], image)
        nets = [training.load(path)[0] for path in runs["checkpoint"]]
        missed = gradcam.heat_maps(nets[0], got[0][0][None], [0])[0]  # what spoke against the disease
        np.testing.assert_allclose(got[0][1], missed, atol=1e-5)
        assert missed.max() > 0.5  # there is something to compare
        false_alarm = [gradcam.heat_maps(net, image[None], [1])[0] for net in nets[1:]]
        np.testing.assert_allclose(got[1][1], np.mean(false_alarm, axis=0), atol=1e-5)
        assert all(heat.min() >= 0 and heat.max() <= 1 for _, heat in got)

    def test_slices_made_otherwise(self, prepared, checkpoint):
        _, done = prepared
        other = checkpoint("a", params=replace(done.params, size=64, crop=False))
        message = r"was trained on slices made with size=64, not 96, crop=False, not True: preprocess them that way"
        with pytest.raises(CheckpointError, match=message):
            gradcam.of_checkpoints([other], done, [("valid/positive/ct_scan_0", 0)], [1])

    def test_a_cache_of_another_size_than_the_networks(self, prepared, checkpoint):
        cohort, done = prepared
        path = checkpoint("a", params=replace(done.params, size=64))
        with pytest.raises(ModelError, match=r"for slices of side 64, got \(96, 96\): preprocess with size=64"):
            training.predict(path, ScanSlices.from_preprocessed(done, cohort), device="cpu")

    def test_no_checkpoint_there(self, prepared, tmp_path):
        with pytest.raises(CheckpointError, match=r"no checkpoint .*model.safetensors: give the model.safetensors of"):
            gradcam.of_checkpoints([tmp_path / training.SELECTED], prepared[1], [], [])

    @pytest.mark.parametrize("kind", ["text", "pickle", "foreign"])
    def test_files_that_are_no_checkpoints(self, kind, prepared, checkpoint):
        path = checkpoint("a")
        if kind == "text":
            path.write_text("weights")
        elif kind == "pickle":
            torch.save({"weight": torch.zeros(2)}, path)
        else:
            save_file({"weight": torch.zeros(2)}, path)
        message = "is no E2D checkpoint: its format is None" if kind == "foreign" else "is no safetensors file"
        with pytest.raises(CheckpointError, match=message):
            gradcam.of_checkpoints([path], prepared[1], [("valid/positive/ct_scan_0", 0)], [1])

    def test_weights_of_another_architecture(self, prepared, checkpoint):
        path = checkpoint("a")
        net = build(replace(SMALL, size=32))
        net.config = replace(net.config, backbone="test_resnet")
        training.save(path, net, Recipe.preset())
        with pytest.raises(CheckpointError, match=r"does not fit test_resnet: .*backbone\.conv1\.0\.weight"):
            gradcam.of_checkpoints([path], prepared[1], [("valid/positive/ct_scan_0", 0)], [1])
