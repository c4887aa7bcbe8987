"""The multilayer perceptron: the networks that the articles describe, and what every backbone of arrays does."""

import pytest
import torch
from torch import nn

from datamodules.batch import VectorBatch
from datamodules.build import build
from lightning_modules.networks.base import Backbone
from lightning_modules.networks.mlp import MLP

FACTS = {"shape": [6]}


def network(facts=FACTS, **options) -> MLP:
    torch.manual_seed(0)
    mlp = MLP(**{"hidden_sizes": [16, 8], **options})
    mlp.build(facts)
    return mlp


def batch_of(values: torch.Tensor) -> VectorBatch:
    rows = torch.arange(len(values))
    return VectorBatch(values=values, labels=rows % 2, row_ids=rows)


def random_batch(*shape: int) -> VectorBatch:
    return batch_of(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def test_the_network_of_floodings_demonstration():
    """Five linear layers with the technique's own, 500 units, BN and ReLU, no bias."""
    mlp = network({"shape": [2]}, hidden_sizes=[500] * 4, norm="batch", bias=False)
    kinds = [type(m) for m in mlp.modules() if not list(m.children()) and not isinstance(m, nn.Flatten)]
    assert [kind.__name__ for kind in kinds] == ["Linear", "BatchNorm", "ReLU"] * 4
    assert [tuple(m.weight.shape) for m in mlp.modules() if isinstance(m, nn.Linear)] == [
        (500, 2),
        *[(500, 500)] * 3,
    ]
    assert all(m.bias is None for m in mlp.modules() if isinstance(m, nn.Linear))
    assert mlp.hidden_size == 500
    assert mlp.encode(random_batch(7, 2)).shape == (7, 500)


def test_without_bias_scales_of_layers_may_be_exchanged():
    mlp, batch = network(bias=False).double(), random_batch(5, 6)
    before = mlp.encode(batch)
    first, second = (m.weight.data for m in mlp.modules() if isinstance(m, nn.Linear))
    first *= 4
    second /= 4
    torch.testing.assert_close(mlp.encode(batch), before)


def test_images_are_flattened():
    mlp = network({"shape": [1, 2, 3]})
    images = random_batch(4, 1, 2, 3)
    assert torch.equal(mlp.encode(images), mlp.encode(batch_of(images.values.flatten(1))))


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_gradients_reach_every_parameter(norm, activation):
    mlp = network(norm=norm, activation=activation, dropout=0.1)
    mlp.encode(random_batch(32, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in mlp.parameters())


def test_a_single_row_is_normalised_by_running_statistics():
    mlp = network(norm="batch")
    mlp.encode(random_batch(32, 6))
    statistics = {name: buffer.clone() for name, buffer in mlp.named_buffers()}
    one = mlp.encode(random_batch(1, 6))
    assert torch.equal(one, mlp.eval().encode(random_batch(1, 6)))
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in mlp.named_buffers())


def test_vectors_take_the_networks_precision():
    assert network().to(torch.bfloat16).encode(random_batch(3, 6)).dtype == torch.bfloat16


def test_frozen_layers_are_fixed_functions():
    mlp = network(norm="batch", dropout=0.5)
    assert mlp.num_depths == 3
    assert [mlp.depth_of(name) for name, _ in mlp.named_parameters()] == [1] * 4 + [2] * 4
    mlp.freeze(1)
    mlp.train()
    first, second = mlp.layers
    values = random_batch(32, 6).values
    assert torch.equal(first(values), first(values))
    assert not torch.equal(second(first(values)), second(first(values)))
    assert [p.requires_grad for p in mlp.parameters()] == [False] * 4 + [True] * 4
    with pytest.raises(ValueError, match="model.freeze=3: the backbone has 2 layers"):
        mlp.freeze(3)
    mlp.freeze("all")
    mlp.train()
    assert torch.equal(mlp.encode(random_batch(32, 6)), mlp.encode(random_batch(32, 6)))


def test_a_network_without_numbered_layers_has_no_depths():
    class Flat(Backbone):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

    with pytest.raises(ValueError, match="model.freeze, model.layerwise_lr_decay: .* no numbered layers"):
        Flat().freeze(1)
    with pytest.raises(ValueError, match="model.freeze, model.layerwise_lr_decay"):
        Flat().depth_of("linear.weight")


def test_weights_are_taken_from_an_export(tmp_path):
    first, batch = network(norm="batch"), random_batch(4, 6)
    first.encode(batch)
    assert not first.save_classifier(tmp_path, nn.Linear(8, 2), ["a", "b"], multi_label=False)
    again = MLP([16, 8], norm="batch", init_from=str(tmp_path))
    again.build(FACTS)
    assert torch.equal(again.eval().encode(batch), first.eval().encode(batch))
    other = MLP([16, 9], norm="batch", init_from=str(tmp_path))
    with pytest.raises(ValueError, match="holds another network than model.backbone describes .*9, 16"):
        other.build(FACTS)


def test_a_checkpoint_needs_nothing_of_the_export_that_it_started_from():
    first = network()
    again = MLP([16, 8], init_from="/gone", network_config=first.network_config)
    again.build(FACTS)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.encode(random_batch(4, 6)), first.encode(random_batch(4, 6)))


def test_it_may_be_compiled_before_it_is_built():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    mlp = MLP([16, 8])
    mlp.compile(backend=backend)
    mlp.build(FACTS)
    mlp.encode(random_batch(4, 6))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_sizes": []}, r"hidden_sizes=\[\]: must be one or more numbers"),
        ({"hidden_sizes": [8, 0]}, r"hidden_sizes=\[8, 0\]: must be one or more numbers, each at least 1"),
        ({"activation": "tanh"}, "activation=tanh: must be one of relu, gelu"),
        ({"norm": "group"}, "norm=group: must be one of none, batch, layer"),
        ({"dropout": 1.0}, "dropout=1.0: must be at least 0 and below 1"),
        ({"lora": {"rank": 8}}, "model.lora=.*: MLP is no text encoder; type model.lora=null"),
        ({"init_from": "/nowhere"}, "init_from=/nowhere: no such directory"),
        ({"width": 8}, "unexpected keyword argument 'width'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build({"_target_": "lightning_modules.networks.mlp.MLP", "hidden_sizes": [8], **options})


def test_a_directory_of_something_else_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"init_from={tmp_path}: holds no network.safetensors"):
        MLP([8], init_from=str(tmp_path))
