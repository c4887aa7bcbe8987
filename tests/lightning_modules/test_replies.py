"""Scores of real and of generated replies, and what is left of the generated ones."""

import html
import json
import math
import re
from datetime import timedelta

import pytest
import torch
from tensorboard.plugin_util import markdown_to_safe_html

from lightning_modules.replies import (
    ReplyScores,
    SampleReply,
    as_markdown,
    gathered,
    text_scores,
    units,
    write_replies,
)

UNK = 1
TRAINED = 8
# A target each: loss in nats, id, characters, turn, position. Rows with a reply at turn 1, 2, 2, 3, 5 and 9.
TARGETS = [
    (0.5, 7, 1, 1, 2),
    (0.1, 3, 0, 1, 3),
    (2.5, 9, 2, 2, 4),
    (1.5, UNK, 3, 2, 5),
    (0.2, 3, 0, 2, 6),
    (3.5, 8, 1, 3, 7),
    (0.3, 3, 0, 3, 8),
    (4.5, UNK, 1, 5, 9),
    (5.5, 6, 4, 9, 40),
]
ALL_LOSSES = [0.7, 1.3, *(target[0] for target in TARGETS)]


def fill(scores: ReplyScores, targets: list[tuple], dtype: torch.dtype = torch.float32) -> None:
    losses, *rest = zip(*targets, strict=True) if targets else [()] * 5
    rest = [torch.tensor(values, dtype=torch.long) for values in rest]
    scores.update(torch.tensor(losses, dtype=dtype), *rest)


def scored(*batches: list[tuple], unk_id: int | None = UNK) -> dict[str, float]:
    scores = ReplyScores(unk_id, characters=32, trained_length=TRAINED)
    for batch in batches:
        fill(scores, batch)
        losses = torch.tensor([target[0] for target in batch])
        scores.update_loss(losses.sum(), losses.numel())
    return {name: value.item() for name, value in scores.compute().items()}


def bits(targets: list[tuple]) -> float:
    """A character, an [UNK] charged the five bits of one in 32 for each that it hides."""
    paid = sum(loss / math.log(2) + (chars * 5 if token == UNK else 0) for loss, token, chars, *_ in targets)
    return paid / sum(target[2] for target in targets)


@pytest.mark.parametrize("cuts", [[], [4], [1, 5, 5, 8]])
def test_scores_are_their_formulas_on_any_batches(cuts):
    edges = [0, *cuts, len(TARGETS)]
    found = scored(*(TARGETS[a:b] for a, b in zip(edges, edges[1:], strict=False)))
    mean = sum(target[0] for target in TARGETS) / len(TARGETS)

    def of(*turns: int) -> float:
        return bits([target for target in TARGETS if target[3] in turns])

    assert found == pytest.approx(
        {
            "loss": mean,
            "reply_loss": mean,
            "reply_perplexity": math.exp(mean),
            "reply_bits_per_char": bits(TARGETS),
            "reply_bits_per_char_turn_2": of(2),
            "reply_bits_per_char_turn_3": of(3),  # its [SEP], which is beyond the training length, included
            "reply_bits_per_char_turn_5_or_later": of(5, 9),
            "beyond_bits_per_char": bits([target for target in TARGETS if target[4] >= TRAINED]),
        }
    )


def test_the_loss_is_of_all_targets_and_the_other_scores_are_of_replies():
    scores = ReplyScores(UNK, characters=32, trained_length=TRAINED)
    fill(scores, TARGETS)
    before = scores.compute()
    scores.update_loss(torch.tensor(ALL_LOSSES).sum(), torch.tensor(len(ALL_LOSSES)))
    after = scores.compute()
    assert after.pop("loss").item() == pytest.approx(sum(ALL_LOSSES) / len(ALL_LOSSES))
    assert before.pop("loss").isnan() and before == after


