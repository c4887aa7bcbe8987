"""claims/dialogpt_all_turns, _roles, _length and _lccc: what their reports make of jobs."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from datamodules.atomic import write_whole
from datamodules.build import TECHNIQUE
from datamodules.tokenizers.char import CharTokenizer
from launch.claims import Job
from launch.predict import load_for_prediction
from launch.reports import dialogpt, dialogpt_lccc, dialogpt_length
from launch.reports.kneser_ney import KneserNey
from lightning_modules.dialogpt import DialoGPT

BITS = "val/reply_bits_per_char"
FACTS = {"splits": {"train": {"num_rows": 100, "num_texts": 250}, "val": {"num_rows": 10, "num_texts": 25}}}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TRAINED = [["你好", "你好呀"], ["吃了吗", "吃了", "我没有"], ["早", "早上好呀"], ["你吃了吗", "还没有吃"]]
HELD_OUT = [["你好呀", "你也好"], ["早", "你早", "吃了吗吃了吗", "早就吃了"], ["你吃吗", "没猫"]]


def ended(
    place: Path, options: dict, scores: dict[str, list[float]], speeds: list[float] | None = None
) -> list[Job]:
    """A job for each seed."""
    jobs = []
    for seed, values in enumerate(zip(*scores.values(), strict=True)):
        directory = place / str(seed)
        directory.mkdir(parents=True, exist_ok=True)
        told = {
            "status": "finished",
            "metrics": dict(zip(scores, values, strict=True)),
            "throughput": {"examples_per_second": speeds[seed] if speeds else None},
            "data_facts": FACTS,
            "wall_seconds": 120.0,
        }
        write_whole(directory / "summary.json", json.dumps(told))
        jobs.append(Job(directory, {**options, "seed": seed, "~callbacks.best": None}))
    return jobs


def scores(perplexities: list[float], **bits: float) -> dict[str, list[float]]:
    """Of each seed; `bits`: by the turn of the reply, alike for all."""
    at_turns = {
        f"{BITS}_turn_{turn.removeprefix('at_')}": value for turn, value in {"at_2": 6.0, **bits}.items()
    }
    constant = {BITS: 6.0, **at_turns}
    return {dialogpt.PERPLEXITY: perplexities} | {
        name: [v] * len(perplexities) for name, v in constant.items()
    }


# ------------------------------------------------------------------------------------------ all turns, and roles


@pytest.mark.parametrize(
    "perplexities, speeds, met",
    [
        ([40.0, 50.0], [10.0, 10.0], True),
        ([40.0, 56.0], [10.0, 10.0], False),
        ([40.0, 50.0], [10.0, 6.0], False),
    ],
    ids=["both", "one seed is worse", "one seed is slower"],
)
def test_all_turns_must_be_better_and_train_more_replies_for_each_seed(perplexities, speeds, met, tmp_path):
    option = "model.loss_on"
    jobs = ended(tmp_path / "all", {option: "all"}, scores(perplexities), speeds)
    jobs += ended(tmp_path / "reply", {option: "reply"}, scores([50.0, 55.0]), [12.0, 10.0])
    found = dialogpt.all_turns({"train": jobs}, {"perplexity": 1.0, "replies": 1.0})
    assert found.met is met
    # Of 2.5 turns a dialogue 1.5 answer one.
    assert found.numbers["replies_per_second/all turns"] == pytest.approx(1.5 * sum(speeds) / 2)
    assert found.numbers["replies_ratio/least"] == pytest.approx(
        min(1.5 * speeds[0] / 12, 1.5 * speeds[1] / 10)
    )
    assert "A dialogue has 2.50 turns" in found.notes
    assert all(len(row) == len(found.header) for row in found.rows)


@pytest.mark.parametrize("having, met", [([40.0, 54.0], True), ([20.0, 55.0], False)])
def test_roles_must_be_better_for_each_seed(having, met, tmp_path):
    jobs = ended(tmp_path / "true", {"model.roles": True}, scores(having))
    jobs += ended(tmp_path / "false", {"model.roles": False}, scores([50.0, 55.0]))
    found = dialogpt.roles({"train": jobs}, {"perplexity": 1.0})
    assert found.met is met
    assert found.numbers["reply_perplexity/with roles"] == pytest.approx(sum(having) / 2)
    assert f"by seed it is {having[0] / 50:.3f}, {having[1] / 55:.3f} times as high" in found.because


def test_turns_that_no_held_out_dialogue_has_are_left_out(tmp_path):
    jobs = ended(tmp_path / "true", {"model.roles": True}, scores([4.0], at_3=7.0, at_5_or_later=8.0))
    jobs += ended(tmp_path / "false", {"model.roles": False}, scores([5.0], at_5_or_later=9.0))
    found = dialogpt.roles({"train": jobs}, {"perplexity": 1.0})
    assert found.header[-2:] == ["at turn 2", "at turn 5 or later"]
    [axes] = found.figures["by_turn"].axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert drawn["with roles"] == [6.0, 8.0] and drawn["without"] == [6.0, 9.0]


# -------------------------------------------------------------------------------------------------------- length


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict:
    """The options of `data` of files in LCCC's form."""
    folder = tmp_path_factory.mktemp("corpus")
    node = {"_target_": "datamodules.lccc.LCCC", "max_length": 16, "keep": "first"}
    for split, dialogues in (("train", TRAINED), ("val", HELD_OUT)):
        spaced = [[" ".join(turn) for turn in turns] for turns in dialogues]
        write_whole(folder / f"{split}.json", json.dumps(spaced, ensure_ascii=False))
        node[split] = str(folder / f"{split}.json")
    return node


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A dialogue model with random weights; no character of it is `猫`."""
    directory = tmp_path_factory.mktemp("model") / "export"
    directory.mkdir()
    file = directory.parent / "vocab.txt"
    characters = sorted({character for turns in TRAINED for turn in turns for character in turn})
    file.write_text("\n".join([*SPECIAL, *characters, "就", "也"]), encoding="utf-8")
    tokenizer = CharTokenizer(vocab=str(file))
    torch.manual_seed(0)
    model = DialoGPT(
        backbone={
            "_target_": "lightning_modules.networks.causal_lm.CausalLM",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        facts={
            "vocab_size": tokenizer.vocab_size,
            "pad_id": 0,
            "unk_id": 1,
            "cls_id": 2,
            "sep_id": 3,
            "mask_id": 4,
            "special_ids": [0, 1, 2, 3, 4],
            "max_length": 8,
            "train_characters": 16,
        },
        role_rows=[tokenizer.vocab_size, tokenizer.vocab_size + 1],
    )
    model.configure_model()
    model.export(directory)
    tokenizer.save(directory, 8)
    target = {"_target_": "lightning_modules.dialogpt.DialoGPT"}
    write_whole(directory / TECHNIQUE, json.dumps(target | model.exported_options() | {"init_from": None}))
    return directory


@pytest.fixture
def trained(tmp_path, corpus, exported):
    def made(step: str, options: dict, values: dict[str, list[float]]) -> list[Job]:
        """Jobs that have trained the exported model on the corpus, with these scores by seed."""
        jobs = ended(tmp_path / step / "-".join(map(str, options.values())), options, values)
        for job in jobs:
            (job.directory / "export").symlink_to(exported)
            decoding = {"top_k": 5, "temperature": 1.0, "max_length": 32}
            node = {"data": {**corpus, "tokens_per_batch": 64}, "model": {"decoding": decoding}}
            write_whole(job.directory / "config.yaml", OmegaConf.to_yaml(node))
        return jobs

    return made


def test_replies_by_position_are_the_scores_of_the_model(trained, exported):
    [job] = trained("train", {}, {BITS: [6.0]})
    dialogues = list(dialogpt.dialogues_of(job, "val"))
    assert dialogues == [tuple(turns) for turns in HELD_OUT]
    found = dialogpt_length.placed(job, dialogues, [0, 4, 8, 12, 16])
    model, inputs = load_for_prediction(str(exported), "")
    model.eval()
    inputs.max_length = 16
    # Of the second dialogue's turns three fit into 16 tokens.
    whole = [dialogues[0], dialogues[1][:3], dialogues[2]]
    with torch.inference_mode():
        nats = -sum(result["log_prob"] for result in model.predict_score(whole, inputs))
    assert found.characters == [0, 7, 4, 0]  # a [SEP] alone is beyond 12
    # 猫 is no token, so it costs a code over the training characters.
    assert sum(found.bits) == pytest.approx(nats / math.log(2) + math.log2(16), rel=1e-5)
    assert found.bits_per_char(8, 16) == pytest.approx(sum(found.bits[2:]) / 4)
    assert math.isnan(found.bits_per_char(0, 4))


@pytest.mark.parametrize("rotary, met", [([5.0, 5.6], True), ([3.0, 5.9], False)])
def test_rotary_positions_must_gain_for_each_seed(rotary, met, trained):
    positions, length = "model.backbone.positions", "data.max_length"
    train, beyond = [], []
    for name, bits in (("rotary", rotary), ("absolute", [6.0, 6.0])):
        jobs = trained("train", {positions: name, length: 8}, {BITS: [9.0, 9.0]})
        train += jobs
        asked = trained("beyond", {"run": name}, {dialogpt_length.BEYOND: bits})
        beyond += [Job(own.directory, own.options, job) for own, job in zip(asked, jobs, strict=True)]
    bound = trained("bound", {positions: "rotary", length: 16}, {BITS: [9.0, 9.0]})
    found = dialogpt_length.report({"train": train, "beyond": beyond, "bound": bound}, {"gain": 0.05})
    assert found.met is met
    assert found.numbers["gain/least"] == pytest.approx(1 - rotary[1] / 6)
    assert found.numbers["worse_than_bound"] == pytest.approx(0)  # all have the same weights
    assert [row[0] for row in found.rows] == [
        "rotary, trained at 8",
        "absolute, trained at 8",
        "rotary, trained at 16",
    ]
    assert "3 held-out dialogues of up to 16 tokens: 4 of their 11 characters lie beyond 8" in found.notes
    assert len(found.figures["by_position"].axes[0].get_legend().get_texts()) == 3


@pytest.mark.parametrize("length, longest", [(32, 128), (5, 6), (8, 16)])
def test_the_training_length_is_between_two_ranges(length, longest):
    edges = dialogpt_length.edges_of(length, longest)
    assert edges == sorted(set(edges)) and length in edges and (edges[0], edges[-1]) == (0, longest)


# ---------------------------------------------------------------------------------------------------------- LCCC


def talked(job: Job, replies: int) -> Job:
    """With what the run leaves besides: sample replies, and scores in the course of the training."""
    samples = [
        {
            "step": 9,
            "row": row,
            "history": ["在|吗", f"第{row}句"],
            "reference": "好\n的",
            "reply": f"<嗯>{row}",
        }
        for row in range(replies)
    ]
    (job.directory / "replies").mkdir()
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    write_whole(job.directory / "replies" / "val.jsonl", "".join(lines))
    write_whole(job.directory / "metrics.csv", f"epoch,step,{BITS}\n0,4,9.0\n0,9,6.5\n")
    return job


def test_bigrams_count_the_training_turns_and_are_scored_on_the_replies_that_the_model_has(trained):
    generated = {f"val/{name}": [0.25] for name in dialogpt_lccc.GENERATED}
    replies = ["你也好", "吃了吗吃了吗", "没猫"]  # of the second dialogue the last turn that 16 tokens hold
    bigrams = KneserNey([turn for turns in TRAINED for turn in turns]).bits_per_char(replies)
    for share, met in ((0.94, True), (0.96, False)):
        values = {**scores([30.0]), BITS: [share * bigrams], **generated}
        [job] = trained(f"train{share}", {"seed": 1}, values)
        found = dialogpt_lccc.report({"train": [talked(job, 25)]}, {"gain": 0.05})
        assert found.met is met
        assert found.numbers["bits/Kneser-Ney bigrams"] == pytest.approx(bigrams)
        assert found.numbers["gain"] == pytest.approx(1 - share)
    rows = dict(found.rows)
    assert rows["BLEU-4 of its own replies"] == "0.250" and rows["perplexity of a token"] == "30.00"
    [axes] = found.figures["learning"].axes
    assert [list(line.get_ydata()) for line in axes.get_lines()][0] == [9.0, 6.5]


def test_twenty_unpicked_exchanges_are_shown_as_they_are(trained):
    values = {**scores([30.0]), **{f"val/{name}": [0.25] for name in dialogpt_lccc.GENERATED}}
    [job] = trained("train", {"seed": 1}, values)
    notes = dialogpt_lccc.report({"train": [talked(job, 25)]}, {"gain": 0.05}).notes
    table = [line for line in notes.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 20 and all(line.count("|") == 4 for line in table)
    assert [re.search(r"第(\d+)句", line)[1] for line in table[2:]] == [str(row) for row in range(20)]
    assert "(9 steps of 64 tokens)" in notes


def test_without_a_model_of_characters_each_costs_the_same():
    model = KneserNey(["ab", "ba"])
    bits = math.log2(len(model.vocabulary))
    assert dialogpt_lccc.uniform(model, ["ab", "b a"]) == pytest.approx(bits * 6 / 4)
    assert dialogpt_lccc.uniform(model, ["c"]) == pytest.approx(2 * bits + model.bits_per_unknown)
