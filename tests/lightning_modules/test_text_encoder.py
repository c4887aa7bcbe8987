"""Unpadded = padded = stock transformers in outputs and gradients; rows never see one another."""

import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import FACTS, random_batch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    ElectraConfig,
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
    network.build(FACTS)
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
        ({"pooling": "first"}, "pooling=first: must be one of cls, mean, max"),
        ({"lora": {}}, "model.lora.rank=None: must be a whole number, at least 1"),
        ({"lora": {"rank": 0}}, "model.lora.rank=0: must be a whole number, at least 1"),
        ({"lora": {"rank": 2, "alpha": 0}}, "model.lora.alpha=0: must be above 0"),
        ({"lora": {"rank": 2, "dropout": 1}}, "model.lora.dropout=1: must be at least 0 and below 1"),
        ({"lora": {"rank": 2, "target_modules": "key"}}, r"must be a list; type \[key\]"),
        ({"lora": {"r": 2}}, "model.lora.r: is no option; there are rank, alpha, dropout, target_modules"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TextEncoder(**{**SHAPE, **options})


def test_a_loaded_checkpoint_trains_with_its_dropout(tmp_path):
    fresh = TextEncoder(**SHAPE, hidden_dropout=0.5)
    fresh.build(FACTS)
    fresh.model.save_pretrained(tmp_path)
    loaded = TextEncoder(init_from=str(tmp_path))
    loaded.build(FACTS)
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
        TextEncoder(init_from=str(tmp_path)).build({**FACTS, "vocab_size": 61})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_varlen_equals_padded_on_cuda():
    networks = [encoder(kind).cuda().eval() for kind in ("unpadded", "padded")]
    batch = random_batch(lengths=(5, 90, 2, 70)).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        flat, padded = (network(batch) for network in networks)
    torch.testing.assert_close(flat, padded, atol=5e-2, rtol=5e-2)


CONFIGS = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "electra": ElectraConfig,
    "albert": AlbertConfig,
    "deberta": DebertaV2Config,
}
CLASSES = ["甲", "乙", "丙"]


def small_config(kind: str, **options):
    own = {"electra": {"embedding_size": 16}, "albert": {"embedding_size": 16}}.get(kind, {})
    if kind == "deberta":
        own = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]}
    return CONFIGS[kind](vocab_size=60, max_position_embeddings=64, **SHAPE, **own, **options)


def saved(directory, kind="bert", auto_class=AutoModelForMaskedLM, **options) -> str:
    torch.manual_seed(1)
    auto_class.from_config(small_config(kind, **options)).save_pretrained(directory)
    return str(directory)


def stock_outputs(model, batch):
    ids, mask = batch.padded()
    segments, _ = batch.padded(batch.segment_ids)
    return model.eval()(input_ids=ids, attention_mask=mask.long(), token_type_ids=segments)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_pooling_of_flat_rows_equals_that_of_padded_ones_and_trains_every_parameter(pooling):
    networks = [encoder(kind, head=False, pooling=pooling).double() for kind in ("unpadded", "padded")]
    batch = random_batch()
    vectors = [network.encode(batch) for network in networks]
    torch.testing.assert_close(vectors[0], vectors[1])
    weight = torch.randn(4, networks[0].hidden_size, dtype=torch.float64)
    for vector in vectors:
        (vector * weight).sum().backward()
    for (name, flat), padded in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert flat.grad is not None, name  # DDP waits for the gradient of each
        torch.testing.assert_close(flat.grad, padded.grad, msg=name)


