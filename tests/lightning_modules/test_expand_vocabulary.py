"""A checkpoint that gets more words: rows move by the tokens' text, new ones are means, everything loads again."""

import importlib
import logging

import numpy as np
import pytest
import torch
from running import REPOSITORY, TINY, finished, jsonl, run, values
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    RobertaConfig,
    RoFormerConfig,
)

from datamodules.tokenizers.base import load_tokenizer
from datamodules.tokenizers.char import CharTokenizer
from datamodules.tokenizers.expansion import RowSources, row_sources
from datamodules.tokenizers.word import WordTokenizer
from lightning_modules.networks.text_encoder import TextEncoder
from lightning_modules.wobert import WoBERT

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BACKBONE = {"_target_": "lightning_modules.networks.text_encoder.TextEncoder", **SHAPE}
VOCAB = [
    "[PAD]",
    "[unused1]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"今天气很好北京大学我们去玩，",
    "##天",
    "a",
    "##b",
    "##c",
]
CONFIGS = {
    "bert": BertConfig(vocab_size=len(VOCAB), **SHAPE),
    "untied": BertConfig(vocab_size=len(VOCAB), tie_word_embeddings=False, **SHAPE),
    "roformer": RoFormerConfig(vocab_size=len(VOCAB), embedding_size=16, **SHAPE),
    "roberta": RobertaConfig(
        vocab_size=len(VOCAB), max_position_embeddings=64, type_vocab_size=2, pad_token_id=0, **SHAPE
    ),
}


