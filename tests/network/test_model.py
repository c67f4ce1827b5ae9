"""E2D: input normalisation, the two linear layers, backbones by name, pretrained weights."""

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from e2d_lib.network.model import E2D, CheckpointError, ModelConfig, ModelError, WeightsUnavailable, build

SMALL = "test_efficientnet"


def small(**options):
    return build(ModelConfig(**{"backbone": SMALL, "pretrained": False, **options})).eval()


@pytest.fixture
def weights():
    """An ImageNet-like state dict, classifier and all."""
    return timm.create_model(SMALL).state_dict()


class TestInput:
    def test_once_is_imagenet(self):
        out = small().normalise(torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1)).squeeze()
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        np.testing.assert_allclose(out, (np.array([[0.0], [0.25], [1.0]]) - mean) / std, rtol=1e-5)

    def test_twice_spans_the_released_range(self):
        out = small(normalise="twice").normalise(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
        assert out.min().item() == pytest.approx(-5.24, abs=0.005)
        assert out.max().item() == pytest.approx(4.28, abs=0.005)

    @pytest.mark.parametrize(("normalise", "value"), [("once", 0.0), ("twice", -1.0)])
    def test_blank_is_zero_after_the_first_normalisation(self, normalise, value):
        images = torch.rand(3, 1, 4, 4)
        net = small(normalise=normalise)
        out = net.normalise(images, torch.tensor([False, True, False]))
        assert (out[1] == value).all()
        torch.testing.assert_close(out[[0, 2]], net.normalise(images[[0, 2]]))

    def test_bytes_and_floats_are_the_same_image(self):
        images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
        net = small()
        torch.testing.assert_close(net(images), net(images.float() / 255))

    @pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 32, 32), (32, 32)])
    def test_only_grey_batches(self, shape):
        with pytest.raises(ModelError, match=r"\(N, 1, S, S\), got"):
            small()(torch.zeros(shape))

    def test_a_network_for_one_size_refuses_others(self):
        with pytest.raises(ModelError, match=r"side 64, got \(32, 32\): preprocess with size=64"):
            small(size=64)(torch.zeros(1, 1, 32, 32))


class TestNetwork:
    def test_one_logit_a_slice(self):
        assert small()(torch.rand(5, 1, 32, 32)).shape == (5,)

    def test_a_batch_equals_its_elements(self):
        net, images = small(), torch.rand(4, 1, 32, 32)
        one_by_one = torch.cat([net(image[None]) for image in images])
        torch.testing.assert_close(net(images), one_by_one, atol=1e-5, rtol=1e-4)

    def test_nothing_lies_between_the_two_linear_layers(self):
        net = small()
        assert net.hidden.out_features == 224
        features = torch.randn(6, net.hidden.in_features)
        weight = net.logit.weight @ net.hidden.weight
        bias = net.logit.weight @ net.hidden.bias + net.logit.bias
        torch.testing.assert_close(net.logit(net.hidden(features)), features @ weight.T + bias, atol=1e-4, rtol=1e-4)
        net.backbone = torch.nn.Flatten()  # 3 x S x S features, so that forward itself is seen to be linear
        net.hidden = torch.nn.Linear(3 * 4, 224)
        x, y = torch.rand(2, 1, 1, 2, 2)
        torch.testing.assert_close((net(x) + net(y)) / 2, net((x + y) / 2), atol=1e-5, rtol=1e-4)

    def test_efficientnet_b3_is_as_published(self):
        net = build(ModelConfig(pretrained=False))
        assert net.hidden.in_features == 1536
        rates = [module.drop_prob for module in net.modules() if isinstance(module, timm.layers.DropPath)]
        assert 0 < max(rates) < 0.2  # rises linearly to 0.2 over the blocks; the first has none
        assert not any(isinstance(module, torch.nn.Dropout) and module.p for module in net.modules())

    @pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "test_maxvit", "test_nfnet"])
    def test_backbones_by_name(self, backbone):
        net = build(ModelConfig(backbone, pretrained=False, size=64))
        logits = net(torch.rand(2, 1, 64, 64))
        assert logits.shape == (2,)
        logits.sum().backward()
        assert all(weight.grad is not None for weight in net.parameters() if weight.requires_grad)

    def test_features_after_a_backbones_own_head(self):
        assert build(ModelConfig("mobilenetv3_small_050", pretrained=False)).hidden.in_features == 1024

    def test_initialised_from_the_seed_alone(self):
        config = ModelConfig(SMALL, pretrained=False)
        before = torch.get_rng_state()
        first = build(config, seed=1).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(7)
        again, other = build(config, seed=1).state_dict(), build(config, seed=2).state_dict()
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first["hidden.weight"], other["hidden.weight"])

    def test_unknown_backbone(self):
        with pytest.raises(ModelError, match=r"unknown backbone 'efficientnet_b33'.*did you mean.*efficientnet_b3"):
            ModelConfig("efficientnet_b33")

    def test_a_backbone_without_drop_path(self):
        with pytest.raises(ModelError, match="no drop path: set drop_path=0"):
            build(ModelConfig("inception_v3", pretrained=False))

    def test_unknown_normalisation(self):
        with pytest.raises(ModelError, match="'once' or 'twice', got 'never'"):
            ModelConfig(SMALL, normalise="never")


