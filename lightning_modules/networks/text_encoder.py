"""A transformers encoder that eats flat batches."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
)

from datamodules.batch import TokenBatch
from datamodules.tokenizers.expansion import RowSources
from lightning_modules.networks import attention as unpadded
from lightning_modules.networks.base import Backbone
from lightning_modules.networks.flat import FlatTransformer, load_pretrained, probe_batch, quiet
from lightning_modules.precision import in_full

log = logging.getLogger(__name__)

POOLINGS = ("cls", "mean", "max")
# What the architectures call the projections that LoRA's paper adapts: of queries and values.
QUERIES_AND_VALUES = frozenset(
    {"query", "value", "query_proj", "value_proj", "q_proj", "v_proj", "q_lin", "v_lin"}
)


class TextEncoder(FlatTransformer, Backbone):
    """An encoder, with or without its masked-LM head: BERT from scratch, or any that transformers loads.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, max_position_embeddings: the shape
            of a BERT that starts from scratch.
        hidden_dropout, attention_dropout: probabilities.
        pooling: what `encode` makes of a row: the "mean" or the "max" over its states, special tokens left out; "cls",
            as BERT classifies: the architecture's pooler (dense and tanh) on the first state, or that state where the
            architecture has none, or the encoder has its masked-LM head.
        attention: "unpadded" computes real tokens only, "padded" goes through [N, L] batches; "auto" takes
            unpadded where the leak probe shows that rows stay apart, and says so where it does not.
        init_from: a run, an export/, a Hugging Face directory or a hub name whose architecture and weights are
            taken; the shape above is then not used. Without `head` it may be a masked LM, an encoder or a classifier.
        network_config: a transformers configuration as a dictionary (stored in a checkpoint): architecture without
            weights. Takes precedence over both.
        head: with the masked-LM head; without it there is no parameter that `encode` does not use.
        lora: rank, alpha (2 * rank), dropout (0) and target_modules (the projections of queries and values) of
            low-rank adapters (Hu et al. 2021, arXiv 2106.09685): only they and a pooler are trained. Needs peft.

    The constructor settles the architecture; `build` makes the weights when the vocabulary is known.

    Raises:
        ValueError: an option is out of its range, or nothing can be loaded from `init_from`.
    """

    needs = frozenset({"text"})

    def __init__(
        self,
        hidden_size: Annotated[int, "x >= 1"] = 256,
        num_hidden_layers: Annotated[int, "x >= 1"] = 4,
        num_attention_heads: Annotated[int, "x >= 1"] = 4,
        intermediate_size: Annotated[int, "x >= 1"] = 1024,
        max_position_embeddings: Annotated[int, "x >= 1"] = 512,
        hidden_dropout: Annotated[float, "0 <= x < 1"] = 0.1,
        attention_dropout: Annotated[float, "0 <= x < 1"] = 0.0,
        pooling: Literal["cls", "mean", "max"] = "mean",
        *,
        attention: Literal["auto", "unpadded", "padded"] = "auto",
        init_from: str | None = None,
        network_config: dict[str, Any] | None = None,
        head: bool = True,
        lora: dict[str, Any] | None = None,
    ):
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size={hidden_size}: must be a multiple of num_attention_heads={num_attention_heads}"
            )
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling}: must be one of {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.with_head = head
        self.wanted_attention = attention
        self.init_from = init_from if network_config is None else None
        self.lora = None if lora is None else _lora_config(lora)
        self.model: nn.Module | None = None
        if network_config is not None:
            self.config = AutoConfig.for_model(**network_config)
        elif init_from is not None:
            self.config = load_pretrained(AutoConfig, init_from)
        else:
            self.config = BertConfig(
                hidden_size=hidden_size,
                num_hidden_layers=num_hidden_layers,
                num_attention_heads=num_attention_heads,
                intermediate_size=intermediate_size,
                max_position_embeddings=max_position_embeddings,
                hidden_dropout_prob=hidden_dropout,
                attention_probs_dropout_prob=attention_dropout,
                vocab_size=0,
                pad_token_id=None,
            )

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    def build(self, facts: dict[str, Any], rows: RowSources | None = None) -> None:
        """Make the weights, once.

        Args:
            facts: `vocab_size` and `pad_id` of the tokenizer are taken.
            rows: gives the checkpoint of `init_from` the tokenizer's vocabulary: which old rows make each new one.

        Raises:
            ValueError: a checkpoint's vocabulary is smaller than the tokenizer's, its head is of an unknown form,
                `attention="unpadded"` is not possible, or the architecture has not the modules that `lora` names.
        """
        vocab_size, pad_id = facts["vocab_size"], facts["pad_id"]
        # Lightning builds under the accelerator as default device, where transformers would ask for accelerate to
        # load a checkpoint. The weights are made here and moved with the module.
        with torch.device("cpu"):
            self.model = self._make(vocab_size, pad_id)
            if self.with_head and self._head is None:
                name = type(self.model).__name__
                raise ValueError(f"init_from={self.init_from}: {name} has no head `cls` or `lm_head`")
            if rows is not None:
                self._change_vocabulary(rows, pad_id)
            # transformers loads in evaluation mode, and Lightning keeps the mode it finds: dropout would stay off.
            self.model.train()
            self.config = self.model.config
            if vocab_size > self.config.vocab_size:
                raise ValueError(
                    f"init_from={self.init_from}: the model knows {self.config.vocab_size} ids, the tokenizer gives "
                    f"{vocab_size}; use the checkpoint's own vocabulary (leave tokenizer.vocab alone) or "
                    "model.expand_vocabulary"
                )
            with quiet():  # transformers warns of architectures that take no attention by name
                self.attention = self._choose_attention(self.wanted_attention)
            if self.lora is not None:
                self._add_lora()
        self._compile_if_asked()

    def _make(self, vocab_size: int, pad_id: int) -> nn.Module:
        auto_class = AutoModelForMaskedLM if self.with_head else AutoModel
        new: set[str] = set()
        if self.init_from is None:
            if not self.config.vocab_size:
                self.config.vocab_size, self.config.pad_token_id = vocab_size, pad_id
            model = auto_class.from_config(self.config)
        else:
            model, new = self._loaded(auto_class)
        if not self.with_head and self.pooling != "cls" and getattr(model, "pooler", None) is not None:
            # Nothing would use its parameters, for which DDP waits. Not every architecture takes None for it.
            model.pooler = nn.Identity()
            new = {name for name in new if not name.startswith("pooler.")}
        self._tell_new(new)
        return model

    def _add_lora(self) -> None:
        from peft import inject_adapter_in_model  # an optional dependency, and slow to import

        matrices = {
            name.rpartition(".")[2]
            for name, module in self.model.named_modules()
            if getattr(getattr(module, "weight", None), "ndim", 0) == 2
        }
        wanted = self.lora.target_modules or QUERIES_AND_VALUES & matrices
        if not wanted or not wanted <= matrices:
            typed = f"[{','.join(sorted(wanted))}]" if wanted else "null"
            raise ValueError(
                f"model.lora.target_modules={typed}: {type(self.model).__name__} has the layers "
                f"{', '.join(sorted(matrices))}; name some of them"
            )
        self.lora.target_modules = wanted
        inject_adapter_in_model(self.lora, self.model)
        if self._pooler is not None:
            self._pooler.requires_grad_(True)

    def freeze(self, layers: int | Literal["all"]) -> None:
        if layers == "all" and self.lora is not None:
            raise ValueError("model.freeze=all: leaves model.lora nothing to train; type model.freeze=0")
        super().freeze(layers)

    @torch.no_grad()
    def _change_vocabulary(self, rows: RowSources, pad_id: int) -> None:
        """Input embeddings, the decoder (tied or not) and its bias, each by the same rule.

        Rows without a source are drawn as transformers draws new ones, their biases are zero.
        """
        ids = torch.from_numpy(rows.ids)
        offsets = torch.from_numpy(rows.counts.cumsum() - rows.counts)
        fresh = torch.from_numpy(rows.counts == 0)
        known = len(self.model.get_input_embeddings().weight)
        if ids.max() >= known:
            raise ValueError(
                f"init_from={self.init_from}: its vocabulary names id {ids.max()}, its weights have {known} rows"
            )
        if (pad := int(ids[offsets[pad_id]])) != pad_id:
            # Some architectures count positions from it.
            raise ValueError(
                f"init_from={self.init_from}: its padding has id {pad}, which would become {pad_id}; type "
                "tokenizer.simplify=false"
            )

        def tables() -> list[Tensor]:
            inputs, outputs = self.model.get_input_embeddings(), self.model.get_output_embeddings()
            bias = getattr(outputs, "bias", None)
            return [inputs.weight, outputs.weight, *([] if bias is None else [bias])]

        def taken_over(old: Tensor) -> Tensor:
            # Zeros where there is no source.
            new = F.embedding_bag(ids, old.reshape(known, -1), offsets, mode="mean")
            if old.ndim > 1:
                new[fresh] = torch.randn(int(fresh.sum()), new.shape[1]) * self.config.initializer_range
            return new.reshape(-1, *old.shape[1:])

        new = [taken_over(old) for old in tables()]
        # It keeps tied weights tied. Without a multiple it would speak of tensor cores each time.
        self.model.resize_token_embeddings(len(rows.counts), pad_to_multiple_of=1, mean_resizing=False)
        for table, values in zip(tables(), new, strict=True):
            table.copy_(values)

    def forward(self, batch: TokenBatch, input_ids: Tensor | None = None) -> Tensor:
        """The last layer's states [T, H]; `input_ids` [T] stand in for the batch's own."""
        ids = batch.input_ids if input_ids is None else input_ids
        if self.attention == "unpadded":
            return self.flat_states(batch, ids)
        return batch.flat(self.model.base_model(**self._padded(batch, ids))[0])

    def encode(self, batch: TokenBatch) -> Tensor:
        """[N, H], by `pooling`; zeros for the mean and the maximum of a row without text."""
        states = self(batch)
        if self.pooling == "cls":
            first = states.index_select(0, batch.cu_seqlens[:-1])
            return first if self._pooler is None else self._pooled(first)
        is_text = batch.char_counts > 0
        if self.pooling == "max":
            padded, _ = batch.padded(states)
            text, _ = batch.padded(is_text)
            highest = padded.masked_fill(~text[:, :, None], -torch.inf).amax(1)
            return highest.masked_fill(~text.any(1, keepdim=True), 0)
        # A sum of some hundred states, and their number, do not fit in bfloat16.
        full = in_full(states)
        weight = is_text.to(full.dtype)
        row = torch.repeat_interleave(
            torch.arange(batch.num_rows, device=states.device),
            batch.cu_seqlens.diff(),
            output_size=batch.num_tokens,
        )
        total = full.new_zeros(batch.num_rows, full.shape[1]).index_add(0, row, full * weight[:, None])
        count = weight.new_zeros(batch.num_rows).index_add(0, row, weight)
        return (total / count.clamp(min=1)[:, None]).to(states.dtype)

    def vocabulary_logits(self, states: Tensor) -> Tensor:
        """[K, H] states to [K, vocab_size] logits: pass only the rows that carry a target."""
        return self._head(states)

    def save(self, directory: Path) -> None:
        """Write configuration and weights as stock transformers reads them."""
        with quiet():
            self.merged().save_pretrained(directory)

    def merged(self) -> nn.Module:
        """The transformers model with the adapters of `lora` in its weights, then a copy in float32."""
        if self.lora is None:
            return self.model
        from peft.tuners.tuners_utils import BaseTunerLayer

        model = copy.deepcopy(self.model).float()
        adapted = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
        for name, module in adapted.items():
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        del model.peft_config
        return model

    @torch.no_grad()
    def save_classifier(
        self, directory: Path, head: nn.Module, label_names: list[str], multi_label: bool
    ) -> bool:
        """As of `Backbone`: the architecture's own `...ForSequenceClassification`, where on a few rows its logits are
        those of `encode` and `head`; else the encoder alone, as AutoModel loads it."""
        self.config.id2label = dict(enumerate(label_names))
        self.config.label2id = {name: index for index, name in enumerate(label_names)}
        self.config.problem_type = (
            "multi_label_classification" if multi_label else "single_label_classification"
        )
        model = self.merged()
        stock = self._stock_classifier(model, head)
        with quiet():
            (model if stock is None else stock).save_pretrained(directory)
        return stock is not None

    def _stock_classifier(self, model: nn.Module, head: nn.Module) -> nn.Module | None:
        """Stock transformers' classifier with the weights of `model` and `head`, if it computes the same."""
        try:
            config = AutoConfig.for_model(**self.config.to_dict())
            stock = AutoModelForSequenceClassification.from_config(config).float().eval()
        except ValueError:
            return None  # the architecture has none
        encoder = stock.base_model
        encoder_layers = set(encoder.modules())
        own = [m for m in stock.modules() if isinstance(m, nn.Linear) and m not in encoder_layers]
        if len(own) != 1 or not own[0].state_dict().keys() == head.state_dict().keys():
            return None  # RoBERTa's has the pooler's layer there, where `init_from` would not find it again
        missing, unused = encoder.load_state_dict(model.state_dict(), strict=False)
        if missing or unused:
            return None
        own[0].load_state_dict(head.state_dict())
        batch = probe_batch(self.config.vocab_size)
        network, head = (copy.deepcopy(module).float().cpu().eval() for module in (self, head))
        logits = stock(**self._padded(batch, batch.input_ids)).logits
        return stock if torch.allclose(logits, head(network.encode(batch)), atol=1e-4, rtol=0) else None

    @property
    def _pooler(self) -> nn.Module | None:
        """What `pooling="cls"` puts on the first state."""
        has_one = not self.with_head and self.pooling == "cls"
        return getattr(self.model, "pooler", None) if has_one else None

    def _pooled(self, first: Tensor) -> Tensor:
        """[N, H] of first states [N, H]. A pooler looks at the first of the states [N, L, H] of each row: in the model's
        own call of it that is the first row of a flat batch, and no other."""
        pooled = self._pooler(first[:, None])
        # ALBERT's and BigBird's is the dense layer alone.
        return pooled if pooled.ndim == 2 else pooled[:, 0].tanh()

    @property
    def _head(self) -> nn.Module | None:
        return getattr(self.model, "cls", None) or getattr(self.model, "lm_head", None)

    def flat_states(self, batch: TokenBatch, ids: Tensor) -> Tensor:
        return self.model.base_model(
            input_ids=ids[None],
            token_type_ids=self._segments(batch)[None],
            position_ids=batch.position_ids[None],
            **unpadded.layout(batch),
        )[0][0]

    def _padded(self, batch: TokenBatch, ids: Tensor) -> dict[str, Tensor]:
        padded, mask = batch.padded(ids, fill=self.config.pad_token_id or 0)
        segments, _ = batch.padded(self._segments(batch))
        return {"input_ids": padded, "attention_mask": mask.long(), "token_type_ids": segments}

    def _segments(self, batch: TokenBatch) -> Tensor:
        # RoBERTa knows a single one.
        one = getattr(self.config, "type_vocab_size", 2) == 1
        return torch.zeros_like(batch.segment_ids) if one else batch.segment_ids


def _lora_config(options: dict[str, Any]) -> Any:
    """peft's configuration of `lora`."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError("model.lora needs peft: pip install -e '.[lora]'") from error
    known = {"rank": None, "alpha": None, "dropout": 0.0, "target_modules": None}
    if unknown := options.keys() - known.keys():
        raise ValueError(f"model.lora.{min(unknown)}: is no option; there are {', '.join(known)}")
    rank, alpha, dropout, targets = {**known, **options}.values()
    alpha = 2 * rank if alpha is None and isinstance(rank, int) else alpha
    if not (isinstance(rank, int) and rank >= 1):
        raise ValueError(f"model.lora.rank={rank}: must be a whole number, at least 1")
    if not alpha > 0:
        raise ValueError(f"model.lora.alpha={alpha}: must be above 0")
    if not 0 <= dropout < 1:
        raise ValueError(f"model.lora.dropout={dropout}: must be at least 0 and below 1")
    if isinstance(targets, str):
        raise ValueError(f"model.lora.target_modules={targets}: must be a list; type [{targets}]")
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
