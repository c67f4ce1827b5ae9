"""Grad-CAM: which places of a slice moved the network's logit (Selvaraju et al., ICCV 2017; library grad-cam).

The map is read where the backbone ends, at its last feature maps before pooling. From there on E2D is an average and
two linear layers, so that the map is the classic class activation map of the slice.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from e2d_lib.method.preprocess import Preprocessed
from e2d_lib.network import training
from e2d_lib.network.model import E2D, CheckpointError, ModelError
from e2d_lib.network.prediction import preprocessing_of


def feature_maps(net: E2D, x: torch.Tensor) -> torch.Tensor:
    """(N, 1, S, S) slices -> the backbone's last feature maps, (N, C, H, W), of some backbones (N, H, W, C)."""
    with torch.no_grad():
        features = net.backbone.forward_features(net.normalise(x))
    if features.ndim != 4:
        raise ModelError(
            f"Grad-CAM needs feature maps (N, C, H, W), and {net.config.backbone} ends in tokens "
            f"{tuple(features.shape)}: use a convolutional backbone, or a Swin transformer"
        )
    return features


def _channels_last(net: E2D) -> bool:
    return getattr(net.backbone, "output_fmt", None) == "NHWC"


def cells(net: E2D, size: int) -> int:
    """Cells a side of the heat map of a slice of ``size`` pixels, before it is enlarged: what it can resolve."""
    device = next(net.parameters()).device
    shape = feature_maps(net, torch.zeros(1, 1, size, size, device=device)).shape
    return shape[1 if _channels_last(net) else 2]


class _Split(nn.Module):
    """The network cut at its last feature maps; ``maps`` is the layer that Grad-CAM watches.

    timm's models have ``forward_features`` and ``forward_head`` in common, so no layer has to be found by name.
    """

    def __init__(self, net: E2D) -> None:
        super().__init__()
        self.net, self.maps = net, nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.maps(feature_maps(self.net, x).requires_grad_())
        return self.net.logit(self.net.hidden(self.net.backbone.forward_head(features))).squeeze(1)


def heat_maps(net: E2D, images: np.ndarray, toward: Sequence[int]) -> np.ndarray:
    """(N, S, S) float32 in [0, 1]: where each slice spoke for the class ``toward`` names.

    images: (N, S, S) uint8; toward: N times 1 (what raised the logit) or 0 (what lowered it). The library scales each
    map from its own least to its greatest value: maps tell of places, not of strength. One without evidence that way,
    or with the same everywhere (a single cell), is 0 throughout. ``net`` is left as it was. Raises ModelError for
    backbones without feature maps and for slices of another size.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import BinaryClassifierOutputTarget

    if len(images) != len(toward) or not set(map(int, toward)) <= {0, 1}:
        raise ValueError(f"expected one class, 0 or 1, for each of {len(images)} slices, got {list(toward)}")
    if not len(images):
        return np.zeros(images.shape, np.float32)
    split = _Split(copy.deepcopy(net)).requires_grad_(False)  # a copy: the library clears gradients and sets modes
    cam = GradCAM(split, [split.maps], (lambda maps: maps.permute(0, 3, 1, 2)) if _channels_last(net) else None)
    pixels = torch.from_numpy(np.array(images)).unsqueeze(1)  # (N, 1, S, S)
    maps = cam(pixels, [BinaryClassifierOutputTarget(int(label)) for label in toward])
    return np.clip(maps, 0, 1).astype(np.float32)


def of_checkpoints(
    checkpoints: Sequence[str | Path],
    done: Preprocessed,
    slices: Sequence[tuple[str, int]],
    toward: Sequence[int],
    *,
    device: str = "auto",
) -> np.ndarray:
    """`heat_maps` of slices (scan_id, position in the window), averaged over the checkpoints (seeds of a fold).

    Raises CheckpointError for files that are no checkpoints, and for a cache made otherwise than what they saw.
    """
    params = preprocessing_of(checkpoints)
    if params != done.params:
        theirs, ours = asdict(params), asdict(done.params)
        differing = ", ".join(f"{key}={theirs[key]!r}, not {ours[key]!r}" for key in theirs if theirs[key] != ours[key])
        raise CheckpointError(f"{checkpoints[0]} was trained on slices made with {differing}: preprocess them that way")
    images = np.stack([np.asarray(done.pixels(scan_id)[index]) for scan_id, index in slices])
    nets = (training.load(checkpoint, device=device)[0] for checkpoint in checkpoints)
    return np.mean([heat_maps(net, images, toward) for net in nets], axis=0)
