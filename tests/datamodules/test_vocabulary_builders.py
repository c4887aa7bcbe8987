"""Vocabularies built: the article's own entry by entry, words from texts, from jieba, from a list, on top of others."""

import json
import pickle
from collections.abc import Iterable
from pathlib import Path

import pytest
from real_data import REAL_DATA, needs_real_data
from running import finished, run, summary

from datamodules.tokenizers.base import load_tokenizer
from datamodules.tokenizers.builders import Origin, has_words, jieba_words, simplified
from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.vocabulary import SPECIAL_TOKENS, read_vocabulary
from datamodules.tokenizers.word import WordTokenizer

# As BERT's: the special tokens are not first, characters stand in both forms, some entries are for nothing.
CHARACTERS = [
    "[PAD]",
    "[unused1]",
    *SPECIAL_TOKENS[1:],
    *"今天气很好北京大学我们的一个中国是了云计算平台，",
    "##中",
    "##国",
    "##§",
    "##，",
    "a",
    "##a",
    "##ab",
]
TEXTS = ["今天天气很好", "今天的北京很好", "北京大学的天气", "今天我们在北京"]


def words_file(folder: Path, text: str) -> str:
    file = folder / "words.txt"
    file.write_text(text, encoding="utf-8")
    return str(file)


# ---- the parts


def test_simplified_leaves_out_what_bert_can_never_give() -> None:
    assert simplified(CHARACTERS) == [
        *SPECIAL_TOKENS,
        *"今天气很好北京大学我们的一个中国是了云计算平台，",
        "##§",  # a symbol to the Python that made WoBERT's vocabulary
        "a",
        "##a",
        "##ab",
    ]
    assert simplified(simplified(CHARACTERS)) == simplified(CHARACTERS)
    assert simplified(["[CLS]", "天", *SPECIAL_TOKENS[:2], "[SEP]"]) == [*SPECIAL_TOKENS[:4], "天"]
    assert not has_words(CHARACTERS) and has_words([*CHARACTERS, "今天"])


def test_jieba_s_words_stand_as_python_sorts_jieba_s_dictionary() -> None:
    import jieba

    tokenizer = jieba.Tokenizer()
    counts, _ = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    ranked = [word for word, count in sorted(counts.items(), key=lambda item: -item[1]) if count]
    assert list(jieba_words(lowercase=False)) == ranked
    lowered = list(jieba_words(lowercase=True))
    assert "T恤" in ranked and "T恤" not in lowered
    assert lowered == [word for word in ranked if word == word.lower()]


# ---- words on top of a vocabulary


def test_jieba_s_words_on_top_of_characters_as_the_article() -> None:
    tokenizer = WordTokenizer(vocab=CHARACTERS, add_words=4)
    kept = simplified(CHARACTERS)
    assert tokenizer.vocab[: len(kept)] == kept
    # jieba's most frequent words that are not there yet, characters among them
    assert tokenizer.vocab[len(kept) :] == [w for w in jieba_words(True) if w not in kept][:4]
    assert tokenizer.origin == Origin(
        kept=len(kept), dropped=len(CHARACTERS) - len(kept), words="jieba", added=4
    )
    plain = WordTokenizer(vocab=CHARACTERS, add_words=4, simplify=False)
    assert plain.vocab[:-4] == CHARACTERS and plain.vocab[-4:] == tokenizer.vocab[-4:]
    assert WordTokenizer(vocab=CHARACTERS, simplify=True).vocab == kept
    assert len({t.fingerprint for t in (tokenizer, plain, WordTokenizer(vocab=CHARACTERS))}) == 3


def test_a_vocabulary_with_words_keeps_them_and_its_ids() -> None:
    vocab = [*CHARACTERS, "今天", "天气"]
    assert WordTokenizer(vocab=vocab, add_words=3).vocab[:-3] == vocab


def test_words_on_top_of_a_vocabulary_without_mask() -> None:
    needed = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    tokenizer = WordTokenizer(vocab=needed, words="corpus", add_words=1)
    tokenizer.build(TEXTS, progress=False)
    assert tokenizer.vocab == [*needed, "今天"] and tokenizer.mask_id is None
    with pytest.raises(ValueError, match="^vocab: the texts hold nothing"):
        WordTokenizer(vocab=needed, words="corpus", add_words=1).build(["好"], progress=False)


