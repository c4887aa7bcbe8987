"""The token cache: what is stored, that it is reused, and that nothing half-written is ever taken for whole."""

import errno
import pickle

import numpy as np
import pytest

from datamodules import cache as cache_module
from datamodules.cache import written_whole
from datamodules.corpus import DataError, Row
from datamodules.encoding import RowEncoder
from datamodules.plan import evaluation_batches
from datamodules.store import TokenStore, open_or_build
from datamodules.text import TextDataModule, TextInput
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


def test_max_length_must_hold_a_text():
    with pytest.raises(ValueError, match="max_length=3: must be at least 4"):
        TextDataModule(max_length=3)
