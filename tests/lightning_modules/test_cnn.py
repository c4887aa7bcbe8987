"""The convolutional network on images of the sizes that the corpora have."""

import pytest
import torch

from datamodules.batch import VectorBatch
from datamodules.build import build
from lightning_modules.networks.cnn import CNN


def network(shape=(1, 8, 8), **options) -> CNN:
    torch.manual_seed(0)
    cnn = CNN(**{"channels": [4, 8, 16], **options})
    cnn.build({"shape": list(shape)})
    return cnn


def random_batch(*shape: int) -> VectorBatch:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(len(values))
    return VectorBatch(values=values, labels=rows % 2, row_ids=rows)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 5)])
def test_images_of_any_size_become_vectors(shape):
    cnn = network(shape)
    assert cnn.encode(random_batch(5, *shape)).shape == (5, cnn.hidden_size) == (5, 16)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_gradients_reach_every_parameter(norm, kernel_size):
    cnn = network(norm=norm, kernel_size=kernel_size, dropout=0.1)
    cnn.encode(random_batch(16, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in cnn.parameters())


def test_a_row_is_alone_in_evaluation():
    cnn, batch = network(), random_batch(6, 1, 8, 8)
    cnn.encode(batch)
    whole = cnn.eval().encode(batch)
    torch.testing.assert_close(cnn.encode(random_batch(6, 1, 8, 8))[:1], whole[:1])
    changed = random_batch(6, 1, 8, 8)
    changed.values[1:] = 0
    torch.testing.assert_close(cnn.encode(changed)[0], whole[0])


def test_frozen_layers_are_fixed_functions():
    cnn = network(dropout=0.5)
    assert cnn.num_depths == 4
    assert cnn.depth_of("layers.2.1.weight") == 3
    cnn.freeze(2)
    cnn.train()
    values = random_batch(6, 1, 8, 8).values
    assert torch.equal(cnn.layers[:2](values), cnn.layers[:2](values))
    assert {name.split(".")[1] for name, p in cnn.named_parameters() if p.requires_grad} == {"2"}
    cnn.freeze("all")
    cnn.train()
    assert torch.equal(cnn.layers(values), cnn.layers(values))


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ([1, 2, 8], {}, r"channels=\[4, 8, 16\]: 2 halvings leave nothing of images of 2 x 8; give fewer"),
        ([6], {}, r"CNN takes images, the corpus has \[6\]; type model/backbone=mlp"),
        ([1, 8, 8], {"channels": []}, r"channels=\[\]: must be one or more numbers"),
        ([1, 8, 8], {"kernel_size": 4}, "kernel_size=4: must be an odd number"),
        ([1, 8, 8], {"norm": "instance"}, "norm=instance: must be one of none, batch, layer"),
        ([1, 8, 8], {"dropout": -0.1}, "dropout=-0.1: must be at least 0 and below 1"),
    ],
)
def test_what_does_not_fit_is_named(shape, options, message):
    node = {"_target_": "lightning_modules.networks.cnn.CNN", "channels": [4, 8, 16], **options}
    with pytest.raises(ValueError, match=message):
        build(node).build({"shape": shape})
