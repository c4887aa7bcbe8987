"""The token cache: what is stored, that it is reused, and that nothing half-written is ever taken for whole."""

import errno
import pickle

import numpy as np
import pytest
import torch

from datamodules import cache as cache_module
from datamodules.cache import written_whole
from datamodules.corpus import DataError, Row
from datamodules.encoding import RowEncoder
from datamodules.plan import evaluation_batches
from datamodules.store import TokenStore, open_or_build
from datamodules.text import TextDataModule, TextInput
from datamodules.tokenizers.base import Encodings
from datamodules.tokenizers.word import WordTokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["今天天气很好", "我们去公园玩", "天气 很 好！", "龘"]


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer(
        vocab=[*SPECIALS, "今天", "天气", "很", "好", "我们", "去", "公园", "玩", "！", "今", "天", "气"]
    )


def build(directory, tokenizer, rows=None, max_length=12) -> TokenStore:
    rows = [Row(text, label=i) for i, text in enumerate(TEXTS)] if rows is None else rows
    return open_or_build(directory, rows, RowEncoder(tokenizer, max_length), "test")


def test_rows_come_back_as_they_were_tokenized(tmp_path, tokenizer):
    store = build(tmp_path / "store", tokenizer)
    batch = store.batch(np.array([2, 0]), epoch=3)
    rows = [[tokenizer.cls_id, *tokenizer.encode(TEXTS[i]), tokenizer.sep_id] for i in (2, 0)]
    assert batch.input_ids.tolist() == rows[0] + rows[1]
    assert batch.cu_seqlens.tolist() == [0, len(rows[0]), len(rows[0]) + len(rows[1])]
    assert batch.row_ids.tolist() == [2, 0] and batch.labels.tolist() == [2, 0] and batch.epoch == 3
    # Spaces count no characters; 很 of "天气 很 好！" starts at character 2.
    assert batch.char_counts[: len(rows[0])].tolist() == [0, 2, 1, 1, 1, 0]
    assert batch.word_ids[: len(rows[0])].tolist() == [0, 0, 2, 3, 4, 5]


def test_facts_are_counted(tmp_path, tokenizer):
    facts = build(tmp_path / "store", tokenizer).facts
    assert facts["num_rows"] == 4
    assert facts["unknown_tokens"] == 1
    assert facts["num_characters"] == sum(len(text.replace(" ", "")) for text in TEXTS)
    assert facts["distinct_characters"] == len(set("".join(TEXTS)) - {" "})
    counts = build(tmp_path / "store", tokenizer).token_counts(tokenizer.vocab_size)
    assert counts[tokenizer.vocab.index("天气")] == 1 and counts[tokenizer.cls_id] == 0


def test_a_store_that_is_there_is_not_built_again(tmp_path, tokenizer):
    build(tmp_path / "store", tokenizer)

    def unreadable():
        raise AssertionError("read again")
        yield

    build(tmp_path / "store", tokenizer, rows=unreadable())


def test_it_travels_to_worker_processes(tmp_path, tokenizer):
    store = build(tmp_path / "store", tokenizer)
    again = pickle.loads(pickle.dumps(store))
    assert again.batch(np.array([1])).input_ids.tolist() == store.batch(np.array([1])).input_ids.tolist()


def test_an_empty_split_is_a_store_without_rows(tmp_path, tokenizer):
    assert len(build(tmp_path / "store", tokenizer, rows=[])) == 0


@pytest.mark.parametrize("name, change", [("tokens", "cut"), ("offsets", "gone"), ("facts.json", "garbled")])
def test_a_damaged_store_is_named(tmp_path, tokenizer, name, change):
    directory = build(tmp_path / "store", tokenizer).directory
    path = directory / name
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] if change == "cut" else b"{")
    with pytest.raises(DataError, match=r"store is damaged .*delete that directory and run again"):
        TokenStore(directory)


