"""Writes the embedded LCCC sample: synthetic Chinese chats in LCCC's file layout, a JSON array of turns a line.

    python -m datamodules.samples.make_lccc            # writes lccc/{train,valid,test}.jsonl
    python -m datamodules.samples.make_lccc --check    # compares byte for byte; exit code 1 if they differ

The words and scenes stand in `lccc_words`, the templates' language in `writing`. Replies take up what earlier
turns said, so a model that reads the context predicts them better than one that doesn't. No reply of
the held-out splits follows the same two turns in train: it could be learnt by heart.
"""

import sys
from pathlib import Path

from datamodules.samples.lccc_words import RECORDS, TOPICS, WORDS
from datamodules.samples.writing import Writer, json_lines, write_or_check

FOLDER = Path(__file__).parent / "lccc"
SEED = 20200804
SIZES = {"train": 2000, "valid": 200, "test": 200}
SCENES = [scene for topic in TOPICS.values() for scene in topic.strip().split("\n\n")]
CHANCE_TO_STOP = 0.35


def write_dialogue(writer: Writer) -> list[str]:
    """The turns of one scene, from its first on; after the second it may stop wherever no question is open."""
    turns = writer.fill(writer.pick(SCENES)).split("\n")
    for length in range(2, len(turns)):
        if not turns[length - 1].endswith("？") and writer.chance(CHANCE_TO_STOP):
            return turns[:length]
    return turns


def dialogues_by_split() -> dict[str, list[list[str]]]:
    """{"train": dialogues, "valid": dialogues, "test": dialogues}; every dialogue occurs once in all."""
    writer = Writer(SEED, WORDS, RECORDS)
    seen: set[tuple[str, ...]] = set()
    steps_of_train: set[tuple[str, ...]] = set()
    splits: dict[str, list[list[str]]] = {split: [] for split in SIZES}
    for split, size in SIZES.items():
        while len(splits[split]) < size:
            turns = write_dialogue(writer)
            steps = {tuple(turns[max(end - 3, 0) : end]) for end in range(2, len(turns) + 1)}
            if tuple(turns) in seen or (split != "train" and steps & steps_of_train):
                continue
            seen.add(tuple(turns))
            splits[split].append(turns)
            if split == "train":
                steps_of_train |= steps
    return splits


def files() -> dict[str, bytes]:
    """File name -> content, UTF-8 JSON lines."""
    return {f"{split}.jsonl": json_lines(dialogues) for split, dialogues in dialogues_by_split().items()}


if __name__ == "__main__":
    sys.exit(write_or_check(FOLDER, files))
