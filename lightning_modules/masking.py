"""Which tokens a masked language model predicts, and what it reads in their place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.batch import TokenBatch
from lightning_modules.draws import RANGE, chance, draw

SELECT, REPLACE, RANDOM_ID, EVALUATE = range(4)


@dataclass(frozen=True)
class Masking:
    """BERT's masking: `mask_rate` of the tokens are targets; of those `mask_token_rate` become [MASK],
    `random_token_rate` a random id, the rest stays (Devlin et al., arXiv 1810.04805, section 3.1; drawn anew every
    epoch as in RoBERTa, arXiv 1907.11692).

    Attributes:
        whole_words: draw words of the segmenter instead of tokens.
        special_tokens: let [CLS], [SEP] and the like be targets too.
    """

    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...]
    seed: int
    mask_rate: float = 0.15
    mask_token_rate: float = 0.8
    random_token_rate: float = 0.1
    whole_words: bool = False
    special_tokens: bool = False

    def targets(self, batch: TokenBatch) -> Tensor:
        """bool [T]: the targets of a training batch in its epoch."""
        places = batch.word_ids if self.whole_words else batch.position_ids
        drawn = draw(self.seed, SELECT, batch.epoch, batch.token_row_ids, places)
        chosen = chance(drawn, self.mask_rate)
        return chosen if self.special_tokens else chosen & ~self._is_special(batch)

    def count(self, batch: TokenBatch) -> int:
        return int(self.targets(batch).sum())

    def corrupt(self, batch: TokenBatch, targets: Tensor) -> Tensor:
        """[T], `input_ids` with the targets replaced as in training."""
        rows, positions = batch.token_row_ids, batch.position_ids
        how = draw(self.seed, REPLACE, batch.epoch, rows, positions)
        # Ids of 1 .. vocab_size - 1, as the original script draws them: everything but [PAD].
        random_id = draw(self.seed, RANDOM_ID, batch.epoch, rows, positions) % (self.vocab_size - 1) + 1
        masked = chance(how, self.mask_token_rate)
        randomised = ~masked & (how < round((self.mask_token_rate + self.random_token_rate) * RANGE))
        ids = torch.where(targets & masked, self.mask_id, batch.input_ids)
        return torch.where(targets & randomised, random_id, ids)

    def evaluation_targets(self, batch: TokenBatch) -> Tensor:
        """bool [T]: whole words of the segmenter, chosen by the characters at which they start.

        They are the same spans of characters for every tokenizer and every model of the same seed, so their scores
        compare. Special tokens are never among them.
        """
        drawn = draw(self.seed, EVALUATE, 0, batch.token_row_ids, batch.word_ids)
        return chance(drawn, self.mask_rate) & ~self._is_special(batch)

    def hide(self, batch: TokenBatch, targets: Tensor) -> Tensor:
        """[T], `input_ids` with every target replaced by [MASK]: how a model is evaluated."""
        return batch.input_ids.masked_fill(targets, self.mask_id)

    def _is_special(self, batch: TokenBatch) -> Tensor:
        return torch.isin(batch.input_ids, batch.input_ids.new_tensor(self.special_ids)) | (
            batch.char_counts == 0
        )
