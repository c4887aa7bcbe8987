"""What is done with a trained run: predictions, the Hugging Face export, the start of another run from it."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from real_data import REAL_DATA, needs_real_data
from running import TINY, finished, jsonl, run, summary, values
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from datamodules.clue import CLUE
from datamodules.text import TextInput
from launch.predict import load_for_prediction

WOBERT = "lightning_modules.wobert.WoBERT"
MASKED = ["北京[MASK]今天很好", "[MASK]球队赢了[MASK]", "a[MASK]b 2018[MASK]！"]
TRAINING = (
    *TINY,
    "data.tokens_per_batch=512",
    "max_steps=60",
    "validate_every=60",
    "model.optimizer.lr=1e-2",
)


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory):
    """A run that has learnt something: {"wobert": directory, "bert": directory}."""
    runs = {}
    for model in ("wobert", "bert"):
        runs[model] = tmp_path_factory.mktemp("trained") / model
        finished(runs[model], *TRAINING, *corpus, f"model={model}", "log_every=1")
    return runs


@pytest.fixture(scope="session")
def validation_texts(corpus):
    return [
        row.text
        for row in CLUE(
            source=corpus[0].removeprefix("data.source="),
            tokenizer={"_target_": "datamodules.tokenizers.char.CharTokenizer"},
        ).read("val")
    ]


def predict(directory, source, task, texts, *options):
    listed = json.dumps(texts, ensure_ascii=False)
    finished(
        directory,
        "stage=predict",
        "trainer=cpu",
        f"ckpt_path={source}",
        f"predict.task={task}",
        f"predict.input={listed}",
        *options,
    )
    return jsonl(directory / "predictions.jsonl")


def numbers(value) -> list[float]:
    """Every number in a prediction, in order."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float) else []


def tokens(value) -> list[str]:
    return re.findall(r"'token': ('.*?'|\".*?\")", repr(value))


@pytest.mark.parametrize("task", ["fill_mask", "embed"])
def test_run_checkpoint_and_export_predict_alike(task, trained, tmp_path):
    source = trained["wobert"]
    results = [
        predict(tmp_path / str(number), path, task, MASKED)
        for number, path in enumerate((source, source / "checkpoints/last.ckpt", source / "export"))
    ]
    assert [result["text"] for result in results[0]] == MASKED
    for other in results[1:]:
        assert tokens(other) == tokens(results[0])
        assert numbers(other) == pytest.approx(numbers(results[0]), abs=1e-5)
    if task == "fill_mask":
        assert [len(result["predictions"]) for result in results[0]] == [1, 2, 2]
        first = results[0][0]["predictions"][0]
        assert len(first) == 5 and first == sorted(first, key=lambda one: -one["score"])
        assert 0 < sum(one["score"] for one in first) <= 1
    else:
        assert {len(result["embedding"]) for result in results[0]} == {32}


def test_texts_come_from_files_too_and_the_batch_size_changes_nothing(trained, tmp_path):
    expected = predict(tmp_path / "list", trained["bert"], "fill_mask", MASKED)
    (tmp_path / "texts.txt").write_text("\ufeff" + "\n\n".join(MASKED) + "\n", encoding="utf-8")
    rows = [json.dumps({"text": text, "id": 7}, ensure_ascii=False) for text in MASKED]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for name in ("texts.txt", "texts.jsonl"):
        output = tmp_path / "predictions" / f"{name}.out.jsonl"
        finished(
            tmp_path / name.replace(".", "-"),
            "stage=predict",
            "trainer=cpu",
            f"ckpt_path={trained['bert']}",
            "predict.task=fill_mask",
            f"predict.input={tmp_path / name}",
            f"predict.output={output}",
            "predict.batch_size=2",
        )
        assert tokens(jsonl(output)) == tokens(expected)
        assert numbers(jsonl(output)) == pytest.approx(numbers(expected), abs=1e-5)
        assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "task, text, message",
    [
        ("fill_masks", MASKED[0], r"predict.task=fill_masks: no such task of WoBERT; did you mean fill_mask"),
        (
            "generate",
            MASKED[0],
            r"predict.task=generate: no such task of WoBERT \(there are: fill_mask, embed\)",
        ),
        ("fill_mask", "没有", r"^predict.input: no \[MASK\] within the first 30 characters of '没有'$"),
        (
            "fill_mask",
            "很" * 40 + "[MASK]",
            r"^predict.input: no \[MASK\] within the first 30 characters of '很很",
        ),
    ],
)
def test_what_cannot_be_predicted(task, text, message, trained, tmp_path):
    outcome = run(
        tmp_path / "run",
        "stage=predict",
        "trainer=cpu",
        f"ckpt_path={trained['wobert']}",
        f"predict.task={task}",
        f'predict.input=["{MASKED[0]}","{text}"]',
    )
    assert outcome.code == 2
    assert re.search(message, outcome.err, re.MULTILINE), outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.rglob("predictions.jsonl*"))


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_run_is_evaluated_again(stage, trained, tmp_path):
    finished(tmp_path / "run", f"stage={stage}", "trainer=cpu", f"ckpt_path={trained['wobert']}")
    fitted, again = summary(trained["wobert"]), summary(tmp_path / "run")
    prefix = "val/" if stage == "validate" else "test/"
    scores = {name for name in fitted["metrics"] if name.startswith(prefix)}
    assert len(scores) == 3 and scores <= set(again["metrics"])
    assert {name: again["metrics"][name] for name in scores} == {
        name: pytest.approx(fitted["metrics"][name], abs=1e-6) for name in scores
    }
    assert (again["stage"], again["source"]) == (stage, fitted["source"])


