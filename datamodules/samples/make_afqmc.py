"""Writes the embedded AFQMC sample: synthetic pairs of customers' questions in CLUE's file layout.

    python -m datamodules.samples.make_afqmc            # writes afqmc/{train,dev,test}.json
    python -m datamodules.samples.make_afqmc --check    # compares byte for byte; exit code 1 if they differ

The parts of a question stand in `afqmc_words`. A pair has the label "1" where both sentences word one intent,
"0" where one part of the intent differs. Of either label some pairs are close (a "1" with one part worded anew,
a "0" with nothing worded anew) and some are free (everything is worded anew). So how much two sentences share
says little, and what they don't share says nearly all. No sentence occurs in two splits.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from datamodules.samples.afqmc_words import ASPECTS, ENDINGS, GROUPS, OPENINGS
from datamodules.samples.writing import Draws, json_lines, write_or_check

FOLDER = Path(__file__).parent / "afqmc"
SEED = 20200514
SIZES = {"train": 1000, "dev": 200, "test": 200}
SHARE_OF_SAME = 0.40
SHARE_OF_CLOSE = {"1": 0.35, "0": 0.60}
SHARE_WITH_CIRCUMSTANCE = 0.30
SHARE_OF_LAST_WORDING = 0.12


class Intent(NamedTuple):
    """What is meant: places in `GROUPS`, and a key of `ASPECTS`."""

    group: int
    action: int
    aspect: str
    circumstance: int | None


class Wording(NamedTuple):
    """How it is said: a draw in [0, 1) for every part of the intent, and for what stands round it."""

    action: float
    aspect: float
    circumstance: float
    opening: float
    ending: float


def draw_intent(draws: Draws, group: int) -> Intent:
    actions, aspects, circumstances = GROUPS[group]
    circumstance = draws.below(len(circumstances)) if draws.chance(SHARE_WITH_CIRCUMSTANCE) else None
    return Intent(group, draws.below(len(actions)), draws.pick(aspects), circumstance)


def draw_wording(draws: Draws) -> Wording:
    return Wording(*(draws.draw() for _ in Wording._fields))


def change_intent(draws: Draws, intent: Intent) -> Intent:
    """`intent` with one of its parts replaced by another of its group."""
    part = draws.pick([name for name in Intent._fields[1:] if getattr(intent, name) is not None])
    while True:
        value = getattr(draw_intent(draws, intent.group), part)
        if value not in (None, getattr(intent, part)):
            return intent._replace(**{part: value})


def change_wording(draws: Draws, wording: Wording) -> Wording:
    """`wording` with one of the intent's parts drawn again; opening and ending stay."""
    return wording._replace(**{draws.pick(Intent._fields[1:]): draws.draw()})


def write_sentence(intent: Intent, wording: Wording) -> str:
    def worded(wordings: tuple[str, ...], draw: float) -> str:
        # The last wording lacks the key word: were it not rare, 1,000 pairs would be too few to learn from.
        usual = 1 - SHARE_OF_LAST_WORDING
        return wordings[int(draw / usual * (len(wordings) - 1))] if draw < usual else wordings[-1]

    actions, _, circumstances = GROUPS[intent.group]
    action = worded(actions[intent.action], wording.action)
    question = worded(ASPECTS[intent.aspect], wording.aspect).replace("{a}", action)
    if intent.circumstance is not None:
        question = worded(circumstances[intent.circumstance], wording.circumstance) + "，" + question
    return worded(OPENINGS, wording.opening) + question + worded(ENDINGS, wording.ending)


def write_pair(draws: Draws, label: str) -> tuple[str, str]:
    """Two sentences, which may be the same."""
    intent, wording = draw_intent(draws, draws.below(len(GROUPS))), draw_wording(draws)
    other_intent = intent if label == "1" else change_intent(draws, intent)
    if not draws.chance(SHARE_OF_CLOSE[label]):
        other_wording = draw_wording(draws)
    else:
        other_wording = change_wording(draws, wording) if label == "1" else wording
    return write_sentence(intent, wording), write_sentence(other_intent, other_wording)


def rows_by_split() -> dict[str, list[dict[str, str]]]:
    """{"train": rows, "dev": rows, "test": rows}, each row in CLUE's keys; every pair occurs once, in any order."""
    draws = Draws(SEED)
    pairs: set[frozenset[str]] = set()
    split_of: dict[str, str] = {}
    splits: dict[str, list[dict[str, str]]] = {split: [] for split in SIZES}
    for split, size in SIZES.items():
        same = round(SHARE_OF_SAME * size)
        for left in range(size, 0, -1):
            label = "1" if draws.chance(same / left) else "0"
            same -= label == "1"
            while True:
                first, second = write_pair(draws, label)
                pair = frozenset((first, second))
                elsewhere = any(split_of.get(sentence, split) != split for sentence in pair)
                if first != second and pair not in pairs and not elsewhere:
                    break
            pairs.add(pair)
            split_of.update(dict.fromkeys(pair, split))
            splits[split].append({"sentence1": first, "sentence2": second, "label": label})
    return splits


def files() -> dict[str, bytes]:
    """File name -> content, UTF-8 JSON lines."""
    return {f"{split}.json": json_lines(rows) for split, rows in rows_by_split().items()}


if __name__ == "__main__":
    sys.exit(write_or_check(FOLDER, files))