def test_without_an_unknown_token_nothing_is_charged():
    found = scored(TARGETS, unk_id=None)
    paid = sum(target[0] for target in TARGETS) / math.log(2)
    assert found["reply_bits_per_char"] == pytest.approx(paid / 12)


def test_a_score_of_no_target_is_not_there_and_no_total_is_mistaken_for_a_good_one():
    totals = {"loss", "reply_loss", "reply_perplexity", "reply_bits_per_char"}
    nothing = scored([])
    assert set(nothing) == totals and all(math.isnan(value) for value in nothing.values())
    # Replies of white space only: their [SEP] is paid, at turn 3 and beyond the training length, for no character.
    blank = scored([(0.3, 3, 0, 3, 8)])
    assert set(blank) == totals
    assert blank["reply_loss"] == pytest.approx(0.3) and blank["reply_bits_per_char"] == math.inf


def test_an_infinite_loss_stays_where_it_is():
    found = scored([(math.inf, 5, 1, 2, 3), (1.0, 5, 1, 3, 9)])
    assert found["reply_bits_per_char"] == found["reply_bits_per_char_turn_2"] == math.inf
    expected = pytest.approx(1 / math.log(2))
    assert found["reply_bits_per_char_turn_3"] == expected and found["beyond_bits_per_char"] == expected


def test_a_model_in_bf16_sums_exactly_and_a_new_evaluation_starts_from_nothing():
    model = torch.nn.ModuleDict({"scores": ReplyScores(UNK, characters=32, trained_length=TRAINED)})
    scores = model.to(torch.bfloat16)["scores"]
    for _ in range(2):
        fill(scores, [(1.0, 5, 1, 2, 0)] * 3000, torch.bfloat16)
        fill(scores, [(1.0, 5, 1, 2, 0)], torch.bfloat16)
        assert scores.compute()["reply_bits_per_char"].item() == pytest.approx(1 / math.log(2), abs=1e-12)
        assert scores.targets.item() == 3001
        scores.reset()
    assert not model.state_dict()


# ------------------------------------------------------------------------------------------------ generated replies


@pytest.mark.parametrize(
    "text, expected",
    [
        ("你好，hello World3！", ["你", "好", "，", "hello", "world3", "！"]),
        ("iPhone 6 和 6.5", ["iphone", "6", "和", "6", ".", "5"]),
        ("Ｃafé　naïve straße", ["ｃ", "afe", "naive", "straße"]),
        ("哈哈\u200b哈 😂😂", ["哈", "哈", "哈", "😂", "😂"]),
        ("한국", ["한", "국"]),
        ("a\u200bb\ufffd", ["ab"]),
        (" \n\t　", []),
        ("", []),
    ],
)
def test_units_are_characters_and_latin_words(text, expected):
    assert units(text) == expected


def test_distinct_ngrams_are_counted_over_all_replies():
    found = text_scores(["我不知道", "我不知道啊", "ok ok"], ["", "", ""])
    assert found["dist_1"] == pytest.approx(6 / 11)  # 我 不 知 道 啊 ok
    assert found["dist_2"] == pytest.approx(5 / 8)


def test_bleu_is_that_of_papineni():
    replies, references = ["今天天气很好", "我OK的"], ["今天天气真好啊", "我 ok 的"]
    found = text_scores(replies, references)
    # Of 9 units 8 are in the references, of 7 pairs 5; of 5 triples 3, of 3 quadruples 1; and of 10 units 9 are said.
    brevity = math.exp(1 - 10 / 9)
    assert found["bleu_2"] == pytest.approx(brevity * math.sqrt(8 / 9 * 5 / 7))
    assert found["bleu_4"] == pytest.approx(brevity * (8 / 9 * 5 / 7 * 3 / 5 * 1 / 3) ** 0.25)


def test_the_same_replies_have_a_bleu_of_one():
    found = text_scores(["今天天气很好", "好"], ["今天天气很好", "好"])
    assert found["bleu_2"] == found["bleu_4"] == pytest.approx(1)