def test_a_full_disk_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*data\.cache_dir="):
        build(tmp_path / "cache" / "store", tokenizer)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failing_corpus_leaves_nothing(tmp_path, tokenizer):
    def rows():
        yield Row("今天")
        raise DataError("line 2 of x.json: not JSON")

    with pytest.raises(DataError, match="line 2 of x.json"):
        build(tmp_path / "cache" / "store", tokenizer, rows())
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_runs_may_write_the_same_store_at_once(tmp_path):
    with written_whole(tmp_path / "x") as first:
        (first / "a").write_text("first")
        with written_whole(tmp_path / "x") as second:
            (second / "a").write_text("second")
    assert (tmp_path / "x" / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_pairs_are_cut_from_the_longer_text(tokenizer):
    encoded = RowEncoder(tokenizer, max_length=10)([Row(("好" * 10, "玩" * 3)), Row(("好", "玩"))])
    good, play = tokenizer.vocab.index("好"), tokenizer.vocab.index("玩")
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert encoded.tokens.tolist() == [cls, *[good] * 4, sep, *[play] * 3, sep, cls, good, sep, play, sep]
    assert np.flatnonzero(encoded.text_starts).tolist() == [6, 13] and encoded.truncated == 1


def test_no_row_is_longer_than_max_length(tokenizer):
    """Also where normalisation makes several tokens of one character (Hangul)."""
    encoded = RowEncoder(tokenizer, max_length=8)([Row("한" * 20), Row("好")])
    assert encoded.lengths.tolist()[0] <= 8 and encoded.lengths.tolist()[1] == 3 and encoded.truncated >= 1
    assert encoded.tokens[encoded.lengths[0] - 1] == tokenizer.sep_id


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_every_row_once(world_size):
    lengths = np.random.Generator(np.random.PCG64(0)).integers(2, 50, size=300)
    batches = evaluation_batches(lengths, 400, world_size)
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(lengths[batch].sum() <= 400 or len(batch) == 1 for batch in batches)
    assert len(batches) >= world_size


SETS = [(0, 2), (), (1,), (0, 1, 2)]


def build_sets(directory, tokenizer, sets, classes=3) -> TokenStore:
    rows = [Row(text, label) for text, label in zip(TEXTS, sets, strict=False)]
    return open_or_build(directory, rows, RowEncoder(tokenizer, 12, multi_label_classes=classes), "val split")


def test_several_labels_of_a_row_are_a_truth_value_for_each_class(tmp_path, tokenizer):
    store = build_sets(tmp_path / "store", tokenizer, SETS)
    batch = store.batch(np.array([3, 1, 0]))
    assert batch.labels.dtype == torch.bool
    assert batch.labels.int().tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 1]]
    assert store.labels.tolist() == [0, 2, 1, 0, 1, 2] and store.label_offsets.tolist() == [0, 2, 2, 3, 6]
    assert len(store) == 4 and store.facts["labelled_rows"] == 4
    assert store.batch(np.array([], dtype=np.int64)).labels.shape == (0, 3)
    again = pickle.loads(pickle.dumps(store))
    assert again.labels_of(np.arange(4)).tolist() == store.labels_of(np.arange(4)).tolist()


def test_one_label_a_row_stays_a_number(tmp_path, tokenizer):
    store = build(tmp_path / "store", tokenizer, [Row("今天", 1), Row("天气"), Row("公园", 0)])
    assert store.labels.tolist() == [1, -1, 0] and store.label_offsets is None
    assert store.batch(np.arange(3)).labels.tolist() == [1, -1, 0]
    assert store.facts["labelled_rows"] == 2


@pytest.mark.parametrize("classes", [None, 3])
def test_a_split_without_any_label_gives_none(tmp_path, tokenizer, classes):
    rows = [Row(text) for text in TEXTS]
    store = open_or_build(
        tmp_path / "s", rows, RowEncoder(tokenizer, 12, multi_label_classes=classes), "test"
    )
    assert store.facts["labelled_rows"] == 0 and store.batch(np.arange(2)).labels is None


def test_rows_of_one_split_are_all_labelled_or_none(tmp_path, tokenizer):
    with pytest.raises(
        DataError, match=r"val split: 3 of 4 rows are labelled; with several labels a row all rows"
    ):
        build_sets(tmp_path / "cache" / "store", tokenizer, [(0,), None, (), (1,)])
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("classes, label", [(None, (0, 1)), (3, 0)])
def test_labels_of_another_kind_than_the_corpus_says_are_refused(tmp_path, tokenizer, classes, label):
    with pytest.raises(DataError, match="of a row is not .*, as multi_label="):
        build_sets(tmp_path / "store", tokenizer, [label], classes)


@pytest.mark.parametrize(
    "name, values, what",
    [
        ("labels", np.array([0, 2, 1, 0, 1, 3], np.int32), "its labels are not all below 3"),
        ("labels", np.array([0, 2, 1, 0, 1, -1], np.int32), "its labels are not all below 3"),
        ("label_offsets", np.array([0, 3, 2, 3, 6]), "its label offsets are not those of its labels"),
        ("label_offsets", np.array([0, 2, 2, 3, 5]), "its label offsets are not those of its labels"),
    ],
)
def test_damaged_sets_of_labels_are_named(tmp_path, tokenizer, name, values, what):
    directory = build_sets(tmp_path / "store", tokenizer, SETS).directory
    (directory / name).write_bytes(values.tobytes())
    with pytest.raises(DataError, match=rf"store is damaged \({what}\); delete that directory"):
        TokenStore(directory)


class Poems(TextDataModule):
    """A corpus in memory that counts how often it is read."""

    lines = {"train": TEXTS * 30, "val": TEXTS, "test": []}

    def __init__(self, cache_dir, **options):
        super().__init__(WordTokenizer(), cache_dir=str(cache_dir), **options)
        self.reads = []

    def read(self, split):
        self.reads.append(split)
        return iter([Row(text) for text in self.lines[split]])

    def fingerprint(self, split):
        return f"{split} {self.lines[split]}"

    def describe(self):
        return {"source": "memory"}


