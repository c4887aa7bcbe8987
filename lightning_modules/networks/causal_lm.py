"""A transformers causal language model that eats flat batches, and that decodes with a cache."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    GPTNeoXConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
)

from datamodules.batch import TokenBatch
from datamodules.tokenizers.base import resolve_pretrained
from lightning_modules.networks import attention as unpadded
from lightning_modules.networks.flat import FlatTransformer, load_pretrained, quiet

log = logging.getLogger(__name__)

# A buffer of GPT's attention, not a weight: CDial-GPT's checkpoints hold it for 512 positions of 513.
CAUSAL_MASK = ".attn.bias"


class Recomputed(NamedTuple):
    """In the place of a cache, for architectures that have none: what was read so far, [B, past]."""

    input_ids: Tensor
    role_ids: Tensor | None
    position_ids: Tensor


class CausalLM(FlatTransformer):
    """A causal language model with tied embeddings: GPT-2 from scratch, with learned or rotary positions, or any that
    transformers loads.

    A token's embedding is the sum of that of its id and, where the model has roles, that of its role, a row of the same
    table: what GPT and GPT-2 do with `token_type_ids`.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: the shape of a model from scratch.
        positions: "absolute" learns a vector for each position, as GPT-2 (Radford et al. 2019); "rotary" turns queries and
            keys by their position (Su et al. 2021, arXiv 2104.09864) in the same pre-norm blocks (GPT-NeoX without its
            parallel residuals), and has no longest row.
        max_position_embeddings: the longest row of absolute positions.
        dropout, attention_dropout: probabilities.
        attention: see `TextEncoder`.
        init_from: a run, an export/, a Hugging Face directory or a hub name whose architecture and weights are taken; of
            the options above only `attention` is then used.
        network_config: see `TextEncoder`.

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
        positions: Literal["absolute", "rotary"] = "absolute",
        max_position_embeddings: Annotated[int, "x >= 1"] = 512,
        dropout: Annotated[float, "0 <= x < 1"] = 0.1,
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
        if positions not in ("absolute", "rotary"):
            raise ValueError(f"positions={positions}: must be one of absolute, rotary")
        if positions == "rotary" and hidden_size // num_attention_heads % 2:
            raise ValueError(
                f"hidden_size={hidden_size}: rotary positions turn pairs, and a head of {hidden_size // num_attention_heads} "
                "is odd; change it or num_attention_heads"
            )
        self.wanted_attention = attention
        self.init_from = init_from if network_config is None else None
        self.model: nn.Module | None = None
        self.num_logits: int | None = None
        if network_config is not None:
            self.config = AutoConfig.for_model(**network_config)
        elif init_from is not None:
            self.config = _load_config(init_from)
        elif positions == "absolute":
            self.config = GPT2Config(
                vocab_size=0,
                n_embd=hidden_size,
                n_layer=num_hidden_layers,
                n_head=num_attention_heads,
                n_inner=intermediate_size,
                n_positions=max_position_embeddings,
                embd_pdrop=dropout,
                resid_pdrop=dropout,
                attn_pdrop=attention_dropout,
                bos_token_id=None,
                eos_token_id=None,
            )
        else:
            self.config = GPTNeoXConfig(
                vocab_size=0,
                hidden_size=hidden_size,
                num_hidden_layers=num_hidden_layers,
                num_attention_heads=num_attention_heads,
                intermediate_size=intermediate_size,
                max_position_embeddings=max_position_embeddings,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
                use_parallel_residual=False,
                hidden_act="gelu_new",
                hidden_dropout=dropout,
                attention_dropout=attention_dropout,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=None,
            )

    @property
    def longest_row(self) -> int | None:
        # Rotary positions have a number of the same name: the length of the training rows.
        rotary = getattr(self.config, "rope_parameters", None) is not None
        return None if rotary else super().longest_row

    def build(self, facts: dict[str, Any], num_rows: int, num_logits: int | None = None) -> None:
        """Make the weights, once.

        Args:
            facts: `pad_id`, `cls_id` and `sep_id` of the tokenizer are taken.
            num_rows: rows that the table of embeddings needs at least: a checkpoint's grows, by rows that are drawn as
                transformers draws them.
            num_logits: only the first so many rows are predicted; None: all.

        Raises:
            ValueError: the checkpoint cannot be loaded, or `attention="unpadded"` is not possible.
        """
        self.num_logits = num_logits
        # On the CPU, see `TextEncoder.build`.
        with torch.device("cpu"):
            if self.init_from is None:
                if not self.config.vocab_size:
                    self.config.vocab_size, self.config.pad_token_id = num_rows, facts["pad_id"]
                    self.config.bos_token_id, self.config.eos_token_id = facts["cls_id"], facts["sep_id"]
                self.model = AutoModelForCausalLM.from_config(self.config)
            else:
                # A directory without `model_type` is read by the configuration that its keys tell.
                self.model, new = self._loaded(AutoModelForCausalLM, CAUSAL_MASK, config=self.config)
                self._tell_new(new)
                if num_rows > self.num_rows:
                    with quiet():
                        self.model.resize_token_embeddings(
                            num_rows, pad_to_multiple_of=1, mean_resizing=False
                        )
            self.model.train()
            self.config = self.model.config
            with quiet():
                self.attention = self._choose_attention(self.wanted_attention)
        self._compile_if_asked()

    @property
    def num_rows(self) -> int:
        """Rows of the table of embeddings."""
        return self.model.get_input_embeddings().weight.shape[0]

    def forward(self, batch: TokenBatch, role_ids: Tensor | None = None) -> Tensor:
        """The last layer's states [T, H].

        Args:
            role_ids: [T], rows of the table of embeddings; None: tokens have no role.
        """
        if self.attention == "unpadded":
            return self.flat_states(batch, batch.input_ids, role_ids)
        ids, mask = batch.padded(batch.input_ids)
        roles = None if role_ids is None else batch.padded(role_ids)[0]
        # Padding stands behind the tokens, where none of them looks.
        states = self.model.base_model(
            inputs_embeds=self._embed(ids, roles),
            attention_mask=mask.long(),
            **self._positions(batch.padded(batch.position_ids)[0]),
        )[0]
        return batch.flat(states)

    def vocabulary_logits(self, states: Tensor) -> Tensor:
        """[K, H] states to [K, V] logits: pass only the rows that carry a target."""
        return self.model.get_output_embeddings()(states)[:, : self.num_logits]

    def step(
        self,
        input_ids: Tensor,
        role_ids: Tensor | None,
        mask: Tensor,
        position_ids: Tensor,
        cache: Any = None,
    ) -> tuple[Tensor, Any]:
        """Read tokens of B rows that are padded at their left: at first their beginnings, then a column a call.

        Args:
            input_ids, position_ids: [B, L]; role_ids: [B, L] or None.
            mask: bool [B, past + L], False at padding.
            cache: of the call before; None at first. It is changed.

        Returns:
            Logits of what follows the last column, float32 [B, V], and the cache.
        """
        if not self._keeps_cache:
            return self._step_anew(input_ids, role_ids, mask, position_ids, cache)
        if cache is None:
            cache = DynamicCache(config=self.config)
        with self._stock_attention():
            # Not called but by its forward: compiled for flat rows, it would be compiled anew for each length.
            states = self.model.base_model.forward(
                inputs_embeds=self._embed(input_ids, role_ids),
                attention_mask=mask.long(),
                use_cache=True,
                **{self._cache_name: cache},
                **self._positions(position_ids),
            )[0]
        return self.vocabulary_logits(states[:, -1]).float(), cache

    def reorder(self, cache: Any, index: Tensor) -> Any:
        """The cache of the rows `index` [B'] of its rows; a row may be taken several times, or not at all."""
        if isinstance(cache, Recomputed):
            return Recomputed(*(None if part is None else part[index] for part in cache))
        cache.reorder_cache(index)
        return cache

    def save(self, directory: Path) -> None:
        """Write configuration and weights as stock transformers reads them."""
        with quiet(), self._stock_attention():
            self.model.save_pretrained(directory)

    def flat_states(self, batch: TokenBatch, ids: Tensor, role_ids: Tensor | None = None) -> Tensor:
        return self.model.base_model(
            inputs_embeds=self._embed(ids, role_ids)[None],
            **self._positions(batch.position_ids[None]),
            **unpadded.layout(batch),
        )[0][0]

    def _embed(self, ids: Tensor, role_ids: Tensor | None) -> Tensor:
        table = self.model.get_input_embeddings()
        return table(ids) if role_ids is None else table(ids) + table(role_ids)

    def _step_anew(
        self,
        input_ids: Tensor,
        role_ids: Tensor | None,
        mask: Tensor,
        position_ids: Tensor,
        past: Recomputed | None,
    ) -> tuple[Tensor, Recomputed]:
        if past is not None:
            input_ids = torch.cat((past.input_ids, input_ids), 1)
            position_ids = torch.cat((past.position_ids, position_ids), 1)
            role_ids = None if role_ids is None else torch.cat((past.role_ids, role_ids), 1)
        with self._stock_attention():
            states = self.model.base_model.forward(
                inputs_embeds=self._embed(input_ids, role_ids),
                attention_mask=mask.long(),
                **self._positions(position_ids),
            )[0]
        return self.vocabulary_logits(states[:, -1]).float(), Recomputed(input_ids, role_ids, position_ids)

    @property
    def _cache_name(self) -> str | None:
        """What the architecture's forward calls its cache; None where it has none."""
        return next((name for name in ("cache", "past_key_values") if name in self._forward_names), None)

    @cached_property
    def _forward_names(self) -> frozenset[str]:
        """What the architecture's forward takes; asked for once, since each call of it needs to know."""
        return frozenset(inspect.signature(self.model.base_model.forward).parameters)

    @property
    def _keeps_cache(self) -> bool:
        return self._cache_name is not None

    def _positions(self, position_ids: Tensor) -> dict[str, Tensor]:
        """Of an architecture that takes them; others (ALiBi) count by the mask."""
        return {"position_ids": position_ids} if "position_ids" in self._forward_names else {}

    @contextmanager
    def _stock_attention(self) -> Iterator[None]:
        """Padded rows need a mask, which transformers makes for its own attention only."""
        own = self.config._attn_implementation
        if own != unpadded.NAME:
            yield
            return
        self.model.set_attn_implementation(self._stock)
        try:
            yield
        finally:
            self.model.set_attn_implementation(own)


def _load_config(source: str) -> Any:
    """The configuration of what `init_from` names; CDial-GPT's says no `model_type`, and has GPT's keys."""
    try:
        options, _ = PreTrainedConfig.get_config_dict(resolve_pretrained(source))
    except OSError:
        options = {}  # what is wrong is told below
    if "model_type" not in options and {"n_embd", "n_layer", "afn"} <= options.keys():
        return OpenAIGPTConfig(**options)
    return load_pretrained(AutoConfig, source)
