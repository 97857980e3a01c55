"""Checks the videos of a data set, and shows what there is of them."""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from cnnbert.data.inspection import VERDICTS, Inspection, inspect_video
from cnnbert.data.readers import DecordReader, VideoReader
from cnnbert.data.splits import SPLITS
from cnnbert.errors import InputError
from cnnbert.loading import build_data
from cnnbert.outputs import csv_text, printable, write_whole
from cnnbert.parallel import WorkerCrash, WorkerTimeout, map_files
from cnnbert.video_files import Entry, entries_of_path

MOST_CLASSES, MOST_FILES = 24, 10


def check(
    videos: str | None = None,
    *,
    config: str | None = None,
    csv: str = "check.csv",
    timeout_seconds: float = 300.0,
    num_workers: int | None = None,
    settings: Sequence[str] = (),
) -> int:
    """Decode all videos of a data set, find those that training cannot use, and show what there is.

    Give a folder, one video, a CSV file with a column path, or a text file with a path a line: cnnbert check my_videos.
    Or give a run's data: --data data/csv.yaml --data.source.path my_videos.csv. Each file is decoded from the first
    frame to the last, and what the reader of training gives (for a reader of optical flow, the usual one) is compared
    with that for the first, the last and other frames. Files with the same content are found. A line a file goes into
    a CSV file, with a verdict: ok, missing, unreadable (no video, or refused by the reader), no_video (only sound, or
    nothing), damaged (some of it does not decode), wrong_frames (the reader gives other frames than decoding in order),
    timeout or crash (of the process that checked it). The exit status is 1 if any video is not ok.

    Args:
        videos: A folder with videos anywhere below it, a video, or a file that lists videos; none with --data.
        config: A run's config whose videos are checked: a path, or a shipped one.
        csv: Where the line a file goes; an existing file is replaced.
        timeout_seconds: The longest that one file may take; above 0.
        num_workers: Files that are checked at the same time; by default one a CPU core.
        settings: A run's settings, such as --data.source.path=videos.csv.
    """
    table = Path(csv).expanduser()
    _check_options(table, timeout_seconds, num_workers)
    if videos is None:
        if config is None and not settings:
            raise InputError("check needs videos: give a folder, a list, or a run's settings such as --data")
        entries, reader = _entries_of_run(config, settings)
    elif config is not None or settings:
        raise InputError(f"give either {videos} or a run's config and settings, not both")
    else:
        entries, reader = entries_of_path(Path(videos).expanduser()), DecordReader()
    listed: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        listed[os.path.realpath(entry[0])].append(entry)
    found: dict[str, Inspection] = {}
    try:
        inspect = partial(inspect_video, reader=reader)
        for path, got in map_files(inspect, list(listed), num_workers, timeout_seconds, "check"):
            found[path] = got if isinstance(got, Inspection) else _failed(path, got)
    except KeyboardInterrupt:
        part = table.with_name(f"{table.stem}.partial{table.suffix}")
        _write(part, {path: found[path] for path in listed if path in found}, listed)
        raise InputError(
            f"stopped after {len(found)} of {len(listed)} files; {part} has those, {table} is not written"
        ) from None
    found = {path: found[path] for path in listed}
    _write(table, found, listed)
    print(printable("\n".join(report(found, listed))))
    print(f"\na line a file in {table}\n{_last_line(found)}", flush=True)
    return 0 if all(file.verdict == "ok" for file in found.values()) else 1


def _check_options(table: Path, timeout_seconds: float, num_workers: int | None) -> None:
    if not timeout_seconds > 0:
        raise InputError(f"timeout_seconds={timeout_seconds:g} must be above 0")
    if num_workers is not None and num_workers < 1:
        raise InputError(f"num_workers={num_workers} must be at least 1")
    if not table.parent.is_dir() or table.is_dir():
        raise InputError(f"csv={table} cannot be written: {table.parent} must be a folder, and {table} none")


def _failed(path: str, error: Exception) -> Inspection:
    """Return what is said of a file whose check did not end as it should."""
    if isinstance(error, WorkerTimeout):
        return Inspection(path, "timeout", str(error))
    told = str(error) if isinstance(error, WorkerCrash) else f"{type(error).__name__}: {error}"
    return Inspection(path, "crash", told)