def stored(folder, kind="bert"):
    """A checkpoint with random weights and biases and a character vocabulary in `folder`; the model."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(CONFIGS[kind])
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    model.save_pretrained(folder)
    CharTokenizer(vocab=VOCAB).save(str(folder))
    return model.eval()


def expanded(folder, tokenizer, new_rows="mean"):
    network = TextEncoder(init_from=str(folder))
    rows = row_sources(str(folder), tokenizer, new_rows)
    network.build({"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}, rows)
    return network.eval()


@pytest.fixture
def words(tmp_path):
    """The path of a list of words."""
    (tmp_path / "words.txt").write_text("今天\n北京大学\nabc\n玩具\n", encoding="utf-8")
    return str(tmp_path / "words.txt")


@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_move_by_text_and_new_ones_are_exact_means(kind, words, tmp_path):
    old = stored(tmp_path / "old", kind)
    tokenizer = WordTokenizer(init_from=str(tmp_path / "old"), words=words, add_words=9, simplify=True)
    network = expanded(tmp_path / "old", tokenizer)
    model = network.model
    tables = [
        (old.get_input_embeddings().weight, model.get_input_embeddings().weight),
        (old.get_output_embeddings().weight, model.get_output_embeddings().weight),
        (old.get_output_embeddings().bias, model.get_output_embeddings().bias),
    ]
    pieces = {"今天": "今天", "北京大学": "北京大学", "abc": ["a", "##b", "##c"], "玩具": ["玩", "[UNK]"]}
    for before, after in tables:
        assert len(after) == tokenizer.vocab_size == network.config.vocab_size
        for token, i in tokenizer.index.items():
            if token in VOCAB:
                assert torch.equal(after[i], before[VOCAB.index(token)]), token
            else:
                mean = before[[VOCAB.index(piece) for piece in pieces[token]]].mean(0)
                torch.testing.assert_close(after[i], mean, rtol=0, atol=1e-7)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (kind != "untied")
    assert sum(p.shape[0] == tokenizer.vocab_size for p in model.parameters()) == (2 if tied else 3)
    assert set(pieces) == set(tokenizer.vocab) - set(VOCAB)


@pytest.mark.parametrize("kind", CONFIGS)
def test_where_no_new_word_stands_the_network_computes_what_it_did(kind, words, tmp_path):
    old = stored(tmp_path / "old", kind)
    tokenizer = WordTokenizer(init_from=str(tmp_path / "old"), words=words, add_words=9, simplify=True)
    new = expanded(tmp_path / "old", tokenizer).model
    tokens = ["[CLS]", *"天气很好", "[SEP]"]
    before = old(torch.tensor([[VOCAB.index(t) for t in tokens]])).logits
    after = new(torch.tensor([[tokenizer.index[t] for t in tokens]])).logits
    kept = [token for token in tokenizer.vocab if token in VOCAB]
    torch.testing.assert_close(
        after[..., [tokenizer.index[t] for t in kept]],
        before[..., [VOCAB.index(t) for t in kept]],
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("kind", ["bert", "untied"])
def test_random_rows_are_drawn_as_transformers_draws_them(kind, tmp_path):
    old = stored(tmp_path / "old", kind)
    tokenizer = WordTokenizer(init_from=str(tmp_path / "old"), add_words=300, simplify=False)
    model = expanded(tmp_path / "old", tokenizer, "random").model
    for after, before in (
        (model.get_input_embeddings().weight, old.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, old.get_output_embeddings().weight),
    ):
        assert torch.equal(after[: len(VOCAB)], before)
        assert after[len(VOCAB) :].std().item() == pytest.approx(old.config.initializer_range, rel=0.05)
        assert len(after[len(VOCAB) :].unique(dim=0)) == 300
    assert not model.get_output_embeddings().bias[len(VOCAB) :].any()


def test_words_on_top_of_words_are_means_of_what_the_checkpoint_makes_of_them(tmp_path):
    folder = str(tmp_path / "old")
    WordTokenizer(vocab=[*VOCAB, "北京", "大学"]).save(folder)
    (tmp_path / "words.txt").write_text("北京天气\n北京大学\n", encoding="utf-8")
    tokenizer = WordTokenizer(init_from=folder, words=str(tmp_path / "words.txt"), add_words=2)
    rows, index = row_sources(folder, tokenizer), tokenizer.index
    known = len(VOCAB) + 2
    assert rows.counts.tolist() == [1] * known + [3, 4]
    assert rows.ids[:known].tolist() == list(range(known))
    # 北京大学 is one word to jieba, which the checkpoint does not know: characters to it.
    assert rows.ids[known:].tolist() == [index[token] for token in ["北京", *"天气", *"北京大学"]]


def test_padding_that_would_move_is_refused(tmp_path):
    stored(tmp_path)
    network = TextEncoder(init_from=str(tmp_path))
    rows = RowSources(np.array([1, 0]), np.array([1, 1]))
    with pytest.raises(ValueError, match="its padding has id 1, which would become 0; .*simplify=false"):
        network.build({"vocab_size": 2, "pad_id": 0}, rows)


def test_weights_smaller_than_the_vocabulary_beside_them_are_refused(tmp_path):
    stored(tmp_path)
    rows = RowSources(np.array([0, 99]), np.array([1, 1]))
    with pytest.raises(ValueError, match=rf"names id 99, its weights have {len(VOCAB)} rows"):
        TextEncoder(init_from=str(tmp_path)).build({"vocab_size": 2, "pad_id": 0}, rows)


# ---- the command


@pytest.fixture(scope="module")
def characters(tmp_path_factory, corpus):
    """A finished run of the character model."""
    directory = tmp_path_factory.mktemp("characters") / "run"
    finished(directory, "model=bert", "max_steps=2", "validate_every=2", *corpus, *TINY)
    return directory


@pytest.fixture(scope="module")
def options(characters, corpus):
    return (
        "model=wobert",
        f"model.init_from={characters}",
        "model.expand_vocabulary=500",
        "max_steps=2",
        "validate_every=2",
        *corpus,
        "trainer=cpu",
    )


@pytest.fixture(scope="module")
def grown(tmp_path_factory, options):
    """A finished run of the word model that starts from it."""
    directory = tmp_path_factory.mktemp("grown") / "run"
    finished(directory, *options)
    return directory


def test_a_character_run_becomes_a_word_model_that_loads_everywhere(characters, grown, tmp_path):
    tokenizer, old = (load_tokenizer(str(path / "export")) for path in (grown, characters))
    assert type(old) is CharTokenizer and type(tokenizer) is WordTokenizer
    assert tokenizer.origin.added == 500 and tokenizer.vocab_size == old.vocab_size + 500
    stock = AutoModelForMaskedLM.from_pretrained(grown / "export").eval()
    assert stock.config.vocab_size == tokenizer.vocab_size == len(stock.get_input_embeddings().weight)
    text = "我们今天去北京"
    ids = AutoTokenizer.from_pretrained(grown / "export")(text, return_tensors="pt")
    assert ids["input_ids"][0, 1:-1].tolist() == tokenizer.encode(text)
    assert any(len(token) > 1 for token in tokenizer.tokenize(text))

    ours = WoBERT.load_from_checkpoint(grown / "checkpoints" / "best.ckpt", weights_only=True).eval()
    logits = ours.network.model(**ids).logits
    torch.testing.assert_close(logits, stock(**ids).logits)

    answers = []
    for source in (grown, grown / "export"):
        output = tmp_path / f"{source.name}.jsonl"
        finished(
            tmp_path / source.name,
            "stage=predict",
            "predict.task=fill_mask",
            'predict.input=["今天[MASK]很好"]',
            f"ckpt_path={source}",
            f"predict.output={output}",
        )
        answers.append(jsonl(output)[0]["predictions"][0])
    of_run, of_export = ({answer["token"]: answer["score"] for answer in top} for top in answers)
    assert of_run == pytest.approx(of_export, rel=1e-5)


def test_it_continues_in_the_same_steps(options, tmp_path):
    constant = (*options, "model/scheduler=constant")
    finished(tmp_path / "straight", *constant, "max_steps=4")
    finished(tmp_path / "parts", *constant)
    finished(tmp_path / "parts", *constant, "max_steps=4", "ckpt_path=last")
    assert values(tmp_path / "parts", "val/loss")[-1] == values(tmp_path / "straight", "val/loss")[-1]


def test_domain_words_go_on_top_of_a_word_run(grown, corpus, tmp_path):
    (tmp_path / "words.txt").write_text("云计算平台\n今天\n", encoding="utf-8")
    mine = (
        f"model.init_from={grown}",
        f"tokenizer.words={tmp_path / 'words.txt'}",
        "model.expand_vocabulary=99",
    )
    finished(tmp_path / "run", "model=wobert", *mine, "max_steps=1", *corpus, "trainer=cpu")
    before, after = (load_tokenizer(str(path / "export")) for path in (grown, tmp_path / "run"))
    added = [word for word in ("云计算平台", "今天") if word not in before.index]
    assert after.vocab == [*before.vocab, *added]
    assert "云计算平台" in after.tokenize("我们的云计算平台")


def test_a_vocabulary_that_was_made_before(characters, corpus, tmp_path):
    saved = f"tokenizer.init_from={tmp_path / 'words' / 'tokenizer'}"
    made = (
        "tokenizer=word",
        f"tokenizer.init_from={characters}",
        "tokenizer.words=corpus",
        "tokenizer.add_words=50",
    )
    finished(tmp_path / "words", "stage=vocabulary", *made, *corpus)
    start = ("model=wobert", f"model.init_from={characters}", saved, "tokenizer.add_words=null")
    refused = run(
        tmp_path / "run", *start, "model.expand_vocabulary=49", "max_steps=1", *corpus, "trainer=cpu"
    )
    assert refused.code == 2
    assert "model.expand_vocabulary=49: the tokenizer has 50 tokens that init_from lacks" in refused.err
    finished(tmp_path / "right", *start, "model.expand_vocabulary=50", "max_steps=1", *corpus, "trainer=cpu")
    assert load_tokenizer(str(tmp_path / "right" / "export")).origin.words == "corpus"


def test_the_benchmark_compares_both_kinds_of_rows(characters, capsys, caplog, monkeypatch, tmp_path):
    caplog.set_level(logging.WARNING, "pytorch_lightning")  # and back: the benchmark sets it
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    benchmark = importlib.import_module("expand_vocabulary")
    short = ["--words", "100", "--steps", "2", "--every", "1", "--picture", str(tmp_path / "rows.png")]
    [curves] = benchmark.main([str(characters), *short])
    assert {name: [step for step, _ in curve] for name, curve in curves.items()} == {
        "characters": [0],
        "mean": [0, 1, 2],
        "random": [0, 1, 2],
    }
    # The same hidden words, so the same unigram model.
    first = [curves[name][0][1] for name in ("mean", "random")]
    assert first[0]["baseline/unigram_loss"] == first[1]["baseline/unigram_loss"]
    assert first[0]["val/loss"] != first[1]["val/loss"]
    assert "| random | 2 |" in capsys.readouterr().out
    assert (tmp_path / "rows.png").stat().st_size > 0


@pytest.mark.parametrize(
    "typed, told",
    [
        (
            ["model.expand_vocabulary=5"],
            "model.expand_vocabulary=5: needs the weights of a checkpoint, model.init_from=RUN",
        ),
        (
            ["model=bert", "model.init_from={run}", "model.expand_vocabulary=5"],
            "model.expand_vocabulary=5: CharTokenizer adds no words; type tokenizer=word",
        ),
        (
            ["tokenizer=pretrained", "model.init_from={run}", "model.expand_vocabulary=5"],
            "model.expand_vocabulary=5: PretrainedTokenizer adds no words; type tokenizer=word",
        ),
        (
            ["model.init_from={run}", "tokenizer.add_words=5"],
            "model.expand_vocabulary=None: with tokenizer.add_words=5 there are ids that the weights of init_from lack; "
            "type model.expand_vocabulary=5",
        ),
        (
            ["model.init_from={run}", "model.expand_vocabulary=6", "tokenizer.add_words=5"],
            "model.expand_vocabulary=6: with tokenizer.add_words=5",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_texts_are_read(typed, told, characters, corpus, tmp_path):
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    typed = [option.format(run=characters) for option in typed]
    outcome = run(tmp_path / "run", *typed, cache, *corpus, "trainer=cpu")
    assert outcome.code == 2 and told in outcome.err
    assert not (tmp_path / "cache").exists()