def test_the_maximum_leaves_out_special_tokens():
    network, batch = encoder(head=False, pooling="max").eval(), random_batch()
    states, vectors = network(batch), network.encode(batch)
    assert torch.equal(vectors[0], states[1:4].amax(0))
    assert torch.equal(vectors[3], states[17:22].amax(0))
    assert torch.equal(vectors[2], torch.zeros(32))  # `[CLS] [SEP]` only


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert"])
def test_cls_is_the_architectures_pooler_on_the_first_state_of_every_row(tmp_path, kind):
    path = saved(tmp_path, kind, AutoModel, type_vocab_size=2)
    network, batch = TextEncoder(init_from=path, head=False, pooling="cls"), random_batch()
    network.build(FACTS)
    expected = stock_outputs(AutoModel.from_pretrained(path), batch).pooler_output
    torch.testing.assert_close(network.eval().encode(batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head, kind", [(False, "electra"), (True, "bert")])
def test_cls_is_the_first_state_where_there_is_no_pooler(tmp_path, head, kind):
    network, batch = TextEncoder(init_from=saved(tmp_path, kind), head=head, pooling="cls"), random_batch()
    network.build(FACTS)
    network.eval()
    assert torch.equal(network.encode(batch), network(batch)[[0, 5, 14, 16]])


def test_an_architecture_with_one_kind_of_segments_takes_pairs(tmp_path):
    network = TextEncoder(init_from=saved(tmp_path, "roberta", type_vocab_size=1), head=False)
    network.build(FACTS)
    assert random_batch().segment_ids.max() == 1
    assert network.encode(random_batch()).isfinite().all()


@pytest.mark.parametrize(
    "auto_class, pooling, told",
    [
        (AutoModelForMaskedLM, "mean", []),
        (AutoModelForMaskedLM, "cls", ["pooler.dense.bias", "pooler.dense.weight"]),
        (AutoModelForSequenceClassification, "mean", []),
        (AutoModelForSequenceClassification, "cls", []),
        (AutoModel, "max", []),
    ],
)
def test_an_encoder_is_taken_from_a_model_for_another_task(tmp_path, caplog, auto_class, pooling, told):
    """What the checkpoint has too much goes without a word, what it lacks is told once."""
    path = saved(tmp_path, auto_class=auto_class, hidden_dropout_prob=0.3)
    network, batch = TextEncoder(init_from=path, head=False, pooling=pooling), random_batch()
    caplog.clear()
    network.build(FACTS)
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == (
        [f"init_from={path}: not in the checkpoint, hence new: {told}"] if told else []
    )
    assert network.config.hidden_dropout_prob == 0.3
    stock = stock_outputs(AutoModel.from_pretrained(path), batch)
    torch.testing.assert_close(network.eval()(batch), batch.flat(stock.last_hidden_state), atol=1e-5, rtol=0)


def test_weights_of_other_sizes_than_the_config_says_are_refused(tmp_path):
    path = saved(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"intermediate_size": 64', '"intermediate_size": 48'))
    with pytest.raises(ValueError, match=r"the weights have other sizes than its config.json says: \['bert"):
        TextEncoder(init_from=path).build(FACTS)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "target_modules": ["query", "dense"]}])
def test_a_checkpoint_needs_nothing_of_the_directory_that_it_started_from(tmp_path, lora):
    options = {"head": False, "pooling": "cls", "lora": lora}
    first = TextEncoder(init_from=saved(tmp_path), **options)
    first.build(FACTS)
    again = TextEncoder(init_from="/gone", network_config=first.network_config, **options)
    again.build(FACTS)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.eval().encode(random_batch()), first.eval().encode(random_batch()))


@pytest.mark.parametrize(
    "kind, pooling, depths, num_depths",
    [
        ("bert", "mean", {"embeddings.LayerNorm.bias": 0, "encoder.layer.1.output.dense.weight": 2}, 3),
        ("bert", "cls", {"encoder.layer.0.output.dense.bias": 1, "pooler.dense.weight": 3}, 4),
        ("roberta", "cls", {"embeddings.word_embeddings.weight": 0, "pooler.dense.bias": 3}, 4),
        ("electra", "cls", {"embeddings_project.weight": 0, "encoder.layer.0.output.dense.bias": 1}, 3),
        (
            "albert",  # all layers are one
            "cls",
            {
                "encoder.embedding_hidden_mapping_in.bias": 0,
                "encoder.albert_layer_groups.0.albert_layers.0.ffn.weight": 1,
                "pooler.weight": 2,
            },
            3,
        ),
        ("deberta", "mean", {"encoder.rel_embeddings.weight": 0, "encoder.layer.1.output.dense.bias": 2}, 3),
    ],
)
def test_how_deep_a_parameter_lies(kind, pooling, depths, num_depths):
    network = TextEncoder(head=False, pooling=pooling, network_config=small_config(kind).to_dict())
    network.build(FACTS)
    assert {name: network.depth_of(f"model.{name}") for name in depths} == depths
    assert network.num_depths == num_depths
    assert {network.depth_of(name) for name, _ in network.named_parameters()} == set(range(num_depths))


