"""The dialogue model: its loss, what it is asked for a reply, replies, scores, reranking, dialogues that do not fit."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import FACTS
from real_data import REAL_DATA, needs_real_data
from test_dialogue import DIALOGUES, batch_of
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from datamodules.corpus import DataError
from datamodules.text import TextInput
from datamodules.tokenizers.char import CharTokenizer
from lightning_modules.decoding import Decoding
from lightning_modules.dialogpt import DialoGPT
from lightning_modules.dialogue import Turn, batch_of_turns
from lightning_modules.networks.causal_lm import CausalLM

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "dropout": 0.0,
}
BACKBONE = {"_target_": "lightning_modules.networks.causal_lm.CausalLM", **SHAPE}
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-2}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TALK = [("你好", "你好呀"), ("吃饭了吗", "还没有", "一起去吧"), ("早", "早上好"), ("再见", "明天见")]
CHARACTERS = sorted({character for turns in TALK for turn in turns for character in turn})
FORMS = [
    {"form": "turns"},
    {"form": "speakers"},
    {"form": "turns", "roles": False},
    {"form": "speakers", "roles": False},
]


def inputs_of(folder: Path, characters: list[str]) -> TextInput:
    file = folder / "vocab.txt"
    file.write_text("\n".join([*SPECIAL, *characters]), encoding="utf-8")
    return TextInput(CharTokenizer(vocab=str(file)), 32, dialogues=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> TextInput:
    return inputs_of(tmp_path_factory.mktemp("vocabulary"), CHARACTERS)


def dialogpt(tokenizer=None, **options) -> DialoGPT:
    torch.manual_seed(0)
    facts = FACTS if tokenizer is None else {**FACTS, "vocab_size": tokenizer.vocab_size}
    rows = [facts["vocab_size"], facts["vocab_size"] + 1]
    node = {"backbone": BACKBONE, "optimizer": ADAMW, "facts": facts, "role_rows": rows, **options}
    model = DialoGPT(**node)
    model.configure_model()
    return model


def counted(model: DialoGPT, batch):
    batch.num_targets = model.count_targets(batch)
    return batch


def by_hand(model: DialoGPT, turns: list[list[int]], only_reply: bool) -> torch.Tensor:
    """Nats of the targets of one dialogue, by the stock network on a row of its own."""
    first, second = model.hparams.role_rows
    speakers, roles_on = model.hparams.form == "speakers", model.hparams.roles
    cls, sep = 2, 3
    ids, roles, target = [cls], [cls if speakers else first], [False]
    for number, turn in enumerate(turns):
        own, last = (first, second)[number % 2], turn is turns[-1]
        said = [own, *turn] if speakers else [*turn, sep]
        ids += said
        roles += [own] * len(said)
        wanted = last or not only_reply
        # A speaker's token ends the turn before it: nobody predicts the first one, and it is no part of the reply.
        target += [not only_reply and number > 0, *[wanted] * len(turn)] if speakers else [wanted] * len(said)
    if speakers:
        ids, roles, target = [*ids, sep], [*roles, own], [*target, True]
    embed = model.network.model.get_input_embeddings()
    inputs = embed(torch.tensor(ids))
    if roles_on:
        inputs = inputs + embed(torch.tensor(roles))
    with model.network._stock_attention():
        logits = model.network.model(inputs_embeds=inputs[None]).logits[0]
    if not speakers:
        logits = logits[:, :first]
    losses = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    return losses[torch.tensor(target[1:])]


@pytest.mark.parametrize("loss_on", ["all", "reply"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_training_loss_is_that_of_each_dialogue_by_hand(form, loss_on):
    model = dialogpt(**form, loss_on=loss_on)
    loss = model.training_step(counted(model, batch_of(DIALOGUES)), 0)
    expected = torch.cat([by_hand(model, turns, loss_on == "reply") for turns in DIALOGUES])
    torch.testing.assert_close(loss, expected.mean())


def test_each_form_has_the_loss_of_those_who_published_it():
    assert not dialogpt(form="turns").replies_only
    assert dialogpt(form="speakers").replies_only


@pytest.mark.parametrize(
    "options",
    [{}, {"form": "speakers"}, {"loss_on": "reply"}, {"backward": True, "loss_on": "reply"}],
    ids=str,
)
def test_parts_of_a_step_together_give_the_whole_steps_gradient(options):
    whole_model, model = dialogpt(**options), dialogpt(**options)
    whole = counted(whole_model, batch_of(DIALOGUES))
    whole_model.training_step(whole, 0).backward()
    parts = [counted(model, batch_of(DIALOGUES[:1])), counted(model, batch_of(DIALOGUES[1:]))]
    assert sum(part.num_targets for part in parts) == whole.num_targets
    for part in parts:
        part.loss_weight = part.num_targets * len(parts) / whole.num_targets
        (model.training_step(part, 0) / len(parts)).backward()
    for (name, a), b in zip(whole_model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_reply_is_asked_for_as_replies_were_trained(form):
    """The prompt of a history is the row of the whole dialogue as far as its reply."""
    model = dialogpt(**form)
    for turns in DIALOGUES:
        if len(turns) < 2:
            continue
        written = model.written(batch_of([turns]))
        prompt = model._prompt([Turn(turn, [1] * len(turn)) for turn in turns[:-1]])
        length = int(written.replies.nonzero()[0])
        assert prompt.ids == written.batch.input_ids[:length].tolist()
        if not model.hparams.roles:
            assert prompt.roles is None and prompt.reply_role is None
            continue
        assert prompt.roles == written.role_ids[:length].tolist()
        assert set(written.role_ids[length:].tolist()) == {prompt.reply_role}


@pytest.fixture(scope="module")
def talker(inputs) -> DialoGPT:
    """Knows TALK by heart."""
    return learned(dialogpt(inputs.tokenizer, decoding=Decoding(top_k=1)), inputs)


def learned(model: DialoGPT, inputs: TextInput) -> DialoGPT:
    batch = counted(model, inputs.encode(TALK))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("form", [{}, {"form": "speakers"}], ids=str)
def test_it_says_what_it_has_learned(form, inputs):
    model = learned(dialogpt(inputs.tokenizer, decoding=Decoding(top_k=1), **form), inputs)
    answers = model.predict_reply([turns[:-1] for turns in TALK], inputs)
    assert [answer["reply"] for answer in answers] == [turns[-1] for turns in TALK]
    assert all(-2 < answer["log_prob"] < 0 for answer in answers)


def test_a_streamed_reply_grows_to_the_whole_one(talker, inputs):
    said = list(talker.stream_reply(["吃饭了吗", "还没有"], inputs))
    assert said[-1] == "一起去吧"
    assert said == ["一", "一起", "一起去", "一起去吧"]
    sampled = Decoding(top_k=0, temperature=3.0)
    again = [list(talker.stream_reply(["早"], inputs, sampled, seed=seed))[-1] for seed in (1, 1, 2, 3, 4)]
    assert again[0] == again[1] and len(set(again)) > 1


def test_a_reply_does_not_depend_on_what_else_is_asked(talker, inputs):
    talker.decoding = Decoding(top_k=0, temperature=2.0)
    try:
        histories = [turns[:-1] for turns in TALK]
        together = talker.predict_reply(histories, inputs)
        alone = [talker.predict_reply([turns], inputs)[0] for turns in histories]
        assert [a["reply"] for a in together] == [a["reply"] for a in alone]
        assert [a["reply"] for a in talker.predict_reply(histories[::-1], inputs)][::-1] == [
            a["reply"] for a in alone
        ]
    finally:
        talker.decoding = Decoding(top_k=1)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_scores_are_the_log_probabilities_of_the_turns(form, inputs):
    model = dialogpt(inputs.tokenizer, **form, loss_on="all").eval()
    with torch.inference_mode():
        results = model.predict_score(list(TALK), inputs)
        for turns, result in zip(TALK, results, strict=True):
            ids = [inputs.tokenizer.encode(turn) for turn in turns]
            assert result["turns"] == list(turns)
            assert sum(result["log_probs"]) == pytest.approx(
                -by_hand(model, ids, False).sum().item(), rel=1e-4
            )
            reply = -by_hand(model, ids, True).sum().item()
            assert result["log_prob"] == result["log_probs"][-1] == pytest.approx(reply, rel=1e-4)
            assert result["bits_per_char"] == pytest.approx(-reply / math.log(2) / len(turns[-1]), rel=1e-4)


@pytest.mark.parametrize("other_vocabulary", [False, True])
def test_the_backward_model_chooses_the_reply_that_fits_what_was_said(
    other_vocabulary, talker, inputs, tmp_path
):
    own_inputs = inputs_of(tmp_path, ["们", *reversed(CHARACTERS)]) if other_vocabulary else inputs
    backward = learned(dialogpt(own_inputs.tokenizer, backward=True), own_inputs)
    backward.export(tmp_path)
    own_inputs.tokenizer.save(str(tmp_path), 32)
    node = {"_target_": "lightning_modules.dialogpt.DialoGPT", **backward.exported_options()}
    (tmp_path / "kexue.json").write_text(json.dumps(node), encoding="utf-8")
    model = dialogpt(
        inputs.tokenizer,
        backward_model=str(tmp_path),
        decoding=Decoding(top_k=0, temperature=3.0, candidates=8, max_length=5),
    )
    model.load_state_dict(talker.state_dict(), strict=False)
    model.eval()
    (answer,) = model.predict_reply([("早",)], inputs)
    given = [candidate["backward_log_prob"] for candidate in answer["candidates"]]
    assert len(given) == 8 and given == sorted(given, reverse=True)
    assert (answer["reply"], answer["backward_log_prob"]) == (answer["candidates"][0]["reply"], given[0])
    # What the backward model itself says of such a dialogue: all turns but the reply, given the reply.
    (own,) = backward.predict_score([("早", answer["reply"])], own_inputs)
    assert own["log_probs"][0] == pytest.approx(given[0], rel=1e-4)
    with pytest.raises(DataError, match="trained with model.backward=true"):
        backward.predict_reply([("早",)], inputs)


def test_a_history_that_is_too_long_loses_its_oldest_turns(talker, inputs):
    history = [f"{'早' * (1 + number % 3)}" for number in range(10_000)]
    kept = talker.kept_history(history, inputs)
    assert 1 < len(kept) < 12 and list(kept) == history[-len(kept) :]
    assert len(list(talker.stream_reply(history, inputs))[-1]) > 0
    long = "早" * 40 + "好" * 9
    assert talker.kept_history([long], inputs) == ("早" * 3 + "好" * 9,)
    (answer,) = talker.predict_reply([(*history, long)], inputs)
    assert answer["history"][-1] == long


@pytest.mark.parametrize("turn", ["😀😀", "\u3000 ", "zzz", ""])
def test_what_the_vocabulary_does_not_know_is_answered_too(turn, talker, inputs):
    (answer,) = talker.predict_reply([(turn,)], inputs)
    assert isinstance(answer["reply"], str) and math.isfinite(answer["log_prob"])
    assert math.isfinite(talker.predict_score([("早", turn)], inputs)[0]["log_prob"])


def test_nothing_but_text_is_generated(inputs):
    model = dialogpt(inputs.tokenizer, decoding=Decoding(top_k=0, temperature=100.0, max_length=16)).eval()
    vocabulary = set(CHARACTERS)
    for answer in model.predict_reply([(character,) for character in CHARACTERS], inputs):
        assert set(answer["reply"]) <= vocabulary and answer["reply"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "turn"}, "form=turn: must be one of turns, speakers"),
        ({"loss_on": "last"}, "loss_on=last: must be one of all, reply, null"),
        ({"context": 4}, "context=4: must be at least 8"),
        (
            {"backbone": {"_target_": "lightning_modules.networks.text_encoder.TextEncoder"}},
            "backbone=TextEncoder: is no causal language model; type model/backbone=gpt_tiny",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DialoGPT(**{"backbone": BACKBONE, **options})


def test_only_learned_positions_bound_the_context(inputs):
    with pytest.raises(ValueError, match="context=64: the model's positions reach 32"):
        backbone = {**BACKBONE, "positions": "absolute", "max_position_embeddings": 32}
        dialogpt(inputs.tokenizer, backbone=backbone, context=64)
    assert dialogpt(inputs.tokenizer, context=64).eval().predict_reply([("早" * 50,)], inputs)


def test_a_longer_reply_is_not_the_better_one_because_history_goes_for_it(inputs, tmp_path):
    """All candidates are weighed by the same turns, in the backward model's own tokens."""
    backward = dialogpt(inputs.tokenizer, backward=True)
    backward.export(tmp_path)
    inputs.tokenizer.save(str(tmp_path), 12)
    node = {"_target_": "lightning_modules.dialogpt.DialoGPT", **backward.exported_options()}
    node["facts"] = {**node["facts"], "max_length": 12}
    (tmp_path / "kexue.json").write_text(json.dumps(node), encoding="utf-8")
    model = dialogpt(inputs.tokenizer, backward_model=str(tmp_path), decoding=Decoding(candidates=3)).eval()
    candidates = [{"reply": "早" * length, "log_prob": 0.0} for length in (1, 4, 40)]
    scored = model._reranked(("你好", "早上好", "明天见"), candidates)
    own = {c["reply"]: c["backward_log_prob"] for c in scored}
    # Room for 11 tokens: five for the longest reply with its [SEP], two turns more.
    for reply, seen in (("早", "早"), ("早" * 4, "早" * 4), ("早" * 40, "早" * 4)):
        (of_all,) = backward.eval().predict_score([("明天见", seen)], TextInput(inputs.tokenizer, 12, True))
        assert own[reply] == pytest.approx(of_all["log_probs"][0], rel=1e-4)
        assert own[reply] < -1


