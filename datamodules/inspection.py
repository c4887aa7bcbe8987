"""What a corpus holds, to be looked at before anything is trained on it; torch is not imported here."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.progress import track

from datamodules.corpus import DataError, Row, content_key

if TYPE_CHECKING:
    from datamodules.store import TokenStore
    from datamodules.text import Split, TextDataModule

QUANTILES = {"min": 0.0, "p1": 0.01, "median": 0.5, "mean": None, "p99": 0.99, "max": 1.0}
BINS = 60
# A histogram ends here, unless the longest row is not much longer; what is over is counted.
HISTOGRAM_QUANTILE = 0.995
FIRST_ROWS, REPEATED_TEXTS, UNKNOWN_PIECES = 3, 5, 20
NO_CLASS = "(none)"  # the label of a row that could have several, and has none
BEGINNING = 200  # characters of a text that are kept as an example
# To find out what became [UNK] takes a tokenizer's slow way: at most so many rows of a split are read for it.
UNKNOWN_ROWS = 20_000
TRACKED_ROWS = 100_000


def inspect_corpus(datamodule: TextDataModule) -> dict[str, Any]:
    """Counts a corpus as a run would see it, and builds its token stores where they are missing.

    The rows of a split are read once more, and again as far as its most repeated texts; what is kept of each row is a
    64-bit key and its lengths. Two rows have the same text when all their texts are equal but for white space.

    Returns:
        Plain values: source, max_length, vocab_size, and for each split that has rows (`splits`):

        - rows, left_out (rows of the files that the corpus does not give, by reason), cut_rows (at max_length)
        - texts_a_row: mean and max, where a row has several texts
        - characters_a_row (white space included), tokens_a_row (special tokens included): min, p1, median, mean, p99,
          max. p1 and p99 are the lengths that 1 % and 99 % of the rows do not exceed
        - characters_a_token, distinct_characters, unknown_share ([UNK] among the tokens), as in the token store:
          of the texts as far as they are not cut, without white space
        - labels: rows (that are labelled), without (rows that have none), classes (name, rows, share of the labelled
          rows), labels_a_row (mean and max, where a row may have several), and contradictory: labelled rows, and texts,
          that occur with several labels, or sets of labels. None where no row has a label
        - repeats: rows whose text stands in an earlier row, texts that occur several times, and the most repeated
        - overlaps: rows whose text stands in another split, by split
        - unknown: what became [UNK], counted in the whole texts of `analysed` of the `rows` rows that have one
        - examples: the first rows, and the beginning of the longest; `index` counts from 0 in the order of `read`
        - histograms of characters_a_row and tokens_a_row: bin i counts lengths from i * bin_width on, below
          (i + 1) * bin_width; `longer` the rows after the last bin. The bins of all splits agree

    Raises:
        DataError: as of the corpus; or `read` gives other rows than the token cache holds.
    """
    datamodule.prepare_data()
    datamodule.setup()
    stores = {split: store for split, store in datamodule.stores.items() if len(store)}
    contents = {split: _read(datamodule, split) for split in stores}
    texts = {split: _Texts.of(content.keys) for split, content in contents.items()}
    lengths = {
        "characters_a_row": {split: content.characters for split, content in contents.items()},
        "tokens_a_row": {split: store.lengths.astype(np.int32) for split, store in stores.items()},
    }
    histograms = {name: _histograms(by_split) for name, by_split in lengths.items()}
    highest = max(int(store.labels.max(initial=-1)) for store in stores.values())
    num_classes = max(len(datamodule.label_names or ()), highest + 1)
    splits = {}
    for split, store in stores.items():
        content = contents[split]
        several = {"texts_a_row": {"mean": content.num_texts / len(store), "max": content.most_texts}}
        repeats, contradictory = _repetitions(datamodule, split, texts[split])
        splits[split] = {
            **_counts(store),
            **(several if content.most_texts > 1 else {}),
            **{name: _quantiles(by_split[split]) for name, by_split in lengths.items()},
            "labels": _labels(datamodule, store, num_classes, contradictory),
            "repeats": repeats,
            "overlaps": _overlaps(texts, split),
            "unknown": content.unknown,
            "examples": content.examples,
            "histograms": {name: by_split[split] for name, by_split in histograms.items()},
        }
    return {
        "source": datamodule.describe()["source"],
        "max_length": datamodule.max_length,
        "vocab_size": datamodule.tokenizer.vocab_size,
        "splits": splits,
    }


class _Content(NamedTuple):
    """What a pass over the N rows of a split leaves.

    Attributes:
        keys: uint64 [N], `content_key` of each row; characters: int32 [N].
        num_texts: of all rows; most_texts: of one row.
    """

    keys: np.ndarray
    characters: np.ndarray
    num_texts: int
    most_texts: int
    unknown: dict[str, Any]
    examples: dict[str, Any]


def _read(datamodule: TextDataModule, split: Split) -> _Content:
    store, tokenizer = datamodule.stores[split], datamodule.tokenizer
    with_unknown = _rows_with(store, tokenizer.unk_id)
    step = -(-len(with_unknown) // UNKNOWN_ROWS) or 1
    analysed = set(with_unknown[::step].tolist())
    keys, characters = array("Q"), array("i")
    num_texts = most_texts = 0
    pieces: Counter[str] = Counter()
    first: list[dict[str, Any]] = []
    longest, longest_index = Row(""), -1
    rows = track(datamodule.read(split), f"inspecting {split}", len(store), disable=len(store) < TRACKED_ROWS)
    for index, row in enumerate(rows):
        texts = row.texts
        keys.append(content_key(texts))
        characters.append(sum(map(len, texts)))
        num_texts += len(texts)
        most_texts = max(most_texts, len(texts))
        if index < FIRST_ROWS:
            first.append({"texts": _beginnings(row), "label": _label_name(datamodule, row.label)})
        if longest_index < 0 or characters[index] > characters[longest_index]:
            longest, longest_index = row, index
        if index in analysed:
            for text in texts:
                unknown = (token for token in tokenizer.analyse(text) if token.id == tokenizer.unk_id)
                pieces.update(_encodable(text[token.start : token.end]) for token in unknown)
    if len(keys) != len(store):
        raise DataError(
            f"{split}: `read` gives {len(keys):,} rows, and gave {len(store):,} when {store.directory} was written; "
            f"`fingerprint` of {type(datamodule).__name__} must name all that decides what `read` gives"
        )
    unknown = [{"piece": piece, "count": count} for piece, count in pieces.most_common(UNKNOWN_PIECES)]
    longest_told = {
        "index": longest_index,
        "characters": characters[longest_index],
        "texts": _beginnings(longest),
    }
    return _Content(
        np.array(keys, dtype=np.uint64),
        np.array(characters, dtype=np.int32),
        num_texts,
        most_texts,
        {"rows": len(with_unknown), "analysed": len(analysed), "pieces": unknown},
        {"first": first, "longest": longest_told},
    )


class _Texts(NamedTuple):
    """The M distinct texts of N rows.

    Attributes:
        keys: uint64 [M], ascending; counts: [M] rows that have the text.
        rows: [N] the rows by text, and of a text in their order; starts: [M] where a text's rows begin in it.
    """

    keys: np.ndarray
    counts: np.ndarray
    rows: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, row_keys: np.ndarray) -> _Texts:
        rows = np.argsort(row_keys, kind="stable")
        ordered = row_keys[rows]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        return cls(ordered[starts], np.diff(starts, append=len(rows)), rows, starts)

    def rows_in(self, other: _Texts) -> int:
        """How many of these rows have a text of the other's."""
        return int(self.counts[np.isin(self.keys, other.keys, assume_unique=True)].sum())