class TestPretrained:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_a_local_file(self, weights, tmp_path, suffix):
        path = tmp_path / f"weights{suffix}"
        save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
        net = small(pretrained=str(path))
        for key, value in net.backbone.state_dict().items():
            assert torch.equal(value, weights[key]), key

    def test_position_embeddings_are_resampled(self, tmp_path):
        save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
        net = build(ModelConfig("test_vit", pretrained=str(tmp_path / "vit.safetensors"), size=64))
        assert net(torch.rand(1, 1, 64, 64)).shape == (1,)

    def test_without_network_the_error_names_the_ways_out(self, monkeypatch):
        def unreachable(*args, **kwargs):
            assert kwargs["timeout"] <= 10
            raise ConnectionError("no route to host")

        def never(*args, **kwargs):
            raise AssertionError("the download was started, which retries for most of a minute")

        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **where: None)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
        with pytest.raises(WeightsUnavailable, match="pretrained=false, or pretrained=/path/to/weights") as caught:
            small(pretrained=True)
        assert "\n" not in str(caught.value)

    def test_weights_in_the_cache_need_no_network(self, monkeypatch, weights, tmp_path):
        save_file(weights, tmp_path / "model.safetensors")
        asked = []

        def cached(**where):
            asked.append(where)
            return str(tmp_path / "model.safetensors")

        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
        net = small(pretrained=True)
        assert asked[0]["repo_id"] == "timm/test_efficientnet.r160_in1k"
        assert torch.equal(net.backbone.conv_stem.weight, weights["conv_stem.weight"])

    def test_a_backbone_nobody_trained(self):
        with pytest.raises(WeightsUnavailable, match="no weights for cspresnet50w on its hub: use pretrained=false"):
            build(ModelConfig("cspresnet50w"))

    def test_an_unknown_set_of_weights(self):
        with pytest.raises(
            ModelError, match=r"no weights 'efficientnet_b3.foo'; it has \['efficientnet_b3.ra2_in1k'\]"
        ):
            ModelConfig("efficientnet_b3.foo")

    def test_no_such_file(self):
        with pytest.raises(WeightsUnavailable, match=r"no file /nowhere/b3.pth.*or use pretrained=false"):
            small(pretrained="/nowhere/b3.pth")

    def test_weights_of_another_network(self, tmp_path):
        save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
        with pytest.raises(CheckpointError, match=r"resnet.safetensors does not fit: \d+ weights missing.*conv_stem"):
            small(pretrained=str(tmp_path / "resnet.safetensors"))

    def test_weights_of_another_shape(self, weights, tmp_path):
        weights["conv_stem.weight"] = torch.zeros(7, 3, 3, 3)
        save_file(weights, tmp_path / "odd.safetensors")
        with pytest.raises(CheckpointError, match=r"odd.safetensors does not fit test_efficientnet.*conv_stem"):
            small(pretrained=str(tmp_path / "odd.safetensors"))

    def test_a_file_that_is_no_weights(self, tmp_path):
        (tmp_path / "text.safetensors").write_text("not weights")
        with pytest.raises(CheckpointError, match=r"is no .safetensors or .pth"):
            small(pretrained=str(tmp_path / "text.safetensors"))

    def test_pickled_objects_are_not_run(self, tmp_path):
        torch.save({"model": timm.create_model(SMALL)}, tmp_path / "object.pth")
        with pytest.raises(CheckpointError):
            small(pretrained=str(tmp_path / "object.pth"))


def test_the_network_is_a_module():
    assert isinstance(small(), E2D)
