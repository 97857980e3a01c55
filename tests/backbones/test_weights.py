"""Every published layout of weights is loaded to the last tensor; anything else is refused and changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import URLError

import pytest
import torch
from conftest import SHARED, TINY_DATA, TINY_MODEL, TINY_RUN
from torch import Tensor
from torchvision.models.video import MC3_18_Weights, R2Plus1D_18_Weights, R3D_18_Weights, S3D_Weights

import cnnbert
from cnnbert.backbones import C3D, CSN, I3D, S3D, Backbone, R2Plus1D, ResNet3D, ResNeXt3D
from cnnbert.backbones.weights import PUBLISHED, Published, architecture, torchvision_published, unwrap
from cnnbert.cli import main
from cnnbert.errors import InputError

State = dict[str, Tensor]
COUNTER = "num_batches_tracked"
OUT_OF_IT = "or start from random weights with --model.backbone.weights null"
IG65M = "ig65m_r2plus1d34_clip32_359.json"
HARA = "hara_resnext101_64f_400_module.json"


def fill(shapes: Mapping[str, Any]) -> State:
    """Return random tensors of these shapes, none equal to a network's own."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.tensor(12345) if name.endswith(COUNTER) else torch.rand(tuple(shape), generator=generator)
        for name, shape in shapes.items()
    }


def published(table: str) -> State:
    """Return random tensors in a published file's layout."""
    path = SHARED / "checkpoint_keys" / table
    if not path.is_file():
        pytest.skip("the tables of published checkpoints are not here")
    return fill(json.loads(path.read_text()))


def small(seed: int = 1, **arguments: Any) -> R2Plus1D:
    torch.manual_seed(seed)
    return R2Plus1D(depth=10, width=4, **arguments)


def small_frmb(seed: int = 1, last_block_channels: int | None = 64, **arguments: Any) -> ResNeXt3D:
    torch.manual_seed(seed)
    return ResNeXt3D(50, 8, 4, last_block_channels, **arguments)


def like(network: Backbone) -> State:
    """Return random tensors with the names and shapes of a network's."""
    return fill({name: value.shape for name, value in network.state_dict().items()})


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def uncounted(state: Mapping[str, Tensor]) -> State:
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}


def save(content: Any, path: Path, **options: Any) -> str:
    torch.save(content, path, **options)
    return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The empty folder of torch.hub's files."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)  # full-size files would fill the disk over some runs


