"""WoBERT: what it reports, that it learns, that it is the same on any cut of a step, that it comes back."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import FACTS, random_batch

from datamodules.batch import TokenBatch
from lightning_modules.networks.text_encoder import TextEncoder
from lightning_modules.wobert import MaskedLMScores, WoBERT

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BACKBONE = {"_target_": "lightning_modules.networks.text_encoder.TextEncoder", "hidden_dropout": 0.0, **SHAPE}
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-2, "weight_decay": 0.1}


def wobert(**options) -> WoBERT:
    torch.manual_seed(0)
    model = WoBERT(**{"backbone": BACKBONE, "optimizer": ADAMW, "facts": FACTS, **options})
    model.configure_model()
    return model


def counted(model: WoBERT, batch: TokenBatch) -> TokenBatch:
    batch.num_targets = model.count_targets(batch)
    return batch


def test_training_loss_is_the_cross_entropy_of_the_targets():
    model, batch = wobert(), random_batch([12] * 20)
    targets = model.masking.targets(batch)
    ids = model.masking.corrupt(batch, targets)
    logits = model.network.vocabulary_logits(model.network(batch, ids))
    expected = torch.nn.functional.cross_entropy(logits[targets], batch.input_ids[targets])
    torch.testing.assert_close(model.training_step(counted(model, batch), 0), expected)


def test_a_batch_without_targets_has_loss_zero_and_no_nan():
    model, batch = wobert(), random_batch([2, 2])
    loss = model.training_step(counted(model, batch), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_parts_of_a_step_together_give_the_whole_steps_gradient():
    """The mean over parts of loss x loss_weight, as ranks and micro-batches take it, is the loss of the step."""
    lengths = [5, 20, 9, 14, 7, 30]
    whole_model, model = wobert().double(), wobert().double()
    whole = counted(whole_model, random_batch(lengths))
    whole_model.training_step(whole, 0).backward()
    ends = np.cumsum(lengths)
    parts = []
    for rows in ([0, 5], [1, 2], [3, 4]):
        keep = np.concatenate([np.arange(ends[row] - lengths[row], ends[row]) for row in rows])
        part = random_batch([lengths[row] for row in rows], row_ids=rows)
        for name in ("input_ids", "char_counts", "word_ids", "segment_ids"):
            setattr(part, name, getattr(whole, name)[keep])
        parts.append(counted(model, part))
    assert sum(part.num_targets for part in parts) == whole.num_targets
    for part in parts:
        part.loss_weight = part.num_targets * len(parts) / whole.num_targets
        (model.training_step(part, 0) / len(parts)).backward()
    for (name, a), b in zip(whole_model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b[1].grad, msg=name)


def test_overfits_one_batch():
    model, batch = wobert(mask_rate=0.3), random_batch([12] * 4)
    counted(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_weight_decay_leaves_out_biases_and_norms():
    model = wobert()
    optimizer = model.configure_optimizers()
    decayed, kept = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_scores_are_their_formulas():
    counts = torch.tensor([0, 3, 6, 1])  # id 1 is [UNK]
    scores = MaskedLMScores(counts, unk_id=1, characters=32)
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    targets, chars = torch.tensor([2, 1, 3, 2, 0]), torch.tensor([2, 3, 1, 2, 1])
    scores.update(logits[:2], targets[:2], chars[:2])
    scores.update(logits[2:], targets[2:], chars[2:])
    values = scores.compute()
    nll = -logits.log_softmax(-1)[range(5), targets]
    unigram = -((counts + 1) / (counts + 1).sum()).log()[targets]
    assert values["loss"].item() == pytest.approx(nll.mean().item())
    assert values["unigram_loss"].item() == pytest.approx(unigram.mean().item())
    # One [UNK] hides three characters: three times log2(32) bits on top.
    assert values["bits_per_char"].item() == pytest.approx((nll.sum().item() / math.log(2) + 15) / 9)
    assert values["unigram_bits_per_char"].item() == pytest.approx(
        (unigram.sum().item() / math.log(2) + 15) / 9
    )
    assert values["masked_accuracy"].item() == pytest.approx(
        (logits.argmax(-1) == targets).float().mean().item()
    )
    assert values["most_frequent_share"].item() == pytest.approx(2 / 5)


def test_no_targets_is_no_score():
    values = MaskedLMScores(torch.tensor([1, 2]), unk_id=1, characters=2).compute()
    assert all(values[name].isnan() for name in ("loss", "masked_accuracy", "bits_per_char", "unigram_loss"))


def test_a_checkpoint_comes_back_without_hydra_and_without_pickled_code(tmp_path):
    model = wobert()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = WoBERT.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    batch = random_batch()
    assert torch.equal(loaded.network(batch), model.eval().network(batch))
    assert loaded.hparams.mask_rate == model.hparams.mask_rate


def test_a_ready_backbone_can_be_passed():
    model = wobert(backbone=TextEncoder(**SHAPE))
    assert model.training_step(counted(model, random_batch([12] * 20)), 0).isfinite()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_rate": 1.5}, "^mask_rate=1.5: must lie between 0 and 1"),
        ({"mask_token_rate": 0.9, "random_token_rate": 0.2}, "must add up to at most 1"),
        ({"optimizer": {**ADAMW, "betas": [0.9, 2.0]}}, "torch.optim.AdamW|beta"),
        (
            {"optimizer": {"_target_": "os.system", "command": "true"}},
            "_target_=os.system: must be a class below",
        ),
        ({"optimizer": {"_target_": "torch.optim.lr_scheduler.warnings.warn"}}, "not found|not a class"),
        ({"init_from": "/no/such/run"}, "init_from=/no/such/run: no such directory"),
    ],
)
def test_wrong_options_are_told_by_the_constructor(options, message):
    with pytest.raises(ValueError, match=message):
        WoBERT(**{"backbone": BACKBONE, "optimizer": ADAMW, **options})
