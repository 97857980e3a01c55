"""Times training steps of full-size networks side by side in one run; prints ratios.

    python benchmarks/training.py                        # on a GPU if there is one
    python benchmarks/training.py --networks r2plus1d_bert.yaml --batch 2 --rounds 3

The baseline is LTM's way of running: float32, channels first, eager, and a BERT of separate projections. Ours is what
`cnnbert fit` does on this machine. The share of the limit is the time of the network's convolutions alone, each timed
by itself, forward and backward, in the layout that is best for it, over that of our step. The ways take turns, so that
what else the machine does slows all of them down alike, each with a step before that is not counted, as after another
way's step the memory is not as it is in a run; the median over the rounds counts.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cnnbert
from cnnbert.heads import BERTHead
from cnnbert.layers.transformer import SelfAttention
from cnnbert.machine import (
    M_MMAP_MAX,
    M_TRIM_THRESHOLD,
    autocast,
    best_device,
    best_precision,
    describe,
    keep_freed_memory,
    prefers_channels_last,
)
from cnnbert.tasks.recognition import ActionRecognition

NETWORKS = ["r2plus1d_bert.yaml", "resnext_bert.yaml"]
CLASSES = [str(number) for number in range(13)]


class SeparateAttention(nn.Module):
    """LTM's attention: three projections, and scores, masks and weights one after the other."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return the attended tokens (B, S, width) of tokens x (B, S, width)."""
        q, k, v = (
            projection(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for projection in self.projections
        )  # (B, heads, S, D)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask, -1e9)
        x = self.dropout(scores.softmax(3)) @ v
        return self.out(x.transpose(1, 2).flatten(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="shipped configs of networks with BERT")
    parser.add_argument("--batch", type=int, default=8 if torch.cuda.is_available() else 2, help="clips a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="time ours compiled too")
    given = parser.parse_args()
    device = best_device()
    precision = best_precision(device)
    print(describe(device, precision, prefers_channels_last(device, precision)))
    rows = [
        "| network | batch | against the baseline | of the limit | BERT against TGAP | compiled |",
        "|---|---|---|---|---|---|",
    ]
    for name in given.networks:
        model = cnnbert.build(name, CLASSES)
        size = 112
        clips = torch.randint(256, (given.batch, 3, model.clip_length, size, size), dtype=torch.uint8).to(device)
        label = torch.arange(given.batch, device=device) % len(CLASSES)
        ways: dict[str, Callable[[], None]] = {
            "baseline": step(as_in_ltm(name).to(device), clips, label, "32-true"),
            "ours": step(laid_out(model, device, precision), clips, label, precision),
            "tgap": step(laid_out(with_tgap(name), device, precision), clips, label, precision),
        }
        if given.compiled:
            compiled = laid_out(cnnbert.build(name, CLASSES), device, precision)
            compiled.backbone.compile()
            ways["compiled"] = step(compiled, clips, label, precision)
        seconds = in_turns(ways, given.rounds, device)
        limit = convolutions(model, clips, precision, given.rounds, device)
        ours = seconds["ours"]
        compiled_told = f"{ours / seconds['compiled']:.2f}" if given.compiled else "-"
        rows.append(
            f"| {name} | {given.batch} | {seconds['baseline'] / ours:.2f} | {limit / ours:.2f} | "
            f"{seconds['tgap'] / ours:.2f} | {compiled_told} |"
        )
        told = ", ".join(f"{way} {value:.2f} s" for way, value in seconds.items())
        print(f"{name}: {told}, convolutions alone {limit:.2f} s", flush=True)
    print("\n" + "\n".join(rows))


def as_in_ltm(name: str) -> ActionRecognition:
    """Return the network with LTM's attention, laid out channels first."""
    model = cnnbert.build(name, CLASSES)
    assert isinstance(model.head, BERTHead)
    for block in model.head.blocks:
        attention = block.attention
        assert isinstance(attention, SelfAttention)
        block.attention = SeparateAttention(attention.out.in_features, attention.num_heads, attention.dropout)
    return model


def with_tgap(name: str) -> ActionRecognition:
    """Return the network with average pooling in place of BERT."""
    return cnnbert.build(name.replace("_bert", "_tgap"), CLASSES)


def laid_out(model: ActionRecognition, device: torch.device, precision: str) -> ActionRecognition:
    """Return the network as `cnnbert fit` has it."""
    model.to(device)
    if prefers_channels_last(device, precision):
        model.lay_out_channels_last()
    return model


def step(model: ActionRecognition, clips: Tensor, label: Tensor, precision: str) -> Callable[[], None]:
    """Return a training step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def run() -> None:
        optimizer.zero_grad()
        with autocast(clips.device, precision):
            loss = F.cross_entropy(model(clips).float(), label)
        loss.backward()
        optimizer.step()

    return run


def in_turns(ways: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds that each way takes."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            if device.type == "cpu":
                (give_back_freed_memory if way == "baseline" else keep_freed_memory)()
            run()
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            seconds[way].append(time.perf_counter() - start)
    return {way: statistics.median(some) for way, some in seconds.items()}


def give_back_freed_memory() -> None:
    """Set glibc's malloc as it is by itself."""
    for parameter, value in ((M_MMAP_MAX, 65536), (M_TRIM_THRESHOLD, 128 * 1024)):
        ctypes.CDLL(None).mallopt(parameter, value)


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def convolutions(model: ActionRecognition, clips: Tensor, precision: str, rounds: int, device: torch.device) -> float:
    """Return the seconds that all convolutions take together, forward and backward, each in its best layout."""
    inputs: list[tuple[nn.Conv3d, tuple[int, ...]]] = []
    convs = [module for module in model.modules() if isinstance(module, nn.Conv3d)]
    hooks = [
        conv.register_forward_pre_hook(lambda conv, args: inputs.append((conv, tuple(args[0].shape)))) for conv in convs
    ]
    with torch.no_grad(), autocast(device, precision):
        model(clips)
    for hook in hooks:
        hook.remove()
    is_first = inputs[0][0]
    total = 0.0
    seen: dict[tuple[object, ...], float] = {}
    for conv, shape in inputs:
        key = (shape, conv.out_channels, conv.kernel_size, conv.stride, conv.groups)
        if key not in seen:
            ways = {
                str(layout): convolution(conv, shape, precision, layout, device, wants_input=conv is not is_first)
                for layout in (torch.contiguous_format, torch.channels_last_3d)
            }
            seen[key] = min(in_turns(ways, rounds, device).values())
        total += seen[key]
    return total


def convolution(
    conv: nn.Conv3d,
    shape: tuple[int, ...],
    precision: str,
    layout: torch.memory_format,
    device: torch.device,
    wants_input: bool,
) -> Callable[[], None]:
    """Return the forward and backward pass of one convolution, all tensors in the precision and layout already."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout).requires_grad_(wants_input)
    weight = conv.weight.detach().to(dtype).contiguous(memory_format=layout).requires_grad_()
    out = F.conv3d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    gradient = torch.randn_like(out)

    def run() -> None:
        out = F.conv3d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        torch.autograd.grad(out, [x, weight] if wants_input else [weight], gradient)

    return run


if __name__ == "__main__":
    main()