def test_frozen_layers_keep_their_weights_and_have_no_dropout():
    network, batch = TextEncoder(**SHAPE, hidden_dropout=0.5, head=False), random_batch()
    network.build(FACTS)
    network.freeze(1)
    network.train()
    trained = {name.split(".layer.")[-1][0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"1"}
    layers = network.model.encoder.layer
    seen = []
    layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert not torch.equal(network.encode(batch), network.encode(batch))  # the second layer's
    assert torch.equal(seen[0], seen[1])
    network.freeze("all")
    network.train()
    assert torch.equal(network.encode(batch), network.encode(batch))
    assert not any(p.requires_grad for p in network.parameters())


def test_more_layers_than_there_are_cannot_be_frozen():
    network = encoder(head=False)
    with pytest.raises(
        ValueError, match="model.freeze=3: the backbone has 2 layers .* at most model.freeze=2"
    ):
        network.freeze(3)
    network.freeze(0)
    assert all(p.requires_grad for p in network.parameters())


def lora_encoder(**options) -> TextEncoder:
    """With adapters that are no longer what they start as: nothing."""
    network = encoder(head=False, lora={"rank": 2, "dropout": 0.1}, **options)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return network


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_of_an_encoder_with_adapters_they_and_the_pooler_are_trained(pooling):
    network = lora_encoder(pooling=pooling)
    network.encode(random_batch()).square().sum().backward()
    trained = [(name, p.grad) for name, p in network.named_parameters() if p.requires_grad]
    assert all(grad is not None for _, grad in trained)
    assert {name.split(".")[-3] for name, _ in trained if "lora" in name} == {"lora_A", "lora_B"}
    assert {name for name, _ in trained if "lora" not in name} == (
        {"model.pooler.dense.weight", "model.pooler.dense.bias"} if pooling == "cls" else set()
    )
    assert network.attention == "unpadded"
    with pytest.raises(ValueError, match="model.freeze=all: leaves model.lora nothing to train"):
        network.freeze("all")


def test_merged_adapters_compute_the_same(tmp_path):
    network, batch = lora_encoder(pooling="cls").eval(), random_batch()
    before = network.encode(batch)
    network.save(tmp_path)
    assert torch.equal(network.encode(batch), before)
    stock = AutoModel.from_pretrained(tmp_path)
    assert not any("lora" in name or "base_layer" in name for name in stock.state_dict())
    torch.testing.assert_close(stock_outputs(stock, batch).pooler_output, before, atol=1e-5, rtol=0)


def test_adapters_where_the_architecture_has_other_names(tmp_path):
    network = TextEncoder(**SHAPE, lora={"rank": 2, "target_modules": ["c_attn"]})
    with pytest.raises(
        ValueError, match=r"target_modules=\[c_attn\]: BertForMaskedLM has the layers .*query"
    ):
        network.build(FACTS)


def test_adapters_without_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"model.lora needs peft: pip install -e '.\[lora\]'"):
        TextEncoder(**SHAPE, lora={"rank": 2})


@pytest.mark.parametrize("kind, lora", [("bert", False), ("bert", True), ("albert", False)])
def test_a_classifier_of_the_first_token_is_stock_transformers(tmp_path, kind, lora):
    if lora:
        network = lora_encoder(pooling="cls")
    else:
        network = TextEncoder(head=False, pooling="cls", network_config=small_config(kind).to_dict())
        network.build(FACTS)
    head, batch = torch.nn.Linear(32, 3), random_batch()
    assert network.save_classifier(tmp_path, head, CLASSES, multi_label=lora)
    assert network.training
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    expected = head(network.eval().encode(batch))
    torch.testing.assert_close(stock_outputs(stock, batch).logits, expected, atol=1e-5, rtol=0)
    assert stock.config.id2label == dict(enumerate(CLASSES))
    assert stock.config.label2id["丙"] == 2
    assert stock.config.problem_type == f"{'multi' if lora else 'single'}_label_classification"
    again = TextEncoder(init_from=str(tmp_path), head=False, pooling="cls")
    again.build(FACTS)
    torch.testing.assert_close(head(again.eval().encode(batch)), expected, atol=1e-5, rtol=0)


class WithoutBias(torch.nn.Linear):
    def __init__(self):
        super().__init__(32, 3, bias=False)


@pytest.mark.parametrize(
    "kind, pooling, head",
    [
        ("bert", "mean", torch.nn.Linear(32, 3)),
        ("bert", "max", torch.nn.Linear(32, 3)),
        ("bert", "cls", WithoutBias()),
        ("roberta", "cls", torch.nn.Linear(32, 3)),  # its pooler's weights belong to the classifier
        ("electra", "cls", torch.nn.Linear(32, 3)),
        ("deberta", "cls", torch.nn.Linear(32, 3)),
    ],
)
def test_another_classifier_leaves_the_encoder(tmp_path, caplog, kind, pooling, head):
    network = TextEncoder(head=False, pooling=pooling, network_config=small_config(kind).to_dict())
    network.build(FACTS)
    assert not network.save_classifier(tmp_path, head, CLASSES, multi_label=False)
    assert AutoModel.from_pretrained(tmp_path).config.id2label == dict(enumerate(CLASSES))
    caplog.clear()
    again, batch = TextEncoder(init_from=str(tmp_path), head=False, pooling=pooling), random_batch()
    again.build(FACTS)
    assert "hence new" not in caplog.text
    torch.testing.assert_close(again.eval().encode(batch), network.eval().encode(batch))


def test_rows_longer_than_the_positions_are_refused():
    with pytest.raises(ValueError, match="data.max_length=600: the model's positions reach 512 tokens"):
        encoder().check_corpus(SimpleNamespace(max_length=600))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_one_compiled_graph_serves_batches_of_all_sizes(pooling):
    torch._dynamo.reset()
    network, graphs = lora_encoder(pooling=pooling).eval(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    batches = [random_batch(lengths) for lengths in [(5, 9, 2, 7), (4, 8, 9), (12, 3, 2, 2, 6)]]
    expected = [network.encode(batch) for batch in batches]
    network.compile(backend=backend)
    for batch, vectors in zip(batches, expected, strict=True):
        torch.testing.assert_close(network.encode(batch), vectors)
    assert len(graphs) == 1