def _entries_of_run(config: str | None, settings: Sequence[str]) -> tuple[list[Entry], VideoReader]:
    """Return the videos of a run's source, each in all splits that it is in, and the run's reader."""
    data = build_data(config, settings)
    data.prepare_data()
    records = data.source.records("predict")  # first, as it raises where videos are not there
    entries: list[Entry] = []
    for split in SPLITS:
        try:
            entries += [(record.path, split, record.label) for record in data.source.records(split)]
        except InputError as error:
            print(f"no {split} split: {error}", flush=True)
    in_splits = {path for path, _, _ in entries}
    others = [(record.path, None, record.label) for record in records if record.path not in in_splits]
    is_rgb = data.reader.channels == 3  # what reads something else cannot be compared with the file's pictures
    return entries + others, data.reader if is_rgb else DecordReader()


def _write(table: Path, found: Mapping[str, Inspection], listed: Mapping[str, Sequence[Entry]]) -> None:
    """Write a line a file."""
    names = [field.name for field in fields(Inspection)]
    lines: list[list[object]] = [[*names, "splits", "labels"]]
    for path, file in found.items():
        values = [getattr(file, name) for name in names]
        words = ["; ".join(value) if isinstance(value, list) else value for value in values]
        lines.append([*words, "; ".join(_splits(listed[path])), "; ".join(_labels(listed[path]))])
    write_whole(table, csv_text(lines))


def _splits(entries: Iterable[Entry]) -> list[str]:
    named = {split for _, split, _ in entries if split is not None}
    return [split for split in SPLITS if split in named] + sorted(named - {*SPLITS})


def _labels(entries: Iterable[Entry]) -> list[str]:
    return sorted({label for _, _, label in entries if label is not None})


def _last_line(found: Mapping[str, Inspection]) -> str:
    counts = Counter(file.verdict for file in found.values())
    others = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict != "ok" and counts[verdict]]
    return f"{counts['ok']} of {len(found)} videos are fine" + ("; " + ", ".join(others) if others else "")


