"""A transformers encoder that eats flat batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForMaskedLM, BertConfig
from transformers.utils import logging as transformers_logging

from datamodules.batch import TokenBatch
from datamodules.tokenizers.base import resolve_pretrained
from datamodules.tokenizers.expansion import RowSources
from lightning_modules.networks import attention as unpadded

log = logging.getLogger(__name__)

PROBE = "unpadded_probe"


class TextEncoder(nn.Module):
    """An encoder with its masked-LM head: BERT from scratch, or any masked LM that transformers loads.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, max_position_embeddings: the shape
            of a BERT that starts from scratch.
        hidden_dropout, attention_dropout: probabilities.
        attention: "unpadded" computes real tokens only, "padded" goes through [N, L] batches; "auto" takes
            unpadded where the leak probe shows that rows stay apart, and says so where it does not.
        init_from: a run, an export/, a Hugging Face directory or a hub name whose architecture and weights are
            taken; the shape above is then not used.
        network_config: a transformers configuration as a dictionary (stored in a checkpoint): architecture without
            weights. Takes precedence over both.

    The constructor settles the architecture; `build` makes the weights when the vocabulary is known.

    Raises:
        ValueError: an option is out of its range, or nothing can be loaded from `init_from`.
    """

    def __init__(
        self,
        hidden_size: Annotated[int, "x >= 1"] = 256,
        num_hidden_layers: Annotated[int, "x >= 1"] = 4,
        num_attention_heads: Annotated[int, "x >= 1"] = 4,
        intermediate_size: Annotated[int, "x >= 1"] = 1024,
        max_position_embeddings: Annotated[int, "x >= 1"] = 512,
        hidden_dropout: Annotated[float, "0 <= x < 1"] = 0.1,
        attention_dropout: Annotated[float, "0 <= x < 1"] = 0.0,
        *,
        attention: Literal["auto", "unpadded", "padded"] = "auto",
        init_from: str | None = None,
        network_config: dict[str, Any] | None = None,
    ):
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size={hidden_size}: must be a multiple of num_attention_heads={num_attention_heads}"
            )
        self.wanted_attention = attention
        self.init_from = init_from if network_config is None else None
        self.model: nn.Module | None = None
        self._compile_options: dict[str, Any] | None = None
        if network_config is not None:
            self.config = AutoConfig.for_model(**network_config)
        elif init_from is not None:
            self.config = _load(AutoConfig, init_from)
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
    def longest_row(self) -> int | None:
        """Tokens that the positions reach; None where they have no limit."""
        return getattr(self.config, "max_position_embeddings", None)

    def build(self, vocab_size: int, pad_id: int, rows: RowSources | None = None) -> None:
        """Make the weights, once.

        Args:
            vocab_size, pad_id: of the tokenizer.
            rows: gives the checkpoint of `init_from` the tokenizer's vocabulary: which old rows make each new one.

        Raises:
            ValueError: a checkpoint's vocabulary is smaller than the tokenizer's, its head is of an unknown form, or
                `attention="unpadded"` is not possible.
        """
        # Lightning builds under the accelerator as default device, where transformers would ask for accelerate to
        # load a checkpoint. The weights are made here and moved with the module.
        with torch.device("cpu"):
            self.model = self._make(vocab_size, pad_id)
            if self._head is None:
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
            self.attention = self._choose_attention(self.wanted_attention)
        if self._compile_options is not None:
            self.compile(**self._compile_options)

    def compile(self, **options: Any) -> None:
        """torch.compile, in place, for the encoder without its head; `build` does it where the weights are to come.

        Batches differ in their numbers of tokens and rows: sizes are symbols from the start, so there is one graph for
        training and one for evaluation (one more where two sizes of the first batch happen to be equal).
        """
        self._compile_options = options
        if self.model is not None:
            self.model.base_model.compile(dynamic=True, **options)

    def _make(self, vocab_size: int, pad_id: int) -> nn.Module:
        if self.init_from is None:
            if not self.config.vocab_size:
                self.config.vocab_size, self.config.pad_token_id = vocab_size, pad_id
            return AutoModelForMaskedLM.from_config(self.config)
        options = {"output_loading_info": True, "dtype": torch.float32}
        on_disk = Path(self.init_from).expanduser().is_dir()
        with _without_progress_bar() if on_disk else nullcontext():  # a download is worth a bar
            model, report = _load(AutoModelForMaskedLM, self.init_from, **options)
        if report["missing_keys"]:
            names = sorted(report["missing_keys"])
            log.warning(f"init_from={self.init_from}: not in the checkpoint, hence new: {names}")
        return model

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
            return self._unpadded(batch, ids)
        padded, mask = batch.padded(ids, fill=self.config.pad_token_id or 0)
        segments, _ = batch.padded(batch.segment_ids)
        states = self.model.base_model(input_ids=padded, attention_mask=mask.long(), token_type_ids=segments)[
            0
        ]
        return batch.flat(states)

    def encode(self, batch: TokenBatch) -> Tensor:
        """[N, H]: the mean of each row's states, special tokens left out."""
        states = self(batch)
        weight = (batch.char_counts > 0).to(states.dtype)
        row = torch.repeat_interleave(
            torch.arange(batch.num_rows, device=states.device),
            batch.cu_seqlens.diff(),
            output_size=batch.num_tokens,
        )
        total = states.new_zeros(batch.num_rows, states.shape[1]).index_add(0, row, states * weight[:, None])
        count = weight.new_zeros(batch.num_rows).index_add(0, row, weight)
        return total / count.clamp(min=1)[:, None]

    def vocabulary_logits(self, states: Tensor) -> Tensor:
        """[K, H] states to [K, vocab_size] logits: pass only the rows that carry a target."""
        return self._head(states)

    def save(self, directory: Path) -> None:
        """Write configuration and weights as stock transformers reads them."""
        with _without_progress_bar():
            self.model.save_pretrained(directory)

    @property
    def _head(self) -> nn.Module | None:
        return getattr(self.model, "cls", None) or getattr(self.model, "lm_head", None)

    def _unpadded(self, batch: TokenBatch, ids: Tensor) -> Tensor:
        return self.model.base_model(
            input_ids=ids[None],
            token_type_ids=batch.segment_ids[None],
            position_ids=batch.position_ids[None],
            **unpadded.layout(batch),
        )[0][0]

    def _choose_attention(self, wanted: str) -> Literal["unpadded", "padded"]:
        if wanted == "padded":
            return "padded"
        stock = self.config._attn_implementation
        reason = self._why_not_unpadded()
        if reason is None:
            self.model.set_attn_implementation(unpadded.NAME)
            return "unpadded"
        self.model.set_attn_implementation(stock)
        if wanted == "unpadded":
            raise ValueError(
                f"attention=unpadded: {type(self.model).__name__} cannot: {reason}; use attention=auto"
            )
        log.info(f"{type(self.model).__name__} runs on padded batches: {reason}")
        return "padded"

    @torch.no_grad()
    def _why_not_unpadded(self) -> str | None:
        """Why this architecture must not run on flat rows, or None.

        Some architectures accept the attention's name and never call it: every row then attends to every other,
        silently. Others count positions in a way of their own. So it is tried: change row A, and row B must stay as
        it was, and be what the stock model makes of row B alone.
        """
        calls = 0

        def counted(*arguments: Any, **options: Any) -> tuple[Tensor, None]:
            nonlocal calls
            calls += 1
            return unpadded.unpadded_attention(*arguments, **options)

        AttentionInterface.register(PROBE, counted)
        device = next(self.parameters()).device
        ids = np.arange(5, 12) % self.config.vocab_size
        changed = np.concatenate((ids[:3][::-1], ids[3:]))
        was_training = self.model.training
        self.model.eval()
        try:
            stock = self.model.base_model(input_ids=torch.from_numpy(ids[None, 3:]).to(device))[0][0]
            self.model.set_attn_implementation(PROBE)
            before, after = (self._probe(x, device)[3:] for x in (ids, changed))
        except Exception as error:
            return f"it does not take flat rows ({type(error).__name__}: {error})"
        finally:
            self.model.train(was_training)
        if not calls:
            return "it does not call transformers' attention interface"
        if not torch.equal(before, after):
            return "one row's tokens change another row's outputs"
        if not torch.allclose(before, stock, atol=1e-3, rtol=1e-3):
            return "a row's outputs differ from those of the row alone"
        return None

    def _probe(self, ids: np.ndarray, device: torch.device) -> Tensor:
        batch = TokenBatch.from_numpy(
            input_ids=ids,
            lengths=np.array([3, 4]),
            char_counts=np.ones(7),
            word_starts=np.ones(7, dtype=bool),
            text_starts=np.zeros(7, dtype=bool),
            row_ids=np.arange(2),
        ).to(device)
        return self._unpadded(batch, batch.input_ids)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws one for a single file of weights, over the lines of a run."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _load(auto_class: type, source: str, **options: Any) -> Any:
    path = resolve_pretrained(source)
    try:
        return auto_class.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"init_from={source}: cannot be loaded ({error}); give a run directory, an export/ or Hugging Face "
            "directory on disk, or set HF_ENDPOINT to a mirror of the hub"
        ) from error
