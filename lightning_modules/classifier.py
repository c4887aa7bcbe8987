"""Classification of texts, pairs of texts, vectors and images, with any loss of `losses/`.

Su Jianlin's articles on class imbalance: kexue.fm/archives/7708, 4733, 7359, 7615.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datamodules.batch import num_rows
from datamodules.build import build
from datamodules.corpus import DataError, listed
from lightning_modules.base import Technique, Usage
from lightning_modules.classification import (
    EvaluatedRows,
    Scores,
    check_finite,
    multi_label_scores,
    single_label_scores,
    write_class_table,
)
from lightning_modules.losses.base import INSTEAD, ClassificationLoss
from lightning_modules.pictures import plot_classes, plot_confusion
from lightning_modules.precision import in_full

log = logging.getLogger(__name__)

HEAD = "classifier_head.safetensors"
SHOWN_CLASSES = 5  # of a prediction, the most probable ones
STOCK = """```python
from transformers import pipeline

classify = pipeline("text-classification", model=".")  # this directory{needs}
classify("今天天气很好")
```"""
OWN = f"""Stock libraries have no class that computes this classifier. They load its network without the last layer, whose
weight and bias are in `{HEAD}`."""


class Classifier(Technique):
    """A backbone that makes a vector of a row, a linear layer, and a loss.

    Whether rows have one label or several is the corpus' business; a loss says which it takes.

    Args:
        backbone: a network of `networks/`, or its options with `_target_`.
        loss: a `ClassificationLoss`, or its options with `_target_`.
        optimizer, scheduler, seed, regularizer: see `Technique`.
        init_from: a run, an export/, a Hugging Face directory or a hub name to start from; a masked LM, an encoder or
            a classifier, whose last layer is not taken.
        dropout: before the last layer.
        layerwise_lr_decay: each layer of the backbone learns so much more slowly than the one above it.
        freeze: the embeddings and so many layers above them keep their weights; "all": the whole backbone.
        lora: rank, alpha, dropout and target_modules of low-rank adapters (arXiv 2106.09685), which then are all that is
            trained of the backbone; None: none.
        posthoc_tau: tau * log of the training share of its class is taken from each logit before a decision (Menon et
            al. 2021, arXiv 2007.07314, post-hoc logit adjustment), for a loss that knows nothing of it; negative: the
            shares are put in.
        many_shot, few_shot: classes with more, with fewer training rows are scored as groups.
        attention: see `TextEncoder`.
        facts: the corpus' facts; None: taken from the trainer's DataModule when training starts.
        network_config: the network's transformers configuration; stored in checkpoints.

    Raises:
        ValueError: an option out of its range; the message starts with its name.
    """

    needs = frozenset({"label"})
    metrics = (
        "train/loss",
        "val/loss",
        "val/accuracy",
        "val/balanced_accuracy",
        "val/macro_f1",
        "val/micro_f1",
        "val/calibration_error",
        "val/many_shot_accuracy",
        "val/medium_shot_accuracy",
        "val/few_shot_accuracy",
        "test/loss",
        "test/accuracy",
        "test/balanced_accuracy",
        "test/macro_f1",
        "test/micro_f1",
        "test/calibration_error",
        "test/many_shot_accuracy",
        "test/medium_shot_accuracy",
        "test/few_shot_accuracy",
    )
    predict_tasks = {
        "classify": "the class of a text, a pair or an array, or its labels, with probabilities",
        "embed": "one vector a text: what the last layer sees",
    }
    evaluation_options = ("posthoc_tau", "many_shot", "few_shot")

    def __init__(
        self,
        backbone: dict | nn.Module,
        loss: dict | ClassificationLoss,
        optimizer: dict | None = None,
        scheduler: dict | None = None,
        init_from: str | None = None,
        dropout: Annotated[float, "0 <= x < 1"] = 0.1,
        layerwise_lr_decay: Annotated[float, "0 < x <= 1"] = 1.0,
        freeze: Annotated[int, "x >= 0"] | Literal["all"] = 0,
        lora: dict | None = None,
        posthoc_tau: float = 0.0,
        many_shot: Annotated[int, "x >= 1"] = 100,
        few_shot: Annotated[int, "x >= 1"] = 20,
        attention: Literal["auto", "unpadded", "padded"] = "auto",
        seed: int = 0,
        regularizer: dict | None = None,
        *,
        facts: dict[str, Any] | None = None,
        network_config: dict[str, Any] | None = None,
    ):
        super().__init__(optimizer, scheduler, seed, regularizer)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be at least 0 and below 1")
        if not 0 < layerwise_lr_decay <= 1:
            raise ValueError(f"layerwise_lr_decay={layerwise_lr_decay}: must be above 0 and at most 1")
        if freeze != "all" and not (isinstance(freeze, int) and freeze >= 0):
            raise ValueError(f"freeze={freeze}: must be a number of layers, or all")
        if freeze == "all" and lora is not None:
            raise ValueError(f"freeze=all: nothing is left to adapt by lora={lora}; leave out one of them")
        if not 1 <= few_shot <= many_shot:
            raise ValueError(f"few_shot={few_shot}: must be at least 1 and at most many_shot={many_shot}")
        ready = {"backbone": backbone, "loss": loss}
        self.save_hyperparameters(
            ignore=[name for name, node in ready.items() if isinstance(node, nn.Module)]
        )
        self.network = build(
            backbone,
            head=False,
            attention=attention,
            init_from=init_from,
            network_config=network_config,
            lora=lora,
        )
        self.loss: ClassificationLoss = build(loss)
        self.needs = self.needs | self.network.needs
        if not self.loss.per_example:
            for name, transform in self.transforms.items():
                if transform.per == "example":
                    raise ValueError(
                        f"regularizer.{name}.per=example: {_name(self.loss)} is one value a batch; type "
                        f"model.regularizer.{name}.per=batch"
                    )
        self.dropout = nn.Dropout(dropout)
        self.head: nn.Module | None = None
        self.scored: dict[str, Scores] = {}  # the last evaluation of each split

    def check_corpus(self, datamodule: Any) -> None:
        super().check_corpus(datamodule)
        self.network.check_corpus(datamodule)
        if self.hparams.lora is None and self.hparams.freeze != "all":
            self.warn_of_high_rate()
        self._check_labels(getattr(datamodule, "multi_label", False))
        sampler = getattr(datamodule, "sampler", None)
        if sampler is not None and self.loss.corrects_prior:
            log.warning(
                f"data.sampler={sampler} with {_name(self.loss)}: both correct for rare classes, which is then done twice; "
                "leave out one of them"
            )

    def can_score(self, datamodule: Any, split: Literal["val", "test"]) -> bool:
        """As of `Technique`.

        Raises:
            DataError: the corpus has other classes than the one that was trained on.
        """
        own = self.hparams.facts
        if own is not None and own["label_names"] != list(datamodule.label_names):
            raise DataError(
                f"data: the corpus has the classes {listed(datamodule.label_names)}, the run was trained on "
                f"{listed(own['label_names'])}; evaluate it on a corpus of the same classes (data.labels names them)"
            )
        return datamodule.has_labels(split)

    def _check_labels(self, multi_label: bool) -> None:
        kind, rows = (
            ("multi", "several labels (data.multi_label)") if multi_label else ("single", "one label")
        )
        if kind not in self.loss.labels:
            raise ValueError(
                f"model.loss: {_name(self.loss)} does not take rows with {rows}; type model/loss={INSTEAD[kind]}"
            )

    # Lightning calls this when the DataModule is set up, and again when a checkpoint is loaded.
    def configure_model(self) -> None:
        if self.head is not None:
            return
        options = self.hparams
        if options.facts is None:
            options.facts = self.trainer.datamodule.facts
        facts = options.facts
        self._check_labels(facts["multi_label"])
        self.network.build(facts)
        options.network_config = self.network.network_config
        try:
            self.network.freeze(options.freeze)
        except ValueError as error:
            raise DataError(str(error)) from error
        counts = torch.tensor(facts["class_counts"], device="cpu")
        if not facts["multi_label"] and (lacking := facts["num_train_rows"] - int(counts.sum())):
            raise DataError(f"{lacking:,} training rows have no label; leave them out of the corpus")
        self._prepare_prior(counts)
        layer = CosineLinear if self.loss.cosine_head else nn.Linear
        self.head = layer(self.network.hidden_size, len(counts))
        if isinstance(self.head, nn.Linear):
            # As BERT's own: a first loss of about log C, whatever the size.
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        self.scores = EvaluatedRows(len(counts), facts["multi_label"])

    def _prepare_prior(self, counts: Tensor) -> None:
        """The loss' and the post-hoc adjustment's numbers of the training split."""
        facts, tau = self.hparams.facts, self.hparams.posthoc_tau
        empty = [name for name, count in zip(facts["label_names"], counts.tolist(), strict=True) if not count]
        if empty and (self.loss.needs_every_class or tau):
            what = f"model.posthoc_tau={tau}" if tau else f"model.loss: {_name(self.loss)}"
            instead = "model.posthoc_tau=0" if tau else "model/loss=weighted (several labels a row: bce)"
            raise DataError(
                f"{what} takes the logarithm of each class' share of the training rows, and {len(empty)} of "
                f"{len(counts)} classes have no row: {listed(empty)}; take them out of the labels, keep more rows "
                f"(data.limit, data.long_tail), or type {instead}"
            )
        full = counts == facts["num_train_rows"]
        if facts["multi_label"] and tau and full.any():
            everywhere = [
                name for name, is_full in zip(facts["label_names"], full.tolist(), strict=True) if is_full
            ]
            raise DataError(
                f"model.posthoc_tau={tau} takes the odds of each label among the training rows, and every row has "
                f"{listed(everywhere)}; take them out of the labels"
            )
        if tau > 0 and (self.loss.corrects_prior or facts["sampler"] is not None):
            log.warning(
                f"model.posthoc_tau={tau}: the training has corrected for rare classes already (its loss or its sampler), "
                "which is then done twice; type model.posthoc_tau=0"
            )
        self.loss.prepare(counts, facts["num_train_rows"])

    def forward(self, batch: Any) -> Tensor:
        """Logits [N, C], in float32 at least."""
        return in_full(self.head(self.dropout(self.network.encode(batch))))

    def count_targets(self, batch: Any) -> int:
        return num_rows(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step_loss(self.loss(self(batch), batch.labels), batch)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._num_steps = self.trainer.estimated_stepping_batches

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.loss.progress = self._progress(self.global_step, self._num_steps)

    def evaluate(self, batch: Any) -> None:
        labels, logits = batch.labels, self(batch)
        known = labels >= 0 if labels.ndim == 1 else torch.ones_like(labels[:, 0])
        self.scores.update(logits[known], labels[known], batch.row_ids[known])

    def compute_scores(self, split: Literal["val", "test"]) -> dict[str, Tensor | float]:
        logits, labels, _ = self.scores.compute()
        self.scores.reset()
        facts, options = self.hparams.facts, self.hparams
        of_kind = multi_label_scores if facts["multi_label"] else single_label_scores
        scores = of_kind(
            self.probabilities(logits), labels, facts["class_counts"], options.many_shot, options.few_shot
        )
        self.scored[split] = scores
        own = {"loss": self.loss(logits, labels).mean(), **scores.metrics}
        return {f"{split}/{name}": value for name, value in own.items()}

    def probabilities(self, logits: Tensor) -> Tensor:
        """[N, C] of the loss' own form, with the post-hoc adjustment."""
        multi_label, tau = self.hparams.facts["multi_label"], self.hparams.posthoc_tau
        probabilities = self.loss.probabilities(logits, multi_label)
        if not tau:
            return probabilities
        shift = tau * self.loss.log_prior(probabilities, multi_label)
        if multi_label:
            return torch.sigmoid(torch.logit(probabilities, eps=torch.finfo(logits.dtype).eps) - shift)
        return torch.softmax(probabilities.clamp_min(torch.finfo(logits.dtype).tiny).log() - shift, dim=1)

    def lr_factor(self, name: str) -> float:
        decay = self.hparams.layerwise_lr_decay
        prefix, _, of_network = name.partition("network.")
        if decay == 1 or prefix or not of_network:
            return 1.0
        return decay ** (self.network.num_depths - self.network.depth_of(of_network))

    def predict_classify(self, texts: list, inputs: Any) -> list[dict]:
        """The class of each row with its probability and those of the next ones; of several labels, all above one half.

        Args:
            texts: texts, pairs of texts, or arrays.
            inputs: makes a batch of them, see `TextInput` and `ArrayInput`.
        """
        names, multi_label = self.hparams.facts["label_names"], self.hparams.facts["multi_label"]
        logits = self(inputs.encode(texts).to(self.device))
        check_finite(logits)
        probabilities = self.probabilities(logits)
        best = probabilities.topk(min(SHOWN_CLASSES, len(names)), dim=1)
        results = []
        for row, scores, classes in zip(
            probabilities, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            listed_scores = {names[index]: score for index, score in zip(classes, scores, strict=True)}
            if multi_label:
                found = {"labels": [names[index] for index in (row > 0.5).nonzero().flatten().tolist()]}
            else:
                found = {"label": names[classes[0]], "score": scores[0]}
            results.append({**found, "scores": listed_scores})
        return [{**inputs.shown(text), **result} for text, result in zip(texts, results, strict=True)]

    def predict_embed(self, texts: list, inputs: Any) -> list[dict]:
        """What the last layer sees of each row."""
        vectors = self.network.encode(inputs.encode(texts).to(self.device)).float().tolist()
        return [{**inputs.shown(text), "embedding": v} for text, v in zip(texts, vectors, strict=True)]

    def export(self, directory: Path) -> Usage:
        facts, own = self.hparams.facts, {"weight": self.head.weight.detach().cpu().contiguous()}
        bias = getattr(self.head, "bias", None)
        if bias is not None:
            own["bias"] = bias.detach().cpu().contiguous()
        # Also where the network's own files hold it: of a cosine layer, or of another pooling, they do not.
        save_file(own, directory / HEAD)
        stock = self.network.save_classifier(directory, self.head, facts["label_names"], facts["multi_label"])
        return Usage(
            task="text-classification" if stock else "feature-extraction",
            scores="balanced_accuracy is the mean recall over the classes.",
            code=STOCK if stock else OWN,
            command="predict.task=classify predict.input=FILE",
        )

    def exported_options(self) -> dict[str, Any]:
        # The adapters are merged into the weights.
        return {**self.hparams, "lora": None}

    def load_export(self, directory: Path) -> None:
        self.head.load_state_dict(load_file(directory / HEAD))

    def plot(self, directory: Path, tokenizer: Any) -> None:
        """Of the last evaluation of each split: bars and a table of classes, and which are taken for which."""
        names = self.hparams.facts["label_names"]
        for split, scores in self.scored.items():
            plot_classes(directory / f"classes_{split}.png", names, scores)
            write_class_table(directory / f"classes_{split}.csv", names, scores)
            if scores.confusion is not None:
                plot_confusion(directory / f"confusion_{split}.png", names, scores.confusion)


class CosineLinear(nn.Module):
    """Cosines of the angles between a row's vector and each class' weight."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * in_features**-0.5)

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1) @ F.normalize(self.weight, dim=1).T


def _name(loss: nn.Module) -> str:
    return type(loss).__name__
