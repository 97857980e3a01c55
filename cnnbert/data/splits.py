"""Divides records into train, val and test where a data set does not say which is which."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from cnnbert.data.records import VideoRecord, split_label

SPLITS = ("train", "val", "test")


def split_records(
    records: Sequence[VideoRecord], fractions: Mapping[str, float], seed: int = 0, label_separator: str | None = None
) -> dict[str, list[VideoRecord]]:
    """Divide records among splits, a class at a time in the same shares, without parting a group.

    Groups are taken from the largest to the smallest, in an order drawn from the seed among equals, and each goes
    to the split that lacks most of its classes' clips. The same records and seed give the same division, in whatever
    order and folder they are.

    Args:
        records: What to divide. Pieces of one file without a group are a group.
        fractions: The share of each split, in [0, 1], summing to 1; shares of 0 stay empty.
        seed: Chooses among the divisions that are equally good.
        label_separator: What parts the classes in a label; None where a label is one class.

    Returns:
        The records of each split, in the order given.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[f"file {record.path}" if record.group is None else f"group {record.group}"].append(i)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda name: -len(groups[name]))

    # A video without any class is of a class of its own.
    classes = [split_label(record.label or "", label_separator) or [""] for record in records]
    totals = Counter(name for names in classes for name in names)
    missing = {(split, label): share * n for split, share in fractions.items() for label, n in totals.items()}
    splits = [split for split, share in fractions.items() if share > 0]
    chosen: dict[int, str] = {}
    for name in order:
        counts = dict(sorted(Counter(label for i in groups[name] for label in classes[i]).items()))
        need = {s: sum(n * missing[s, label] / totals[label] for label, n in counts.items()) for s in splits}
        best = max(splits, key=lambda s: need[s])
        for label, n in counts.items():
            missing[best, label] -= n
        chosen.update(dict.fromkeys(groups[name], best))
    return {split: [r for i, r in enumerate(records) if chosen[i] == split] for split in fractions}