def report(found: Mapping[str, Inspection], listed: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Return the lines that show a data set: its classes, what its files are like, and what is wrong with them.

    Args:
        found: What was found out about each file, by its path.
        listed: As what each file is listed, by its path.
    """
    parts = [
        _classes(listed),
        _lengths([file for file in found.values() if file.frames]),
        _kinds([file for file in found.values() if file.frames]),
        _faults(found, listed),
        _copies(found, listed),
    ]
    return [line for part in parts if part for line in ("", *part)][1:]


def _classes(listed: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Return a table of the files of each class in each split."""
    counts: Counter[tuple[str, str]] = Counter()
    for entries in listed.values():
        for split, label in {(split or "", label or "(no label)") for _, split, label in entries}:
            counts[label, split] += 1
    columns = _splits(entry for entries in listed.values() for entry in entries)
    columns += [""] if any(split == "" for _, split in counts) else []
    totals = Counter({label: sum(counts[label, split] for split in columns) for label, _ in counts})
    order = sorted(totals)
    half = MOST_CLASSES // 2
    by_size = [label for label, _ in totals.most_common()]
    shown = [*by_size[:half], None, *by_size[-half:]] if len(order) > MOST_CLASSES else [*order]
    titles = [split or ("no split" if len(columns) > 1 else "files") for split in columns]
    width = min(40, max(map(len, [*order, "class"])))
    lines = [f"{'class':<{width}}" + "".join(f"{title:>10}" for title in titles)]
    for name in shown:
        if name is None:
            lines.append(f"... {len(order) - 2 * half} classes between the largest and the smallest ...")
        else:
            lines.append(f"{_cut(name, width):<{width}}" + "".join(f"{counts[name, split]:>10}" for split in columns))
    if len(order) > 1:
        sums = [sum(counts[label, split] for label in order) for split in columns]
        lines.append(f"{_cut(f'all {len(order)}', width):<{width}}" + "".join(f"{number:>10}" for number in sums))
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _lengths(files: Sequence[Inspection]) -> list[str]:
    """Return the shortest, the median and the longest length."""
    frames = [file.frames for file in files if file.frames]
    if not frames:
        return []
    seconds = [file.seconds for file in files if file.seconds is not None]
    size = sum(file.bytes or 0 for file in files)
    lines = [f"{'length':<10}{'least':>10}{'median':>10}{'most':>10}{'sum':>14}"]
    if seconds:
        numbers = [min(seconds), statistics.median(seconds), max(seconds)]
        lines.append(f"{'seconds':<10}" + "".join(f"{number:>10.2f}" for number in numbers) + f"{sum(seconds):>14,.0f}")
    counts = [min(frames), round(statistics.median(frames)), max(frames)]
    lines.append(f"{'frames':<10}" + "".join(f"{number:>10}" for number in counts) + f"{sum(frames):>14,}")
    return [*lines, f"{'MB':<10}{size / 1e6:>44,.0f}"]


def _kinds(files: Sequence[Inspection]) -> list[str]:
    """Return a line for each property, with its most frequent values and how many files have them."""
    values = {
        "size": [f"{file.width}x{file.height}" for file in files],
        "frames/s": [f"{file.fps:g}" for file in files if file.fps],
        "codec": [str(file.codec) for file in files],
        "colours": [str(file.pixel_format) for file in files],
        "container": [str(file.container).partition(",")[0] for file in files],
        "turned": [f"{file.rotation} degrees" for file in files if file.rotation],
        "not square": [f"pixels {file.pixel_aspect}" for file in files if file.pixel_aspect not in (None, "1:1")],
        "varying": ["frame rate" for file in files if file.is_variable],
    }
    lines = []
    for name, given in values.items():
        counts = Counter(given).most_common()
        told = ", ".join(f"{value} ({number})" for value, number in counts[:6])
        others = f" and {len(counts) - 6} others ({sum(n for _, n in counts[6:])})" if len(counts) > 6 else ""
        lines += [f"{name:<12}{told}{others}"] if counts else []
    return lines


def _faults(found: Mapping[str, Inspection], listed: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Return the files that are not ok, by verdict."""
    lines = []
    for verdict, meaning in VERDICTS.items():
        files = [file for file in found.values() if file.verdict == verdict]
        if verdict != "ok" and files:
            lines.append(f"{verdict} ({len(files)}): {meaning}")
            lines += [f"  {listed[file.path][0][0]}: {file.why}" for file in files[:MOST_FILES]]
            lines += _more(files)
    noted = [file for file in found.values() if file.verdict == "ok" and file.notes]
    lines += [f"noted ({len(noted)}), though ok:"] if noted else []
    lines += [f"  {listed[file.path][0][0]}: {'; '.join(file.notes)}" for file in noted[:MOST_FILES]]
    return lines + _more(noted)


def _more(several: Sequence[object]) -> list[str]:
    return [f"  and {len(several) - MOST_FILES} more"] if len(several) > MOST_FILES else []


def _copies(found: Mapping[str, Inspection], listed: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Return what is in several splits, in several classes, or there twice."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path, file in found.items():
        if file.frames:
            groups[file.digest or path].append(path)
    in_splits, with_labels, copies = [], [], []
    for paths in groups.values():
        entries = [entry for path in paths for entry in listed[path]]
        if len(_splits(entries)) > 1:
            in_splits.append(paths)
        elif len(paths) > 1:
            copies.append(paths)
        if len(_labels(entries)) > 1:
            with_labels.append(paths)
    lines = []
    for kind, several in {
        "in different splits, which makes results look better than they are": in_splits,
        "with different labels": with_labels,
        "twice or more, not in different splits": copies,
    }.items():
        if several:
            lines.append(f"the same video {kind} ({len(several)}):")
            lines += ["  " + " = ".join(_as_listed(listed[path]) for path in paths) for paths in several[:MOST_FILES]]
            lines += _more(several)
    return lines


def _as_listed(entries: Sequence[Entry]) -> str:
    """Return a file's path, with its splits and labels where it has them."""
    about = ", ".join([*_splits(entries), *_labels(entries)])
    return entries[0][0] + (f" ({about})" if about else "")