def test_scores_are_of_the_turns_whose_tokens_fit(inputs):
    """Hangul: three tokens a character."""
    model = dialogpt(inputs.tokenizer).eval()
    short = TextInput(inputs.tokenizer, 8, dialogues=True)
    (result,) = model.predict_score([("早", "明天见", "你好")], short)
    assert result["turns"] == ["明天见", "你好"] and len(result["log_probs"]) == 2
    (result,) = model.predict_score([("早" * 20,)], short)
    assert result["turns"] == ["早" * 20] and result["log_prob"] < -1


def test_a_score_is_what_the_metric_counts(inputs):
    """Also of characters that the vocabulary does not know."""
    model = dialogpt(inputs.tokenizer).eval()
    turns = ("你好", "䶮们早")
    (result,) = model.predict_score([turns], inputs)
    model._trainer = SimpleNamespace(strategy=None)
    model.hparams.sampled_replies = 0
    with torch.inference_mode():
        model.evaluate(inputs.encode([turns]))
    assert result["bits_per_char"] == pytest.approx(float(model.scores.compute()["reply_bits_per_char"]))
    assert result["bits_per_char"] > 2 * -result["log_prob"] / math.log(2) / 3 * 0.5 + math.log2(50) / 3


def test_a_batch_of_turns_is_that_of_the_corpus(inputs):
    turns = [[Turn(inputs.tokenizer.encode(turn), [1] * len(turn)) for turn in dialogue] for dialogue in TALK]
    own, corpus = batch_of_turns(turns, 2, 3), inputs.encode(TALK)
    for name in ("input_ids", "segment_ids", "position_ids", "char_counts", "cu_seqlens", "row_ids"):
        assert torch.equal(getattr(own, name), getattr(corpus, name)), name


