"""Small batches of random rows."""

import numpy as np

from datamodules.batch import TokenBatch

FACTS = {
    "vocab_size": 60,
    "pad_id": 0,
    "unk_id": 1,
    "cls_id": 2,
    "sep_id": 3,
    "mask_id": 4,
    "special_ids": [0, 1, 2, 3, 4],
    "max_length": 32,
    "train_characters": 50,
    "label_names": None,
}


def random_batch(lengths=(5, 9, 2, 7), seed=0, row_ids=None, epoch=0, vocab_size=60) -> TokenBatch:
    """Rows `[CLS] tokens [SEP]` of the given lengths; each token is one character and every third opens a word."""
    random = np.random.Generator(np.random.PCG64(seed))
    lengths = np.array(lengths)
    ids = random.integers(5, vocab_size, size=lengths.sum())
    chars = np.ones(lengths.sum(), dtype=int)
    ends = np.cumsum(lengths)
    ids[ends - lengths], ids[ends - 1] = 2, 3
    chars[ends - lengths] = chars[ends - 1] = 0
    second = np.zeros(lengths.sum(), dtype=bool)
    second[ends - lengths + lengths // 2] = True
    return TokenBatch.from_numpy(
        input_ids=ids,
        lengths=lengths,
        char_counts=chars,
        word_starts=np.arange(lengths.sum()) % 3 == 0,
        text_starts=second,
        row_ids=np.arange(len(lengths)) if row_ids is None else np.array(row_ids),
        epoch=epoch,
    )
