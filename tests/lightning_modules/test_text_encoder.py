"""Unpadded = padded = stock transformers in outputs and gradients; rows never see one another."""

from types import SimpleNamespace

import pytest
import torch
from helpers import FACTS, random_batch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RoFormerConfig,
)

from lightning_modules.networks import attention
from lightning_modules.networks.text_encoder import TextEncoder

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def encoder(kind="auto", **options) -> TextEncoder:
    torch.manual_seed(0)
    network = TextEncoder(**SHAPE, hidden_dropout=0.0, attention=kind, **options)
    network.build(FACTS["vocab_size"], FACTS["pad_id"])
    return network


def loss_of(network: TextEncoder, batch) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(network.vocabulary_logits(network(batch)), batch.input_ids)


def test_unpadded_equals_padded_in_loss_and_gradients():
    flat, padded = encoder("unpadded").double(), encoder("padded").double()
    batch = random_batch()
    losses = [loss_of(network, batch) for network in (flat, padded)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(flat.named_parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_equals_stock_transformers():
    network, batch = encoder().eval(), random_batch()
    stock = BertForMaskedLM(BertConfig(**network.config.to_dict()))
    stock.load_state_dict(network.model.state_dict())
    ids, mask = batch.padded()
    segments, _ = batch.padded(batch.segment_ids)
    expected = stock.eval()(input_ids=ids, attention_mask=mask.long(), token_type_ids=segments).logits
    torch.testing.assert_close(
        network.vocabulary_logits(network(batch)), batch.flat(expected), atol=1e-5, rtol=0
    )


def test_projecting_only_the_targets_changes_nothing():
    network, batch = encoder().eval(), random_batch()
    targets = batch.position_ids == 1
    states = network(batch)
    torch.testing.assert_close(
        network.vocabulary_logits(states[targets]),
        network.vocabulary_logits(states)[targets],
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize("kind", ["unpadded", "padded"])
def test_changing_a_row_never_changes_another(kind):
    network, batch = encoder(kind).eval(), random_batch()
    before = network(batch)
    changed = batch.input_ids.clone()
    changed[:5] = torch.arange(10, 15)
    after = network(batch, changed)
    assert torch.equal(before[5:], after[5:])
    assert not torch.equal(before[:5], after[:5])


def test_a_row_alone_equals_the_row_in_a_batch():
    network, whole = encoder().eval(), random_batch()
    start = 0
    for length in (5, 9, 2, 7):
        alone = random_batch(lengths=(length,))
        alone.input_ids.copy_(whole.input_ids[start : start + length])
        torch.testing.assert_close(
            network(alone), network(whole)[start : start + length], atol=1e-6, rtol=1e-5
        )
        start += length


def test_an_architecture_that_never_calls_our_attention_runs_padded(tmp_path, caplog):
    config = RoFormerConfig(vocab_size=60, embedding_size=32, max_position_embeddings=64, **SHAPE)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        network = encoder(init_from=str(tmp_path)).eval()
    assert network.attention == "padded"
    assert "RoFormerForMaskedLM runs on padded batches" in caplog.text
    batch = random_batch()
    changed = batch.input_ids.clone()
    changed[:5] = 17
    assert torch.equal(network(batch)[5:], network(batch, changed)[5:])
    with pytest.raises(ValueError, match="attention=unpadded: RoFormerForMaskedLM cannot"):
        encoder("unpadded", init_from=str(tmp_path))


def test_an_architecture_with_positions_of_its_own_runs_padded(tmp_path, caplog):
    """RoBERTa counts positions from its padding id on: flat rows with positions from 0 would be silently wrong."""
    config = RobertaConfig(vocab_size=60, max_position_embeddings=64, type_vocab_size=2, **SHAPE)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        network = encoder(init_from=str(tmp_path))
    assert network.attention == "padded"
    assert "a row's outputs differ from those of the row alone" in caplog.text


@pytest.mark.parametrize(
    "cuda, dtype, capability, width, dropout, flash",
    [
        (True, torch.bfloat16, (9, 0), 64, 0.0, True),
        (True, torch.float16, (8, 0), 128, 0.0, True),
        (True, torch.float16, (7, 5), 64, 0.0, False),  # a GPU with fp16 and no flash attention
        (True, torch.float32, (9, 0), 64, 0.0, False),
        (True, torch.bfloat16, (9, 0), 20, 0.0, False),
        (True, torch.bfloat16, (9, 0), 64, 0.1, False),
        (False, torch.bfloat16, (9, 0), 64, 0.0, False),  # a CPU, or Apple's MPS
    ],
)
def test_where_flash_attention_runs(monkeypatch, cuda, dtype, capability, width, dropout, flash):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query = SimpleNamespace(is_cuda=cuda, dtype=dtype, device="cuda", shape=(7, 2, width))
    assert attention._flash(query, dropout) is flash


def test_a_leak_is_found(monkeypatch):
    def leaky(module, query, key, value, attention_mask=None, scaling=None, **options):
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
        return out.transpose(1, 2), None

    monkeypatch.setattr(attention, "unpadded_attention", leaky)
    with pytest.raises(ValueError, match="one row's tokens change another row's outputs"):
        encoder("unpadded")


def test_causal_models_run_unpadded_too():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64, use_cache=False)
    model = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa").eval()
    batch = random_batch()
    ids, mask = batch.padded()
    expected = batch.flat(model(input_ids=ids, attention_mask=mask.long()).logits)
    model.set_attn_implementation(attention.NAME)
    flat = model(
        input_ids=batch.input_ids[None], position_ids=batch.position_ids[None], **attention.layout(batch)
    )
    torch.testing.assert_close(flat.logits[0], expected, atol=1e-5, rtol=0)
    # Without a layout the function is stock sdpa, so generation with a cache works.
    single = model(input_ids=batch.input_ids[None, :5]).logits
    torch.testing.assert_close(single[0], expected[:5], atol=1e-5, rtol=0)


def test_embeddings_leave_out_special_tokens():
    network, batch = encoder().eval(), random_batch()
    states, vectors = network(batch), network.encode(batch)
    torch.testing.assert_close(vectors[0], states[1:4].mean(0))
    assert torch.equal(vectors[2], torch.zeros(32))  # `[CLS] [SEP]` only


@pytest.mark.parametrize(
    "options, message",
    [
        ({"init_from": "/nowhere/at/all"}, "init_from=/nowhere/at/all: no such directory"),
        ({"num_attention_heads": 3}, "hidden_size=32: must be a multiple of num_attention_heads=3"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TextEncoder(**{**SHAPE, **options})


def test_a_loaded_checkpoint_trains_with_its_dropout(tmp_path):
    fresh = TextEncoder(**SHAPE, hidden_dropout=0.5)
    fresh.build(FACTS["vocab_size"], FACTS["pad_id"])
    fresh.model.save_pretrained(tmp_path)
    loaded = TextEncoder(init_from=str(tmp_path))
    loaded.build(FACTS["vocab_size"], FACTS["pad_id"])
    batch = random_batch()
    assert all(module.training for module in loaded.modules())
    assert not torch.equal(loaded(batch), loaded(batch))
    torch.testing.assert_close(loaded.eval()(batch), fresh.eval()(batch))


def test_weights_are_made_whatever_the_default_device_is(tmp_path):
    """Lightning builds under the accelerator's device, where transformers would not load a checkpoint."""
    encoder().model.save_pretrained(tmp_path)
    with torch.device("meta"):
        networks = encoder(), encoder(init_from=str(tmp_path))
    assert {p.device.type for network in networks for p in network.parameters()} == {"cpu"}
    assert {network.attention for network in networks} == {"unpadded"}


def test_a_vocabulary_larger_than_the_checkpoints_is_refused(tmp_path):
    encoder().model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the model knows 60 ids, the tokenizer gives 61"):
        TextEncoder(init_from=str(tmp_path)).build(61, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_varlen_equals_padded_on_cuda():
    networks = [encoder(kind).cuda().eval() for kind in ("unpadded", "padded")]
    batch = random_batch(lengths=(5, 90, 2, 70)).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        flat, padded = (network(batch) for network in networks)
    torch.testing.assert_close(flat, padded, atol=5e-2, rtol=5e-2)