def test_another_corpus_is_scored_with_the_runs_tokenizer(trained, tmp_path):
    finished(
        tmp_path / "run",
        "stage=validate",
        "trainer=cpu",
        f"ckpt_path={trained['wobert']}",
        "data=clue",
        "data.source=sample",
    )
    told = summary(tmp_path / "run")
    assert told["source"] == "sample"
    assert told["data_facts"]["vocab_size"] == summary(trained["wobert"])["data_facts"]["vocab_size"]
    assert told["metrics"]["val/loss"] != summary(trained["wobert"])["metrics"]["val/loss"]


@pytest.mark.parametrize("model", ["wobert", "bert"])
def test_stock_transformers_loads_the_export(model, trained, validation_texts):
    export = trained[model] / "export"
    ours, inputs = load_for_prediction(str(trained[model]), WOBERT)
    stock = AutoModelForMaskedLM.from_pretrained(export).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert len(tokenizer) == inputs.tokenizer.vocab_size == stock.config.vocab_size
    assert not list(export.glob("*.py"))

    texts = [text[: inputs.max_length - 2] for text in validation_texts] + MASKED
    batch = inputs.encode(texts)
    rows = tokenizer(texts)["input_ids"]
    assert [token for row in rows for token in row] == batch.input_ids.tolist()

    padded = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = stock(**padded).logits[padded["attention_mask"].bool()]
        network = ours.eval().network
        torch.testing.assert_close(network.vocabulary_logits(network(batch)), expected, atol=1e-5, rtol=1e-5)

    fill = pipeline("fill-mask", model=str(export), device="cpu")
    for text, own in zip(MASKED, ours.predict_fill_mask(MASKED, inputs), strict=True):
        theirs = fill(text)
        theirs = theirs if isinstance(theirs[0], list) else [theirs]  # a list a mask, where there are several
        for one, other in zip(theirs, own["predictions"], strict=True):
            assert [candidate["token_str"] for candidate in one] == [
                candidate["token"] for candidate in other
            ]
            assert [candidate["score"] for candidate in one] == pytest.approx(
                [candidate["score"] for candidate in other], abs=1e-5
            )


def test_the_export_says_what_it_is(trained):
    export = trained["wobert"] / "export"
    card = (export / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "pipeline_tag: fill-mask" in card
    scores = summary(trained["wobert"])["metrics"]
    for name in ("val/loss", "val/bits_per_char", "test/loss", "baseline/unigram_loss"):
        assert f"| {name} | {scores[name]:.4f} |" in card
    assert 'pipeline("fill-mask", model=".")  # this directory; needs rjieba' in card
    saved = json.loads((export / "kexue.json").read_text(encoding="utf-8"))
    assert saved["_target_"] == WOBERT


def test_a_user_dictionary_is_part_of_the_run(corpus, tmp_path):
    word = "恶补法语"
    (tmp_path / "words.txt").write_text(f"{word} 1000000\n", encoding="utf-8")
    train = [
        json.dumps({"label": "100", "sentence": f"{word}{number}天"}, ensure_ascii=False)
        for number in range(9)
    ]
    (tmp_path / "train.json").write_text("\n".join(train), encoding="utf-8")
    finished(
        tmp_path / "run",
        *TINY,
        "debug=fast",
        f"data.train={tmp_path / 'train.json'}",
        "data.split=[0.5,0.5]",
        f"tokenizer.user_dict={tmp_path / 'words.txt'}",
    )
    card = (tmp_path / "run/export/README.md").read_text(encoding="utf-8")
    assert "dictionary" in card and "load_tokenizer" in card
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "words.txt").unlink()
    shutil.move(tmp_path / "run/export", tmp_path / "elsewhere")
    _, inputs = load_for_prediction(str(tmp_path / "elsewhere"), WOBERT)
    assert inputs.tokenizer.tokenize(f"我们{word}")[-1] == word


