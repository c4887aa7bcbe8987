"""What encoders and causal language models share: transformers' checkpoints, rows that lie end to end, compilation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.utils import logging as transformers_logging

from datamodules.batch import TokenBatch
from datamodules.tokenizers.base import resolve_pretrained
from lightning_modules.networks import attention as unpadded

log = logging.getLogger(__name__)

PROBE = "unpadded_probe"
# What attention functions may be asked for, and ours does not compute: rows of the probe are too short to show it.
NOT_COMPUTED = ("sliding_window", "softcap", "s_aux")


class FlatTransformer(nn.Module):
    """Holds a transformers model that eats flat batches, where its architecture can.

    Attributes:
        model: the transformers model; None until it is built.
        config: its configuration.
        init_from: what its weights are loaded from; None: they are drawn, or come from a checkpoint.
        attention: "unpadded" or "padded", once built.
    """

    _stock: str  # the architecture's own attention

    model: nn.Module | None
    config: Any
    init_from: str | None
    attention: Literal["unpadded", "padded"]
    _compile_options: dict[str, Any] | None = None

    def flat_states(self, batch: TokenBatch, ids: Tensor) -> Tensor:
        """States [T, H] of the tokens `ids` [T], computed without padding."""
        raise NotImplementedError

    @property
    def longest_row(self) -> int | None:
        """Tokens that the positions reach; None where they have no limit."""
        return getattr(self.config, "max_position_embeddings", None)

    def check_corpus(self, datamodule: Any) -> None:
        """Whether the positions reach as far as the corpus' rows.

        Raises:
            ValueError: they do not.
        """
        reach = self.longest_row
        if reach is not None and datamodule.max_length > reach:
            raise ValueError(
                f"data.max_length={datamodule.max_length}: the model's positions reach {reach} tokens "
                "(model.backbone.max_position_embeddings)"
            )

    @property
    def network_config(self) -> dict[str, Any]:
        """The transformers configuration."""
        return self.config.to_dict()

    def compile(self, **options: Any) -> None:
        """torch.compile, in place, for the model without its head; where the weights are to come, once they are there.

        Batches differ in their numbers of tokens and rows: sizes are symbols from the start, so there is one graph for
        training and one for evaluation (one more where two sizes of the first batch happen to be equal).
        """
        self._compile_options = options
        if self.model is not None:
            self.model.base_model.compile(dynamic=True, **options)

    def _compile_if_asked(self) -> None:
        if self._compile_options is not None:
            self.compile(**self._compile_options)

    def _loaded(
        self, auto_class: type, known_to_differ: str = "", **options: Any
    ) -> tuple[nn.Module, set[str]]:
        """The model of `init_from` in float32, and the names of the weights that it lacks.

        Args:
            known_to_differ: end of the names of weights that may have another size.

        Raises:
            ValueError: it cannot be loaded.
        """
        on_disk = Path(self.init_from).expanduser().is_dir()
        with quiet(progress_bars=not on_disk):  # a download is worth a bar
            model, report = load_pretrained(
                auto_class,
                self.init_from,
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                **options,
            )
        mismatched = {key[0] for key in report["mismatched_keys"]}
        if known_to_differ:
            mismatched = {name for name in mismatched if not name.endswith(known_to_differ)}
        if mismatched:
            raise ValueError(
                f"init_from={self.init_from}: the weights have other sizes than its config.json says: {sorted(mismatched)}"
            )
        return model, set(report["missing_keys"])

    def _tell_new(self, names: set[str]) -> None:
        if names:
            log.warning(f"init_from={self.init_from}: not in the checkpoint, hence new: {sorted(names)}")

    def _choose_attention(self, wanted: str) -> Literal["unpadded", "padded"]:
        self._stock = self.config._attn_implementation
        if wanted == "padded":
            return "padded"
        reason = self._why_not_unpadded()
        if reason is None:
            self.model.set_attn_implementation(unpadded.NAME)
            return "unpadded"
        self.model.set_attn_implementation(self._stock)
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
        calls, asked = 0, set()

        def counted(*arguments: Any, **options: Any) -> tuple[Tensor, None]:
            nonlocal calls
            calls += 1
            asked.update(name for name in NOT_COMPUTED if options.get(name) is not None)
            return unpadded.unpadded_attention(*arguments, **options)

        AttentionInterface.register(PROBE, counted)
        batch = probe_batch(self.config.vocab_size).to(next(self.parameters()).device)
        ids = batch.input_ids
        changed = torch.cat((ids[:3].flip(0), ids[3:]))
        was_training = self.model.training
        self.model.eval()
        try:
            stock = self.model.base_model(input_ids=ids[None, 3:])[0][0]
            self.model.set_attn_implementation(PROBE)
            before, after = (self.flat_states(batch, x)[3:] for x in (ids, changed))
        except Exception as error:
            return f"it does not take flat rows ({type(error).__name__}: {error})"
        finally:
            self.model.train(was_training)
        if not calls:
            return "it does not call transformers' attention interface"
        if asked:
            return f"its attention has {' and '.join(sorted(asked))}"
        if not torch.equal(before, after):
            return "one row's tokens change another row's outputs"
        if not torch.allclose(before, stock, atol=1e-3, rtol=1e-3):
            return "a row's outputs differ from those of the row alone"
        return None


def probe_batch(vocab_size: int) -> TokenBatch:
    """Rows of 3 and 4 tokens."""
    return TokenBatch.from_numpy(
        input_ids=np.arange(5, 12) % vocab_size,
        lengths=np.array([3, 4]),
        char_counts=np.ones(7),
        word_starts=np.ones(7, dtype=bool),
        text_starts=np.zeros(7, dtype=bool),
        row_ids=np.arange(2),
    )


@contextmanager
def quiet(progress_bars: bool = False) -> Iterator[None]:
    """transformers draws a progress bar for a single file of weights, over the lines of a run, and prints a table of
    what a checkpoint has too much or lacks, of which what matters is told here."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    if not progress_bars:
        transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def load_pretrained(auto_class: type, source: str, **options: Any) -> Any:
    path = resolve_pretrained(source)
    try:
        return auto_class.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"init_from={source}: cannot be loaded ({error}); give a run directory, an export/ or Hugging Face "
            "directory on disk, or set HF_ENDPOINT to a mirror of the hub"
        ) from error