def _overlaps(texts: dict[Split, _Texts], split: Split) -> dict[str, Any]:
    own = texts[split]
    found = {other: own.rows_in(texts[other]) for other in texts if other != split}
    return {other: {"rows": rows, "share": rows / len(own.rows)} for other, rows in found.items()}


def _counts(store: TokenStore) -> dict[str, Any]:
    """What the token store has counted already."""
    facts, tokens = store.facts, store.text_tokens
    return {
        "rows": len(store),
        "left_out": facts["left_out"],
        "cut_rows": facts["truncated_rows"],
        "characters_a_token": facts["num_characters"] / tokens,
        "distinct_characters": facts["distinct_characters"],
        "unknown_share": facts["unknown_tokens"] / tokens,
    }


def _repetitions(
    datamodule: TextDataModule, split: Split, texts: _Texts
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is repeated, and what is repeated with another label."""
    labels, label_sets = _label_sets(datamodule.stores[split])
    labels = labels[texts.rows]
    several = np.flatnonzero(texts.counts > 1)
    first = texts.rows[texts.starts]
    most = several[np.lexsort((first[several], -texts.counts[several]))][:REPEATED_TEXTS]
    unlabelled = np.iinfo(labels.dtype).max
    lowest = np.minimum.reduceat(np.where(labels < 0, unlabelled, labels), texts.starts)
    contradictory = np.flatnonzero(np.maximum.reduceat(labels, texts.starts) > lowest)
    labelled = np.add.reduceat(labels >= 0, texts.starts, dtype=np.int64)
    shown = contradictory[np.argsort(first[contradictory])][:REPEATED_TEXTS]
    rows = _rows_at(datamodule, split, {int(first[text]) for text in (*most, *shown)})

    def labels_of(text: int) -> dict[str, int]:
        found = labels[texts.starts[text] : texts.starts[text] + texts.counts[text]]
        counted = Counter(found[found >= 0].tolist()).most_common()
        return {_label_name(datamodule, label_sets[label]): count for label, count in counted}

    return {
        "rows": int((texts.counts - 1).sum()),
        "texts": len(several),
        "most": [
            {"rows": int(texts.counts[text]), "texts": _beginnings(rows[int(first[text])])} for text in most
        ],
    }, {
        "rows": int(labelled[contradictory].sum()),
        "texts": len(contradictory),
        "first": [
            {"labels": labels_of(text), "texts": _beginnings(rows[int(first[text])])} for text in shown
        ],
    }


def _labels(
    datamodule: TextDataModule, store: TokenStore, num_classes: int, contradictory: dict[str, Any]
) -> dict[str, Any] | None:
    rows, several = store.facts["labelled_rows"], {}
    if not rows:
        return None
    without = len(store) - rows
    if store.label_offsets is not None:
        a_row = np.diff(store.label_offsets)
        without = int((a_row == 0).sum())
        several = {"labels_a_row": {"mean": float(a_row.mean()), "max": int(a_row.max())}}
    counts = np.bincount(store.labels[store.labels >= 0], minlength=num_classes).tolist()
    return {
        "rows": rows,
        "without": without,
        "classes": [
            {"name": _label_name(datamodule, label), "rows": count, "share": count / rows}
            for label, count in enumerate(counts)
        ],
        **several,
        "contradictory": contradictory,
    }


def _label_sets(store: TokenStore) -> tuple[np.ndarray, Sequence[int | tuple[int, ...]]]:
    """[N] the number of each row's label, or set of labels, -1 where a row is not labelled; and what the numbers mean."""
    if store.label_offsets is None:
        return store.labels[:], range(int(store.labels.max()) + 1)
    numbers: dict[tuple[int, ...], int] = {}
    bounds = zip(store.label_offsets[:-1].tolist(), store.label_offsets[1:].tolist(), strict=True)
    sets = (tuple(store.labels[start:end].tolist()) for start, end in bounds)
    found = np.fromiter((numbers.setdefault(one, len(numbers)) for one in sets), np.int64, len(store))
    return found if store.facts["labelled_rows"] else np.full(len(store), -1), list(numbers)


def _quantiles(lengths: np.ndarray) -> dict[str, int | float]:
    asked = [quantile for quantile in QUANTILES.values() if quantile is not None]
    found = iter(np.quantile(lengths, asked, method="inverted_cdf").tolist())
    return {
        name: float(lengths.mean()) if quantile is None else int(next(found))
        for name, quantile in QUANTILES.items()
    }


def _histograms(lengths: dict[Split, np.ndarray]) -> dict[Split, dict[str, Any]]:
    longest = max(int(values.max()) for values in lengths.values())
    shown = max(int(np.quantile(values, HISTOGRAM_QUANTILE)) for values in lengths.values())
    if longest <= 1.25 * shown:
        shown = longest
    width = -(-(shown + 1) // BINS)
    bins = shown // width + 1
    histograms = {}
    for split, values in lengths.items():
        counts = np.bincount(np.minimum(values // width, bins), minlength=bins + 1).tolist()
        histograms[split] = {"bin_width": width, "rows": counts[:bins], "longer": counts[bins]}
    return histograms


def _rows_with(store: TokenStore, token: int) -> np.ndarray:
    """The rows that have the token, ascending."""
    found, size = [np.empty(0, np.int64)], 1 << 24
    for start in range(0, len(store.tokens), size):
        places = start + np.flatnonzero(store.tokens[start : start + size] == token)
        found.append(np.unique(np.searchsorted(store.offsets, places, side="right") - 1))
    return np.unique(np.concatenate(found))


def _rows_at(datamodule: TextDataModule, split: Split, indices: set[int]) -> dict[int, Row]:
    upto = max(indices, default=-1) + 1
    if not upto:
        return {}
    rows = enumerate(islice(datamodule.read(split), upto))
    return {index: row for index, row in rows if index in indices}


def _label_name(datamodule: TextDataModule, label: int | tuple[int, ...] | None) -> str | None:
    names = datamodule.label_names
    if label is None:
        return None
    if isinstance(label, tuple):
        return " | ".join(_label_name(datamodule, one) for one in label) or NO_CLASS
    return str(names[label] if names is not None and label < len(names) else label)


def _beginnings(row: Row) -> list[str]:
    """The texts as far as BEGINNING characters go."""
    texts, room = [], BEGINNING
    for text in row.texts:
        if room <= 0:
            break
        texts.append(_encodable(text if len(text) <= room else text[:room] + "…"))
        room -= len(text)
    return texts


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
