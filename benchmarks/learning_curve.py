"""Accuracy against the number of training clips: an ablation for each number, on the same validation and test clips.

    python benchmarks/learning_curve.py --clips 104 208 416 --configs small/r2plus1d_tgap.yaml small/r2plus1d_bert.yaml

The clips are generated ones. Every network sees `--presentations` clips in training, however few different ones there
are. Settings of `cnnbert fit` may follow. OUT/curve.md and OUT/curve.png have the result; stopped, the same line goes
on.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import Counter
from pathlib import Path

from cnnbert.cli import main as cnnbert
from cnnbert.data.generated import ACTIONS, GeneratedActions
from cnnbert.data.manifest import manifest

VALIDATIONS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", required=True, help="numbers of training clips, 13 at least")
    parser.add_argument("--configs", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--presentations", type=int, default=12_000, help="clips that a network sees in training")
    parser.add_argument("--out", type=Path, default=Path("curve"))
    given, settings = parser.parse_known_args()
    source = GeneratedActions()
    source.prepare()
    for number in given.clips:
        path = given.out / f"{number}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(listed(source, number // len(ACTIONS)), encoding="utf-8")
        epochs = max(1, round(given.presentations / number))
        words = [
            "ablate",
            "--configs",
            *given.configs,
            "--seeds",
            str(given.seeds),
            "--out",
            str(given.out / str(number)),
        ]
        words += ["--data.source", "CSVManifest", "--data.source.path", str(path)]
        words += ["--data.mirrored", json.dumps(source.mirrored), "--trainer.max_epochs", str(epochs)]
        words += ["--model.scheduler.T_max", str(epochs)]
        words += ["--trainer.check_val_every_n_epoch", str(max(1, epochs // VALIDATIONS))]
        if cnnbert([*words, *settings]) != 0:
            raise SystemExit(1)
        show(given.out, [n for n in given.clips if (given.out / str(n) / "table.csv").is_file()])


def listed(source: GeneratedActions, num_of_class: int) -> str:
    """Return a list of the first training videos of each class, and of all validation and test videos."""
    rows = []
    seen: Counter[str | None] = Counter()
    for record in source.records("train"):
        seen[record.label] += 1
        if seen[record.label] <= num_of_class:
            rows.append(({"split": "train"}, record))
    rows += [({"split": split}, record) for split in ("val", "test") for record in source.records(split)]
    return manifest(rows)


def show(folder: Path, numbers: list[int]) -> None:
    """Write the table and the figure of what is there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values: dict[str, dict[int, list[float]]] = {}
    for number in numbers:
        with (folder / str(number) / "table.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                of_seeds = [float(value) for key, value in row.items() if key.startswith("top1_seed") and value]
                values.setdefault(row["network"], {})[number] = of_seeds
    lines = ["| network | " + " | ".join(f"{number} clips" for number in numbers) + " |"]
    lines += ["| --- " * (1 + len(numbers)) + "|"]
    figure = Figure(figsize=(6.5, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, of_number in values.items():
        means = [100 * statistics.mean(of_number[number]) for number in numbers]
        spreads = [100 * statistics.stdev(of_number[n]) if len(of_number[n]) > 1 else 0 for n in numbers]
        cells = [f"{mean:.1f} ± {spread:.1f}" for mean, spread in zip(means, spreads, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        axes.errorbar(numbers, means, yerr=spreads, marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_xlabel("training clips")
    axes.set_ylabel("video top-1 (%), mean and standard deviation over seeds")
    axes.grid(color="0.9")
    axes.legend()
    (folder / "curve.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    figure.savefig(folder / "curve.png")
    print(f"\n{(folder / 'curve.md').read_text(encoding='utf-8')}", flush=True)


if __name__ == "__main__":
    main()