def place(content: Any, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    """Put a file where the published one belongs, and into the table with its own hash if it has one."""
    entry = PUBLISHED[name]
    path = folder / entry.file
    torch.save(content, path, **options)
    if entry.sha256:
        digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        file = entry.file.replace(entry.sha256, digits)
        path = path.rename(folder / file)
        monkeypatch.setitem(PUBLISHED, name, Published(entry.network, entry.place, file))
    return path


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the network is down")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def refused(network: Backbone, *parts: str) -> str:
    """Return the message with which weights are refused; it has all these parts, and nothing was changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError) as error:
        network.load_pretrained()
    assert same(before, network.state_dict()) and not network.was_loaded
    for part in parts:
        assert part in str(error.value)
    return str(error.value)


# Published files in full size


@pytest.mark.parametrize(
    ("name", "table", "depth", "num_tensors"),
    [
        ("ig65m_clip32_359", IG65M, 34, 414),
        ("ig65m_kinetics_clip8_400", "ig65m_kinetics_r2plus1d34_400.json", 34, 414),
        ("r2plus1d_18_kinetics400", "torchvision_r2plus1d_18_400.json", 18, 222),
    ],
)
def test_published_r2plus1d(
    hub: Path, no_sockets: None, monkeypatch: pytest.MonkeyPatch, name: str, table: str, depth: Any, num_tensors: int
) -> None:
    state = published(table)
    place(OrderedDict(state), hub, name, monkeypatch)
    network = R2Plus1D(depth, weights=name)
    assert network.load_pretrained() == (
        f"weights {name}: loaded {num_tensors} tensors into R2Plus1D; not loaded: fc.weight, fc.bias (the classifier)"
    )
    assert same(network.state_dict(), {key: value for key, value in state.items() if not key.startswith("fc.")})


@pytest.mark.parametrize("last_block_channels", [None, 512])
def test_published_resnext(
    hub: Path, no_sockets: None, monkeypatch: pytest.MonkeyPatch, last_block_channels: int | None
) -> None:
    """As in 2018: wrapped, with DataParallel's prefix, without counters, in the format of old torch versions."""
    state = uncounted(published(HARA))
    assert len(state) == 522
    content = {"epoch": 200, "arch": "resnext-101", "state_dict": OrderedDict(state), "optimizer": {"state": {}}}
    place(content, hub, "kinetics400_64f", monkeypatch, _use_new_zipfile_serialization=False)
    network = ResNeXt3D(last_block_channels=last_block_channels, weights="kinetics400_64f")
    before = {key: value.clone() for key, value in network.state_dict().items() if key.startswith("layer4.2.")}
    num_tensors, num_counters, block = (520, 104, "") if last_block_channels is None else (505, 101, "layer4.2.")
    left_out = f", {block}* (never pretrained, stays random)" if block else ""
    assert network.load_pretrained() == (
        f"weights kinetics400_64f: loaded {num_tensors} tensors into ResNeXt3D; "
        f"not loaded: fc.weight, fc.bias (the classifier){left_out}; "
        f"the file lacks {num_counters} counters *.num_batches_tracked, which stay as they are"
    )
    trunk = {key.removeprefix("module."): value for key, value in state.items() if not key.startswith("module.fc.")}
    loaded = uncounted(network.state_dict())
    assert trunk.keys() == loaded.keys() or block
    for key, value in loaded.items():
        assert torch.equal(value, before[key] if block and key.startswith(block) else trunk[key]), key


def test_the_table_of_published_weights() -> None:
    """Every entry is of a network that there is, and torchvision's are where torchvision says."""
    with torch.device("meta"):
        networks = {network.architecture for network in (R2Plus1D(34), R2Plus1D(18), ResNeXt3D())}
        networks |= {ResNet3D(depth, stem="hara").architecture for depth in (18, 34, 50, 101)}
        networks |= {ResNet3D(18).architecture, ResNet3D(18, convolutions="mc3").architecture}
        networks |= {CSN(152).architecture, CSN(152, "ip").architecture, CSN(50).architecture}
        networks |= {C3D().architecture, I3D().architecture, S3D().architecture}
    assert {entry.network for entry in PUBLISHED.values()} == networks
    by_hand = {name for name, entry in PUBLISHED.items() if entry.by_hand}
    hara = {f"r3d{depth}_kinetics700{more}" for depth in (18, 34, 50, 101) for more in ("", "_moments")}
    assert by_hand == {"kinetics400_64f"} | hara
    i3d = {f"i3d_{stream}_{data}" for stream in ("rgb", "flow") for data in ("imagenet", "charades")}
    unhashed = {name for name, entry in PUBLISHED.items() if not entry.sha256}
    assert unhashed == by_hand | i3d | {"c3d_sports1m_487"}
    for name, weights in (
        ("r2plus1d_18_kinetics400", R2Plus1D_18_Weights),
        ("r3d_18_kinetics400", R3D_18_Weights),
        ("mc3_18_kinetics400", MC3_18_Weights),
        ("s3d_kinetics400", S3D_Weights),
    ):
        entry = PUBLISHED[name]
        assert entry == torchvision_published(weights.KINETICS400_V1, entry.network)
        assert f"{entry.place}/{entry.file}" == weights.KINETICS400_V1.url
    ig65m = [entry for name, entry in PUBLISHED.items() if name.startswith("ig65m")]
    assert {entry.sha256 for entry in ig65m} == {"449a7af9", "9bae36ae", "ade133f1", "0aa0550b"}
    for cls in (R2Plus1D, ResNeXt3D, ResNet3D, CSN, C3D, I3D, S3D):
        names = [name for name, entry in PUBLISHED.items() if entry.network.startswith(f"{cls.__name__}(")]
        assert all(f"`{name}`" in (cls.__doc__ or "") for name in names)


# Containers


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain dict": dict,
    "ordered dict": OrderedDict,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {}},
    "model": lambda state: {"model": state, "epoch": 3},
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "wrapped DataParallel": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "ours": lambda state: {"state_dict": {f"backbone.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_every_container(tmp_path: Path, layout: str, zipped: bool, counted: bool) -> None:
    state = like(small())
    content = LAYOUTS[layout](state if counted else uncounted(state))
    path = save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    network = small(seed=2, weights=path)
    num_counters = len(state) - len(uncounted(state))
    told = f"; the file lacks {num_counters} counters *.num_batches_tracked, which stay as they are"
    num_tensors = len(state) - (0 if counted else num_counters)
    report = f"weights {path}: loaded {num_tensors} tensors into R2Plus1D"
    assert network.load_pretrained() == report + ("" if counted else told)
    if not counted:
        state |= {name: torch.tensor(0) for name in state if name.endswith(COUNTER)}
    assert same(network.state_dict(), state)


@pytest.mark.parametrize("counted", [True, False])
def test_metadata_of_modern_torch(tmp_path: Path, counted: bool) -> None:
    """torch fills counters in where a file has no metadata, and misses them where it has."""
    source = small(seed=3)
    state = source.state_dict()
    for name in [name for name in state if name.endswith(COUNTER) and not counted]:
        del state[name]
    assert state._metadata  # type: ignore[attr-defined]
    network = small(seed=2, weights=save(state, tmp_path / "file.pth"))
    network.load_pretrained()
    assert same(network.state_dict(), source.state_dict())


def test_only_a_classifier_is_left_out(tmp_path: Path) -> None:
    state = like(small()) | fill({"fc.weight": (5, 32), "fc.bias": (5,)})
    network = small(seed=2, weights=save(state, tmp_path / "file.pth"))
    assert network.load_pretrained().endswith("; not loaded: fc.weight, fc.bias (the classifier)")


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(like(small()), tmp_path / "file.pth")
    assert small(weights="~/file.pth").load_pretrained().startswith("weights ~/file.pth: loaded 126 tensors")


def test_ltms_checkpoints_are_told_where_they_belong(tmp_path: Path) -> None:
    state = {f"features.{name}": value for name, value in like(small()).items()}
    network = small(weights=save(state, tmp_path / "file.pth"))
    refused(
        network, "; it looks like a checkpoint of LTM's code, which `cnnbert import-checkpoint` turns into one of ours"
    )


def test_unwrap_takes_wrappers_and_prefix_off(tmp_path: Path) -> None:
    state = {"features.0.weight": torch.ones(2), "fc_action.bias": torch.zeros(3)}
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 1}
    assert same(unwrap(Path(save(wrapped, tmp_path / "file.pth"))), state)


# A last block of its own


def test_a_reduced_last_block_stays_random(tmp_path: Path) -> None:
    whole = like(small_frmb(last_block_channels=None))
    network = small_frmb(seed=2, weights=save(whole, tmp_path / "file.pth"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert "; not loaded: layer4.2.* (never pretrained, stays random)" in network.load_pretrained()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("layer4.2.") else whole[name]), name


@pytest.mark.parametrize("counted", [True, False])
def test_ones_own_last_block_is_loaded(tmp_path: Path, counted: bool) -> None:
    state = like(small_frmb())
    content = state if counted else uncounted(state)
    network = small_frmb(seed=2, weights=save(content, tmp_path / "file.pth"))
    assert "not loaded" not in network.load_pretrained()
    assert same(uncounted(network.state_dict()), uncounted(state))


def test_a_last_block_is_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    """All but one of its tensors have the shapes of this network's."""
    state = like(small_frmb(last_block_channels=None))
    network = small_frmb(seed=2, last_block_channels=128, weights=save(state, tmp_path / "file.pth"))
    before = {name: value.clone() for name, value in network.layer4[2].state_dict().items()}
    assert before["conv1.weight"].shape == state["layer4.2.conv1.weight"].shape
    network.load_pretrained()
    assert same(network.layer4[2].state_dict(), before)
    assert torch.equal(network.state_dict()["layer4.1.bn3.bias"], state["layer4.1.bn3.bias"])


def test_a_reduced_last_block_is_not_loaded_into_a_whole_one(tmp_path: Path) -> None:
    network = small_frmb(last_block_channels=None, weights=save(like(small_frmb()), tmp_path / "file.pth"))
    shapes = "layer4.2.conv1.weight (32, 128, 1, 1, 1) instead of (64, 128, 1, 1, 1)"
    refused(network, "left over: 6 (layer4.2.downsample.0.weight, ", f"of another shape: 15 ({shapes}, ")


# Channels


@pytest.mark.parametrize(("given", "wanted"), [(3, 2), (3, 1), (2, 3), (3, 4)])
@pytest.mark.parametrize("build", [small, partial(small_frmb, last_block_channels=None)])
def test_other_channels(tmp_path: Path, build: Callable[..., Backbone], given: int, wanted: int) -> None:
    state = like(build(in_channels=given))
    network = build(seed=2, in_channels=wanted, weights=save(state, tmp_path / "file.pth"))
    name = network.input_weight
    assert network.load_pretrained().endswith(
        f"; {name} adapted from {given} to {wanted} channels: for each their mean, times {given}/{wanted}"
    )
    loaded = network.state_dict()
    expected = state[name].mean(1, keepdim=True).repeat(1, wanted, 1, 1, 1) * (given / wanted)  # LTM's for 3 -> 2: 1.5
    assert torch.equal(loaded.pop(name), expected)
    assert same(loaded, {key: value for key, value in state.items() if key != name})


def test_grey_clips_look_the_same_to_adapted_weights(tmp_path: Path) -> None:
    path = save(small(seed=3).state_dict(), tmp_path / "file.pth")
    grey = torch.randn(1, 1, 8, 32, 32)
    features = []
    for number in (3, 2):
        network = small(in_channels=number, weights=path).eval()
        network.load_pretrained()
        with torch.no_grad():
            features.append(network.forward_features(grey.expand(-1, number, -1, -1, -1)))
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)  # sums in another order


def test_published_weights_for_optical_flow(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PUBLISHED["ig65m_clip32_359"]
    network = small(in_channels=2, weights="ig65m_clip32_359")
    monkeypatch.setitem(
        PUBLISHED, "ig65m_clip32_359", Published("R2Plus1D(depth=10, width=4)", entry.place, entry.file)
    )
    place(like(small()), hub, "ig65m_clip32_359", monkeypatch)
    assert "stem.0.weight adapted from 3 to 2 channels" in network.load_pretrained()


# Files that do not fit


def test_without_weights_nothing_is_done() -> None:
    network = small()
    network.fetch_pretrained()
    assert (network.load_pretrained(), network.was_loaded) == ("", False)


def test_another_depth(tmp_path: Path) -> None:
    network = small(weights=save(like(R2Plus1D(18, 4)), tmp_path / "file.pth"))
    message = refused(network)
    assert message == (
        f"{network.weights} does not fit R2Plus1D(depth=10, width=4); tensors left over: 96 "
        "(layer1.1.conv1.0.0.weight, layer1.1.conv1.0.1.weight, layer1.1.conv1.0.1.bias and 93 more); "
        "it looks like the weights of R2Plus1D(depth=18, width=4)"
    )
    network = R2Plus1D(18, 4, weights=save(like(small()), tmp_path / "file.pth"))
    refused(
        network, "; tensors missing: 80 (layer1.1.conv1.0.0.weight, layer1.1.conv1.0.1.weight, ", "(depth=10, width=4)"
    )


def test_torchvisions_middles_do_not_fit_ig65ms(tmp_path: Path) -> None:
    """Depth 34 with the channels of depth 18's rule: only nine convolutions and norms differ."""
    state = like(R2Plus1D(34, 4))
    name = "layer2.0.conv2.0.0.weight"
    state[name] = state[name][:14]
    network = R2Plus1D(34, 4, weights=save(state, tmp_path / "file.pth"))
    message = refused(network, f"; tensors of another shape: 1 ({name} (14, 8, 1, 3, 3) instead of (18, 8, 1, 3, 3))")
    assert "looks like" not in message


@pytest.mark.parametrize(
    ("other", "looks"),
    [
        (R2Plus1D(10, 8), "R2Plus1D(depth=10, width=8)"),
        (ResNeXt3D(14, 8, 4), "ResNeXt3D(depth=14, width=8, cardinality=4)"),
        (ResNeXt3D(50, 8, 2), "ResNeXt3D(depth=50, width=8, cardinality=2)"),
    ],
)
def test_another_network(tmp_path: Path, other: Backbone, looks: str) -> None:
    network = small(weights=save(other.state_dict(), tmp_path / "file.pth"))
    refused(network, f"it looks like the weights of {looks}")


def test_missing_extra_and_misshapen_tensors(tmp_path: Path) -> None:
    state = like(small())
    del (
        state["stem.0.weight"],
        state["stem.1.bias"],
        state["layer3.0.conv1.1.running_var"],
        state["layer4.0.conv2.1.bias"],
    )
    state |= fill({"layer5.weight": (3,), "neck": (2, 2)})
    state["layer4.0.conv2.1.weight"] = torch.rand(31)
    state["layer2.0.conv1.1.num_batches_tracked"] = torch.zeros(1)
    network = small(weights=save(state, tmp_path / "file.pth"))
    assert refused(network) == (
        f"{network.weights} does not fit R2Plus1D(depth=10, width=4); "
        "tensors missing: 4 (stem.0.weight, stem.1.bias, layer3.0.conv1.1.running_var and 1 more); "
        "tensors left over: 2 (layer5.weight, neck); "
        "tensors of another shape: 2 (layer2.0.conv1.1.num_batches_tracked (1,) instead of (), "
        "layer4.0.conv2.1.weight (31,) instead of (32,))"
    )


def test_a_prefix_of_some_names_is_no_prefix(tmp_path: Path) -> None:
    state = like(small())
    state["module.stem.0.weight"] = state.pop("stem.0.weight")
    network = small(weights=save(state, tmp_path / "file.pth"))
    refused(network, "missing: 1 (stem.0.weight); tensors left over: 1 (module.stem.0.weight)")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "is damaged, or not a file that torch.save wrote"),
        ("truncated", "is damaged, or not a file that torch.save wrote"),
        ("code", "is refused: it wants to run code (posix.mkdir)"),
        ("pickle", "is refused: it wants to run code (posix.mkdir)"),
        ("tensor", "holds no tensors by name, neither directly nor as state_dict or model"),
        ("list", "holds no tensors by name"),
        ("empty", "holds no tensors by name"),
        ("other wrapper", "holds no tensors by name"),
        ("numbered", "holds no tensors by name"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, kind: str, message: str) -> None:
    path, ran = tmp_path / "file.pth", tmp_path / "ran"
    state = like(small())
    if kind == "text":
        path.write_text("hello")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(ran), protocol=2))
    else:
        contents: dict[str, Any] = {
            "truncated": state,
            "code": {**state, "evil": Evil(ran)},
            "tensor": torch.zeros(3),
            "list": list(state.values()),
            "empty": {},
            "other wrapper": {"net": state, "epoch": 3},
            "numbered": dict(enumerate(state.values())),
        }
        torch.save(contents[kind], path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    refused(small(weights=str(path)), f"{path} {message}")
    assert not ran.exists()


# Names


def test_a_name_for_another_network() -> None:
    with torch.device("meta"):
        networks = [R2Plus1D(18, weights="ig65m_clip32_359"), ResNeXt3D(weights="r2plus1d_18_kinetics400")]
        networks += [R2Plus1D(34, width=32, weights="ig65m_clip8_487"), ResNeXt3D(50, weights="kinetics400_64f")]
    messages = []
    for network in networks:
        with pytest.raises(InputError) as error:
            network.fetch_pretrained()
        messages.append(str(error.value))
    ig65m, torchvision, resnext = (
        "R2Plus1D(depth=34, width=64)",
        "R2Plus1D(depth=18, width=64)",
        "ResNeXt3D(depth=101, width=128, cardinality=32)",
    )
    assert messages == [
        f"weights ig65m_clip32_359 are for {ig65m}, not for {torchvision}",
        f"weights r2plus1d_18_kinetics400 are for {torchvision}, not for {resnext}",
        f"weights ig65m_clip8_487 are for {ig65m}, not for R2Plus1D(depth=34, width=32)",
        f"weights kinetics400_64f are for {resnext}, not for ResNeXt3D(depth=50, width=128, cardinality=32)",
    ]


def test_an_unknown_name() -> None:
    assert refused(small(weights="imagenet")) == (
        "weights imagenet are neither a file nor a published name; there are ig65m_clip32_359, ig65m_clip8_487, "
        "ig65m_kinetics_clip32_400, ig65m_kinetics_clip8_400 for R2Plus1D(depth=34, width=64); "
        "r2plus1d_18_kinetics400 for R2Plus1D(depth=18, width=64)"
    )
    assert refused(small_frmb(weights="/no/such/file.pth")) == (
        "weights /no/such/file.pth are neither a file nor a published name; "
        "there are kinetics400_64f for ResNeXt3D(depth=101, width=128, cardinality=32)"
    )


class Average(Backbone):
    """A backbone of somebody's own."""

    def __init__(self, weights: str | None = None) -> None:
        super().__init__(3, 3, 2, 2, [0.5] * 3, [0.2] * 3, weights)
        self.scale = torch.nn.Parameter(torch.ones(3, 1, 1, 1))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.scale * torch.nn.functional.avg_pool3d(x, 2)


def test_a_backbone_of_ones_own(tmp_path: Path) -> None:
    refused(Average("ig65m_clip32_359"), "are for R2Plus1D(depth=34, width=64), not for Average")
    refused(
        Average("nothing"), "are neither a file nor a published name; none are published for Average, so give a path"
    )
    refused(Average(save({"scales": torch.ones(3)}, tmp_path / "file.pth")), "does not fit Average; tensors missing: 1")
    network = Average(save({"scale": torch.full((3, 1, 1, 1), 2.0)}, tmp_path / "file.pth"))
    assert network.load_pretrained() == f"weights {network.weights}: loaded 1 tensors into Average"
    assert (network.scale == 2).all() and network.was_loaded


# Fetching


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """A server of published files: called with tensors and, if need be, a wrong hash, it returns their name."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")

    def publish(state: State, digits: str = "") -> str:
        path = tmp_path / "small.pth"
        torch.save(state, path)
        file = f"small-{digits or hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
        path.rename(tmp_path / file)
        place = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setitem(PUBLISHED, "small", Published(architecture(state), place, file))
        return "small"

    yield publish
    server.shutdown()
    server.server_close()


def test_fetching(hub: Path, served: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    state = like(small())
    hub.rmdir()  # it is made where it is missing
    network = small(seed=2, weights=served(state))
    network.fetch_pretrained()
    assert [path.name for path in hub.iterdir()] == [PUBLISHED["small"].file]
    assert not network.was_loaded and not same(network.state_dict(), state)
    assert f"/{PUBLISHED['small'].file} into {hub}" in capfd.readouterr().err
    network.load_pretrained()
    assert same(network.state_dict(), state)
    assert capfd.readouterr().err == ""  # it was there already


def test_loading_fetches_what_is_missing(hub: Path, served: Callable[..., str]) -> None:
    state = like(small())
    network = small(seed=2, weights=served(state))
    assert network.load_pretrained() == "weights small: loaded 126 tensors into R2Plus1D"
    assert same(network.state_dict(), state)


def test_what_was_fetched_must_be_the_published_file(hub: Path, served: Callable[..., str]) -> None:
    network = small(weights=served(like(small()), digits="01234567"))
    file = "small-01234567.pth"
    refused(
        network, f"weights small: {file} cannot be fetched from http://127.0.0.1:", 'expected "01234567"', OUT_OF_IT
    )
    assert list(hub.iterdir()) == []


def test_an_address_without_the_file(hub: Path, served: Callable[..., str], tmp_path: Path) -> None:
    network = small(weights=served(like(small())))
    (tmp_path / PUBLISHED["small"].file).unlink()
    refused(network, "HTTP Error 404", f"; put the file into {hub}, {OUT_OF_IT}")
    assert list(hub.iterdir()) == []


def test_a_file_placed_by_hand_must_be_the_published_one(hub: Path, served: Callable[..., str]) -> None:
    network = small(weights=served(like(small())))
    path = hub / PUBLISHED["small"].file
    torch.save(like(small()) | {"stem.0.weight": torch.zeros(3, 3, 1, 7, 7)}, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert refused(network) == (
        f"{path} is not the published file, or is damaged: its SHA-256 begins with {found} instead of "
        f"{PUBLISHED['small'].sha256}; delete it, so that it is fetched anew, or replace it"
    )
    path.unlink()
    network.load_pretrained()


def test_no_network(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with torch.device("meta"):
        network = R2Plus1D(weights="ig65m_clip32_359")
    file = "r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth"
    with pytest.raises(InputError) as error:
        network.fetch_pretrained()
    assert str(error.value) == (
        f"weights ig65m_clip32_359: {file} cannot be fetched from "
        f"https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0/{file} "
        f"(<urlopen error no route to host>); put the file into {hub}, {OUT_OF_IT}"
    )


def test_no_network_for_real(hub: Path, no_sockets: None) -> None:
    with torch.device("meta"):
        network = R2Plus1D(18, weights="r2plus1d_18_kinetics400")
    with pytest.raises(InputError) as error:
        network.load_pretrained()
    assert "https://download.pytorch.org/models/r2plus1d_18-91a641e6.pth" in str(error.value)
    assert "the network is down" in str(error.value) and OUT_OF_IT in str(error.value)
    assert list(hub.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "file" / "hub"))
    with torch.device("meta"):
        network = R2Plus1D(weights="ig65m_clip32_359")
    with pytest.raises(InputError, match=rf"cannot be fetched .* put the file into {re.escape(str(tmp_path))}"):
        network.fetch_pretrained()


def test_weights_that_people_have_to_fetch(hub: Path, no_sockets: None) -> None:
    with torch.device("meta"):
        network = ResNeXt3D(last_block_channels=512, weights="kinetics400_64f")
    with pytest.raises(InputError) as error:
        network.load_pretrained()
    message = str(error.value)
    assert message.startswith("weights kinetics400_64f: resnext-101-64f-kinetics.pth is not here, and no program can")
    assert "https://drive.google.com/drive/folders/1zvl89AgFAApbH0At-gMuZSeQB_LpNP-M" in message
    assert "https://github.com/kenshohara/3D-ResNets-PyTorch" in message
    assert message.endswith(f"and put the file into {hub}, {OUT_OF_IT}")


# The command line


def test_a_run_of_the_command_line(workplace: Path, videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run starts from a file; nothing after it needs the file, and its checkpoint is one that a run starts from."""
    source = ["--data.source=Folder", f"--data.source.root={videos}"]
    fit = ["fit", *TINY_MODEL, *TINY_DATA, *source, *TINY_RUN]
    start = R2Plus1D(depth=10, width=8)
    path = Path(save(like(start), workplace / "start.pth"))
    still = ["--model.optimizer=SGD", "--model.optimizer.lr=0"]
    assert main([*fit, *still, f"--model.backbone.weights={path}"]) == 0
    assert caplog.text.count(f"weights {path}: loaded 126 tensors into R2Plus1D") == 1
    (best,) = workplace.glob("runs/*/fit-*/checkpoints/best.ckpt")
    trained = cnnbert.load(best)
    state = torch.load(path)
    assert all(torch.equal(value, state[name]) for name, value in trained.backbone.named_parameters())
    path.unlink()
    assert cnnbert.load(best).backbone.weights == str(path)
    assert main(["test", f"--ckpt_path={best}", *TINY_RUN[1:]]) == 0
    assert main(["fit", "--ckpt_path=last", *TINY_RUN[1:], "--trainer.max_epochs=2"]) == 0
    caplog.clear()
    assert main([*fit, *still, f"--model.backbone.weights={best}"]) == 0
    assert "tensors into R2Plus1D; not loaded: head.cls, head.positions, " in caplog.text
    assert "(the rest of the model)" in caplog.text


def test_weights_that_are_not_there_end_a_run(
    workplace: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--data.source=Folder", f"--data.source.root={videos}"]
    assert main(["fit", *TINY_MODEL, *TINY_DATA, *source, *TINY_RUN, "--model.backbone.weights=nothing"]) == 1
    error = capsys.readouterr().err
    assert "cnnbert: error: weights nothing are neither a file nor a published name; there are ig65m_clip32" in error
    assert "Traceback" not in error
    assert list(workplace.glob("runs/*/*/checkpoints/*")) == []
