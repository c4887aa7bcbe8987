"""What `datamodules.inspection.inspect_corpus` found, as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.cells import cell_len, set_cell_size

from datamodules.inspection import QUANTILES

# Of more classes than that, the most frequent and the rarest are listed.
LISTED_CLASSES, MOST_FREQUENT, RAREST = 40, 10, 5
REPORT_CELLS, NAME_CELLS = 76, 32


def report(facts: dict[str, Any]) -> Iterator[str]:
    """Aligned tables, then examples; the rows that it shows are the training split's.

    Args:
        facts: what `inspect_corpus` returns.
    """
    splits = facts["splits"]
    yield from _table(["", *splits], _count_rows(facts))
    yield ""
    yield from _table(["a row has", "min", "1%", "median", "mean", "99%", "max"], _length_rows(splits))
    if any(split["labels"] for split in splits.values()):
        yield ""
        labelled = {name: split for name, split in splits.items() if split["labels"]}
        yield from _table(["labels", *labelled], _label_rows(labelled))
    yield ""
    yield from _example_lines(splits["train"])
    yield from _unknown_lines(splits)


def _count_rows(facts: dict[str, Any]) -> Iterator[list[str]]:
    splits = list(facts["splits"].values())
    yield ["rows", *(f"{split['rows']:,}" for split in splits)]
    for reason in dict.fromkeys(reason for split in splits for reason in split["left_out"]):
        yield [f"left out: {reason}", *(f"{split['left_out'].get(reason, 0):,}" for split in splits)]
    if any("texts_a_row" in split for split in splits):
        several = (split.get("texts_a_row", {"mean": 1.0, "max": 1}) for split in splits)
        yield ["texts a row, mean (max)", *(f"{one['mean']:.1f} ({one['max']:,})" for one in several)]
    yield ["distinct characters", *(f"{split['distinct_characters']:,}" for split in splits)]
    yield ["characters a token", *(f"{split['characters_a_token']:.2f}" for split in splits)]
    yield ["[UNK] among the tokens", *(f"{split['unknown_share']:.2%}" for split in splits)]
    cut = (_share(split["cut_rows"], split["rows"]) for split in splits)
    yield [f"rows cut at data.max_length={facts['max_length']}", *cut]
    repeated = (_share(split["repeats"]["rows"], split["rows"]) for split in splits)
    yield ["rows that repeat an earlier text", *repeated]
    labels = [split["labels"] for split in splits]
    if any(labels):
        yield ["rows without a label", *(f"{one['without']:,}" if one else "all" for one in labels)]
        if any("labels_a_row" in one for one in labels if one):
            a_row = (one["labels_a_row"] if one else None for one in labels)
            told = (f"{one['mean']:.1f} ({one['max']:,})" if one else "-" for one in a_row)
            yield ["labels a row, mean (max)", *told]
        contradictory = (f"{one['contradictory']['rows']:,}" if one else "-" for one in labels)
        yield ["rows whose text has several labels", *contradictory]
    for other in facts["splits"] if len(splits) > 1 else ():
        overlaps = ((split["overlaps"].get(other), split["rows"]) for split in splits)
        found = (_share(one["rows"], rows) if one else "-" for one, rows in overlaps)
        yield [f"rows whose text stands in {other}", *found]


def _length_rows(splits: dict[str, Any]) -> Iterator[list[str]]:
    for name, what in (("characters_a_row", "characters"), ("tokens_a_row", "tokens, [CLS] and [SEP] too")):
        for split, facts in splits.items():
            cells = (
                f"{facts[name][key]:,.1f}" if key == "mean" else f"{facts[name][key]:,}" for key in QUANTILES
            )
            yield [f"{what}, {split}", *cells]


def _label_rows(splits: dict[str, Any]) -> Iterator[list[str]]:
    classes = [split["labels"]["classes"] for split in splits.values()]
    totals = [split["labels"]["rows"] for split in splits.values()]
    lines = [
        [
            _fitted(_flat(ones[0]["name"]), NAME_CELLS),
            *(_share(one["rows"], total) for one, total in zip(ones, totals, strict=True)),
        ]
        for ones in sorted(zip(*classes, strict=True), key=lambda ones: -ones[0]["rows"])
    ]
    if len(lines) <= LISTED_CLASSES:
        yield from lines
        return
    yield from lines[:MOST_FREQUENT]
    yield [f"... {len(lines) - MOST_FREQUENT - RAREST} more ..."]
    yield from lines[-RAREST:]


def _example_lines(split: dict[str, Any]) -> Iterator[str]:
    examples, repeats = split["examples"], split["repeats"]
    yield "first rows of train"
    for row in examples["first"]:
        yield _example(row["texts"], f"[{row['label']}]" if row["label"] is not None else "")
    yield f"longest row of train, {examples['longest']['characters']:,} characters"
    yield _example(examples["longest"]["texts"])
    if repeats["texts"]:
        yield f"most repeated in train, where {repeats['texts']:,} texts stand more than once"
        for one in repeats["most"]:
            yield _example(one["texts"], f"{one['rows']:,} x")
    contradictory = split["labels"]["contradictory"] if split["labels"] else {"texts": 0}
    if contradictory["texts"]:
        yield f"texts of train with several labels, {contradictory['texts']:,} in all"
        for one in contradictory["first"]:
            counted = ", ".join(f"{name}: {count:,}" for name, count in one["labels"].items())
            yield _example(one["texts"], f"[{counted}]")


def _unknown_lines(splits: dict[str, Any]) -> Iterator[str]:
    for name, split in splits.items():
        unknown = split["unknown"]
        if not unknown["rows"]:
            continue
        every = "" if unknown["analysed"] == unknown["rows"] else f"{unknown['analysed']:,} of "
        yield f"became [UNK] in {name}, in {every}{unknown['rows']:,} rows"
        pieces = [
            f"{_fitted(_visible(one['piece']), NAME_CELLS)} {one['count']:,}" for one in unknown["pieces"]
        ]
        while cell_len("   ".join(pieces)) > REPORT_CELLS:
            pieces.pop()
        yield "  " + "   ".join(pieces)


def _table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """The first column left, the others right; wide characters count as the two cells that they take."""
    lines = [header, *rows]
    widths = [
        max(cell_len(line[column]) for line in lines if column < len(line)) for column in range(len(header))
    ]
    for line in lines:
        padded = [
            " " * (width - cell_len(cell)) + cell for cell, width in zip(line[1:], widths[1:], strict=False)
        ]
        first = line[0] + " " * (widths[0] - cell_len(line[0]))
        yield "   ".join([first, *padded]).rstrip()


def _example(texts: list[str], before: str = "") -> str:
    return "  " + _fitted(" ".join(filter(None, (before, " | ".join(map(_flat, texts))))), REPORT_CELLS)


def _fitted(line: str, cells: int) -> str:
    return line if cell_len(line) <= cells else set_cell_size(line, cells - 4).rstrip() + " ..."


def _flat(text: str) -> str:
    """On one line, whatever stands in it."""
    return "".join(character if character.isprintable() else " " for character in text)


def _visible(piece: str) -> str:
    return "".join(one if one.isprintable() else f"U+{ord(one):04X}" for one in piece)


def _share(rows: int, of: int) -> str:
    if not rows:
        return "0"
    return f"{rows:,} ({rows / of:.1%})" if rows / of >= 0.0005 else f"{rows:,} (<0.1%)"
