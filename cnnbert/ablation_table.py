"""What an ablation leaves to read: its table in Markdown and CSV, and a figure."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnbert.comparison import Comparison, compare
from cnnbert.outputs import whole_file, write_whole
from cnnbert.predictions import read_predictions


@dataclass(frozen=True)
class Network:
    """A row of the table.

    Attributes:
        name: What it is called.
        config: Its config's path.
        options: Settings that win over the config's, as on the command line.
        settings: All its settings, by name within name.
        baseline: The name of the network that it is compared with; empty for a baseline.
    """

    name: str
    config: str
    options: tuple[str, ...]
    settings: Mapping[str, Any]
    baseline: str


@dataclass(frozen=True)
class Result:
    """One network trained and tested with one seed.

    Attributes:
        network: The network's name.
        seed: The seed.
        metrics: What stands in `results.json`; nothing where the run is not finished.
        predictions: Its predictions file, if it is finished.
        train_seconds: How long training has taken.
        is_cut_off: Whether some of the training was killed without its time being taken.
        error: Why it failed, if it did.
        versions: What it ran with.
    """

    network: str
    seed: int
    metrics: Mapping[str, Any]
    predictions: Path | None
    train_seconds: float
    is_cut_off: bool
    error: str
    versions: str


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        parameters: How many numbers it learns.
        multiply_adds: Those of its convolutions and matrix products for one clip.
        clips_per_second: How many clips it classifies a second; None where that has not been measured.
    """

    parameters: int
    multiply_adds: int
    clips_per_second: float | None = None