def test_a_list_goes_by_count_and_its_words_come_out(tmp_path: Path) -> None:
    file = words_file(tmp_path, "北京 7\n云计算平台 90 n\n很好\n云计算 300\n大学 8\n")
    tokenizer = WordTokenizer(vocab=CHARACTERS, words=file, add_words=4)
    assert tokenizer.vocab == [*CHARACTERS, "云计算", "云计算平台", "大学", "北京"]
    assert tokenizer.tokenize("今天云计算平台很好") == ["今", "天", "云计算平台", "很", "好"]
    assert tokenizer.tokenize("北京的云计算") == ["北京", "的", "云计算"]
    # jieba is told what it does not know and nothing else
    assert tokenizer.segmenter.user_dict.split() == ["云计算", "云计算平台"]
    tokenizer.save(str(tmp_path / "saved"))
    for copy in (load_tokenizer(str(tmp_path / "saved")), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.vocab == tokenizer.vocab and copy.fingerprint == tokenizer.fingerprint
        assert copy.origin == Origin(kept=len(CHARACTERS), words="list", added=4)
        assert copy.encode("北京的云计算") == tokenizer.encode("北京的云计算")
    fewer = WordTokenizer(vocab=CHARACTERS, words=file, add_words=1)
    assert fewer.vocab[-1] == "云计算" and fewer.segmenter.user_dict.split() == ["云计算"]
    assert WordTokenizer(vocab=CHARACTERS, words=file, add_words=99).vocab_size == len(CHARACTERS) + 5


def test_words_that_jieba_knows_leave_the_fast_segmenter_in_place(tmp_path: Path) -> None:
    tokenizer = WordTokenizer(vocab=CHARACTERS, words=words_file(tmp_path, "大学\n北京\n"), add_words=9)
    assert tokenizer.vocab[-2:] == ["大学", "北京"] and tokenizer.segmenter.user_dict is None


def test_a_list_and_a_user_dictionary_go_together(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("很好的 1000\n", encoding="utf-8")
    dictionary = str(tmp_path / "dict.txt")
    tokenizer = WordTokenizer(
        vocab=[*CHARACTERS, "很好的"],
        user_dict=dictionary,
        words=words_file(tmp_path, "云计算\n"),
        add_words=1,
    )
    assert tokenizer.tokenize("很好的云计算") == ["很好的", "云计算"]


def test_words_that_can_never_come_out_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = words_file(tmp_path, "阿·甘\n云计算\n")
    assert WordTokenizer(vocab=CHARACTERS, words=file, add_words=9).vocab[len(CHARACTERS) :] == ["云计算"]
    assert f"words={file}: jieba never yields" in caplog.text and "阿·甘 (line 1)" in caplog.text


def test_words_of_the_texts_on_top_of_a_vocabulary() -> None:
    tokenizer = WordTokenizer(vocab=CHARACTERS, words="corpus", add_words=3)
    assert not tokenizer.built
    with pytest.raises(ValueError, match="^vocab: there is none yet"):
        tokenizer.encode("今天")
    before = tokenizer.fingerprint
    tokenizer.build(TEXTS, progress=False)
    # 天气 is once in 今天天气, a word of jieba's; 今天 was seen twice, and ids stay as they were
    assert tokenizer.vocab == [*CHARACTERS, "今天", "北京"]
    assert tokenizer.origin == Origin(kept=len(CHARACTERS), words="corpus", added=2)
    assert tokenizer.fingerprint != before
    recipes = [
        {"words": "corpus", "add_words": 3},
        {"words": "corpus", "add_words": 2},
        {"words": "corpus", "add_words": 3, "simplify": True},
        {"words": "corpus", "add_words": 3, "min_count": 1},
    ]
    assert len({WordTokenizer(vocab=CHARACTERS, **recipe).fingerprint for recipe in recipes}) == 4


# ---- from scratch


def test_from_scratch_with_jieba_s_words(tmp_path: Path) -> None:
    tokenizer = WordTokenizer(words="jieba", add_words=5)
    assert not tokenizer.built
    tokenizer.build(TEXTS, progress=False)
    characters = tokenizer.vocab[5:-5]
    assert sorted(characters) == sorted("今天气很好北京的")  # seen twice
    assert tokenizer.origin == Origin(kept=13, words="jieba", added=5, base="texts")
    assert tokenizer.vocab[-5:] == [w for w in jieba_words(True) if w not in characters][:5]
    full = WordTokenizer(words="jieba", max_size=40)
    full.build(TEXTS, progress=False)
    assert full.vocab_size == 40 and full.vocab[:13] == tokenizer.vocab[:13]


def test_from_scratch_with_a_list(tmp_path: Path) -> None:
    first, second = words_file(tmp_path, "云计算\n很好\n"), tmp_path / "other.txt"
    second.write_text("云计算\n", encoding="utf-8")
    tokenizer = WordTokenizer(words=first, max_size=7)
    assert tokenizer.fingerprint != WordTokenizer(words=str(second), max_size=7).fingerprint
    tokenizer.build(TEXTS, progress=False)
    assert tokenizer.vocab == [*SPECIAL_TOKENS, "天", "京"]  # characters go before words
    tokenizer = WordTokenizer(words=first, max_size=7, add_words=2)
    tokenizer.build(TEXTS, progress=False)
    assert tokenizer.vocab == [*SPECIAL_TOKENS, "天", "京", "云计算", "很好"]
    assert "云计算" in tokenizer.tokenize("今天云计算")


def test_options_that_were_there_before_name_the_same_vocabulary() -> None:
    """Cached vocabularies and tokens are found by it."""
    assert WordTokenizer().fingerprint == WordTokenizer(words="corpus").fingerprint
    assert WordTokenizer(words="jieba").fingerprint != WordTokenizer().fingerprint


# ---- checkpoints, mistakes


def test_characters_of_a_checkpoint_take_words_when_asked(tmp_path: Path) -> None:
    CharTokenizer(vocab=CHARACTERS).save(str(tmp_path))
    with pytest.raises(ValueError, match="type tokenizer=char, or model.expand_vocabulary=20000"):
        WordTokenizer(init_from=str(tmp_path))
    assert WordTokenizer(init_from=str(tmp_path), add_words=2).vocab_size == len(simplified(CHARACTERS)) + 2
    with pytest.raises(ValueError, match="^lowercase=False"):
        WordTokenizer(init_from=str(tmp_path), add_words=2, lowercase=False)


def test_mistakes_name_the_option(tmp_path: Path) -> None:
    known = words_file(tmp_path, "一\n")
    cases = [
        ({"add_words": 0}, "add_words=0: must be at least 1"),
        ({"words": "jeiba"}, "words=jeiba: is neither corpus nor jieba, and there is no such file"),
        (
            {"vocab": CHARACTERS, "words": "jieba"},
            "words=jieba: how many of them .* tokenizer.add_words=20000",
        ),
        ({"simplify": True}, "simplify=True: there is no vocabulary yet"),
        ({"init_from": "x", "simplify": True}, "simplify=True: gives other ids than the weights of x"),
        ({"vocab": CHARACTERS, "words": known, "add_words": 1}, f"words={known}: .* there is none to add"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match="^" + message):
            WordTokenizer(**options)


# ---- the command


def test_the_command_saves_what_stock_transformers_loads(corpus: tuple[str, ...], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(CHARACTERS) + "\n", encoding="utf-8")
    options = ("stage=vocabulary", "tokenizer=word", f"tokenizer.vocab={vocab}", "tokenizer.add_words=20")
    told = finished(tmp_path / "run", *options, *corpus).out
    expected = WordTokenizer(vocab=CHARACTERS, add_words=20)
    saved = tmp_path / "run" / "tokenizer"
    for copy in (load_tokenizer(str(saved)), WordTokenizer(vocab=str(saved / "vocab.txt"))):
        assert copy.vocab == expected.vocab
    stock = AutoTokenizer.from_pretrained(str(saved))
    assert stock("今天很好", add_special_tokens=False)["input_ids"] == expected.encode("今天很好")
    assert summary(tmp_path / "run")["metrics"] == {
        "vocabulary/size": expected.vocab_size,
        "vocabulary/kept": expected.origin.kept,
        "vocabulary/dropped": expected.origin.dropped,
        "vocabulary/added": 20,
    }
    for shown in (expected.vocab[-20], expected.vocab[-1], f"tokenizer.init_from={saved}"):
        assert shown in told
    refused = run(tmp_path / "run", *options, *corpus)
    assert refused.code == 2 and "holds a finished run" in refused.err


def test_the_command_counts_the_training_texts_once(corpus: tuple[str, ...], tmp_path: Path) -> None:
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    for name in ("first", "second"):  # the second finds the first one's in the cache
        finished(
            tmp_path / name, "stage=vocabulary", "tokenizer=word", "tokenizer.add_words=30", cache, *corpus
        )
        assert not list((tmp_path / "cache").glob("tokens/*"))
    first, second = (summary(tmp_path / name)["metrics"] for name in ("first", "second"))
    assert first == second and first["vocabulary/added"] == 30


# ---- the article's vocabulary


def python_2_order(words: Iterable[str]) -> list[str]:
    """The order in which a dict of CPython 2.7 (64 bits, wide Unicode) gives keys that were set in this order."""
    bits = (1 << 64) - 1

    def hashed(word: str) -> int:
        value = ord(word[0]) << 7
        for char in word:
            value = ((1000003 * value) ^ ord(char)) & bits
        return value ^ len(word)

    def place(table: list, key: int) -> int:
        slot = perturb = key
        while table[slot & (len(table) - 1)] is not None:
            slot = (5 * slot + perturb + 1) & bits
            perturb >>= 5
        return slot & (len(table) - 1)

    table: list[tuple[int, str] | None] = [None] * 8
    for used, word in enumerate(words, 1):
        key = hashed(word)
        table[place(table, key)] = (key, word)
        if used * 3 >= len(table) * 2:
            size = 8
            while size <= used * (2 if used > 50000 else 4):
                size *= 2
            old, table = table, [None] * size
            for entry in filter(None, old):
                table[place(table, entry[0])] = entry
    return [entry[1] for entry in table if entry is not None]


@needs_real_data
def test_bert_s_file_gives_wobert_s_vocabulary() -> None:
    import jieba

    folder = Path(REAL_DATA or "") / "vocab"
    theirs = read_vocabulary(str(folder / "wobert_chinese_base.vocab.txt"))
    bert = str(folder / "bert-base-chinese_and_nezha-cn-base.vocab.txt")
    tokenizer = WordTokenizer(vocab=bert, add_words=20000)
    ours = tokenizer.vocab
    assert tokenizer.origin == Origin(kept=13586, dropped=7542, words="jieba", added=20000)
    assert len(ours) == len(theirs) == 33586

    # The kept part: two white-space characters, which WoBERT's reader has stripped. They can never come out.
    differing = [(i, ours[i], theirs[i]) for i in range(13586) if ours[i] != theirs[i]]
    assert differing == [(242, "\u2028", ""), (13359, "##\u2028", "##")]

    # The words: the same frequency at every id, so only words of equal frequency stand in another order.
    counts, _ = jieba.Tokenizer().gen_pfdict(jieba.Tokenizer().get_dict_file())
    assert [counts[word] for word in ours[13586:]] == [counts[word] for word in theirs[13586:]]
    only_ours, only_theirs = set(ours[13586:]) - set(theirs), set(theirs[13586:]) - set(ours)
    assert len(only_ours) == len(only_theirs) == 15
    assert {counts[word] for word in only_ours | only_theirs} == {209}  # the last frequency of all

    # That order is the one of Python 2.7's dict, filled from jieba's cache, which was written from another dict.
    order = sorted(python_2_order(python_2_order(counts)), key=lambda word: -counts[word])
    kept = set(ours[:13586])
    assert [word for word in order if word not in kept][:20000] == theirs[13586:]


@needs_real_data
def test_the_command_on_bert_s_file(tmp_path: Path) -> None:
    vocab = Path(REAL_DATA or "") / "vocab" / "bert-base-chinese_and_nezha-cn-base.vocab.txt"
    finished(
        tmp_path / "run",
        "stage=vocabulary",
        "tokenizer=word",
        f"tokenizer.vocab={vocab}",
        "tokenizer.add_words=20000",
    )
    assert summary(tmp_path / "run")["metrics"]["vocabulary/size"] == 33586
    saved = json.loads((tmp_path / "run" / "tokenizer" / "kexue_tokenizer.json").read_text(encoding="utf-8"))
    assert saved["origin"] == {
        "kept": 13586,
        "dropped": 7542,
        "words": "jieba",
        "added": 20000,
        "base": "vocabulary",
    }
