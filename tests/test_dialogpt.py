"""Dialogue models as a user trains, asks, exports, continues and evaluates them."""

import json
import os

import pytest
from running import ended, finished, jsonl, run, start, summary, values
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from datamodules.text import TextInput
from launch.predict import load_for_prediction

SMALL = (
    "trainer=cpu",
    "model=dialogpt",
    "model.backbone.hidden_size=32",
    "model.backbone.intermediate_size=64",
    "data=lccc",
    "data.tokens_per_batch=512",
    "model.optimizer.lr=1e-2",
    "logger=[csv,tensorboard]",
)
SHORT = (
    *SMALL,
    "data.limit=300",
    "max_steps=40",
    "validate_every=20",
    "model.sampled_replies=8",
    "log_every=1",
)
HISTORIES = [["你好"], ["你好", "你好呀"], ["吃饭了吗", "还没有", "一起去吧"]]
GREEDY = ("model=dialogpt", "model.decoding.top_k=1", "model.decoding.min_length=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dialogues") / "run"
    finished(directory, *SHORT)
    return directory


def predict(directory, source, task, given, *options):
    given = json.dumps(given, ensure_ascii=False) if isinstance(given, list) else given
    finished(
        directory,
        "stage=predict",
        "trainer=cpu",
        f"ckpt_path={source}",
        f"predict.task={task}",
        f"predict.input={given}",
        *options,
    )
    return jsonl(directory / "predictions.jsonl")


def test_a_run_leaves_its_replies_at_each_validation(trained):
    replies = {path.name: jsonl(path) for path in (trained / "replies").iterdir()}
    assert replies.keys() == {"val_0000020.jsonl", "val_0000040.jsonl", "val.jsonl", "test.jsonl"}
    for records in replies.values():
        assert [record["row"] for record in records] == list(range(8))
        assert all(record["history"] and record["reference"] for record in records)
    # The weights that are kept are those of one of the validations.
    assert replies["val.jsonl"] in (replies["val_0000020.jsonl"], replies["val_0000040.jsonl"])
    files = (trained / "tensorboard").rglob("events*")
    texts = {tag for file in files for tag in EventAccumulator(str(file)).Reload().Tags()["tensors"]}
    assert any("val/replies" in tag for tag in texts)
    scores = summary(trained)["metrics"]
    assert scores["val/reply_perplexity"] < 700 and scores["val/reply_bits_per_char"] < 10
    assert {
        "test/dist_1",
        "test/bleu_2",
        "test/repetition_rate",
        "val/reply_bits_per_char_turn_3",
    } <= scores.keys()


def test_run_and_export_reply_and_score_alike(trained, tmp_path):
    file = tmp_path / "dialogues.jsonl"
    lines = [json.dumps({"id": i, "dialog": turns}, ensure_ascii=False) for i, turns in enumerate(HISTORIES)]
    file.write_text("\n".join(lines), encoding="utf-8")
    typed = predict(tmp_path / "typed", trained, "reply", HISTORIES)
    of_file = predict(tmp_path / "file", trained / "export", "reply", file, "predict.batch_size=2")
    assert [record.pop("id") for record in of_file] == [0, 1, 2]
    for one, other in zip(of_file, typed, strict=True):
        assert (one["history"], one["reply"]) == (other["history"], other["reply"])
        assert one["log_prob"] == pytest.approx(other["log_prob"], rel=1e-4)
    whole = [[*turns, record["reply"]] for turns, record in zip(HISTORIES, typed, strict=True)]
    scored = predict(tmp_path / "scored", trained, "score", whole)
    for record, reply in zip(scored, typed, strict=True):
        if len(reply["reply"]) < 32:  # its end is part of what is scored
            assert record["log_prob"] == pytest.approx(reply["log_prob"], abs=1e-2)