@pytest.mark.parametrize(
    "reply, repeats",
    [
        ("你是谁你是谁", False),  # no run of four twice
        ("你在哪里啊你在哪里", True),
        ("哈哈哈哈", False),
        ("哈哈哈哈哈", True),  # the two overlap
        ("no no no no no", True),
        ("nonono nonono", False),  # two words
        ("", False),
    ],
)
def test_a_reply_that_repeats_four_units(reply, repeats):
    assert text_scores([reply], [""])["repetition_rate"] == float(repeats)
    assert text_scores([reply, "好"], ["", ""])["repetition_rate"] == repeats / 2


@pytest.mark.parametrize("replies", [[""], ["", " "]])
def test_empty_replies_score_nothing(replies):
    found = text_scores(replies, ["好"] * len(replies))
    assert found == dict.fromkeys(["dist_1", "dist_2", "bleu_2", "bleu_4", "repetition_rate"], 0.0)


def test_no_reply_has_no_score_and_a_missing_reference_is_told():
    assert text_scores([], []) == {}
    with pytest.raises(ValueError, match="references: 1 for 2 replies"):
        text_scores(["好", "好"], ["好"])


# --------------------------------------------------------------------------------------------------- sample replies


def sample(row: int, *history: str, reference: str, reply: str) -> SampleReply:
    return {"row": row, "history": history, "reference": reference, "reply": reply}


MARKUP = ("[链接](http://x) `代码|` \\| ~~x~~", "<b>&amp;</b> | 😂")
SAMPLES = [
    sample(0, "你好", reference="你好呀", reply="好"),
    sample(1, "a|b", "第一行\n第二行 *重点* _x_", reference=MARKUP[0], reply=MARKUP[1]),
    sample(2, reference="", reply="半个\ud83d"),
]
RANKS = [[SAMPLES[2], SAMPLES[0]], [SAMPLES[1]]]


def test_written_replies_come_back(tmp_path):
    path = write_replies(tmp_path / "replies" / "100.jsonl", SAMPLES, step=100)
    write_replies(path, SAMPLES, step=100)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"step": 100, **own, "history": list(own["history"])} for own in SAMPLES]
    assert [file.name for file in path.parent.iterdir()] == ["100.jsonl"]
    assert "你好呀" in path.read_text(encoding="utf-8")


def test_a_text_that_is_markup_stands_in_tensorboards_table_as_it_is():
    shown = markdown_to_safe_html(as_markdown(SAMPLES[:2]))
    cells = [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", shown)]
    assert cells == ["你好", "你好呀", "好", "a|b<br>第一行 第二行 *重点* _x_", *MARKUP]
    assert "<b>" not in shown and "<a" not in shown


def test_no_more_samples_are_shown_than_asked_for():
    assert as_markdown(SAMPLES, most=1).splitlines()[2:] == ["| 你好 | 你好呀 | 好 |"]
    assert len(as_markdown([SAMPLES[0]] * 30).splitlines()) == 12


def _rank(rank: int, meeting: str, directory: str) -> None:
    """What one of two ranks does; the second has no turn 5 or later in its rows."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    scores = ReplyScores(UNK, characters=32, trained_length=TRAINED)
    part = TARGETS[5:] if rank == 0 else TARGETS[:5]
    fill(scores, part)
    scores.update_loss(torch.tensor([target[0] for target in part]).sum(), len(part))
    found = {name: value.item() for name, value in scores.compute().items()}
    torch.save((found, gathered(RANKS[rank])), f"{directory}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_score_and_gather_as_one(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "meeting"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        found, samples = torch.load(tmp_path / f"rank{rank}.pt")
        assert found == pytest.approx(scored(TARGETS))
        assert samples == SAMPLES
    assert gathered(RANKS[0]) == [SAMPLES[0], SAMPLES[2]]  # alone