def first_loss(directory) -> float:
    return values(directory, "train/loss")[0][1]


@pytest.mark.parametrize("source", ["run", "export", "foreign"])
def test_a_run_starts_from_another(source, trained, corpus, tmp_path):
    path = {"run": trained["wobert"], "export": trained["wobert"] / "export"}.get(source)
    if source == "foreign":  # what another program saves: no file of ours
        path = tmp_path / "foreign"
        AutoModelForMaskedLM.from_pretrained(trained["wobert"] / "export").save_pretrained(path)
        shutil.copy(trained["wobert"] / "export/vocab.txt", path)
    short = (*TRAINING, "max_steps=1", "validate_every=1", "log_every=1")
    # Other text: the vocabulary must come from the run all the same.
    finished(tmp_path / "run", *short, "data.max_length=32", f"model.init_from={path}")
    vocabulary = (trained["wobert"] / "export/vocab.txt").read_bytes()
    assert (tmp_path / "run/export/vocab.txt").read_bytes() == vocabulary
    fresh = first_loss(trained["wobert"])
    assert first_loss(tmp_path / "run") < 0.9 * fresh


VOCABULARIES = {
    "wobert": "wobert_chinese_base.vocab.txt",
    "bert": "bert-base-chinese_and_nezha-cn-base.vocab.txt",
}


@needs_real_data
@pytest.mark.parametrize("model", ["wobert", "bert"])
@pytest.mark.parametrize("layout", ["safetensors", "pytorch_model.bin"])
def test_published_layouts_load(model, layout, corpus, tmp_path):
    """Directories as they were published (vocabulary, config.json, weights), but small and random weights."""
    from transformers import BertConfig, BertForMaskedLM

    published = tmp_path / "published"
    published.mkdir()
    vocabulary = os.path.join(REAL_DATA, "vocab", VOCABULARIES[model])
    shutil.copy(vocabulary, published / "vocab.txt")
    with open(os.path.join(REAL_DATA, "vocab/wobert_chinese_base.config.json"), encoding="utf-8") as file:
        config = json.load(file)
    entries = (published / "vocab.txt").read_text(encoding="utf-8").count("\n")
    config |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config["vocab_size"] = entries
    torch.manual_seed(0)
    weights = BertForMaskedLM(BertConfig(**config))
    if layout == "safetensors":
        weights.save_pretrained(published)
    else:
        # As published in 2020: the decoder's tied weight and the pooler are in the file, position_ids too.
        state = {name: tensor.clone() for name, tensor in weights.state_dict().items()}
        state["bert.embeddings.position_ids"] = torch.arange(512)[None]
        torch.save(state, published / "pytorch_model.bin")
    (published / "config.json").write_text(json.dumps(config), encoding="utf-8")

    options = ("trainer=cpu", "debug=fast", *corpus, f"model={model}", f"model.init_from={published}")
    finished(tmp_path / "run", *options)
    told = summary(tmp_path / "run")
    assert told["data_facts"]["vocab_size"] == entries
    # All tokens alike at the start.
    assert first_loss(tmp_path / "run") == pytest.approx(np.log(entries), rel=0.03)
    ours, inputs = load_for_prediction(str(tmp_path / "run"), WOBERT)
    assert isinstance(inputs, TextInput) and ours.hparams.network_config["num_hidden_layers"] == 2
    exported, original = tmp_path / "run/export/vocab.txt", published / "vocab.txt"
    assert exported.read_bytes().split() == original.read_bytes().split()
