"""The causal network: flat = padded = stock, decoding step by step = at once, checkpoints of others."""

import json

import pytest
import torch
from helpers import FACTS, random_batch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    Qwen2Config,
)

from lightning_modules.networks.causal_lm import CausalLM

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "dropout": 0.0,
}
VOCABULARY, ROLES = 60, (60, 61)
SMALL = {
    "vocab_size": 62,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
OTHERS = {
    "gpt2": GPT2Config(vocab_size=62, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "gpt": OpenAIGPTConfig(vocab_size=62, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "llama": LlamaConfig(**SMALL, intermediate_size=64, num_key_value_heads=1),
    "qwen2": Qwen2Config(**SMALL, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True),
    "opt": OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32),
    "bloom": BloomConfig(vocab_size=62, hidden_size=32, n_layer=2, n_head=2),
}


def network(**options) -> CausalLM:
    torch.manual_seed(0)
    built = CausalLM(**{**SHAPE, **options})
    built.build(FACTS, VOCABULARY + 2)
    return built.eval()


def roles_of(batch) -> torch.Tensor:
    return torch.where(batch.segment_ids == 0, *ROLES)


@pytest.fixture(params=["absolute", "rotary", *OTHERS])
def any_network(request, tmp_path) -> CausalLM:
    if request.param not in OTHERS:
        return network(positions=request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(OTHERS[request.param]).save_pretrained(tmp_path)
    return network(init_from=str(tmp_path))


def row_alone(any_network: CausalLM, batch, row: int) -> torch.Tensor:
    """Logits of a row by the stock model, one row without padding."""
    start, end = batch.cu_seqlens[row : row + 2].tolist()
    embed = any_network.model.get_input_embeddings()
    inputs = embed(batch.input_ids[start:end]) + embed(roles_of(batch)[start:end])
    with any_network._stock_attention():
        return any_network.model(inputs_embeds=inputs[None]).logits[0]


@torch.inference_mode()
def test_rows_are_what_the_stock_model_makes_of_each_alone(any_network):
    batch = random_batch((5, 9, 2, 7))
    logits = any_network.vocabulary_logits(any_network(batch, roles_of(batch)))
    for row, own in enumerate(logits.split([5, 9, 2, 7])):
        torch.testing.assert_close(own, row_alone(any_network, batch, row), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_step_by_step_is_at_once(any_network):
    batch = random_batch((5, 9, 2, 7))
    expected = any_network.vocabulary_logits(any_network(batch, roles_of(batch)))[
        batch.cu_seqlens[1:].long() - 1
    ]
    lengths = batch.cu_seqlens.diff().tolist()
    longest = max(lengths)

    def left(values: torch.Tensor) -> torch.Tensor:
        rows = values.split(lengths)
        return torch.stack([torch.cat((row.new_zeros(longest - len(row)), row)) for row in rows])

    ids, roles, positions = map(left, (batch.input_ids, roles_of(batch), batch.position_ids))
    mask = left(torch.ones_like(batch.input_ids)).bool()
    cut = longest - 2  # the shortest row has two tokens: the first call reads but its padding
    _, cache = any_network.step(ids[:, :cut], roles[:, :cut], mask[:, :cut], positions[:, :cut])
    for column in range(cut, longest):
        one = slice(column, column + 1)
        logits, cache = any_network.step(
            ids[:, one], roles[:, one], mask[:, : column + 1], positions[:, one], cache
        )
    rows = [1, 0, 3]  # the row that began with nothing is not defined before its first token
    torch.testing.assert_close(logits[rows], expected[rows], atol=1e-4, rtol=1e-4)

    index = torch.tensor([3, 1, 1])
    cache = any_network.reorder(cache, index)
    more = torch.tensor([[7], [8], [9]])
    after, _ = any_network.step(
        more,
        roles[index, -1:],
        torch.cat((mask[index], torch.ones(3, 1, dtype=torch.bool)), 1),
        positions[index, -1:] + 1,
        cache,
    )
    assert not torch.allclose(after[1], after[2])
    # A row of its own again.
    start, end = batch.cu_seqlens[3:5].tolist()
    embed = any_network.model.get_input_embeddings()
    inputs = torch.cat((batch.input_ids[start:end], more[0]))
    own_roles = torch.cat((roles_of(batch)[start:end], roles_of(batch)[end - 1 : end]))
    with any_network._stock_attention():
        alone = any_network.model(inputs_embeds=(embed(inputs) + embed(own_roles))[None]).logits[0, -1]
    torch.testing.assert_close(after[0], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
def test_own_networks_compute_no_padding_and_no_token_sees_a_later_one(positions):
    own = network(positions=positions)
    assert own.attention == "unpadded"
    batch = random_batch((5, 9))
    table = own.model.get_input_embeddings().weight
    states = own(batch, roles_of(batch))
    for place in (2, 7):
        (gradient,) = torch.autograd.grad(states[place].sum(), table, retain_graph=True)
        row_start = 0 if place < 5 else 5
        seen = {
            *batch.input_ids[row_start : place + 1].tolist(),
            *roles_of(batch)[row_start : place + 1].tolist(),
        }
        assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) <= seen


def test_only_learned_positions_end():
    assert network(positions="absolute", max_position_embeddings=40).longest_row == 40
    rotary = network(positions="rotary", max_position_embeddings=8)
    assert rotary.longest_row is None
    assert rotary(random_batch((30,)), None).isfinite().all()


def test_gpt2_reads_its_roles_as_stock_transformers_does(tmp_path):
    own, batch = network(positions="absolute"), random_batch((6,))
    own.save(tmp_path)
    stock = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = stock(batch.input_ids[None], token_type_ids=roles_of(batch)[None]).logits[0]
        torch.testing.assert_close(own.vocabulary_logits(own(batch, roles_of(batch))), expected)


def test_a_checkpoint_grows_by_rows_that_change_nothing(tmp_path):
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    stock = GPT2LMHeadModel(config).eval()
    stock.save_pretrained(tmp_path)
    own = CausalLM(init_from=str(tmp_path))
    own.build(FACTS, VOCABULARY + 2, VOCABULARY)
    own.model.get_input_embeddings().weight.data[VOCABULARY:] = 0
    own.eval()
    batch = random_batch((6,))
    with torch.inference_mode():
        logits = own.vocabulary_logits(own(batch, roles_of(batch)))
        torch.testing.assert_close(logits, stock(batch.input_ids[None]).logits[0])
    assert own.num_rows == VOCABULARY + 2


def test_the_published_layout_of_cdial_gpt(tmp_path):
    """config.json without `model_type`, pytorch_model.bin with causal masks for one position less."""
    config = {
        "afn": "gelu",
        "n_ctx": 15,
        "n_embd": 32,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 16,
        "n_special": 0,
        "vocab_size": VOCABULARY,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    stock = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**config)).eval()
    state = stock.state_dict()
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 15, 15).tril()
    torch.save(state, tmp_path / "pytorch_model.bin")
    own = CausalLM(init_from=str(tmp_path))
    own.build(FACTS, VOCABULARY)
    own.eval()
    assert (own.attention, own.longest_row) == ("padded", 16)
    batch = random_batch((6, 16))
    roles = torch.where(batch.segment_ids == 0, 58, 59)
    with torch.inference_mode():
        logits = own.vocabulary_logits(own(batch, roles))
        for start, end in ((0, 6), (6, 22)):
            expected = stock(batch.input_ids[None, start:end], token_type_ids=roles[None, start:end]).logits[
                0
            ]
            torch.testing.assert_close(logits[start:end], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30: must be a multiple"),
        ({"positions": "sinus"}, "positions=sinus: must be one of absolute, rotary"),
        ({"hidden_size": 6, "num_attention_heads": 2, "positions": "rotary"}, "a head of 3 is odd"),
        ({"init_from": "/no/such/directory"}, "init_from=/no/such/directory: no such directory"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CausalLM(**options)


def test_an_encoder_is_no_causal_language_model(tmp_path):
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="init_from=.*cannot be loaded"):
        CausalLM(init_from=str(tmp_path)).build(FACTS, VOCABULARY)
