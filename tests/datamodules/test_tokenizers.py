"""Tokenizers: WoBERT's and BERT's algorithms against independent references, exports, offsets, saving."""

import gzip
import json
import pickle
import re
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from real_data import REAL_DATA, needs_real_data

from datamodules.corpus import Row
from datamodules.encoding import RowEncoder
from datamodules.tokenizers.base import load_tokenizer, resolve_pretrained
from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.pretrained import PretrainedTokenizer
from datamodules.tokenizers.vocabulary import SPECIAL_TOKENS, read_vocabulary
from datamodules.tokenizers.word import WordTokenizer

ROOT = Path(__file__).parents[2]

LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
WORDS = ["今天", "天气", "北京", "大学", "语言", "cafe", "iphone", "公园", "t恤"]
VOCAB = [
    *SPECIAL_TOKENS,
    "",  # as line 242 of WoBERT's
    *"今天气很好北京大学语言我们去公园玩恤的，。！？：,.+#%-αςσ한",
    *LETTERS,
    *("##" + letter for letter in LETTERS),
    *WORDS,
    "п",
    "##р",
    "р",
    "か",
    "##か",
]
# As CDial-GPT's.
DIALOGUE_VOCAB = [
    "[CLS]",
    "[PAD]",
    "[SEP]",
    "[UNK]",
    *VOCAB[5:],
    "mask",
    "[",
    "]",
    "[speaker1]",
    "[speaker2]",
]

TEXTS = [
    "今天天气很好，我们去公园玩。",
    "北京大学的Café和iPhone 12！",
    "今天[MASK]很好[SEP]去公园",
    "[mask] [PAD][UNK]",
    "cafe\u0301 大学",  # an accent as a character of its own
    "C++语言 c# 3.5% ａｂ",
    "пр орп！ かが",
    "한국어 대학",
    "北\u200b京大学 ab\u200bcd \ufeff今天",
    "a\ue000b \ue001",
    "😀😀 ❤\ufe0f 今天👨\u200d👩",
    "\r\n今天\n\n天气\r \u3000 \u2028好",
    "x t恤 xt恤 1t恤",
    "ΑΣ ΑΣΑ",
    "",
    "   ",
    "İ ǅ ﬁ K Å 豈",
    "bad \ud83d surrogate \0 and \ufffd end",
    "a" * 101 + " " + "b" * 201,
]


@pytest.fixture(scope="module")
def word() -> WordTokenizer:
    return WordTokenizer(vocab=VOCAB)


@pytest.fixture(scope="module")
def char() -> CharTokenizer:
    return CharTokenizer(vocab=VOCAB)


# ---- an independent, slow writing of the algorithms, straight from the published formula


def reference_word_tokens(text: str, vocab: set[str]) -> list[str]:
    """WoBERT (bert4keras): normalise, jieba.cut(HMM=False), whole words, BERT's tokenizer for the others."""
    import jieba

    tokens = []
    for part in re.split(r"(\[PAD\]|\[UNK\]|\[CLS\]|\[SEP\]|\[MASK\])", text):
        if part in SPECIAL_TOKENS:
            tokens.append(part)
            continue
        part = unicodedata.normalize("NFD", part.lower())
        part = "".join(c for c in part if unicodedata.category(c) != "Mn")
        for cut in jieba.cut(part, HMM=False):
            tokens += [cut] if cut in vocab else reference_bert_tokens(cut, vocab)
    return tokens


def reference_bert_tokens(text: str, vocab: set[str]) -> list[str]:
    spaced = ""
    for c in text:
        code, category = ord(c), unicodedata.category(c)
        ascii_sign = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
        han = re.match(
            "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f]", c
        )
        if ascii_sign or category.startswith("P") or han:
            spaced += f" {c} "
        elif c in "\t\n\r " or category == "Zs":
            spaced += " "
        elif code not in (0, 0xFFFD) and category not in ("Cc", "Cf"):
            spaced += c
    tokens = []
    for run in spaced.split():
        pieces, rest = [], run
        while rest and len(run) <= 200:
            prefix = "##" if pieces else ""
            n = next((n for n in range(len(rest), 0, -1) if prefix + rest[:n] in vocab), None)
            if n is None:
                break
            pieces.append(prefix + rest[:n])
            rest = rest[n:]
        tokens += ["[UNK]"] if rest else pieces
    return tokens


