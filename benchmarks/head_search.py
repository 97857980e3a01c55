"""Learning rate and dropout of each head, by validation on stored features; the test videos are not looked at.

    python benchmarks/head_search.py features --heads TGAPHead BERTHead

Settings of `cnnbert fit` may follow. Prints a line a head with the validation accuracy of every pair, mean over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import product
from pathlib import Path

from cnnbert.commands import part_settings
from cnnbert.data.features import read_facts
from cnnbert.features import CONFIG
from cnnbert.head_training import train_head
from cnnbert.loading import config_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--heads", nargs="+", required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--seeds", type=int, default=2)
    given, words = parser.parse_known_args()
    settings, _ = part_settings(words)
    class_names = read_facts(given.features)["key"]["classes"]
    pairs = list(product(given.rates, given.dropouts))
    print("| head | " + " | ".join(f"{rate:g}, {dropout:g}" for rate, dropout in pairs) + " |")
    print("| --- " * (1 + len(pairs)) + "|")
    for head in given.heads:
        cells = []
        for rate, dropout in pairs:
            name = "classifier_dropout" if "BERT" in head else "dropout"
            own = [f"--model.head={head}", f"--model.head.{name}={dropout}", f"--model.optimizer.lr={rate}"]
            known = config_settings(given.features / CONFIG, class_names, [*own, *settings])
            with tempfile.TemporaryDirectory() as folder:
                found = [
                    train_head(given.features, known, seed, Path(folder) / str(seed)) for seed in range(given.seeds)
                ]
            cells.append(f"{100 * statistics.mean(found):.1f}")
        print(f"| {head} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