def test_roles_start_as_nothing_and_are_never_said(inputs):
    model = dialogpt(inputs.tokenizer)
    table = model.network.model.get_input_embeddings().weight
    assert not table[model.hparams.role_rows].any()
    batch = inputs.encode(TALK)
    loss = model.training_step(counted(model, batch), 0)
    assert loss.item() < math.log(inputs.tokenizer.vocab_size) + 0.5
    loss.backward()
    # What reaches them is their part of the input, not that of a wrong answer.
    written = model.written(batch)
    first = model.hparams.role_rows[0]
    assert table.grad[first].any() and (written.role_ids == first).any()


def test_without_a_corpus_the_roles_lie_behind_the_vocabulary():
    model = DialoGPT(BACKBONE, facts=FACTS)
    model.configure_model()
    assert model.hparams.role_rows == [60, 61]


def test_a_decoding_of_ones_own_comes_back(inputs):
    model = dialogpt(inputs.tokenizer, decoding=Decoding(top_k=1, max_length=7))
    again = DialoGPT(**model.hparams)
    assert (again.decoding.top_k, again.decoding.max_length) == (1, 7)


def test_nothing_asked_is_nothing_answered(talker, inputs):
    for ask in (lambda: talker.kept_history([], inputs), lambda: list(talker.stream_reply([], inputs))):
        with pytest.raises(ValueError, match="history: has no turn"):
            ask()


