"""Writes the embedded TNEWS sample: synthetic Chinese news titles in CLUE's file layout.

    python -m datamodules.samples.make_tnews            # writes tnews/{train,dev,test,labels}.json
    python -m datamodules.samples.make_tnews --check    # compares byte for byte; exit code 1 if they differ

The words and templates stand in `tnews_words`. A title comes from a template of one class, from one that
two or three classes share, or from one that says nothing; so no classifier can be right every time. Only
``random.Random.random()`` is drawn from, the one sequence that Python promises never to change.
"""

import argparse
import json
import random
import re
import sys
from pathlib import Path

from datamodules.samples.tnews_words import CLASSES, OWN, PREFIXES, RECORDS, SHARED, SUFFIXES, VAGUE, WORDS

FOLDER = Path(__file__).parent / "tnews"
SEED = 20200908
SIZES = {"train": 4000, "dev": 500, "test": 500}
SHARE_OF_SHARED, SHARE_OF_VAGUE = 0.42, 0.03
SHARE_WITH_PREFIX, SHARE_WITH_SUFFIX = 0.08, 0.20
NOT_KEYWORDS = {"react", "feeling", "trend"}
ENDS_A_TITLE = re.compile(r"[？！]$")
SLOT = re.compile(r"\{(?:(\d+)-(\d+)|([a-z_]+)(\d?)(?:\.([a-z]+))?)\}")


class TitleWriter:
    """Fills templates with words from one seeded stream; `keywords` are the words of the last title."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.keywords: list[str] = []

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self.rng.random() * n)

    def pick(self, choices):
        return choices[self.below(len(choices))]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def fill(self, template: str) -> str:
        """`template` with every slot filled; numbered slots of one name get different words."""
        drawn: dict[tuple[str, str], str | tuple] = {}

        def word(match: re.Match) -> str:
            low, high, name, number, field = match.groups()
            if low is not None:
                return str(int(low) + self.below(int(high) - int(low) + 1))
            choices = RECORDS[name][1:] if name in RECORDS else WORDS[name]
            if (name, number) not in drawn:
                taken = [value for (other, _), value in drawn.items() if other == name]
                drawn[name, number] = self.pick([choice for choice in choices if choice not in taken])
            value = drawn[name, number]
            text = value[RECORDS[name][0].index(field)] if field else value
            if name not in NOT_KEYWORDS and text not in self.keywords:
                self.keywords.append(text)
            return text

        return SLOT.sub(word, template)

    def title(self, label: str) -> str:
        """One title of the class `label`."""
        self.keywords = []
        kind = self.rng.random()
        shared = [templates for labels, templates in SHARED if label in labels]
        if kind < SHARE_OF_VAGUE:
            template = self.pick(VAGUE)
        elif kind < SHARE_OF_VAGUE + SHARE_OF_SHARED:
            template = self.pick(self.pick(shared))
        else:
            template = self.pick(OWN[label])
        if self.chance(SHARE_WITH_PREFIX) and "：" not in template and "|" not in template:
            template = self.pick(PREFIXES) + template
        if self.chance(SHARE_WITH_SUFFIX) and not ENDS_A_TITLE.search(template):
            template += self.pick(SUFFIXES)
        return self.fill(template)


def rows_by_split() -> dict[str, list[dict[str, str]]]:
    """{"train": rows, "dev": rows, "test": rows}, each row in CLUE's keys; every title occurs once in all."""
    writer = TitleWriter(SEED)
    seen: set[str] = set()
    splits: dict[str, list[tuple[float, int, dict[str, str]]]] = {split: [] for split in SIZES}
    for split, size in SIZES.items():
        counts = {label: round(share * size / 100) for label, _, share in CLASSES}
        for label, name, _ in CLASSES:
            while counts[label]:
                sentence = writer.title(label)
                if sentence in seen:
                    continue
                seen.add(sentence)
                counts[label] -= 1
                # Real rows often have no keywords; neither reading nor training uses them.
                keywords = ",".join(writer.keywords) if writer.chance(0.5) else ""
                row = {"label": label, "label_desc": name, "sentence": sentence, "keywords": keywords}
                splits[split].append((writer.rng.random(), len(splits[split]), row))
    # Shuffled by sorting on draws: `Random.shuffle` may change between versions of Python.
    return {split: [row for _, _, row in sorted(keyed)] for split, keyed in splits.items()}


def files() -> dict[str, bytes]:
    """File name -> content, UTF-8 JSON lines."""
    contents = {f"{split}.json": rows for split, rows in rows_by_split().items()}
    contents["labels.json"] = [{"label": label, "label_desc": name} for label, name, _ in CLASSES]
    return {
        name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        for name, rows in contents.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Write, or check, the embedded TNEWS sample.")
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    check = parser.parse_args().check
    differing = []
    for name, content in files().items():
        path = FOLDER / name
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        elif not path.is_file() or path.read_bytes() != content:
            differing.append(str(path))
    if differing:
        print("differs from what this generator writes: " + ", ".join(differing), file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