def real_vocabulary(name: str) -> str:
    return str(Path(REAL_DATA or "") / "vocab" / f"{name}.vocab.txt")


def real_lines(folder: str = "") -> list[str]:
    """Every distinct text of the real corpora (below `folder`): JSON strings, else lines."""
    lines: dict[str, None] = {}

    def strings(node: object) -> None:
        if isinstance(node, str):
            lines[node] = None
        elif isinstance(node, list):
            for item in node:
                strings(item)
        elif isinstance(node, dict):
            strings(list(node.values()))

    for path in sorted(Path(REAL_DATA or "", folder).rglob("*")):
        if path.is_dir() or path.parent.name in ("mnist", "vocab"):
            continue
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                blobs = [archive.read(name) for name in archive.namelist() if not name.endswith("/")]
        else:
            blobs = [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()]
        for blob in blobs:
            text = blob.decode("utf-8-sig")
            try:
                strings(json.loads(text))
                continue
            except ValueError:
                pass
            for line in text.split("\n"):
                try:
                    strings(json.loads(line))
                except ValueError:
                    lines[line] = None
    return list(lines)


# ---- the algorithms


def test_word_tokens_are_wobert_s(word: WordTokenizer) -> None:
    assert word.tokenize("今天去公园玩，天气好。") == ["今天", "去", "公园", "玩", "，", "天气", "好", "。"]
    assert word.tokenize("今天天气") == [
        "今",
        "天",
        "天",
        "气",
    ]  # one word to jieba, and not in the vocabulary
    for text in TEXTS:
        if "\ud83d" in text:  # jieba takes a lone surrogate, ours drops it, as nothing in Rust can hold it
            continue
        assert word.tokenize(text) == [
            t if t in word.index else "[UNK]" for t in reference_word_tokens(text, set(VOCAB))
        ], text


def test_special_tokens_in_raw_text_survive(word: WordTokenizer, char: CharTokenizer) -> None:
    for tokenizer in (word, char):
        assert tokenizer.encode("[MASK]好[SEP]") == [
            tokenizer.mask_id,
            tokenizer.index["好"],
            tokenizer.sep_id,
        ]
        assert tokenizer.mask_id not in tokenizer.encode("[mask]")


@pytest.mark.parametrize("text", TEXTS)
def test_fast_way_equals_the_exact_one(word: WordTokenizer, char: CharTokenizer, text: str) -> None:
    for tokenizer in (word, char):
        surrounded = tokenizer.encode_batch(["好", text, text, "今天"])
        for tokens, (start, length) in (
            (tokenizer.analyse(text), (int(surrounded.lengths[0]), int(surrounded.lengths[1]))),
            (tokenizer.analyse("今天"), (int(surrounded.lengths[:3].sum()), int(surrounded.lengths[3]))),
        ):
            part = slice(start, start + length)
            assert surrounded.ids[part].tolist() == [t.id for t in tokens]
            assert surrounded.chars[part].tolist() == [t.chars for t in tokens]
            assert surrounded.word_starts[part].tolist() == [t.word_start for t in tokens]
    assert surrounded.ids.dtype == np.int32 and surrounded.chars.dtype == np.uint16
    assert surrounded.word_starts.dtype == bool and surrounded.lengths.dtype == np.int64


def word_openings(tokenizer: WordTokenizer | CharTokenizer, text: str) -> tuple[list[int], int]:
    """Counted characters before each word, and in all."""
    at, total = [], 0
    for token in tokenizer.analyse(text):
        if token.word_start:
            at.append(total)
        total += token.chars
    return at, total


@pytest.mark.parametrize("text", TEXTS)
def test_words_and_characters_are_the_same_for_both(
    word: WordTokenizer, char: CharTokenizer, text: str
) -> None:
    assert word_openings(word, text) == word_openings(char, text)