def test_the_cards_code_replies_as_the_run_does(trained, tmp_path, monkeypatch):
    card = (trained / "export/README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(trained / "export")
    said = []
    exec(code, {"print": said.append})
    (record,) = predict(tmp_path / "run", trained, "reply", [["你好", "你好呀,在做什么"]], *GREEDY)
    assert said[0].replace(" ", "") == record["reply"].replace(" ", "")


def test_a_trained_run_is_evaluated_on_longer_rows(trained, tmp_path):
    finished(
        tmp_path / "same", "trainer=cpu", "stage=validate", f"ckpt_path={trained}", "data.max_length=128"
    )
    assert summary(tmp_path / "same")["metrics"] == pytest.approx(
        {name: value for name, value in summary(trained)["metrics"].items() if name.startswith("val/")}
    )
    short = (*SHORT, "data.max_length=24", "max_steps=4", "validate_every=4")
    for positions in ("rotary", "absolute"):
        run_of = tmp_path / positions
        finished(
            run_of,
            *short,
            f"model.backbone.positions={positions}",
            "model.backbone.max_position_embeddings=24",
        )
        longer = ("trainer=cpu", "stage=validate", f"ckpt_path={run_of}", "data.max_length=64")
        if positions == "rotary":
            finished(tmp_path / "longer", *longer)
            assert "val/beyond_bits_per_char" in summary(tmp_path / "longer")["metrics"]
        else:
            outcome = run(tmp_path / "too_long", *longer)
            assert outcome.code != 0
            assert "data.max_length=64: the model's positions reach 24 tokens" in outcome.err


def test_another_run_starts_from_it_in_either_form(trained, tmp_path):
    again = (f"model.init_from={trained}", "max_steps=2", "validate_every=2", "model.optimizer.lr=1e-12")
    finished(tmp_path / "turns", *SHORT, *again)
    name = "val/reply_bits_per_char"
    assert summary(tmp_path / "turns")["metrics"][name] == pytest.approx(
        summary(trained)["metrics"][name], rel=1e-4
    )
    finished(tmp_path / "speakers", *SHORT, *again, "model.form=speakers")
    model, inputs = load_for_prediction(str(tmp_path / "speakers/export"), "")
    assert isinstance(inputs, TextInput) and model.hparams.form == "speakers"
    assert model.hparams.role_rows == [inputs.tokenizer.vocab_size, inputs.tokenizer.vocab_size + 1]
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "speakers/export")
    assert stock.get_input_embeddings().num_embeddings == inputs.tokenizer.vocab_size + 2


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    options = (*SHORT, "model.form=speakers", "max_steps=8", "validate_every=4")
    schedule = ("model/scheduler=constant", "model.scheduler.warmup=0")
    finished(tmp_path / "whole", *options, *schedule)
    finished(tmp_path / "parts", *options, *schedule, "max_steps=5")
    finished(tmp_path / "parts", *options, *schedule, "ckpt_path=last")
    assert values(tmp_path / "parts", "train/loss")[5:] == values(tmp_path / "whole", "train/loss")[5:]
    assert (
        summary(tmp_path / "parts")["metrics"]["val/bleu_2"]
        == summary(tmp_path / "whole")["metrics"]["val/bleu_2"]
    )


def test_a_backward_model_reranks(trained, tmp_path):
    finished(tmp_path / "backward", *SHORT, "model.backward=true", "max_steps=20")
    assert "val/dist_1" not in summary(tmp_path / "backward")["metrics"]
    (record,) = predict(
        tmp_path / "reply",
        trained,
        "reply",
        [["你好"]],
        "model=dialogpt",
        "model.decoding.candidates=4",
        f"model.backward_model={tmp_path / 'backward'}",
    )
    backward = [candidate["backward_log_prob"] for candidate in record["candidates"]]
    assert backward == sorted(backward, reverse=True) and len(backward) == 4
    outcome = run(
        tmp_path / "wrong",
        "stage=predict",
        "trainer=cpu",
        f"ckpt_path={trained}",
        "predict.task=reply",
        'predict.input=["你好"]',
        "model=dialogpt",
        "model.decoding.candidates=4",
        f"model.backward_model={trained}",
    )
    assert outcome.code != 0 and "was trained forwards" in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("data=clue",),
            "model=dialogpt: needs turns, which data=clue does not provide; use data=dialogue or data=lccc",
        ),
        (
            ("model/backbone=tiny",),
            "backbone=TextEncoder: is no causal language model; type model/backbone=gpt_tiny",
        ),
        (("model.decoding.top_p=1.5",), "model.decoding.top_p=1.5: must"),
        (("model.decoding.topk=3",), "model.decoding.topk: no such option; did you mean top_k?"),
        (
            ("model.backbone.positions=absolute", "data.max_length=600"),
            "data.max_length=600: the model's positions reach 512 tokens",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_read(options, message, tmp_path):
    outcome = run(tmp_path / "run", *SMALL[:2], "data=lccc", *options)
    assert outcome.code == 2 and message in outcome.err
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    options = [o for o in SHORT if o != "trainer=cpu"] + [
        "max_steps=10",
        "validate_every=5",
        "model.backbone.dropout=0",
    ]
    one = start(tmp_path / "one", *options, "trainer=cpu")
    assert ended(one).code == 0
    two = start(tmp_path / "two", *options, "trainer=ddp_cpu", "trainer.devices=2")
    assert ended(two).code == 0
    scores = {name: summary(tmp_path / name)["metrics"] for name in ("one", "two")}
    names = [name for name in scores["one"] if name.startswith(("val/", "test/"))]
    assert {n: scores["two"][n] for n in names} == pytest.approx(
        {n: scores["one"][n] for n in names}, rel=1e-4
    )
    for name in os.listdir(tmp_path / "one/replies"):
        assert jsonl(tmp_path / "two/replies" / name) == jsonl(tmp_path / "one/replies" / name)
