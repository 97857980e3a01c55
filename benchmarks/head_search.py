"""Learning rate and dropout of each head, by validation on stored features; the test videos are not looked at.

    python benchmarks/head_search.py features --heads benchmarks/heads/TGAP.yaml benchmarks/heads/BERT.yaml

Heads are configs with `model.head`. Settings of `cnnbert fit` may follow. Prints a line a head with the validation
accuracy of every pair, mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import product
from pathlib import Path

import yaml

from cnnbert.commands import part_settings
from cnnbert.data.features import read_facts
from cnnbert.features import CONFIG
from cnnbert.head_training import train_head
from cnnbert.loading import config_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--heads", type=Path, nargs="+", required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 4e-3, 1.6e-2])
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--seeds", type=int, default=2)
    given, words = parser.parse_known_args()
    settings, _ = part_settings(words)
    class_names = read_facts(given.features)["key"]["classes"]
    pairs = list(product(given.rates, given.dropouts))
    print("| head | " + " | ".join(f"{rate:g}, {dropout:g}" for rate, dropout in pairs) + " |")
    print("| --- " * (1 + len(pairs)) + "|")
    for path in given.heads:
        head = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["head"]
        cells = []
        for rate, dropout in pairs:
            changed = {**head, "init_args": {**head.get("init_args", {}), "classifier_dropout": dropout}}
            own = [f"--model.head={json.dumps(changed)}", f"--model.optimizer.lr={rate}"]
            known = config_settings(given.features / CONFIG, class_names, [*own, *settings])
            with tempfile.TemporaryDirectory() as folder:
                found = [
                    train_head(given.features, known, seed, Path(folder) / str(seed)) for seed in range(given.seeds)
                ]
            cells.append(f"{100 * statistics.mean(found):.1f}")
        print(f"| {path.stem} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