def test_characters_count_once_and_without_what_cleaning_drops(word: WordTokenizer) -> None:
    assert sum(t.chars for t in word.analyse("今 天\u200bCafé 한국[MASK]")) == 2 + 4 + 2 + 6
    assert sum(t.chars for t in word.analyse("cafe\u0301")) == 4


def test_offsets_lead_to_the_original_characters(word: WordTokenizer, char: CharTokenizer) -> None:
    text = "北京的大学Café、cafe\u0301 ＡＢ 한국 a\u200bb[MASK]😀iPhone"
    for tokenizer, expected in (
        (word, "北京 的 大学 Café 、 cafe Ａ Ｂ 한 한 한 국 국 국 a b [MASK] 😀 iPhone"),
        (char, "北 京 的 大 学 Café 、 cafe ＡＢ 한국 a b [MASK] 😀iPhone"),
    ):
        spans = [text[start:end] for start, end in tokenizer.offsets(text)]
        assert spans == expected.split(" ")


def test_decoding_glues_chinese(word: WordTokenizer, char: CharTokenizer) -> None:
    for tokenizer in (word, char):
        for text in ("今天天气很好，我们去公园玩。", "我的iphone12很好", "cafe iphone 12", "3.5%的大学"):
            ids = [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
            assert tokenizer.decode(ids) == text


def test_an_empty_line_keeps_its_id(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_bytes("\r\n".join([*SPECIAL_TOKENS, "", "今", "\u2028", ""]).encode())
    assert read_vocabulary(str(file)) == [*SPECIAL_TOKENS, "", "今", "\u2028"]
    assert CharTokenizer(vocab=str(file)).encode("今") == [6]


def test_the_memo_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.tokenizers.vocabulary._MEMO_ENTRIES", 4)
    monkeypatch.setattr("datamodules.tokenizers.vocabulary._CHUNK_CHARS", 8)
    tokenizer = WordTokenizer(vocab=VOCAB)
    expected = [i for text in TEXTS for i in tokenizer.encode(text)]
    assert tokenizer.encode_batch(TEXTS).ids.tolist() == expected
    assert tokenizer.encode_batch([]).lengths.tolist() == []


# ---- vocabularies from scratch


def test_build_takes_characters_and_words_in_a_fixed_order() -> None:
    texts = ["今天的天气好。今天", "天气很好。今天 iphone", "北京[MASK] 한"]
    tokenizer = WordTokenizer()
    assert not tokenizer.built
    with pytest.raises(ValueError, match="^vocab: there is none yet"):
        tokenizer.encode("今天")
    tokenizer.build(iter(texts), progress=False)
    vocab = tokenizer.vocab
    assert vocab[:5] == list(SPECIAL_TOKENS) and tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert vocab[5:10] == ["天", "今", "。", "好", "气"]
    assert vocab[-2:] == ["今天", "天气"]
    assert {"i", "##i", "p", "##p"} <= set(
        vocab
    )  # seen once or only inside, but Latin words must not be [UNK]
    assert not {"iphone", "北京", "北", "很"} & set(vocab)  # seen once
    assert tokenizer.unk_id not in tokenizer.encode("phone one")
    other = WordTokenizer()
    other.build(texts[::-1], progress=False)
    assert other.vocab == vocab and other.fingerprint == tokenizer.fingerprint
    with pytest.raises(ValueError, match="^vocab: there already is one"):
        tokenizer.build(texts)

    characters = CharTokenizer()
    characters.build(["ab 12 ab 今天", "12 今天"], progress=False)
    assert {"ab", "12", "今", "天"} <= set(characters.vocab) and "今天" not in characters.vocab


def test_build_keeps_to_its_limits() -> None:
    texts = ["今天天气好", "今天天气好"]
    small = WordTokenizer(max_size=8)
    small.build(texts, progress=False)
    assert small.vocab == [*SPECIAL_TOKENS, "天", "今", "好"]
    rare = WordTokenizer(min_count=3)
    with pytest.raises(ValueError, match="^vocab: the texts hold nothing that occurs min_count=3 times"):
        rare.build(["今", "好"], progress=False)


# ---- saved, loaded, sent to workers


def test_saved_and_loaded_with_vocabulary_and_dictionary(tmp_path: Path) -> None:
    dictionary = tmp_path / "words.txt"
    dictionary.write_text("天气很好 100 n\n\nＣａｆé大学\nCafé大学\n", encoding="utf-8")
    vocab = [*VOCAB, "天气很好", "cafe大学"]
    tokenizer = WordTokenizer(vocab=vocab, user_dict=str(dictionary))
    assert tokenizer.tokenize("今天的天气很好Café大学") == ["今天", "的", "天气很好", "cafe大学"]
    assert WordTokenizer(vocab=vocab).fingerprint != tokenizer.fingerprint
    assert "user dictionary" in tokenizer.stock_differences()[0]
    tokenizer.save(str(tmp_path / "run" / "export"))
    dictionary.unlink()
    for copy in (
        load_tokenizer(str(tmp_path / "run" / "export")),
        WordTokenizer(init_from=str(tmp_path / "run")),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy.vocab == vocab and copy.fingerprint == tokenizer.fingerprint
        assert copy.encode_batch(TEXTS).ids.tolist() == tokenizer.encode_batch(TEXTS).ids.tolist()


def test_pickles_after_use(word: WordTokenizer, char: CharTokenizer) -> None:
    for tokenizer in (word, char):
        expected = tokenizer.encode_batch(TEXTS)
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.encode_batch(TEXTS).ids.tolist() == expected.ids.tolist()


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("kind", ["word", "char"])
def test_stock_transformers_loads_the_export(kind: str, lowercase: bool, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, pipeline

    cls = {"word": WordTokenizer, "char": CharTokenizer}[kind]
    tokenizer = cls(vocab=VOCAB, lowercase=lowercase)
    tokenizer.save(str(tmp_path), max_length=32)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)  # its model_type must not choose the tokenizer's class
    stock = AutoTokenizer.from_pretrained(str(tmp_path))
    assert type(stock).__name__ == {"word": "RoFormerTokenizer", "char": "BertTokenizer"}[kind]
    assert stock.get_vocab() == tokenizer.index and stock.model_max_length == 32
    assert stock("好", "好")["token_type_ids"] == [0, 0, 0, 1, 1]

    known = {  # text -> the stock class's tokens, where they are not ours; the classes of `stock_differences`
        "word": {
            "C++语言 c# 3.5% ａｂ": "c [UNK] 语言" if lowercase else None,
            "北\u200b京大学 ab\u200bcd \ufeff今天": "北京大学",
            "a\ue000b \ue001": "a b",
            "a" * 101 + " " + "b" * 201: "[UNK] [UNK]",
        },
        "char": {},
    }[kind]
    for text in TEXTS:
        if "\ud83d" in text or (lowercase and "ΑΣ" in text):
            continue
        same = stock(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert same == (text not in known), text
    assert tokenizer.stock_differences()
    if lowercase:
        assert stock.tokenize("Σ") != tokenizer.tokenize("ΑΣ")[-1:]

    answers = pipeline("fill-mask", model=str(tmp_path), tokenizer=str(tmp_path))("今天[MASK]很好", top_k=2)
    assert len(answers) == 2 and "很" in answers[0]["sequence"]


def test_pretrained_wraps_any_directory(word: WordTokenizer, char: CharTokenizer, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    char.save(str(tmp_path / "a"))
    wrapped = PretrainedTokenizer(str(tmp_path / "a"))
    texts = [text for text in TEXTS if "ΑΣ" not in text]
    expected, got = char.encode_batch(texts), wrapped.encode_batch(texts)
    for name in ("ids", "chars", "word_starts", "lengths"):
        assert getattr(got, name).tolist() == getattr(expected, name).tolist(), name
    assert wrapped.special_ids == char.special_ids and wrapped.vocab == char.vocab
    wrapped.save(str(tmp_path / "b"))
    for copy in (load_tokenizer(str(tmp_path / "b")), pickle.loads(pickle.dumps(wrapped))):
        assert copy.fingerprint == wrapped.fingerprint
        assert copy.encode(TEXTS[1]) == char.encode(TEXTS[1])

    word.save(str(tmp_path / "word"))
    roformer = pickle.loads(pickle.dumps(PretrainedTokenizer(str(tmp_path / "word"))))
    assert roformer.encode(TEXTS[0]) == word.encode(TEXTS[0])

    BertTokenizer(vocab=char.index).save_pretrained(tmp_path / "hf")  # only tokenizer.json, no vocab.txt
    assert CharTokenizer(init_from=str(tmp_path / "hf")).vocab == char.vocab


# ---- dialogue models' vocabularies: no [MASK], no [UNK]


@pytest.mark.parametrize("cls", [WordTokenizer, CharTokenizer])
def test_a_vocabulary_without_mask_is_one_without(cls: type, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = cls(vocab=DIALOGUE_VOCAB)
    assert tokenizer.mask_id is None and tokenizer.special_ids == (1, 3, 0, 2)
    first, second = tokenizer.index["[speaker1]"], tokenizer.index["[speaker2]"]
    # What a user types is text, but for the special tokens, which stay as they always did.
    for typed in ("好[MASK]好", "[speaker1]好[speaker2]", "[SEP]好[UNK]"):
        ids = tokenizer.encode(typed)
        assert not {first, second} & set(ids) and (tokenizer.sep_id in ids) == ("[SEP]" in typed)
        assert tokenizer.encode_batch(["好", typed, "今天"]).ids[1:][: len(ids)].tolist() == ids
        assert sum(token.chars for token in tokenizer.analyse(typed)) == len(typed)
    assert tokenizer.tokenize("[MASK]") == ["[", "mask", "]"]
    said = [tokenizer.cls_id, first, *tokenizer.encode("今天好"), tokenizer.sep_id, second, 1, 3]
    assert tokenizer.decode(said) == "今天好"

    tokenizer.save(str(tmp_path), max_length=32)
    stock = AutoTokenizer.from_pretrained(str(tmp_path))
    assert stock.get_vocab() == tokenizer.index and len(stock) == tokenizer.vocab_size
    for copy in (
        load_tokenizer(str(tmp_path)),
        cls(init_from=str(tmp_path)),
        PretrainedTokenizer(str(tmp_path)),
    ):
        assert copy.vocab == DIALOGUE_VOCAB and copy.mask_id is None
        assert copy.special_ids == tokenizer.special_ids
        assert copy.decode(said) == "今天好"
        assert copy.encode("[MASK]今天[speaker1]好") == tokenizer.encode("[MASK]今天[speaker1]好")
        assert stock.encode("[MASK]今天[speaker1]好")[1:-1] == copy.encode("[MASK]今天[speaker1]好")


def test_names_in_brackets_are_not_said() -> None:
    tokenizer = CharTokenizer(vocab=[*SPECIAL_TOKENS, "[unused1]", "", "[", "]", "[]", "好"])
    assert tokenizer.textless_ids == {0, 1, 2, 3, 4, 5, 6}
    assert tokenizer.decode(range(11)) == "[][]好"


def byte_level(directory: Path, **special: str | None) -> str:
    """A tokenizer as GPT-2's in `directory`, where 今天 has a token and other ideographs have one a byte."""
    from tokenizers import pre_tokenizers, trainers
    from tokenizers.implementations import ByteLevelBPETokenizer
    from transformers import GPT2Tokenizer

    trained = ByteLevelBPETokenizer()
    trained._tokenizer.train_from_iterator(
        ["今天今天"] * 3,
        trainers.BpeTrainer(
            vocab_size=266,
            special_tokens=["<|endoftext|>", "<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    GPT2Tokenizer(vocab=model["vocab"], merges=merges, **special).save_pretrained(directory)
    return str(directory)


def test_bytes_as_tokens(char: CharTokenizer, tmp_path: Path) -> None:
    tokenizer = PretrainedTokenizer(byte_level(tmp_path / "gpt"))
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id) == (0, 0, 0)
    assert tokenizer.unk_id is None and tokenizer.mask_id is None and tokenizer.special_ids == (0,)
    texts = [text for text in TEXTS if "\ud83d" not in text and "[" not in text]
    for text in texts:
        tokens = tokenizer.analyse(text)
        assert sum(t.chars for t in tokens) == sum(t.chars for t in char.analyse(text)), text
        assert tokenizer.decode([0, *(t.id for t in tokens), 0]) == text

    ids = tokenizer.encode("今天好😀")
    for length in range(len(ids) + 1):  # as a reply grows
        assert "今天好😀".startswith(tokenizer.decode(ids[:length]).rstrip("\ufffd"))
    rows = RowEncoder(tokenizer, max_length=64)([Row(("今天", "好")), Row("好")])
    assert rows.unknown == 0 and rows.lengths.tolist() == [1 + 1 + 1 + 3 + 1, 1 + 3 + 1]

    tokenizer.save(str(tmp_path / "saved"))
    for copy in (load_tokenizer(str(tmp_path / "saved")), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint == tokenizer.fingerprint and copy.special_ids == (0,)
        assert copy.decode(copy.encode("今天好😀")) == "今天好😀"


@pytest.mark.parametrize(
    ("special", "expected"),  # cls, sep, pad, unknown
    [
        ({"bos_token": "<s>"}, (1, 0, 0, None)),
        ({"bos_token": None}, (0, 0, 0, None)),
        ({"pad_token": "<s>", "unk_token": None}, (0, 0, 1, None)),
        ({"sep_token": "<s>"}, (0, 1, 0, None)),
        ({"eos_token": None, "bos_token": None, "sep_token": "<s>", "unk_token": "!"}, (1, 1, 1, 2)),
    ],
)
def test_bos_and_eos_stand_in(special: dict, expected: tuple, tmp_path: Path) -> None:
    tokenizer = PretrainedTokenizer(byte_level(tmp_path / "a", **special))
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.unk_id) == expected
    # Rows differ though the texts' tokens do not: the caches must.
    stock = PretrainedTokenizer(byte_level(tmp_path / "b"))
    assert (tokenizer.fingerprint == stock.fingerprint) == (expected[:2] == (0, 0))


def test_a_masked_model_says_that_the_vocabulary_has_no_mask() -> None:
    from lightning_modules.wobert import WoBERT

    backbone = {"_target_": "lightning_modules.networks.text_encoder.TextEncoder"}
    facts = {"mask_id": None}
    corpus = SimpleNamespace(provides={"text"}, tokenizer=CharTokenizer(vocab=DIALOGUE_VOCAB), max_length=32)
    message = r"^tokenizer: the vocabulary has no \[MASK\], .* model=dialogpt"
    with pytest.raises(ValueError, match=message):
        WoBERT(backbone).check_corpus(corpus)
    with pytest.raises(ValueError, match=message):
        WoBERT(backbone, facts=facts).configure_model()
    corpus.tokenizer = CharTokenizer()  # will be built, with a [MASK]
    WoBERT(backbone).check_corpus(corpus)


# ---- mistakes


def test_mistakes_name_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, char: CharTokenizer
) -> None:
    no_unk = tmp_path / "no_unk.txt"
    no_unk.write_text("[PAD]\n[CLS]\n[SEP]\n[MASK]\n", encoding="utf-8")
    no_sep = [token for token in DIALOGUE_VOCAB if token != "[SEP]"]
    latin1 = tmp_path / "latin1.txt"
    latin1.write_bytes(b"[PAD]\n\xe9\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    user_dict = tmp_path / "dict.txt"
    user_dict.write_text("好\n云计算 many n\n", encoding="utf-8")
    char.save(str(tmp_path / "chars"))
    monkeypatch.chdir(tmp_path)
    cases = [
        (WordTokenizer, {"vocab": "none.txt"}, "vocab=none.txt: no such file"),
        (WordTokenizer, {"vocab": str(no_unk)}, r"vocab=.*no_unk.txt: lacks \[UNK\]"),
        (CharTokenizer, {"vocab": no_sep}, r"vocab=.*: lacks \[SEP\]; a vocabulary needs .* \[SEP\]$"),
        (
            PretrainedTokenizer,
            {"name": byte_level(tmp_path / "gpt", eos_token=None)},
            "name=.*: this tokenizer has no token that ends a turn .*tokenizer=char",
        ),
        (WordTokenizer, {"vocab": str(latin1)}, "vocab=.*latin1.txt: is not UTF-8"),
        (
            CharTokenizer,
            {"vocab": [*SPECIAL_TOKENS, "好", "好"]},
            "vocab=.*: the token '好' stands on lines 6 and 7",
        ),
        (CharTokenizer, {"min_count": 0}, "min_count=0: must be at least 1"),
        (CharTokenizer, {"max_size": 5}, "max_size=5: must be more than"),
        (WordTokenizer, {"user_dict": "none"}, "user_dict=none: no such file"),
        (WordTokenizer, {"user_dict": str(user_dict)}, "user_dict=.*: line 2, '云计算 many n'"),
        (WordTokenizer, {"init_from": "./none"}, "init_from=./none: no such directory"),
        (WordTokenizer, {"init_from": "runs/a/b"}, "init_from=runs/a/b: no such directory"),
        (WordTokenizer, {"init_from": "chars/none"}, "init_from=chars/none: no such directory"),
        (WordTokenizer, {"init_from": str(no_unk)}, "init_from=.*: is a file"),
        (WordTokenizer, {"init_from": "empty"}, "init_from=empty: .*holds neither vocab.txt"),
        (WordTokenizer, {"init_from": "run"}, "init_from=run: this run has left no export/"),
        (
            WordTokenizer,
            {"init_from": "chars"},
            "init_from=chars: was made with CharTokenizer.*type tokenizer=char",
        ),
        (CharTokenizer, {"init_from": "chars", "lowercase": False}, "lowercase=False: chars was made with"),
        (PretrainedTokenizer, {"name": ""}, "name=: name a Hugging Face directory"),
        (PretrainedTokenizer, {"name": "./none"}, "name=./none: no such directory"),
        (PretrainedTokenizer, {"name": "empty"}, "name=empty: empty holds no tokenizer"),
    ]
    for cls, options, message in cases:
        with pytest.raises(ValueError, match="^" + message):
            cls(**options)
    with pytest.raises(ValueError, match="tokenizer=pretrained tokenizer.name=empty"):
        load_tokenizer("empty")
    assert resolve_pretrained("bert-base-chinese") == "bert-base-chinese"
    assert resolve_pretrained("hfl/chinese-macbert-base") == "hfl/chinese-macbert-base"


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(name: str, file: str) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    message = r"^init_from=some/model: .*\(cannot reach the hub\); name a directory .* HF_ENDPOINT"
    with pytest.raises(ValueError, match=message):
        WordTokenizer(init_from="some/model")


def test_words_that_jieba_cannot_yield_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "words.txt"
    file.write_text("好的\n阿·甘\n", encoding="utf-8")
    WordTokenizer(vocab=VOCAB, user_dict=str(file))
    assert "阿·甘 (line 2)" in caplog.text and "好的" not in caplog.text


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys; from datamodules.tokenizers import char, pretrained, word; "
        "print({'torch', 'transformers', 'huggingface_hub', 'jieba', 'rjieba', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- real corpora


@needs_real_data
@pytest.mark.parametrize("name", ["wobert_chinese_base", "wobert_chinese_plus_base"])
def test_published_vocabularies_round_trip(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = WordTokenizer(vocab=real_vocabulary(name))
    tokenizer.save(str(tmp_path))
    assert AutoTokenizer.from_pretrained(str(tmp_path)).get_vocab() == tokenizer.index
    assert load_tokenizer(str(tmp_path)).vocab == tokenizer.vocab
    assert (tmp_path / "vocab.txt").read_bytes().split(b"\n")[:-1] == [t.encode() for t in tokenizer.vocab]
    if name == "wobert_chinese_base":
        assert tokenizer.vocab[242] == "" and tokenizer.index["一个"] == 13586


@needs_real_data
def test_cdial_gpt_s_vocabulary_round_trips(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    published = tmp_path / "published"
    published.mkdir()
    (published / "vocab.txt").write_bytes(Path(real_vocabulary("cdial-gpt")).read_bytes())
    tokenizer = CharTokenizer(init_from=str(published))
    assert tokenizer.vocab_size == 13088 and tokenizer.special_ids == (1, 3, 0, 2)
    tokenizer.save(str(tmp_path / "saved"))
    stock = AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert stock.get_vocab() == tokenizer.index == load_tokenizer(str(tmp_path / "saved")).index
    text = "你[MASK]好[speaker1]，iPhone真好"
    assert stock.encode(text) == [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
    assert tokenizer.decode(range(13084, 13088)) == tokenizer.decode(range(13084, 13086))


@needs_real_data
@pytest.mark.parametrize("folder", ["clue/iflytek", pytest.param("", marks=pytest.mark.slow)])
def test_words_and_characters_of_real_text_are_the_same_for_both(folder: str) -> None:
    lines = real_lines(folder)
    word = WordTokenizer(vocab=real_vocabulary("wobert_chinese_base"))
    char = CharTokenizer(vocab=real_vocabulary("bert-base-chinese_and_nezha-cn-base"))
    for start in range(0, len(lines), 100_000):
        per_text, openings = [], []
        for tokenizer in (word, char):
            batch = tokenizer.encode_batch(lines[start : start + 100_000])
            before = np.concatenate(([0], np.cumsum(batch.chars, dtype=np.int64)))
            per_text.append(np.diff(before[np.concatenate(([0], np.cumsum(batch.lengths)))]))
            openings.append(before[:-1][batch.word_starts])
        assert np.array_equal(*per_text) and np.array_equal(*openings)


@needs_real_data
@pytest.mark.parametrize("folder", ["tnews/fewclue", pytest.param("", marks=pytest.mark.slow)])
def test_every_real_line_is_segmented_as_by_jieba(folder: str) -> None:
    import jieba

    word = WordTokenizer(vocab=real_vocabulary("wobert_chinese_base"))
    for line in real_lines(folder):
        assert word.segmenter.cut(line.lower()) == jieba.lcut(line.lower(), HMM=False), line


@needs_real_data
@pytest.mark.parametrize("folder", ["tnews/fewclue", pytest.param("", marks=pytest.mark.slow)])
def test_every_real_line_has_wobert_s_tokens(folder: str) -> None:
    word = WordTokenizer(vocab=real_vocabulary("wobert_chinese_base"))
    lines = real_lines(folder)
    batch = word.encode_batch(lines)
    ends = np.cumsum(batch.lengths)
    known = set(word.vocab)
    for line, end, length in zip(lines, ends, batch.lengths, strict=True):
        expected = [word.index.get(t, word.unk_id) for t in reference_word_tokens(line, known)]
        assert batch.ids[end - length : end].tolist() == expected, line


@needs_real_data
@pytest.mark.parametrize("folder", ["tnews/fewclue", pytest.param("", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["word", "char"])
def test_every_real_line_has_the_stock_ids_but_known_cases(kind: str, folder: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    if kind == "word":
        tokenizer = WordTokenizer(vocab=real_vocabulary("wobert_chinese_base"))
        known = re.compile(
            "c\\+\\+|c#|[a-z0-9]{101}|[\x08\x0b\x7f\xad\u200b-\u200d\ufeff\ue000-\uf8ff]", re.I
        )
    else:
        tokenizer = CharTokenizer(vocab=real_vocabulary("bert-base-chinese_and_nezha-cn-base"))
        known = re.compile("(?!)")
    tokenizer.save(str(tmp_path))
    stock = AutoTokenizer.from_pretrained(str(tmp_path))
    lines = [line for line in real_lines(folder) if not known.search(line)]
    batch = tokenizer.encode_batch(lines)
    ends = np.cumsum(batch.lengths)
    for start in range(0, len(lines), 5000):
        part = lines[start : start + 5000]
        for i, ids in enumerate(stock(part, add_special_tokens=False)["input_ids"], start):
            assert batch.ids[ends[i] - batch.lengths[i] : ends[i]].tolist() == ids, lines[i]
