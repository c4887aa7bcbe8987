"""What the generators of the embedded samples share: a writer that fills templates, files that are written or checked.

A template is plain text with

- ``[a|b|]``: one of the alternatives, which may be empty and may nest;
- ``{name}``, ``{name.field}``: a word of a list, a field of a record. The same slot of one text is the same
  draw; ``{name2}`` is another draw from that list;
- ``{3-9}``: a number, ``{n:3-9}``: a number with a name, which ``{n}``, ``{n+1}``, ``{n-1}``, ``{n*2}`` use;
- ``{x:a/b/c}``: one of the texts, drawn by place: ``{x:d/e/f}`` of the same text is the one that stands at
  the same place, ``{x}`` the first one again.

Only ``random.Random.random()`` is drawn from, the one sequence that Python promises never to change.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(
    r"\{(?:"
    r"(?:(?P<number>[a-z]+):)?(?P<low>\d+)-(?P<high>\d+)"
    r"|(?P<known>[a-z]+)(?P<sign>[-+*])(?P<operand>\d+)"
    r"|(?P<place>[a-z]+):(?P<texts>[^{}]+)"
    r"|(?P<name>[a-z_]+)(?P<copy>\d?)(?:\.(?P<field>[a-z]+))?"
    r")\}"
)


class Draws:
    """One seeded stream of draws."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed).random

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self.draw() * n)

    def pick(self, choices):
        return choices[self.below(len(choices))]

    def chance(self, probability: float) -> bool:
        return self.draw() < probability


class Writer(Draws):
    """Fills templates.

    `words` is list name -> words, `records` is list name -> (field names, record, record, ...).
    `drawn` holds the (list name, text) of every slot of the last template that drew from them, in its order.
    """

    def __init__(self, seed: int, words: dict[str, tuple], records: dict[str, tuple]):
        super().__init__(seed)
        self.words = words
        self.records = records
        self.drawn: list[tuple[str, str]] = []

    def fill(self, template: str) -> str:
        """`template` with an alternative for every ``[...]`` and a text for every ``{...}``."""
        while ALTERNATIVES.search(template):
            template = ALTERNATIVES.sub(lambda match: self.pick(match[1].split("|")), template)
        self.drawn = []
        entries: dict[tuple[str, str], str | tuple] = {}
        numbers: dict[str, int] = {}
        places: dict[str, tuple[int, str]] = {}

        def text(slot: re.Match) -> str:
            if slot["low"]:
                number = int(slot["low"]) + self.below(int(slot["high"]) - int(slot["low"]) + 1)
                if slot["number"]:
                    number = numbers.setdefault(slot["number"], number)
                return str(number)
            if slot["known"]:
                number, operand = numbers[slot["known"]], int(slot["operand"])
                return str(
                    {"+": number + operand, "-": number - operand, "*": number * operand}[slot["sign"]]
                )
            if slot["place"]:
                texts = slot["texts"].split("/")
                if slot["place"] not in places:
                    place = self.below(len(texts))
                    places[slot["place"]] = place, texts[place]
                return texts[places[slot["place"]][0]]
            name, copy, field = slot["name"], slot["copy"], slot["field"]
            if name in numbers:
                return str(numbers[name])
            if name in places:
                return places[name][1]
            choices = self.records[name][1:] if name in self.records else self.words[name]
            if (name, copy) not in entries:
                taken = [entry for (other, _), entry in entries.items() if other == name]
                entries[name, copy] = self.pick([choice for choice in choices if choice not in taken])
            entry = entries[name, copy]
            drawn = entry[self.records[name][0].index(field)] if field else entry
            self.drawn.append((name, drawn))
            return drawn

        return SLOT.sub(text, template)


def json_lines(rows: Iterable) -> bytes:
    """UTF-8, a row of JSON a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_or_check(folder: Path, files: Callable[[], dict[str, bytes]]) -> int:
    """A generator's command: writes its files into `folder`, or with ``--check`` compares byte for byte.

    Returns the exit code: 1 if a file differs.
    """
    parser = argparse.ArgumentParser(description=f"Write, or check, the embedded sample {folder.name}.")
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    check = parser.parse_args().check
    differing = []
    for name, content in files().items():
        path = folder / name
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        elif not path.is_file() or path.read_bytes() != content:
            differing.append(str(path))
    if differing:
        print("differs from what this generator writes: " + ", ".join(differing), file=sys.stderr)
    return 1 if differing else 0
