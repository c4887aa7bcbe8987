"""Writes the embedded TNEWS sample: synthetic Chinese news titles in CLUE's file layout.

    python -m datamodules.samples.make_tnews            # writes tnews/{train,dev,test,labels}.json
    python -m datamodules.samples.make_tnews --check    # compares byte for byte; exit code 1 if they differ

The words and templates stand in `tnews_words`, the templates' language in `writing`. A title comes from a
template of one class, from one that two or three classes share, or from one that says nothing; so no
classifier can be right every time.
"""

import re
import sys
from pathlib import Path

from datamodules.samples.tnews_words import CLASSES, OWN, PREFIXES, RECORDS, SHARED, SUFFIXES, VAGUE, WORDS
from datamodules.samples.writing import Writer, json_lines, write_or_check

FOLDER = Path(__file__).parent / "tnews"
SEED = 20200908
SIZES = {"train": 4000, "dev": 500, "test": 500}
SHARE_OF_SHARED, SHARE_OF_VAGUE = 0.42, 0.03
SHARE_WITH_PREFIX, SHARE_WITH_SUFFIX = 0.08, 0.20
NOT_KEYWORDS = {"react", "feeling", "trend"}
ENDS_A_TITLE = re.compile(r"[？！]$")


def write_title(writer: Writer, label: str) -> str:
    """One title of the class `label`."""
    kind = writer.draw()
    shared = [templates for labels, templates in SHARED if label in labels]
    if kind < SHARE_OF_VAGUE:
        template = writer.pick(VAGUE)
    elif kind < SHARE_OF_VAGUE + SHARE_OF_SHARED:
        template = writer.pick(writer.pick(shared))
    else:
        template = writer.pick(OWN[label])
    if writer.chance(SHARE_WITH_PREFIX) and "：" not in template and "|" not in template:
        template = writer.pick(PREFIXES) + template
    if writer.chance(SHARE_WITH_SUFFIX) and not ENDS_A_TITLE.search(template):
        template += writer.pick(SUFFIXES)
    return writer.fill(template)


def rows_by_split() -> dict[str, list[dict[str, str]]]:
    """{"train": rows, "dev": rows, "test": rows}, each row in CLUE's keys; every title occurs once in all."""
    writer = Writer(SEED, WORDS, RECORDS)
    seen: set[str] = set()
    splits: dict[str, list[tuple[float, int, dict[str, str]]]] = {split: [] for split in SIZES}
    for split, size in SIZES.items():
        counts = {label: round(share * size / 100) for label, _, share in CLASSES}
        for label, name, _ in CLASSES:
            while counts[label]:
                sentence = write_title(writer, label)
                if sentence in seen:
                    continue
                seen.add(sentence)
                counts[label] -= 1
                words = dict.fromkeys(text for slot, text in writer.drawn if slot not in NOT_KEYWORDS)
                # Real rows often have no keywords; neither reading nor training uses them.
                keywords = ",".join(words) if writer.chance(0.5) else ""
                row = {"label": label, "label_desc": name, "sentence": sentence, "keywords": keywords}
                splits[split].append((writer.draw(), len(splits[split]), row))
    # Shuffled by sorting on draws: `Random.shuffle` may change between versions of Python.
    return {split: [row for _, _, row in sorted(keyed)] for split, keyed in splits.items()}


def files() -> dict[str, bytes]:
    """File name -> content, UTF-8 JSON lines."""
    contents = {f"{split}.json": rows for split, rows in rows_by_split().items()}
    contents["labels.json"] = [{"label": label, "label_desc": name} for label, name, _ in CLASSES]
    return {name: json_lines(rows) for name, rows in contents.items()}


if __name__ == "__main__":
    sys.exit(write_or_check(FOLDER, files))