def write_tables(
    folder: Path,
    networks: Sequence[Network],
    results: Sequence[Result],
    sizes: Mapping[str, Size],
    about: Sequence[str],
) -> str:
    """Write `table.md`, `table.csv` and `figure.png`, and return the text of the first.

    Args:
        folder: Where they go.
        networks: The rows.
        results: All runs, finished or not.
        sizes: What each network costs, by name.
        about: The command line that makes the table, and lines on how the numbers came about.
    """
    metric = "map" if any("map" in result.metrics for result in results) else "top1"
    compared = compare_with_baselines(networks, results) if metric == "top1" else {}
    lines = [
        _line(network, [result for result in results if result.network == network.name], sizes[network.name], metric)
        | _compared(network, compared.get(network.name))
        for network in networks
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_whole(folder / "table.csv", text.getvalue())
    markdown = _markdown(lines, results, metric, about)
    write_whole(folder / "table.md", markdown)
    if any(line["mean"] != "" for line in lines):
        _draw(folder / "figure.png", lines, metric)
    return markdown


def compare_with_baselines(networks: Sequence[Network], results: Sequence[Result]) -> dict[str, Comparison]:
    """Return how much each network differs from its baseline, as far as both have finished runs."""
    runs: dict[str, list[Result]] = {}
    for result in results:
        if result.predictions is not None:
            runs.setdefault(result.network, []).append(result)
    predictions = {name: [read_predictions(Path(str(run.predictions))) for run in done] for name, done in runs.items()}
    return {
        network.name: compare(
            predictions[network.name],
            predictions[network.baseline],
            runs[network.name][0].metrics.get("count_failed", "wrong"),
        )
        for network in networks
        if network.name in runs and network.baseline in runs
    }


def duration(seconds: float) -> str:
    """Return a time in words: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _line(network: Network, runs: Sequence[Result], size: Size, metric: str) -> dict[str, Any]:
    """Return what is known of a network by the names of the table's columns; unknown is an empty text."""
    values = {run.seed: run.metrics.get(metric, "") for run in runs}
    known = [value for value in values.values() if value != ""]
    trained = [run.train_seconds for run in runs if run.metrics]
    return {
        "network": network.name,
        **{f"{metric}_seed{seed}": value for seed, value in values.items()},
        "mean": statistics.mean(known) if known else "",
        "std": statistics.stdev(known) if len(known) > 1 else "",
        "parameters": size.parameters,
        "multiply_adds": size.multiply_adds,
        "train_seconds": statistics.mean(trained) if trained else "",
        "train_seconds_at_least": any(run.is_cut_off for run in runs),
        "clips_per_second": "" if size.clips_per_second is None else size.clips_per_second,
        "protocol": next((run.metrics["protocol"] for run in runs if run.metrics), ""),
        "num_videos": next((run.metrics["num_videos"] for run in runs if run.metrics), ""),
        "num_failed_videos": max((run.metrics["num_failed"] for run in runs if run.metrics), default=""),
        "failed_runs": sum(bool(run.error) for run in runs),
    }


def _compared(network: Network, comparison: Comparison | None) -> dict[str, Any]:
    low, high = (comparison and comparison.interval) or ("", "")
    return {
        "baseline": network.baseline,
        "difference": comparison.difference if comparison else "",
        "low": low,
        "high": high,
        "only_network": comparison.only_first if comparison else "",
        "only_baseline": comparison.only_second if comparison else "",
        "mcnemar_p": comparison.p_value if comparison else "",
    }


def _markdown(lines: Sequence[Mapping[str, Any]], results: Sequence[Result], metric: str, about: Sequence[str]) -> str:
    seeds = sorted({result.seed for result in results})
    name = {"top1": "top-1", "map": "mAP"}[metric]
    each = f"{name} of seed {seeds[0]}" if len(seeds) == 1 else f"{name} of seeds {seeds[0]} to {seeds[-1]}"
    titles = ["network", f"{each} (%)", "mean", "std", "parameters", "multiply-adds", "training", "clips/s"]
    rows = [
        [
            line["network"],
            " ".join(_percent(line[f"{metric}_seed{seed}"]) for seed in seeds),
            _percent(line["mean"]),
            _percent(line["std"]),
            f"{line['parameters']:,}",
            _scaled(line["multiply_adds"]),
            _more_than(line["train_seconds_at_least"]) + _said(line["train_seconds"], duration),
            _said(line["clips_per_second"], lambda rate: f"{rate:.3g}"),
        ]
        for line in lines
    ]
    text = [f"    {about[0]}", "", *_table(titles, rows), ""]
    compared = [line for line in lines if line["difference"] != ""]
    if compared:
        titles = ["network", "against", "difference (points)", "95 % interval", "only it, only the other", "p"]
        rows = [
            [
                line["network"],
                line["baseline"],
                f"{100 * line['difference']:+.2f}",
                "-" if line["low"] == "" else f"{100 * line['low']:+.2f} to {100 * line['high']:+.2f}",
                f"{line['only_network']}, {line['only_baseline']}",
                f"{line['mcnemar_p']:.2g}",
            ]
            for line in compared
        ]
        text += [*_table(titles, rows), ""]
        text += ["- Difference: of the mean accuracies. Interval: bootstrap over videos and seeds, 10,000 draws."]
        if any(line["low"] == "" for line in compared):
            text += ["- No interval where one of the two has fewer than two finished seeds: it would leave out chance."]
        text += ["- Only it, only the other: test videos that one alone has right, by the mean scores of its seeds."]
        text += ["- p: McNemar's exact test on these two numbers, two-sided; other seeds are not considered."]
    elif metric == "map":
        text += ["- No comparison: its tests are of videos with one class each, and these may have several."]
    failed = max((line["num_failed_videos"] or 0 for line in lines), default=0)
    text += [f"- Failed: {run.network}, seed {run.seed}: {run.error}" for run in results if run.error]
    unfinished = sum(not (run.metrics or run.error) for run in results)
    text += [f"- {unfinished} of {len(results)} runs are not finished."] if unfinished else []
    text += [f"- {failed} test videos could not be read."] if failed else []
    protocols = {line["protocol"]: line["network"] for line in lines if line["protocol"]}
    videos = next((line["num_videos"] for line in lines if line["num_videos"] != ""), None)
    if videos is not None:
        own = [f"{network}: {protocol}" for protocol, network in protocols.items()]
        told = next(iter(protocols)) if len(protocols) == 1 else "; ".join(own)
        text += [f"- {videos} test videos, {told}."]
    versions = sorted({run.versions for run in results if run.versions})
    text += [f"- {line}" for line in (*versions, *about[1:])]
    return "\n".join([*text, "", "![accuracies](figure.png)", ""])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(f"{word:<{width}}" for word, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]


def _said(value: Any, say: Any) -> str:
    return "-" if value == "" else say(value)


def _percent(share: Any) -> str:
    return _said(share, lambda share: f"{100 * share:.2f}")


def _more_than(is_less: bool) -> str:
    return "> " if is_less else ""


def _scaled(number: int) -> str:
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _draw(path: Path, lines: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Draw the accuracy of every seed and their mean, and beside it the differences with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_differences = any(line["difference"] != "" for line in lines)
    figure = Figure(figsize=(11 if has_differences else 6.5, 1.4 + 0.42 * len(lines)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if has_differences else 1, sharey=True, squeeze=False)[0]
    places = range(len(lines))
    for place, line in zip(places, lines, strict=True):
        values = [100 * value for key, value in line.items() if key.startswith(f"{metric}_seed") and value != ""]
        axes[0].plot(values, [place] * len(values), "o", color=BLUE, alpha=0.45, markersize=6, markeredgewidth=0)
        if line["mean"] != "":
            axes[0].plot([100 * line["mean"]], [place], "|", color="black", markersize=18, markeredgewidth=2)
        if line["difference"] != "":
            axes[1].plot([100 * line["difference"]], [place], "o", color=ORANGE, markersize=7)
            if line["low"] != "":
                axes[1].plot([100 * line["low"], 100 * line["high"]], [place, place], color=ORANGE, linewidth=2)
        elif has_differences:
            axes[1].text(0, place, "baseline" if not line["baseline"] else "", ha="center", va="center", color="0.4")
    axes[0].set_yticks(list(places), [line["network"] for line in lines])
    axes[0].invert_yaxis()
    axes[0].set_ylim(len(lines) - 0.4, -0.6)
    axes[0].set_xlabel({"top1": "video top-1 (%)", "map": "mAP (%)"}[metric] + ": each seed, and their mean")
    if has_differences:
        axes[1].axvline(0, color="0.6", linewidth=1, zorder=0)
        axes[1].set_xlabel("points above the baseline, 95 % interval")
    for part in axes:
        part.grid(axis="x", color="0.9")
        part.set_axisbelow(True)
        part.spines[["top", "right", "left"]].set_visible(False)
        part.tick_params(axis="y", length=0)
    with whole_file(path) as part_file:
        figure.savefig(part_file)


BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by people who see few colours (Okabe & Ito 2008)
