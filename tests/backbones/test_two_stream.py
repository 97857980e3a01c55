"""Two streams give what each gives alone, fused as the paper has it, and start from weights of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnbert.backbones import Backbone, R2Plus1D, ResNet3D, TwoStream
from cnnbert.errors import InputError
from cnnbert.heads import TGAPHead
from cnnbert.layers.block import Block
from cnnbert.tasks.recognition import ActionRecognition

TEN: dict[str, Any] = {"depth": 10, "width": 4}


def streams(**flow: Any) -> tuple[R2Plus1D, R2Plus1D]:
    torch.manual_seed(0)
    return R2Plus1D(**TEN), R2Plus1D(**{**TEN, "in_channels": 2, **flow})


def random_clips(frames: int = 25, height: int = 48, width: int = 80) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (2, 5, frames, height, width), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_concat_is_what_the_streams_give_side_by_side() -> None:
    """Each normalises as it does alone."""
    rgb, flow = streams()
    both, clips = TwoStream(rgb, flow, fusion="concat").eval(), random_clips()
    assert (both.in_channels, both.out_channels, both.temporal_stride, both.spatial_stride) == (5, 64, 8, 16)
    alone = [rgb(clips[:, :3]), flow(clips[:, 3:])]
    assert torch.equal(both(clips), torch.cat(alone, 1))
    assert not alone[0].equal(rgb(clips[:, 2:]))


def fused(stacked: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the paper's fusion of stacked features (B, 2D, T, H, W), spelled out: neighbour by neighbour."""
    padded = F.pad(stacked, [1] * 6)
    times, rows, columns = stacked.shape[2:]
    y = bias.view(-1, 1, 1, 1).expand(len(stacked), -1, times, rows, columns).clone()
    for t in range(3):
        for i in range(3):
            for j in range(3):
                part = padded[:, :, t : t + times, i : i + rows, j : j + columns]
                y += torch.einsum("bcthw,dc->bdthw", part, weight[:, :, t, i, j])
    y = F.pad(y.relu(), [1] * 6)  # zeros never win over what ReLU gives
    cells = [
        y[:, :, t : t + 3, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].amax((2, 3, 4))
        for t in range(times)
        for i in range(-(-rows // 2))
        for j in range(-(-columns // 2))
    ]
    return torch.stack(cells, 2).unflatten(2, (times, -(-rows // 2), -(-columns // 2)))


@torch.no_grad()
def test_conv3d_is_the_paper_s_formula() -> None:
    rgb, flow = streams()
    both, clips = TwoStream(rgb, flow, fusion="conv3d").double().eval(), random_clips()
    assert (both.out_channels, both.temporal_stride, both.spatial_stride) == (32, 8, 32)
    stacked = torch.cat([rgb(clips[:, :3]), flow(clips[:, 3:])], 1)  # (2, 64, 4, 3, 5)
    smooth = torch.tensor([0.60653066, 1, 0.60653066], dtype=torch.float64)  # exp(-1/2)
    gauss = torch.einsum("t,i,j->tij", smooth, smooth, smooth)
    gauss /= gauss.sum()
    sums = F.conv3d((stacked[:, :32] + stacked[:, 32:]).flatten(0, 1)[:, None], gauss[None, None], padding=1)
    expected = F.max_pool3d(sums.view(2, 32, 4, 3, 5).relu(), 3, (1, 2, 2), 1)
    assert both(clips).shape == (2, 32, 4, 2, 3)
    torch.testing.assert_close(both(clips), expected, rtol=1e-6, atol=1e-6)  # it was initialised in float32
    conv = both.fusion.get_submodule("0")
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    torch.testing.assert_close(both(clips), fused(stacked, *conv.parameters()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("rgb", "flow", "fusion", "message"),
    [
        ({"in_channels": 2}, {}, "concat", r"rgb stream \(R2Plus1D\) takes 2 channels instead of 3; set in_"),
        ({}, {"in_channels": 3}, "concat", r"3 channels instead of 2.*--model\.backbone\.flow\.in_channels"),
        ({}, {"width": 8}, "conv3d", r"rgb \(R2Plus1D\) gives 32 and flow \(R2Plus1D\) 64; .* or fusion=concat"),
        ({}, {}, "sum", "fusion=sum is no way to fuse streams; choose concat or conv3d"),
    ],
)
def test_streams_that_do_not_fit_are_refused(rgb: dict, flow: dict, fusion: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TwoStream(R2Plus1D(**{**TEN, **rgb}), R2Plus1D(**{**TEN, "in_channels": 2, **flow}), fusion)


@pytest.mark.parametrize("other", [{"stem": "hara"}, {"convolutions": "mc3"}])
def test_streams_of_other_grids_are_refused(other: dict[str, Any]) -> None:
    rgb, flow = R2Plus1D(**TEN), ResNet3D(**TEN, in_channels=2, **other)
    strides = f"every {flow.temporal_stride} frames and a cell every {flow.spatial_stride} pixels"
    first = "rgb is R2Plus1D with a step every 8 frames and a cell every 16 pixels"
    with pytest.raises(InputError, match=f"{first}, flow is ResNet3D with a step {strides}; take the same network"):
        TwoStream(rgb, flow, "concat")


def test_clips_without_flow_name_the_reader() -> None:
    both = TwoStream(*streams())
    for channels in (2, 3):
        told = f"clips have {channels} channels, but TwoStream takes 5, .*; --data.reader RGBFlowReader gives them"
        with pytest.raises(InputError, match=told):
            both(torch.rand(1, channels, 8, 16, 16))


class Frames(Backbone):
    """Looks at each frame alone."""

    is_framewise = True

    def __init__(self, in_channels: int, least_frames: int, least_pixels: int) -> None:
        norm = [[0.0] * in_channels, [1.0] * in_channels]
        super().__init__(in_channels, in_channels, 1, 1, *norm, None, least_frames, least_pixels)

    def forward_features(self, x: Tensor) -> Tensor:
        return x


def test_both_streams_must_take_a_clip() -> None:
    both = TwoStream(Frames(3, 4, 16), Frames(2, 8, 8), "concat")
    assert (both.least_frames, both.least_pixels, both.is_framewise) == (8, 16, True)
    assert not TwoStream(*streams(), fusion="concat").is_framewise


def test_gradient_checkpointing_reaches_both_streams() -> None:
    model = ActionRecognition(TwoStream(*streams()), TGAPHead, ["a", "b"], gradient_checkpointing=True)
    blocks = [name for name, module in model.named_modules() if isinstance(module, Block) and module.is_recomputed]
    assert {name.split(".")[1] for name in blocks} == {"rgb", "flow"} and len(blocks) == 8


def saved(network: Backbone, path: Path) -> dict[str, Tensor]:
    state = {name: torch.rand_like(value, dtype=torch.float32) for name, value in network.state_dict().items()}
    state = {name: value.to(network.state_dict()[name].dtype) for name, value in state.items()}
    torch.save(state, path)
    return state


def test_each_stream_loads_its_own_weights(tmp_path: Path) -> None:
    """Those of colours are adapted to flow as in a backbone alone."""
    path = tmp_path / "rgb.pth"
    state = saved(R2Plus1D(**TEN), path)
    rgb, flow = R2Plus1D(**TEN, weights=str(path)), R2Plus1D(**TEN, in_channels=2, weights=str(path))
    both = TwoStream(rgb, flow)
    assert both.parts == (rgb, flow) and not both.was_loaded
    both.fetch_pretrained()
    loaded = f"weights {path}: loaded 126 tensors into R2Plus1D"
    adapted = "; stem.0.weight adapted from 3 to 2 channels: for each their mean, times 3/2"
    assert both.load_pretrained() == f"rgb: {loaded}\nflow: {loaded}{adapted}"
    assert both.was_loaded and rgb.was_loaded and flow.was_loaded
    assert torch.equal(rgb.stem[0].weight, state["stem.0.weight"])  # type: ignore[arg-type]
    assert torch.equal(flow.layer4[0].conv1[1].bias, state["layer4.0.conv1.1.bias"])


def test_one_stream_may_start_from_random_weights(tmp_path: Path) -> None:
    saved(R2Plus1D(**TEN, in_channels=2), tmp_path / "flow.pth")
    both = TwoStream(R2Plus1D(**TEN), R2Plus1D(**TEN, in_channels=2, weights=str(tmp_path / "flow.pth")))
    assert both.load_pretrained().startswith("flow: weights ")
    assert both.was_loaded and not both.rgb.was_loaded
    nothing = TwoStream(*streams())
    assert (nothing.load_pretrained(), nothing.was_loaded) == ("", False)


def test_weights_of_the_whole_win_over_those_of_streams(tmp_path: Path) -> None:
    path = tmp_path / "both.pth"
    state = saved(TwoStream(*streams()), path)
    both = TwoStream(*streams(weights="absent.pth"), weights=str(path))
    both.fetch_pretrained()
    assert both.load_pretrained() == f"weights {path}: loaded {len(state)} tensors into TwoStream"
    assert all(torch.equal(value, state[name]) for name, value in both.state_dict().items())


def test_what_cannot_be_loaded_names_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    with torch.device("meta"):
        full = R2Plus1D(in_channels=2, weights="ig65m_clip32_359")
        both = TwoStream(R2Plus1D(), full)
    with pytest.raises(InputError, match=r"or start from random weights with --model\.backbone\.flow\.weights null"):
        both.fetch_pretrained()
    kind = r"TwoStream\(rgb=R2Plus1D\(depth=10, width=4\), flow=R2Plus1D\(depth=10, width=4\)\)"
    whole = TwoStream(*streams(), weights="ig65m_clip32_359")
    with pytest.raises(InputError, match=rf"are for R2Plus1D\(depth=34, width=64\), not for {kind}"):
        whole.fetch_pretrained()
