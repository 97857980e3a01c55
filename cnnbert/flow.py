"""The command `flow`: computes the optical flow of a data set's videos once, for training on it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from cnnbert.backbones.weights import sha256
from cnnbert.data.flow_files import SUFFIX, TABLE, FlowFacts, read_facts, read_table, write_flow, write_table
from cnnbert.data.pyav_video import PyAVVideo
from cnnbert.data.readers import PyAVReader
from cnnbert.data.sources import Folder
from cnnbert.data.splits import SPLITS
from cnnbert.derived_files import FAILED, check_limits, common_folder, make_files, target_paths, write_failed
from cnnbert.errors import InputError
from cnnbert.loading import build_data
from cnnbert.machine import best_device, num_cores
from cnnbert.optical_flow import METHODS, RAFT, Method, check_packages, find_weights, flows
from cnnbert.outputs import printable
from cnnbert.video_files import entries_of_path

Known = dict[str, tuple[Path, FlowFacts]]
"""The files of flow that there are, and what is known of them, by the real paths of their videos."""

DEFAULTS: dict[str, Any] = {"method": "raft_small", "short_side": 0, "bound": 20.0}


def flow(
    videos: str | None = None,
    *,
    out: str,
    config: str | None = None,
    method: Method | None = None,
    weights: str | None = None,
    short_side: int | None = None,
    bound: float | None = None,
    timeout_seconds: float = 86400.0,
    num_workers: int | None = None,
    settings: Sequence[str] = (),
) -> int:
    """Compute the optical flow of the videos of a data set, to train on it or on both.

    Give a folder, one video, a CSV file with a column path, or a text file with a path a line:
    cnnbert flow my_videos --out flow. Or give a run's data: --data data/ucf101.yaml --data.source.root UCF101. Then
    train on it with --data.reader FlowReader --data.reader.folder flow, and a network with in_channels 2.

    raft_small and raft_large are RAFT by torchvision, whose weights are fetched; on a GPU if there is one. farneback
    and tvl1 are OpenCV's (pip install 'cnnbert[flow]'). The flow of a frame goes from it to the next one; that of the
    last frame is that of the one before again, so that there are as many as the video has frames. It is kept on the
    8-bit scale of TSN and LTM, -bound to bound, in a lossless video a video; flow/flow.csv lists them. Motion is in
    pixels of the size at which it was computed.

    A file is there whole or not at all. Interrupted in whatever way, the same command goes on where it stopped, and
    videos that are new, or have changed, are added. What a folder was made with holds for all that is added to it:
    another method or bound is refused. Videos that cannot be read to their end are named in flow/failed.csv, and the
    exit status is then 1.

    Args:
        videos: A folder with videos anywhere below it, a video, or a file that lists videos; none with --data.
        out: The folder of the flow.
        config: A run's config whose videos are meant: a path, or a shipped one.
        method: raft_small, raft_large, farneback or tvl1; by default the folder's, and of a new one raft_small.
        weights: A file with RAFT's weights in torchvision's form; by default the published ones.
        short_side: What frames are scaled to before, height or width, whichever is less, in pixels; smaller ones are
            not enlarged. 0 leaves them as they are; by default the folder's, and of a new one 0.
        bound: The largest motion that is told apart, in pixels, above 0; by default the folder's, and of a new one 20.
        timeout_seconds: The longest that one video may take; above 0.
        num_workers: Videos that are computed at the same time; by default one a CPU core, and on a GPU one.
        settings: A run's settings, such as --data.source.path=videos.csv.
    """
    check_limits(timeout_seconds, num_workers)
    for name, value, is_right in (
        ("method", method, method in METHODS),
        ("short_side", short_side, short_side == 0 or (short_side or 0) >= 16),
        ("bound", bound, bound is not None and 0 < bound < float("inf")),
    ):
        if value is not None and not is_right:
            allowed = {"method": f"one of {', '.join(METHODS)}", "short_side": "at least 16 pixels, or 0"}
            raise InputError(f"{name}={value} must be {allowed.get(name, 'above 0')}")
    folder = Path(out).expanduser()
    paths, top = _videos(videos, config, settings, folder)
    known = read_table(folder) if (folder / TABLE).is_file() else {}
    real = {path: os.path.realpath(path) for path in paths}
    targets = _targets([path for path in paths if printable(real[path]) not in known], folder, top)
    targets |= {path: known[printable(real[path])][0] for path in paths if printable(real[path]) in known}
    there = {path: facts for path in paths if (facts := read_facts(targets[path])) is not None}
    _check_targets(targets, known, real, there)
    made_with = [facts.settings for facts in (*(facts for _, facts in known.values()), *there.values())]
    wanted = _settings(folder, made_with, method, weights, short_side, bound)
    file = wanted.pop("file")
    failed = {path: "there is no such file" for path in paths if not os.path.isfile(path)}
    jobs: dict[str, tuple[Path, Any]] = {}
    for path in paths:
        if path not in failed and not (path in there and _is_of(there[path], path)):
            jobs[path] = (targets[path], wanted)
    if there:
        print(f"{sum(path not in jobs for path in there)} of {len(paths)} videos have their flow already", flush=True)
    if jobs:
        on_gpu = wanted["method"] in RAFT and best_device().type != "cpu"
        workers = min(len(jobs), num_workers or (1 if on_gpu else num_cores()))
        threads = max(1, num_cores() // workers)
        failed |= make_files(partial(compute, file, threads), jobs, folder, workers, timeout_seconds, "flow")
    for path in paths:
        facts = read_facts(targets[path])
        known.pop(printable(real[path]), None)
        if facts is not None and path not in failed:
            known[printable(real[path])] = (targets[path], facts)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder, known)
    write_failed(folder, failed)
    told = f"; {len(failed)} could not be read, see {folder / FAILED}" if failed else ""
    how = f"{wanted['method']}, bound {wanted['bound']:g}"
    print(f"{len(paths) - len(failed)} of {len(paths)} videos have their flow in {folder} ({how}){told}", flush=True)
    return 1 if failed else 0


def compute(weights: Path | None, num_threads: int, job: tuple[str, str, Mapping[str, Any]]) -> None:
    """Write the flow of a video.

    Args:
        weights: RAFT's.
        num_threads: Threads that RAFT takes on a CPU.
        job: The video, the file to write, and the settings of `FlowFacts`.

    Raises:
        VideoReadError: The video cannot be read to its end.
        OSError: The file cannot be written.
    """
    source, target, wanted = job
    torch.set_num_threads(num_threads)
    status = os.stat(source)
    with PyAVReader(read_timeout_seconds=float("inf")).open(source) as video:
        assert isinstance(video, PyAVVideo)
        height, width = _scaled_size(video.first, wanted["short_side"])
        frames = _scaled(video.stream(), height, width)
        facts = FlowFacts(
            num_frames=video.num_frames,
            fps=video.fps,
            height=height,
            width=width,
            bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            **wanted,
        )
        write_flow(source, Path(target), flows(frames, wanted["method"], weights), facts)


def _scaled_size(frame: np.ndarray, short_side: int) -> tuple[int, int]:
    height, width = frame.shape[:2]
    scale = min(1.0, short_side / min(height, width)) if short_side else 1.0
    return round(scale * height), round(scale * width)


def _scaled(frames: Iterator[np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
    for frame in frames:
        if frame.shape[:2] != (height, width):
            tensor = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
            frame = F.resize(tensor, [height, width], antialias=True).permute(1, 2, 0).contiguous().numpy()
        yield frame


def _videos(videos: str | None, config: str | None, settings: Sequence[str], folder: Path) -> tuple[list[str], str]:
    """Return the videos that are meant, absolute paths and each once, and the folder that they lie in or below.

    Raises:
        InputError: There are none, or the folder of the flow lies among them, so that it would count as videos too.
    """
    top = ""
    if videos is not None and (config is not None or settings):
        raise InputError(f"give either {videos} or a run's config and settings, not both")
    if videos is not None:
        given = [path for path, _, _ in entries_of_path(Path(videos).expanduser())]
        top = videos if os.path.isdir(Path(videos).expanduser()) else ""
    elif config is None and not settings:
        raise InputError("flow needs videos: give a folder, a list, or a run's settings such as --data")
    else:
        data = build_data(config, settings)
        data.prepare_data()
        given = [record.path for record in data.source.records("predict")]
        for split in SPLITS:
            try:
                given += [record.path for record in data.source.records(split)]
            except InputError:  # not every source has every split
                continue
        top = str(data.source.root) if isinstance(data.source, Folder) and data.source.root.is_dir() else ""
    paths: dict[str, str] = {}
    for path in given:
        paths.setdefault(os.path.realpath(path), os.path.abspath(path))
    if not paths:
        raise InputError("there is no video to compute the flow of")
    if not top:
        return [*paths.values()], common_folder(paths.values())
    if Path(top).expanduser().resolve() in (folder.resolve(), *folder.resolve().parents):
        raise InputError(f"out={folder} lies in {top}, where its files would count as videos; give another folder")
    return [*paths.values()], os.path.abspath(os.path.expanduser(top))


def _targets(paths: Sequence[str], folder: Path, top: str) -> dict[str, Path]:
    """Return where the flow of each video goes: below a folder named as the data set's is."""
    return target_paths(paths, folder / printable(os.path.basename(top)), top, SUFFIX) if paths else {}


