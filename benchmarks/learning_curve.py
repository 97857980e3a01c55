"""Accuracy against the number of training clips: an ablation for each number, on the same validation and test clips.

    python benchmarks/learning_curve.py --clips 104 208 416 --configs small/r2plus1d_tgap.yaml small/r2plus1d_bert.yaml
    python benchmarks/learning_curve.py --clips 104 208 416 --frozen small/r2plus1d_tgap.yaml --weights best.ckpt \
        --heads benchmarks/heads/TGAP.yaml benchmarks/heads/BERT.yaml

The clips are generated ones. Whole networks are trained, or heads on the features of a frozen backbone. Every network
sees `--presentations` clips in training, however few different ones there are. Settings of `cnnbert fit` may follow.
OUT/curve.md and OUT/curve.png have the result; stopped, the same line goes on.
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
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--configs", nargs="+", help="networks that are trained as a whole")
    way.add_argument("--frozen", help="config of the network whose backbone gives features for --heads")
    parser.add_argument("--heads", nargs="+", default=[], help="heads that are trained on a frozen backbone")
    parser.add_argument("--weights", help="weights of the backbone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--presentations", type=int, default=12_000, help="clips that a network sees in training")
    parser.add_argument("--out", type=Path, default=Path("curve"))
    given, settings = parser.parse_known_args()
    source = GeneratedActions()
    source.prepare()
    weights = ["--model.backbone.weights", given.weights] if given.weights else []
    for number in given.clips:
        path = given.out / f"{number}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(listed(source, number // len(ACTIONS)), encoding="utf-8")
        data = ["--data.source", "CSVManifest", "--data.source.path", str(path)]
        data += ["--data.mirrored", json.dumps(source.mirrored)]
        epochs = max(1, round(given.presentations / number))
        words = ["--seeds", str(given.seeds), "--out", str(given.out / str(number))]
        words += ["--trainer.max_epochs", str(epochs), "--model.scheduler.T_max", str(epochs)]
        words += ["--trainer.check_val_every_n_epoch", str(max(1, epochs // VALIDATIONS)), *settings]
        if given.frozen:
            features = given.out / f"{number}.features"
            if not features.is_dir():
                run(["features", "--config", given.frozen, *data, *weights, "--out", str(features)])
            run(["ablate", "--features", str(features), "--heads", *given.heads, *words])
        else:
            run(["ablate", "--configs", *given.configs, *data, *weights, *words])
        show(given.out, [n for n in given.clips if (given.out / str(n) / "table.csv").is_file()])


def run(words: list[str]) -> None:
    """Run a command of ours; end with it where it fails."""
    if cnnbert(words) != 0:
        raise SystemExit(1)


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
    axes.set_ylabel("video top-1 (%), mean and std of the seeds")
    axes.grid(color="0.9")
    axes.legend()
    (folder / "curve.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    figure.savefig(folder / "curve.png")
    print(f"\n{(folder / 'curve.md').read_text(encoding='utf-8')}", flush=True)


if __name__ == "__main__":
    main()
