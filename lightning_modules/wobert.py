"""WoBERT: a masked language model whose tokens are words.

Su Jianlin, "Speed up without loss: word-granularity Chinese WoBERT", kexue.fm/archives/7758. With the character
tokenizer the same class is BERT's masked language model, the article's baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from datamodules.batch import TokenBatch
from datamodules.build import build
from datamodules.corpus import DataError
from datamodules.text import TextInput
from datamodules.tokenizers.expansion import row_sources
from datamodules.tokenizers.vocabulary import read_source
from datamodules.tokenizers.word import WordTokenizer
from lightning_modules.base import Technique, Usage
from lightning_modules.masking import Masking
from lightning_modules.networks.text_encoder import TextEncoder
from lightning_modules.pictures import plot_token_accuracy
from lightning_modules.precision import keeping_dtype

PLOTTED_TOKENS = 30
USAGE = Usage(
    task="fill-mask",
    scores="bits_per_char is a pseudo-likelihood: each hidden word is predicted from the rest of its row.",
    code="""```python
from transformers import pipeline

fill = pipeline("fill-mask", model=".")  # this directory{needs}
fill("今天天气[MASK]好")
```""",
    command="""predict.task=fill_mask 'predict.input=["今天天气[MASK]好"]'""",
)


class WoBERT(Technique):
    """Masked language model on flat batches; the vocabulary projection runs on the targets only.

    Args:
        backbone: a `TextEncoder`, or its options with `_target_`.
        optimizer, scheduler, seed, regularizer: see `Technique`.
        init_from: a run, an export/, a Hugging Face directory or a hub name to start from.
        expand_vocabulary: give the checkpoint of `init_from` the vocabulary of a `WordTokenizer` that adds so many
            words to it; rows go by the tokens' text.
        new_rows: "mean": a new word starts as the mean of its characters' rows, as the article; "random": as
            transformers draws rows.
        mask_rate: share of the tokens to predict.
        mask_token_rate, random_token_rate: shares of those that are replaced by [MASK] and by a random id.
        whole_word_masking: draw words of the segmenter instead of tokens.
        mask_special_tokens: draw [CLS] and [SEP] too, as the original script does.
        attention: see `TextEncoder`.
        facts: the corpus' facts; None: taken from the trainer's DataModule when training starts.
        network_config: the network's transformers configuration; stored in checkpoints.

    Raises:
        ValueError: an option out of its range; the message starts with its name.
    """

    needs = frozenset({"text"})
    metrics = (
        "train/loss",
        "val/loss",
        "val/masked_accuracy",
        "val/bits_per_char",
        "test/loss",
        "test/masked_accuracy",
        "test/bits_per_char",
        "baseline/unigram_loss",
        "baseline/unigram_bits_per_char",
        "baseline/most_frequent_share",
    )
    predict_tasks = {
        "fill_mask": "the most probable tokens at every [MASK] of a text",
        "embed": "one vector a text: the last layer's states, pooled as model.backbone.pooling says",
    }

    def __init__(
        self,
        backbone: dict | TextEncoder,
        optimizer: dict | None = None,
        scheduler: dict | None = None,
        init_from: str | None = None,
        expand_vocabulary: Annotated[int, "x >= 1"] | None = None,
        new_rows: Literal["mean", "random"] = "mean",
        mask_rate: Annotated[float, "0 < x < 1"] = 0.15,
        mask_token_rate: Annotated[float, "0 <= x <= 1"] = 0.8,
        random_token_rate: Annotated[float, "0 <= x <= 1"] = 0.1,
        whole_word_masking: bool = False,
        mask_special_tokens: bool = False,
        attention: Literal["auto", "unpadded", "padded"] = "auto",
        seed: int = 0,
        regularizer: dict | None = None,
        *,
        facts: dict[str, Any] | None = None,
        network_config: dict[str, Any] | None = None,
    ):
        super().__init__(optimizer, scheduler, seed, regularizer)
        if not 0 < mask_rate < 1:
            raise ValueError(f"mask_rate={mask_rate}: must lie between 0 and 1")
        if not 0 <= mask_token_rate + random_token_rate <= 1:
            raise ValueError(
                f"mask_token_rate={mask_token_rate}, random_token_rate={random_token_rate}: must add up to at most 1"
            )
        if expand_vocabulary is not None and init_from is None:
            raise ValueError(
                f"expand_vocabulary={expand_vocabulary}: needs the weights of a checkpoint, model.init_from=RUN; "
                "from scratch type tokenizer.add_words"
            )
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, TextEncoder) else [])
        self.network: TextEncoder = build(
            backbone, attention=attention, init_from=init_from, network_config=network_config
        )
        if not isinstance(self.network, TextEncoder):
            raise ValueError(
                f"backbone={type(self.network).__name__}: is no encoder of texts; type model/backbone=tiny"
            )
        self.masking: Masking | None = None
        self.by_token: tuple[list[int], list[int]] = ([], [])

    def check_corpus(self, datamodule: Any) -> None:
        super().check_corpus(datamodule)
        if getattr(datamodule.tokenizer, "built", False):  # one made from texts has a [MASK]
            _check_mask(datamodule.tokenizer.mask_id)
        self._check_expansion(datamodule.tokenizer)
        self.network.check_corpus(datamodule)
        self.warn_of_high_rate()

    def _check_expansion(self, tokenizer: Any) -> None:
        """Whether the tokenizer's ids will be the weights'."""
        wanted, init_from = self.hparams.expand_vocabulary, self.hparams.init_from
        added = getattr(tokenizer, "add_words", None)
        if init_from is not None and added is not None and added != wanted:
            raise ValueError(
                f"model.expand_vocabulary={wanted}: with tokenizer.add_words={added} there are ids that the weights of "
                f"init_from lack; type model.expand_vocabulary={added} and leave tokenizer.add_words alone"
            )
        if wanted is None:
            return
        if not isinstance(tokenizer, WordTokenizer):
            raise ValueError(
                f"model.expand_vocabulary={wanted}: {type(tokenizer).__name__} adds no words; type tokenizer=word"
            )
        if added is None and tokenizer.built:  # a vocabulary that was made before
            lacking = len(set(tokenizer.vocab) - set(read_source(init_from).vocab))
            if lacking != wanted:
                raise ValueError(
                    f"model.expand_vocabulary={wanted}: the tokenizer has {lacking} tokens that init_from lacks; "
                    f"type model.expand_vocabulary={lacking}"
                )

    # Lightning calls this when the DataModule is set up, and again when a checkpoint is loaded.
    def configure_model(self) -> None:
        if self.masking is not None:
            return
        options, data = self.hparams, None
        if options.facts is None:
            data = self.trainer.datamodule
            options.facts = data.facts
        facts = options.facts
        _check_mask(facts["mask_id"])
        if self.network.model is None:
            rows = None
            if data is not None and options.expand_vocabulary is not None:
                rows = row_sources(options.init_from, data.tokenizer, options.new_rows)
            self.network.build(facts, rows)
            options.network_config = self.network.network_config
        self.masking = Masking(
            vocab_size=facts["vocab_size"],
            mask_id=facts["mask_id"],
            special_ids=tuple(i for i in facts["special_ids"] if i != facts["unk_id"]),
            seed=self.seed,
            mask_rate=options.mask_rate,
            mask_token_rate=options.mask_token_rate,
            random_token_rate=options.random_token_rate,
            whole_words=options.whole_word_masking,
            special_tokens=options.mask_special_tokens,
        )
        # Counted on the CPU while a batch is assembled: the GPU is never asked how many targets there are.
        self.count_targets = self.masking.count
        counts = torch.zeros(facts["vocab_size"], dtype=torch.long)
        if data is not None:
            counts.copy_(torch.from_numpy(data.token_counts()))
        self.scores = MaskedLMScores(counts, facts["unk_id"], facts["train_characters"])

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        targets = self.masking.targets(batch)
        states = self.network(batch, self.masking.corrupt(batch, targets))
        # The number is known: on a GPU plain `nonzero` would wait for the device to count.
        index = (
            torch.nonzero_static(targets, size=batch.num_targets) if targets.is_cuda else targets.nonzero()
        )
        index = index.squeeze(1)
        logits = self.network.vocabulary_logits(states[index])
        losses = F.cross_entropy(logits.float(), batch.input_ids[index], reduction="none")
        return self.step_loss(losses, batch)

    def evaluate(self, batch: TokenBatch) -> None:
        targets = self.masking.evaluation_targets(batch)
        states = self.network(batch, self.masking.hide(batch, targets))
        logits = self.network.vocabulary_logits(states[targets]).float()
        self.scores.update(logits, batch.input_ids[targets], batch.char_counts[targets])

    def compute_scores(self, split: Literal["val", "test"]) -> dict[str, Tensor]:
        scores = self.scores.compute()
        self.scores.reset()
        own = {f"{split}/{name}": scores[name] for name in ("loss", "masked_accuracy", "bits_per_char")}
        if split == "test":
            return own
        self.by_token = scores["targets_by_token"].tolist(), scores["correct_by_token"].tolist()
        names = ("unigram_loss", "unigram_bits_per_char", "most_frequent_share")
        return own | {f"baseline/{name}": scores[name] for name in names}

    def predict_fill_mask(self, texts: list[str], inputs: TextInput, top_k: int = 5) -> list[dict]:
        """For every [MASK] of every text the `top_k` most probable tokens with their probabilities.

        Raises:
            DataError: a text without [MASK], or whose [MASK] lies beyond the row's greatest length.
        """
        batch = inputs.encode(texts).to(self.device)
        masks = batch.input_ids == self.hparams.facts["mask_id"]
        row = batch.token_row_ids[masks].tolist()
        for index, text in enumerate(texts):
            if row.count(index) == 0:
                raise DataError(
                    f"predict.input: no [MASK] within the first {inputs.max_length - 2} characters of {text[:60]!r}"
                )
        logits = self.network.vocabulary_logits(self.network(batch)[masks]).float()
        probabilities, ids = logits[:, : self.hparams.facts["vocab_size"]].softmax(-1).topk(top_k)
        results: list[dict] = [{"text": text, "predictions": []} for text in texts]
        for index, scores, tokens in zip(row, probabilities.tolist(), ids.tolist(), strict=True):
            candidates = [
                {"token": inputs.tokenizer.vocab[token], "score": score}
                for token, score in zip(tokens, scores, strict=True)
            ]
            results[index]["predictions"].append(candidates)
        return results

    def predict_embed(self, texts: list[str], inputs: TextInput) -> list[dict]:
        """The mean of the last layer's states over a text's tokens, special tokens left out."""
        vectors = self.network.encode(inputs.encode(texts).to(self.device)).float().tolist()
        return [{"text": text, "embedding": vector} for text, vector in zip(texts, vectors, strict=True)]

    def plot(self, directory: Path, tokenizer: Any) -> None:
        """Accuracy on the most frequent targets of the last validation, as bars."""
        targets, correct = self.by_token
        ids = sorted((i for i, count in enumerate(targets) if count), key=lambda i: -targets[i])[
            :PLOTTED_TOKENS
        ]
        if ids:
            plot_token_accuracy(
                directory / "token_accuracy.png",
                tokens=[tokenizer.vocab[i] for i in ids],
                accuracies=[correct[i] / targets[i] for i in ids],
                counts=[targets[i] for i in ids],
                ids=ids,
            )

    def export(self, directory: Path) -> Usage:
        self.network.save(directory)
        return USAGE


def _check_mask(mask_id: int | None) -> None:
    if mask_id is None:
        raise ValueError(
            "tokenizer: the vocabulary has no [MASK], which model=wobert and model=bert need; name another by "
            "tokenizer.vocab or tokenizer.name, or train model=dialogpt, which needs none"
        )


class MaskedLMScores(Metric):
    """Sums over the targets of an evaluation: exact on any number of ranks and batches.

    Bits per character divides the sum of -log2 p by the original characters that the targets cover, so models with
    different tokenizers compare. An [UNK] target is charged, besides its own -log2 p, a uniform code over the
    training characters for each character that it hides. It is a pseudo-likelihood: the targets of a row are
    predicted independently of one another.

    Args:
        token_counts: int64 [vocab_size], of the training split; the unigram baseline is the same targets under
            them with one added to each.
        unk_id: id of [UNK]; None: there is none.
        characters: distinct characters of the training split.
    """

    full_state_update = False
    SUMS = ("nll", "unigram_nll", "characters", "unknown_characters")

    def __init__(self, token_counts: Tensor, unk_id: int | None, characters: int):
        super().__init__()
        # Part of the checkpoint: a loaded model evaluates against the baseline of the corpus it was trained on.
        self.register_buffer("token_counts", token_counts)
        self.unk_id = unk_id
        self.bits_per_unknown = math.log2(max(characters, 2))
        # Apple's GPUs have no float64.
        dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64
        for name in self.SUMS:
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        # int64 [vocab_size]: targets and correct predictions by token.
        self.add_state("targets", torch.zeros_like(token_counts), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros_like(token_counts), dist_reduce_fx="sum")

    def _apply(self, function: Callable[[Tensor], Tensor], *arguments: Any) -> Metric:
        # precision=bf16-true converts all that a model holds, and a sum in bf16 soon stops to grow.
        return super()._apply(keeping_dtype(function), *arguments)

    def update(self, logits: Tensor, targets: Tensor, char_counts: Tensor) -> None:
        """Add K targets: logits [K, vocab_size], ids [K], original characters each covers [K]."""
        dtype = self.nll.dtype
        counts = (self.token_counts + 1).to(dtype)
        unigram = counts.log() - counts.sum().log()
        self.nll += F.cross_entropy(logits, targets, reduction="none").sum(dtype=dtype)
        self.unigram_nll -= unigram[targets].sum()
        self.characters += char_counts.sum()
        if self.unk_id is not None:
            self.unknown_characters += char_counts[targets == self.unk_id].sum()
        self.targets.index_add_(0, targets, torch.ones_like(targets))
        self.correct.index_add_(0, targets, (logits.argmax(-1) == targets).long())

    def compute(self) -> dict[str, Tensor]:
        # Without a target 0 / 0: NaN, which no checkpoint takes for the best loss.
        targets, characters = self.targets.sum(), self.characters
        hidden = self.unknown_characters * self.bits_per_unknown
        return {
            "loss": self.nll / targets,
            "masked_accuracy": self.correct.sum() / targets,
            "bits_per_char": (self.nll / math.log(2) + hidden) / characters,
            "unigram_loss": self.unigram_nll / targets,
            "unigram_bits_per_char": (self.unigram_nll / math.log(2) + hidden) / characters,
            "most_frequent_share": self.targets[self.token_counts.argmax()] / targets,
            "targets_by_token": self.targets,
            "correct_by_token": self.correct,
        }
