"""A language model of whole dialogues.

Su Jianlin, "A chat model by one GPT over the whole dialogue", kexue.fm/archives/7718; CDial-GPT (Wang et al. 2020, arXiv
2008.03946), whose form is an option; DialoGPT (Zhang et al. 2020, arXiv 1911.00536), which reranks replies by a backward
model.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import FSDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from datamodules.batch import TokenBatch
from datamodules.build import TECHNIQUE, build
from datamodules.corpus import DataError
from datamodules.text import TextInput
from datamodules.tokenizers.base import Tokenizer, load_tokenizer, resolve_pretrained
from lightning_modules.base import Technique, Usage
from lightning_modules.decoding import Decoding, Prompt, Reply, Vocabulary, generate, stream
from lightning_modules.dialogue import (
    Turn,
    Written,
    backwards,
    batch_of_turns,
    count_targets,
    in_turns,
    last_turns,
    turns_of_tokens,
    with_speakers,
)
from lightning_modules.networks.causal_lm import CausalLM
from lightning_modules.replies import ReplyScores, as_markdown, gathered, text_scores, write_replies

log = logging.getLogger(__name__)

SPEAKERS = ("[speaker1]", "[speaker2]")
# The logits of so many targets are held at a time while a model is evaluated.
TARGETS_AT_A_TIME = 4096
# Validation dialogues that are answered at a time.
ANSWERED_AT_A_TIME = 64
CARD_CODE = """```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this directory{{needs}}
model = AutoModelForCausalLM.from_pretrained(".").eval()
embed = model.get_input_embeddings()
CLS, SEP, SPEAKERS = {cls_id}, {sep_id}, {speakers}
history = ["你好", "你好呀,在做什么"]
ids, roles = [CLS], [{first_role}]
for number, text in enumerate(history):
    turn = {turn}
    ids, roles = ids + turn, roles + [SPEAKERS[number % 2]] * len(turn)
{opened}reply = []
while len(reply) < 32 and reply[-1:] != [SEP]:
    inputs = embed(torch.tensor([ids])){added}
    with torch.no_grad():
        reply.append(int(model(inputs_embeds=inputs).logits[0, -1, :{size}].argmax()))
    ids, roles = ids + reply[-1:], roles + [SPEAKERS[len(history) % 2]]
print(tokenizer.decode(reply, skip_special_tokens=True))
```"""


class DialoGPT(Technique):
    """A causal language model whose rows are dialogues.

    Args:
        backbone: a `CausalLM`, or its options with `_target_`.
        optimizer, scheduler, seed, regularizer: see `Technique`.
        init_from: a run, an export/, a Hugging Face directory or a hub name to start from.
        form: "turns": `[CLS] u1 [SEP] u2 [SEP] ...`, as the article; "speakers": `[CLS] [speaker1] u1 [speaker2] u2 ...
            [SEP]`, as CDial-GPT.
        loss_on: "all" turns are predicted, or only the "reply", the last turn of a dialogue; None: as those who published
            the form do, all turns and the reply.
        roles: tokens know whose turn they are of.
        backward: the last turn comes first: a model of what a reply answers, for `backward_model` of another one.
        backward_model: a run or an export/ with `backward=true`: of `decoding.candidates` replies the one is taken by which
            the dialogue before it is most probable.
        decoding: how replies are made: a `Decoding`, or its options with `_target_`.
        context: tokens of a dialogue with its reply, where replies are made; None: as the rows of the training.
        sampled_replies: so many dialogues of the split are answered at each evaluation.
        attention: see `CausalLM`.
        facts: the corpus' facts; None: taken from the trainer's DataModule when training starts.
        network_config: the network's transformers configuration; stored in checkpoints.
        role_rows: rows of the table of embeddings that stand for the two speakers; None: the vocabulary's
            [speaker1] and [speaker2], or two rows behind it.

    Raises:
        ValueError: an option out of its range; the message starts with its name.
    """

    needs = frozenset({"text", "turns"})
    metrics = (
        "train/loss",
        "val/loss",
        "val/reply_loss",
        "val/reply_perplexity",
        "val/reply_bits_per_char",
        "val/reply_bits_per_char_turn_2",
        "val/reply_bits_per_char_turn_3",
        "val/reply_bits_per_char_turn_4",
        "val/reply_bits_per_char_turn_5_or_later",
        "val/beyond_bits_per_char",
        "val/dist_1",
        "val/dist_2",
        "val/bleu_2",
        "val/bleu_4",
        "val/repetition_rate",
        "test/loss",
        "test/reply_loss",
        "test/reply_perplexity",
        "test/reply_bits_per_char",
        "test/reply_bits_per_char_turn_2",
        "test/reply_bits_per_char_turn_3",
        "test/reply_bits_per_char_turn_4",
        "test/reply_bits_per_char_turn_5_or_later",
        "test/beyond_bits_per_char",
        "test/dist_1",
        "test/dist_2",
        "test/bleu_2",
        "test/bleu_4",
        "test/repetition_rate",
    )
    predict_tasks = {
        "reply": "the next turn of a dialogue",
        "score": "log-probabilities of the turns of a dialogue, and bits per character of the last one",
    }
    evaluation_options = ("decoding", "backward_model", "context", "sampled_replies")

    def __init__(
        self,
        backbone: dict | CausalLM,
        optimizer: dict | None = None,
        scheduler: dict | None = None,
        init_from: str | None = None,
        form: Literal["turns", "speakers"] = "turns",
        loss_on: Literal["all", "reply"] | None = None,
        roles: bool = True,
        backward: bool = False,
        backward_model: str | None = None,
        decoding: dict | Decoding | None = None,
        context: Annotated[int, "x >= 8"] | None = None,
        sampled_replies: Annotated[int, "x >= 0"] = 64,
        attention: Literal["auto", "unpadded", "padded"] = "auto",
        seed: int = 0,
        regularizer: dict | None = None,
        *,
        facts: dict[str, Any] | None = None,
        network_config: dict[str, Any] | None = None,
        role_rows: list[int] | None = None,
    ):
        super().__init__(optimizer, scheduler, seed, regularizer)
        if form not in ("turns", "speakers"):
            raise ValueError(f"form={form}: must be one of turns, speakers")
        if loss_on not in (None, "all", "reply"):
            raise ValueError(f"loss_on={loss_on}: must be one of all, reply, null")
        if context is not None and context < 8:
            raise ValueError(f"context={context}: must be at least 8")
        self.decoding: Decoding = build(decoding) or Decoding()
        decoding = {"_target_": "lightning_modules.decoding.Decoding", **vars(self.decoding)}
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, CausalLM) else [])
        self.network: CausalLM = build(
            backbone, attention=attention, init_from=init_from, network_config=network_config
        )
        if not isinstance(self.network, CausalLM):
            raise ValueError(
                f"backbone={type(self.network).__name__}: is no causal language model; type model/backbone=gpt_tiny"
            )
        reach = self.network.longest_row
        if context is not None and reach is not None and context > reach:
            raise ValueError(f"context={context}: the model's positions reach {reach} tokens")
        self.replies_only = (loss_on or ("all" if form == "turns" else "reply")) == "reply"
        self.scores: ReplyScores | None = None
        self.sampled: dict[int, list[Turn]] = {}  # by row
        self._backward: tuple[DialoGPT, TextInput] | None = None

    def check_corpus(self, datamodule: Any) -> None:
        super().check_corpus(datamodule)
        self._check_reach(datamodule)
        self.warn_of_high_rate()

    def _check_reach(self, datamodule: Any) -> None:
        reach = self.network.longest_row
        added = self.hparams.form == "speakers"
        if reach is not None and datamodule.max_length + added > reach:
            speaker = " and the first speaker's" if added else ""
            raise ValueError(
                f"data.max_length={datamodule.max_length}: the model's positions reach {reach} tokens{speaker}; type at "
                f"most data.max_length={reach - added}, or from scratch model.backbone.positions=rotary"
            )

    # Lightning calls this when the DataModule is set up, and again when a checkpoint is loaded.
    def configure_model(self) -> None:
        if self.scores is not None:
            return
        options, vocabulary = self.hparams, ()
        if options.facts is None:
            options.facts = self.trainer.datamodule.facts
            vocabulary = self.trainer.datamodule.tokenizer.vocab
        facts = options.facts
        if options.role_rows is None and (options.roles or options.form == "speakers"):
            options.role_rows = _role_rows(vocabulary, facts["vocab_size"])
        if self.network.model is None:
            needed = max([facts["vocab_size"], *(row + 1 for row in options.role_rows or ())])
            # In turns nobody says a role: as wrong answers everywhere those rows would be driven off.
            self.network.build(facts, needed, facts["vocab_size"] if options.form == "turns" else None)
            options.network_config = self.network.network_config
            if options.form == "turns" and options.roles and not _knows_roles(options.init_from):
                self._start_without_roles()
        longest = facts["max_length"] + (options.form == "speakers")
        self.scores = ReplyScores(facts["unk_id"], facts["train_characters"], longest)

    @torch.no_grad()
    def _start_without_roles(self) -> None:
        """A checkpoint that knows none is then what it was; a model from scratch learns its first words sooner."""
        self.network.model.get_input_embeddings().weight[self.hparams.role_rows] = 0

    def count_targets(self, batch: TokenBatch) -> int:
        """Targets of a batch, asked on the CPU while it is assembled."""
        return count_targets(backwards(batch) if self.hparams.backward else batch, self.replies_only)

    def written(self, batch: TokenBatch) -> Written:
        """The rows in the model's form."""
        options = self.hparams
        if options.backward:
            batch = backwards(batch)
        if options.form == "turns":
            return in_turns(batch, tuple(options.role_rows) if options.roles else None)
        cls_id = options.facts["cls_id"] if options.roles else None
        return with_speakers(batch, tuple(options.role_rows), cls_id)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        written = self.written(batch)
        targets = written.replies if self.replies_only else written.targets
        states = self.network(written.batch, written.role_ids)
        # The number is known: on a GPU plain `nonzero` would wait for the device to count.
        index = (
            torch.nonzero_static(targets, size=batch.num_targets) if targets.is_cuda else targets.nonzero()
        )
        return self.step_loss(self._losses(states, written.batch.input_ids, index.squeeze(1)), batch)

    def _losses(self, states: Tensor, ids: Tensor, index: Tensor) -> Tensor:
        """Nats [K] of the tokens at `index` [K], each predicted from the state before it."""
        logits = self.network.vocabulary_logits(states[index - 1])
        return F.cross_entropy(logits.float(), ids[index], reduction="none")

    def _all_losses(self, written: Written, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Where the targets stand [K], and their losses [K], without the logits of all of them at once."""
        states = self.network(written.batch, written.role_ids)
        index = targets.nonzero().squeeze(1)
        parts = [
            self._losses(states, written.batch.input_ids, part) for part in index.split(TARGETS_AT_A_TIME)
        ]
        return index, torch.cat(parts)

    def on_validation_start(self) -> None:
        self._start_evaluation()

    def on_test_start(self) -> None:
        self._start_evaluation()

    def _start_evaluation(self) -> None:
        # What one that was broken off has left behind.
        self.scores.reset()
        self.sampled = {}
        try:
            self._check_reach(self.trainer.datamodule)
        except ValueError as error:
            raise DataError(str(error)) from error

    def evaluate(self, batch: TokenBatch) -> None:
        written = self.written(batch)
        rows, ids = written.batch, written.batch.input_ids
        index, losses = self._all_losses(written, written.replies if self.replies_only else written.targets)
        self.scores.update_loss(losses.sum(dtype=self.scores.nll.dtype), len(losses))
        of_reply = written.replies[index]
        index = index[of_reply]
        self.scores.update(
            losses[of_reply],
            ids[index],
            rows.char_counts[index],
            written.turns[index] + 1,
            rows.position_ids[index],
        )
        self._sample(batch)

    def _sample(self, batch: TokenBatch) -> None:
        """Keep the turns of the split's first dialogues, to be answered when all are scored."""
        if self.hparams.backward or isinstance(self.trainer.strategy, FSDPStrategy):
            return  # under FSDP the ranks compute together, and here each has its own number of steps
        turns = turns_of_tokens(batch)
        for row in (batch.row_ids < self.hparams.sampled_replies).nonzero().flatten().tolist():
            start, end = batch.cu_seqlens[row : row + 2].tolist()
            ids, turn = batch.input_ids[start + 1 : end], turns[start + 1 : end]
            counts = torch.bincount(turn).tolist()
            if len(counts) > 1:
                chars = batch.char_counts[start + 1 : end]
                self.sampled[int(batch.row_ids[row])] = [
                    Turn(part.tolist(), covered.tolist()).part(0, -1)  # without [SEP]
                    for part, covered in zip(ids.split(counts), chars.split(counts), strict=True)
                ]

    def compute_scores(self, split: Literal["val", "test"]) -> dict[str, Tensor | float]:
        scores = self.scores.compute()
        self.scores.reset()
        return {f"{split}/{name}": value for name, value in (scores | self._answer_sampled(split)).items()}

    def _answer_sampled(self, split: str) -> dict[str, float]:
        """Scores of the replies to the dialogues that `_sample` kept; writes them down."""
        if not self.hparams.sampled_replies or self.hparams.backward:
            return {}
        datamodule = self.trainer.datamodule
        tokenizer = datamodule.tokenizer
        sampled, self.sampled = sorted(self.sampled.items()), {}
        records = []
        for start in range(0, len(sampled), ANSWERED_AT_A_TIME):
            part = sampled[start : start + ANSWERED_AT_A_TIME]
            texts = [[tokenizer.decode(turn.ids) for turn in turns] for _, turns in part]
            histories = [turns[:-1] for _, turns in part]
            answers = self._generate(histories, tokenizer, self.decoding.replace(candidates=1), self.seed)
            for (row, _), (*history, reference), (best, *_) in zip(part, texts, answers, strict=True):
                reply = tokenizer.decode(best.ids)
                records.append({"row": row, "history": history, "reply": reply, "reference": reference})
        records = gathered(records)
        if not records:
            return {}
        if self.trainer.is_global_zero:
            self._show(split, records)
        return text_scores([r["reply"] for r in records], [r["reference"] for r in records])

    def _show(self, split: str, records: list[dict[str, Any]]) -> None:
        step = self.trainer.global_step
        name = f"{split}_{step:07d}" if self.trainer.state.fn == TrainerFn.FITTING else split
        write_replies(Path(self.trainer.default_root_dir) / "replies" / f"{name}.jsonl", records, step)
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(f"{split}/replies", as_markdown(records), step)

    def kept_history(
        self, history: Sequence[str], inputs: TextInput, decoding: Decoding | None = None
    ) -> tuple[str, ...]:
        """The turns of a dialogue that leave room for a reply: whole ones, the newest; of a last turn that alone is too
        long its end."""
        kept = self._kept(history, inputs.tokenizer, decoding or self.decoding)
        whole = len(kept[-1].ids) == len(_tokenized(history[-1:], inputs.tokenizer)[0].ids)
        last = history[-1] if whole else inputs.tokenizer.decode(kept[-1].ids)
        return (*history[len(history) - len(kept) : -1], last)

    def stream_reply(
        self, history: Sequence[str], inputs: TextInput, decoding: Decoding | None = None, seed: int = 0
    ) -> Iterator[str]:
        """The reply to a dialogue, oldest turn first, as far as it is made: each text continues the one before it.

        The oldest turns are dropped where there are too many (`kept_history`). Several candidates or beams, of which the
        best is known at the end only, give it as a whole.

        Raises:
            ValueError: the model is of the backward kind, or a decoding option contradicts another.
        """
        decoding = decoding or self.decoding
        if decoding.candidates > 1 or decoding.beams > 1:
            yield self._reply([tuple(history)], inputs, decoding, seed)[0]["reply"]
            return
        self._check_forward()
        turns = self._kept(history, inputs.tokenizer, decoding)
        shown, ids = None, []
        for ids in stream(
            self.network,
            self._prompt(turns),
            self._within_context(decoding),
            self._vocabulary(inputs.tokenizer),
            self._seed(turns, seed),
        ):
            # The bytes of half a character decode to this one.
            text = inputs.tokenizer.decode(ids).rstrip("\ufffd")
            if text != shown:
                shown = text
                yield text
        if (text := inputs.tokenizer.decode(ids)) != shown:
            yield text

    def predict_reply(self, texts: list[str | tuple[str, ...]], inputs: TextInput) -> list[dict]:
        """The next turn of each dialogue, oldest turn first; a text is a dialogue of one turn.

        `log_prob` is of the reply and its end, in nats, under the model itself, whatever drew it.
        """
        return self._reply([_dialogue(text) for text in texts], inputs, self.decoding, self.seed)

    def predict_score(self, texts: list[str | tuple[str, ...]], inputs: TextInput) -> list[dict]:
        """Log-probabilities, in nats, of the turns of each dialogue with what closes them; bits per character of the last.

        Where a dialogue is too long its last turns are scored, those of `turns`. A model of the backward kind is given
        dialogues as they were said, too, and scores from the last turn to the first.
        """
        results, room = [], inputs.max_length - 1
        given = [_dialogue(text) for text in texts]
        tokenized = [_tokenized(turns, inputs.tokenizer) for turns in given]
        kept = [last_turns(turns, room) or [turns[-1].part(0, room - 1)] for turns in tokenized]
        for turns, scored, log_probs, bits in zip(given, kept, *self._turn_log_probs(kept), strict=True):
            log_prob = log_probs[-1]  # of the turn that the model reads last
            if self.hparams.backward:
                log_probs.reverse()
            results.append(
                {
                    "turns": list(turns[len(turns) - len(scored) :]),
                    "log_probs": log_probs,
                    "log_prob": log_prob,
                    "bits_per_char": bits,
                }
            )
        return results

    def _turn_log_probs(
        self, dialogues: Sequence[Sequence[Turn]]
    ) -> tuple[list[list[float]], list[float | None]]:
        """Of each dialogue the log-probabilities of its turns, in the order in which the model reads them, and the bits
        per character of the last of them; None: it has no characters."""
        facts = self.hparams.facts
        batch = batch_of_turns(dialogues, facts["cls_id"], facts["sep_id"]).to(self.device)
        written = self.written(batch)
        index, losses = self._all_losses(written, written.targets)
        # Not every accelerator has float64.
        index, losses, rows = index.cpu(), losses.cpu().double(), written.batch.to("cpu")
        row, turn, reply = rows.token_row_ids[index], written.turns.cpu()[index], written.replies.cpu()[index]
        log_probs = losses.new_zeros(len(dialogues), int(turn.max()) + 1)
        log_probs.index_put_((row, turn), -losses, accumulate=True)
        index, row, losses = index[reply], row[reply], losses[reply]
        own_characters = rows.char_counts[index].double()
        characters = losses.new_zeros(len(dialogues)).index_add(0, row, own_characters)
        own_bits = self.scores.bits_of(losses, rows.input_ids[index], own_characters)
        bits = losses.new_zeros(len(dialogues)).index_add(0, row, own_bits)
        return (
            [of_row[: len(turns)] for of_row, turns in zip(log_probs.tolist(), dialogues, strict=True)],
            [b / c if c else None for b, c in zip(bits.tolist(), characters.tolist(), strict=True)],
        )

    def _reply(
        self, dialogues: list[tuple[str, ...]], inputs: TextInput, decoding: Decoding, seed: int
    ) -> list[dict]:
        self._check_forward()
        if self.hparams.backward_model is not None and decoding.candidates < 2:
            raise ValueError(
                f"model.backward_model={self.hparams.backward_model}: chooses among replies, and there is one; type "
                "model.decoding.candidates=16"
            )
        histories = [self._kept(turns, inputs.tokenizer, decoding) for turns in dialogues]
        results = []
        answers = self._generate(histories, inputs.tokenizer, decoding, seed)
        for turns, kept, replies in zip(dialogues, histories, answers, strict=True):
            candidates = [
                {"reply": inputs.tokenizer.decode(reply.ids), "log_prob": reply.log_prob} for reply in replies
            ]
            if self.hparams.backward_model is not None:
                candidates = self._reranked(turns[len(turns) - len(kept) :], candidates)
            result = {"history": list(turns), **candidates[0]}
            results.append(result | ({"candidates": candidates} if decoding.candidates > 1 else {}))
        return results

    def _reranked(self, history: tuple[str, ...], candidates: list[dict]) -> list[dict]:
        """By the log-probability of the history given the reply: the `backward_log_prob` of each."""
        model, inputs = self._load_backward()
        replies = _tokenized([candidate["reply"] for candidate in candidates], inputs.tokenizer)
        # The same turns for all, or the longest reply would be the best: fewer turns are more probable.
        room = inputs.max_length - 1
        longest = min(max(len(reply.ids) for reply in replies) + 1, room // 2)
        turns = _tokenized(history, inputs.tokenizer)
        kept = last_turns(turns, room - longest) or [turns[-1].part(-(room - longest - 1))]
        log_probs, _ = model._turn_log_probs([[*kept, reply.part(0, longest - 1)] for reply in replies])
        scored = [
            {**candidate, "backward_log_prob": sum(turns[1:])}
            for candidate, turns in zip(candidates, log_probs, strict=True)
        ]
        return sorted(scored, key=lambda candidate: -candidate["backward_log_prob"])

    def _load_backward(self) -> tuple[DialoGPT, TextInput]:
        """The model of `backward_model`, with its own tokenizer: its vocabulary may be another."""
        if self._backward is None:
            path = self.hparams.backward_model
            try:
                directory = Path(resolve_pretrained(path))
            except ValueError as error:
                raise DataError(str(error).replace("init_from=", "model.backward_model=")) from error
            if not (directory / TECHNIQUE).is_file():
                raise DataError(
                    f"model.backward_model={path}: holds no {TECHNIQUE}; give a run that was trained with model.backward=true"
                )
            saved = json.loads((directory / TECHNIQUE).read_text(encoding="utf-8"))
            if not saved.get("backward"):
                raise DataError(
                    f"model.backward_model={path}: was trained forwards; train one with model.backward=true"
                )
            model = build({**saved, "init_from": str(directory), "network_config": None})
            model.configure_model()
            tokenizer = load_tokenizer(str(directory))
            self._backward = (
                model.to(self.device).eval(),
                TextInput(tokenizer, model.hparams.facts["max_length"]),
            )
        return self._backward

    def _check_forward(self) -> None:
        if self.hparams.backward:
            raise DataError(
                "ckpt_path: the model was trained with model.backward=true, it knows what precedes a reply; give a model that "
                "was trained forwards, and this one as model.backward_model="
            )

    def _generate(
        self,
        histories: list[Sequence[Turn]],
        tokenizer: Tokenizer,
        decoding: Decoding,
        seed: int,
    ) -> list[list[Reply]]:
        return generate(
            self.network,
            [self._prompt(turns) for turns in histories],
            self._within_context(decoding),
            self._vocabulary(tokenizer),
            [self._seed(turns, seed) for turns in histories],
        )

    def _seed(self, history: Sequence[Turn], seed: int) -> int:
        """Of a dialogue's own, so that its reply is the same in any order and any batch."""
        asked = [seed, [turn.ids for turn in history]]
        digest = hashlib.blake2b(repr(asked).encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") >> 1

    @property
    def context(self) -> int:
        """Tokens of a dialogue with its reply, where replies are made."""
        return self.hparams.context or self.hparams.facts["max_length"]

    def _within_context(self, decoding: Decoding) -> Decoding:
        """A reply has at most half of the context."""
        most = self.context // 2
        if decoding.max_length <= most:
            return decoding
        return decoding.replace(max_length=most, min_length=min(decoding.min_length, most))

    def _kept(self, history: Sequence[str], tokenizer: Tokenizer, decoding: Decoding) -> list[Turn]:
        """The newest turns that leave room for a reply, see `kept_history`."""
        if not history:
            raise ValueError("history: has no turn; a reply answers at least one")
        turns = _tokenized(history, tokenizer)
        # [CLS], the end of the reply, and in one of the forms a speaker.
        room = self.context - self._within_context(decoding).max_length - 3
        return last_turns(turns, room) or [turns[-1].part(-max(room - 1, 1))]

    def _prompt(self, history: Sequence[Turn]) -> Prompt:
        """What stands before a reply, in the model's form: `written` says the same of whole dialogues."""
        options, facts = self.hparams, self.hparams.facts
        speakers = options.form == "speakers"
        roles = options.role_rows if options.roles else (None, None)
        ids, role_ids = [facts["cls_id"]], [facts["cls_id"] if speakers else roles[0]]
        for number, turn in enumerate(history):
            said = [options.role_rows[number % 2], *turn.ids] if speakers else [*turn.ids, facts["sep_id"]]
            ids += said
            role_ids += [roles[number % 2]] * len(said)
        next_role = roles[len(history) % 2]
        if speakers:
            ids.append(options.role_rows[len(history) % 2])
            role_ids.append(next_role)
        return Prompt(ids, role_ids if options.roles else None, next_role)

    def _vocabulary(self, tokenizer: Tokenizer) -> Vocabulary:
        facts = self.hparams.facts
        never = {*tokenizer.textless_ids, *(self.hparams.role_rows or ())} - {facts["sep_id"]}
        return Vocabulary(
            size=facts["vocab_size"],
            end_id=facts["sep_id"],
            never=tuple(sorted(never)),
            decode=tokenizer.decode,
            encode=tokenizer.encode,
        )

    def export(self, directory: Path) -> Usage:
        self.network.save(directory)
        return Usage(
            task="text-generation",
            scores="a reply is the last turn of a dialogue; bits_per_char compares models of any tokenizer and form.",
            code=_card_code(self.hparams),
            command="""predict.task=reply 'predict.input=[["你好","你好呀,在做什么"]]'`, `python chat.py THIS_DIRECTORY""",
        )

    def exported_options(self) -> dict[str, Any]:
        return {**super().exported_options(), "backward_model": None}


def _role_rows(vocabulary: Sequence[str], vocab_size: int) -> list[int]:
    """The vocabulary's tokens for the two speakers, or else two rows behind it."""
    if set(SPEAKERS) <= set(vocabulary):
        return [vocabulary.index(token) for token in SPEAKERS]
    return [vocab_size, vocab_size + 1]


def _knows_roles(init_from: str | None) -> bool:
    """Whether the weights are those of a dialogue model with roles."""
    if init_from is None:
        return False
    file = Path(resolve_pretrained(init_from)) / TECHNIQUE
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8")).get("roles"))


def _dialogue(text: str | tuple[str, ...]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _tokenized(turns: Sequence[str], tokenizer: Tokenizer) -> list[Turn]:
    encodings = tokenizer.encode_batch(list(turns))
    ids, chars = encodings.ids.tolist(), encodings.chars.tolist()
    ends = encodings.lengths.cumsum().tolist()
    return [Turn(ids[start:end], chars[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _card_code(options: Any) -> str:
    """How stock transformers replies: the most probable token each time, without a cache."""
    speakers = options.form == "speakers"
    tokens = "tokenizer(text, add_special_tokens=False).input_ids"
    return CARD_CODE.format(
        cls_id=options.facts["cls_id"],
        sep_id=options.facts["sep_id"],
        size=options.facts["vocab_size"],
        speakers=options.role_rows or [0, 0],
        first_role="CLS" if speakers else "SPEAKERS[0]",
        turn=f"[SPEAKERS[number % 2]] + {tokens}" if speakers else f"{tokens} + [SEP]",
        opened="ids, roles = (part + [SPEAKERS[len(history) % 2]] for part in (ids, roles))\n"
        if speakers
        else "",
        added=" + embed(torch.tensor([roles]))" if options.roles else "",
    )
