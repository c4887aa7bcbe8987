"""A multilayer perceptron."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.networks.base import ArrayBackbone

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class MLP(ArrayBackbone):
    """Linear layers, each with its norm, activation and dropout; images are flattened.

    The statistics of a batch norm are those of the rank's own rows (`trainer.sync_batchnorm=true`: of all ranks');
    evaluation goes by running ones, which rank 0 gives to all. A batch of one row has no statistics of its own: it is
    normalised by the running ones, as in evaluation.

    Args:
        hidden_sizes: units of each layer; the last one's are the vector that a row gets.
        activation, norm: of every layer; the norm comes before the activation.
        dropout: probability.
        bias: of the linear layers; without it a network of relu and no norm is a positively homogeneous function of
            each layer's weights.
        init_from, network_config, lora, head, attention: given by techniques, see `ArrayBackbone`.

    Raises:
        ValueError: an option is out of its range.
    """

    needs = frozenset({"vector"})

    def __init__(
        self,
        hidden_sizes: list[Annotated[int, "x >= 1"]],
        activation: Literal["relu", "gelu"] = "relu",
        norm: Literal["none", "batch", "layer"] = "none",
        dropout: Annotated[float, "0 <= x < 1"] = 0.0,
        bias: bool = True,
        **of_technique: Any,
    ):
        super().__init__(**of_technique)
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes={hidden_sizes}: must be one or more numbers, each at least 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation}: must be one of {', '.join(ACTIVATIONS)}")
        if norm not in NORMS:
            raise ValueError(f"norm={norm}: must be one of {', '.join(NORMS)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be at least 0 and below 1")
        self.hidden_sizes = list(hidden_sizes)
        self.hidden_size = self.hidden_sizes[-1]
        self.activation, self.norm = activation, norm
        self.dropout, self.bias = dropout, bias

    def make_layers(self, shape: list[int]) -> nn.Sequential:
        sizes = [math.prod(shape), *self.hidden_sizes]
        blocks = [self._block(size, units) for size, units in zip(sizes, sizes[1:], strict=False)]
        blocks[0].insert(0, nn.Flatten())
        return nn.Sequential(*blocks)

    def _block(self, size: int, units: int) -> nn.Sequential:
        block = nn.Sequential(nn.Linear(size, units, bias=self.bias))
        if self.norm != "none":
            block.append(NORMS[self.norm](units))
        block.append(ACTIVATIONS[self.activation]())
        if self.dropout:
            block.append(nn.Dropout(self.dropout))
        return block


class BatchNorm(nn.BatchNorm1d):
    """Of [N, units]; a single row is normalised by the running statistics, which it leaves as they are."""

    def forward(self, values: Tensor) -> Tensor:
        if len(values) > 1:
            return super().forward(values)
        return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


NORMS = {"none": None, "batch": BatchNorm, "layer": nn.LayerNorm}