def test_vocabulary_and_tokens_are_made_once(tmp_path):
    first = Poems(tmp_path)
    first.prepare_data(), first.setup()
    second = Poems(tmp_path)
    second.prepare_data(), second.setup()
    assert first.reads and not list(second.stores["val"].tokens != first.stores["val"].tokens).count(True)
    assert second.tokenizer.vocab == first.tokenizer.vocab
    # Splits without rows and cached ones are asked for their rows at most lazily.
    assert second.facts == first.facts
    assert first.facts["vocab_size"] == first.tokenizer.vocab_size


def test_another_class_over_the_same_content_is_tokenized_anew(tmp_path):
    """The fingerprint of a user's corpus names its files; what is read from them is also up to its code."""

    class Reversed(Poems):
        def read(self, split):
            return (Row(row.text[::-1]) for row in super().read(split))

    corpora = [cls(tmp_path) for cls in (Poems, Reversed)]
    for corpus in corpora:
        corpus.tokenizer = WordTokenizer(vocab=[*SPECIALS, *sorted(set("".join(TEXTS)) - {" "})])
        corpus.setup()
    one, other = (corpus.stores["val"].tokens.tolist() for corpus in corpora)
    assert one != other and sorted(one) == sorted(other)


def test_an_error_of_the_corpus_is_not_called_one_of_the_cache(tmp_path, tokenizer):
    def rows():
        yield Row("今天")
        open(tmp_path / "missing.txt")

    with pytest.raises(FileNotFoundError, match="missing.txt"):
        build(tmp_path / "cache" / "store", tokenizer, rows())


def test_a_corpus_without_training_rows_is_told(tmp_path):
    class Empty(Poems):
        lines = {"train": [], "val": [], "test": []}

        def __init__(self, cache_dir):
            super().__init__(cache_dir)
            self.tokenizer = WordTokenizer(vocab=SPECIALS)

    corpus = Empty(tmp_path)
    with pytest.raises(DataError, match="no training rows"):
        corpus.setup()


def test_texts_of_a_prediction_are_prepared_like_rows(tmp_path, tokenizer):
    store = build(tmp_path / "store", tokenizer)
    batch = TextInput(tokenizer, 12).encode(TEXTS)
    stored = store.batch(np.arange(4))
    assert batch.input_ids.tolist() == stored.input_ids.tolist()
    assert batch.word_ids.tolist() == stored.word_ids.tolist()


def test_pairs_of_a_prediction_are_prepared_like_rows(tmp_path, tokenizer):
    pairs = [("今天天气", "很好"), ("公园", "去玩")]
    inputs = TextInput(tokenizer, 12)
    stored = build(tmp_path / "store", tokenizer, [Row(pair) for pair in pairs]).batch(np.arange(2))
    batch = inputs.encode(pairs)
    assert batch.input_ids.tolist() == stored.input_ids.tolist()
    assert batch.segment_ids.tolist() == stored.segment_ids.tolist() and batch.segment_ids.any()
    assert inputs.shown("今天") == {"text": "今天"}
    assert inputs.shown(pairs[0]) == {"text": "今天天气", "text_pair": "很好"}
    assert inputs.shown(("一", "二", "三")) == {"text": ["一", "二", "三"]}


class Bytes:
    """As byte-level tokenizers: three tokens a Chinese character."""

    vocab_size, cls_id, sep_id, unk_id = 258, 256, 257, None

    def encode_batch(self, texts):
        ids = np.frombuffer("".join(texts).encode(), dtype=np.uint8).astype(np.int32)
        lengths = np.array([len(text.encode()) for text in texts])
        return Encodings(ids, np.ones(len(ids), np.uint16), np.ones(len(ids), bool), lengths)


@pytest.mark.parametrize(
    "truncation, expected",
    [
        ("first_turns", ["ab|你好呀|cd|", "ab|cd|", "你好呀你好呀|", "你好你好你好|"]),
        ("last_turns", ["cd|你好|", "ab|cd|", "你好呀你好呀|", "x|"]),
    ],
)
def test_dialogues_of_many_tokens_a_character_lose_whole_turns(truncation, expected):
    rows = [("ab", "你好呀", "cd", "你好"), ("ab", "cd"), ("你好呀你好呀你好",), ("你好你好你好你好", "x")]
    encoded = RowEncoder(Bytes(), 20, truncation)([Row(turns) for turns in rows])
    assert (encoded.lengths <= 20).all() and encoded.truncated == 3
    readable = encoded.tokens[encoded.tokens != Bytes.cls_id]
    text = b"".join(b"|" if token == Bytes.sep_id else bytes([token]) for token in readable.tolist())
    assert text.decode() == "".join(expected)


def test_max_length_must_hold_a_text():
    with pytest.raises(ValueError, match="max_length=3: must be at least 4"):
        TextDataModule(max_length=3)