def test_a_backward_model_needs_replies_to_choose_from(talker, inputs, tmp_path):
    model = dialogpt(inputs.tokenizer, backward_model=str(tmp_path)).eval()
    with pytest.raises(ValueError, match="backward_model=.*: chooses among replies, and there is one"):
        model.predict_reply([("早",)], inputs)
    model.decoding = Decoding(candidates=2)
    with pytest.raises(DataError, match="backward_model=.*: holds no kexue.json"):
        model.predict_reply([("早",)], inputs)


@needs_real_data
def test_the_published_vocabulary_and_layout_of_cdial_gpt(tmp_path):
    source = Path(REAL_DATA) / "vocab"
    config = json.loads((source / "cdial-gpt.config.json").read_text()) | {
        "n_embd": 24,
        "n_layer": 1,
        "n_head": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_bytes((source / "cdial-gpt.vocab.txt").read_bytes())
    torch.save(OpenAIGPTLMHeadModel(OpenAIGPTConfig(**config)).state_dict(), tmp_path / "pytorch_model.bin")
    tokenizer = CharTokenizer(init_from=str(tmp_path))
    facts = {
        **FACTS,
        "vocab_size": tokenizer.vocab_size,
        "special_ids": list(tokenizer.special_ids),
        "cls_id": tokenizer.cls_id,
        "sep_id": tokenizer.sep_id,
        "unk_id": tokenizer.unk_id,
        "pad_id": tokenizer.pad_id,
        "mask_id": tokenizer.mask_id,
    }
    speakers = [tokenizer.vocab.index("[speaker1]"), tokenizer.vocab.index("[speaker2]")]
    assert speakers == [13086, 13087] and tokenizer.mask_id is None
    model = DialoGPT(CausalLM(init_from=str(tmp_path)), facts=facts, form="speakers", role_rows=speakers)
    model.configure_model()
    assert model.network.num_rows == 13088
    inputs = TextInput(tokenizer, 32, dialogues=True)
    batch = counted(model, inputs.encode([("你好", "你好呀")]))
    assert model.training_step(batch, 0).item() == pytest.approx(math.log(13088), abs=0.5)
    (answer,) = model.eval().predict_reply([("你好",)], inputs)
    assert answer["reply"] and "speaker" not in answer["reply"]
