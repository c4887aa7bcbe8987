"""The two kinds of regularisers: those that change the loss of the data, and those that add to it.

Both declare the `metrics` that a technique logs because of them.
"""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor, nn

ADAPTER = re.compile(r"\blora_")


class LossTransform(nn.Module):
    """A function f of the loss of the data, elementwise and differentiable; evaluation never sees it.

    Attributes:
        per: "batch": f takes the mean over all targets of an optimiser step, over micro-batches and ranks too;
            "example": f takes the loss of each target.
    """

    metrics = ("train/objective",)
    per: Literal["batch", "example"]

    def forward(self, loss: Tensor) -> Tensor:
        """f(loss), of the same shape."""
        raise NotImplementedError

    def first_step(self, loss: float) -> str | None:
        """What is to be said of the options, given the mean loss of the first step; None: nothing."""
        return None


class Penalty(nn.Module):
    """A function of the weights that is added to the loss of the data.

    Args:
        include: a regular expression; where given, the weights whose names it finds are taken, and no others.

    Raises:
        ValueError: it is no regular expression.
    """

    metrics = ("train/objective",)

    def __init__(self, include: str | None = None):
        super().__init__()
        try:
            self.include = None if include is None else re.compile(include)
        except re.error as error:
            raise ValueError(f"include={include}: is no regular expression ({error})") from error

    def forward(self, parameters: dict[str, nn.Parameter]) -> Tensor:
        """The value [] for the selected weights."""
        raise NotImplementedError

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The weights it acts on, by name, tied ones once: those of linear and convolutional layers. Biases and the gains
        of norms have one dimension; embeddings, and one of the two factors of an adapter, are no layer's weight.

        Raises:
            ValueError: there are none.
        """
        embeddings = {
            id(module.weight)
            for module in model.modules()
            if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        }
        chosen = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and self._takes(name, parameter, id(parameter) in embeddings)
        }
        if not chosen:
            given = "" if self.include is None else f" whose name has {self.include.pattern!r}"
            raise ValueError(
                f"model.regularizer: the network has no weight to train{given}; see its include="
            )
        return chosen

    def _takes(self, name: str, parameter: nn.Parameter, is_embedding: bool) -> bool:
        if self.include is not None:
            return self.include.search(name) is not None
        return parameter.ndim > 1 and not is_embedding and not ADAPTER.search(name)