def _check_targets(
    targets: Mapping[str, Path], known: Known, real: Mapping[str, str], there: Mapping[str, FlowFacts]
) -> None:
    """Refuse to take the place of a file that is of another video, or of no video at all."""
    owners = {os.path.realpath(file): video for video, (file, _) in known.items()}
    for path, target in targets.items():
        owner = owners.get(os.path.realpath(target))
        if owner is not None and owner != printable(real[path]) and os.path.exists(owner):
            raise InputError(f"{target} is the flow of {owner}; give another folder as out for that of {path}")
        if target.exists() and path not in there:
            raise InputError(
                f"{target} is there and is no whole file of cnnbert flow; delete it, or give another folder as out"
            )


def _settings(
    folder: Path,
    made_with: Sequence[Mapping[str, Any]],
    method: Method | None,
    weights: str | None,
    short_side: int | None,
    bound: float | None,
) -> dict[str, Any]:
    """Return how flow is computed: what is asked for, else what a folder's flow was computed with; and the file of
    RAFT's weights as `file`.

    Raises:
        InputError: Something else is asked for than the folder was made with, or the method cannot be used here.
    """
    before = made_with[0] if made_with else DEFAULTS
    asked = {"method": method, "short_side": short_side, "bound": bound}
    wanted: dict[str, Any] = {name: before[name] if value is None else value for name, value in asked.items()}
    changed = [f"{name} {before[name]}, not {value}" for name, value in wanted.items() if value != before[name]]
    if made_with and changed:
        raise _made_otherwise(folder, changed)
    check_packages(wanted["method"])
    file = find_weights(wanted["method"], weights)
    wanted["weights"] = "" if file is None else sha256(file)[:8]
    if made_with and wanted["weights"] != before["weights"]:
        raise _made_otherwise(folder, [f"weights whose SHA-256 begins with {before['weights']}, not those of {file}"])
    others = [facts for facts in made_with if facts != before]
    if others:
        raise InputError(f"{folder} holds flow that was made in two ways, {before} and {others[0]}; make it anew")
    return {**wanted, "file": file}


def _made_otherwise(folder: Path, changed: Sequence[str]) -> InputError:
    return InputError(
        f"the flow in {folder} was made with {'; '.join(changed)}: leave the option out to go on, or give another "
        f"folder as out (or remove this one: rm -r {shlex.quote(str(folder))})"
    )


def _is_of(facts: FlowFacts, path: str) -> bool:
    """Return whether flow was computed of this file as it is now."""
    status = os.stat(path)
    return (facts.bytes, facts.mtime_ns) == (status.st_size, status.st_mtime_ns)
