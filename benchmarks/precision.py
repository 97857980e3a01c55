"""Accuracy of training in bfloat16 against float32: the same network, seeds, clips and order of clips.

    python benchmarks/precision.py --seeds 5

An ablation of one network in two precisions, on generated clips; OUT/runs/table.md has the result. Settings of `cnnbert
fit` may follow. A CPU without units for bfloat16 is some thirty times slower at convolutions in it than in float32;
`--rounded` computes what such units compute, by other means: see `RoundedConvolutions`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.plugins import MixedPrecision
from torch.overrides import TorchFunctionMode

from cnnbert.cli import main as cnnbert
from cnnbert.shipped import find_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart.yaml", help="the network, and how it is trained")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounded", action="store_true", help="compute what units for bfloat16 would")
    parser.add_argument("--out", type=Path, default=Path("precision"))
    given, settings = parser.parse_known_args()
    rounded = {"plugins": {"class_path": "precision.RoundedMixedPrecision"}}
    bfloat16 = rounded if given.rounded else {"precision": "bf16-mixed"}
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    given.out.mkdir(parents=True, exist_ok=True)
    configs = []
    for name, trainer in {"float32": {"precision": "32-true"}, "bfloat16": bfloat16}.items():
        config = yaml.safe_load(find_config(given.config).read_text(encoding="utf-8"))
        config["trainer"] = {**config["trainer"], **trainer}
        path = given.out / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        configs.append(str(path))
    words = ["ablate", "--configs", *configs, "--baseline", "float32", "--seeds", str(given.seeds)]
    raise SystemExit(cnnbert([*words, "--out", str(given.out / "runs"), *settings]))


class RoundedConvolutions(TorchFunctionMode):
    """Convolutions in float32 whose inputs, weights and results are rounded to bfloat16, and their gradients too.

    That is what units for bfloat16 compute: products of bfloat16 numbers, summed in float32, the sum rounded. Only the
    order of the sums differs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        if func not in (torch.conv2d, torch.conv3d):
            return func(*args, **(kwargs or {}))
        rounded = [one.bfloat16().float() if isinstance(one, torch.Tensor) else one for one in args]
        with torch.autocast("cpu", enabled=False):
            return func(*rounded, **(kwargs or {})).bfloat16()


class RoundedMixedPrecision(MixedPrecision):
    """Lightning's bf16-mixed on a CPU, with `RoundedConvolutions`."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Compute so inside of this context."""
        with super().forward_context(), RoundedConvolutions():
            yield


if __name__ == "__main__":
    main()
