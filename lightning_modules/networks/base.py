"""What techniques ask of a network that makes a vector of every row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datamodules.batch import VectorBatch
from datamodules.tokenizers.base import resolve_pretrained

WEIGHTS = "network.safetensors"
LAYER = re.compile(r"\.(\d+)\.")  # the first number in a parameter's name


class Backbone(nn.Module):
    """A network that makes a vector of every row of a batch.

    The constructor settles what the options say; `build` makes the weights, once, when the corpus is known.

    Attributes:
        needs: what the corpus has to provide, a literal: the configuration check reads it from source.
        hidden_size: size of a vector, once built.
    """

    needs: frozenset[str] = frozenset()
    hidden_size: int

    def __init__(self):
        super().__init__()
        self._frozen: list[nn.Module] = []

    def check_corpus(self, datamodule: Any) -> None:
        """Whether the network can take the corpus' rows, as far as that shows before the corpus is read.

        Raises:
            ValueError: it cannot.
        """

    def build(self, facts: dict[str, Any]) -> None:
        """Make the weights; `facts` are those of the DataModule."""
        raise NotImplementedError

    def encode(self, batch: Any) -> Tensor:
        """[N, hidden_size], a vector of every row."""
        raise NotImplementedError

    @property
    def network_config(self) -> dict[str, Any]:
        """What the options do not say of a network that is built, as primitives. A network that gets it leaves
        `init_from` alone: its weights come from a checkpoint."""
        raise NotImplementedError

    @property
    def num_depths(self) -> int:
        """One more than the depth of the last parameter."""
        return max(self._depths.values()) + 1

    def depth_of(self, name: str) -> int:
        """How far above the input a parameter of this module lies: 0 embeddings, k the k-th layer, then what follows
        the layers (a last norm, a pooler).

        Raises:
            ValueError: the architecture has no numbered layers.
        """
        return self._depths[name]

    @cached_property
    def _depths(self) -> dict[str, int]:
        names = [name for name, _ in self.named_parameters()]
        layer = {name: int(found[1]) + 1 for name in names if (found := LAYER.search(name))}
        if not layer:
            raise ValueError(
                f"model.freeze, model.layerwise_lr_decay: the parameters of {type(self).__name__} name no "
                "numbered layers; type model.freeze=0 model.layerwise_lr_decay=1"
            )
        first, last = names.index(next(iter(layer))), max(layer.values())
        # Some architectures define the embeddings of relative positions behind the layers that use them.
        outside = {
            name: 0 if i < first or "embed" in name else last + 1
            for i, name in enumerate(names)
            if name not in layer
        }
        return layer | outside

    def freeze(self, layers: int | Literal["all"]) -> None:
        """The embeddings and the first `layers` layers ("all": the whole network) keep their weights; 0: none does.

        There is no dropout in them then, and batch norms go by their running statistics: to what lies above them they
        are a fixed function of the row.

        Raises:
            ValueError: there are fewer layers.
        """
        if layers == 0:
            return
        if layers == "all":
            frozen = dict(self.named_parameters())
        else:
            if layers > self.num_layers:
                raise ValueError(
                    f"model.freeze={layers}: the backbone has {self.num_layers} layers with weights of their own; type "
                    f"at most model.freeze={self.num_layers}, or model.freeze=all"
                )
            frozen = {n: p for n, p in self.named_parameters() if self.depth_of(n) <= layers}
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        self._frozen = list(_outermost(self, {id(parameter) for parameter in frozen.values()}))
        self.train(self.training)

    @property
    def num_layers(self) -> int:
        """Layers that have weights of their own."""
        return max(depth for name, depth in self._depths.items() if LAYER.search(name))

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def save_classifier(
        self, directory: Path, head: nn.Module, label_names: list[str], multi_label: bool
    ) -> bool:
        """Write the weights, with those of the last layer `head` where stock transformers has a classifier that
        computes the same.

        Returns:
            Whether it has; otherwise the network is written without `head`.
        """
        raise NotImplementedError


class ArrayBackbone(Backbone):
    """A backbone of vectors or images; subclasses make `layers` of a corpus' shape.

    Args:
        init_from: a run or an export/ of a technique with the same network, whose weights are taken.
        network_config: see `Backbone`.
        lora, head, attention: what techniques settle for text encoders.

    Raises:
        ValueError: `lora` is given, or nothing can be loaded from `init_from`.
    """

    def __init__(
        self,
        *,
        init_from: str | None = None,
        network_config: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
        head: bool = False,
        attention: str = "auto",
    ):
        super().__init__()
        if lora is not None:
            raise ValueError(
                f"model.lora={lora}: {type(self).__name__} is no text encoder; type model.lora=null"
            )
        self.init_from = init_from if network_config is None else None
        self.layers: nn.Sequential | None = None
        self.shape: list[int] | None = None
        if self.init_from is not None:
            self._weights_file()

    def make_layers(self, shape: list[int]) -> nn.Sequential:
        """Layers that map float [N, *shape] to [N, hidden_size].

        Raises:
            ValueError: there are none for this shape.
        """
        raise NotImplementedError

    def build(self, facts: dict[str, Any]) -> None:
        self.shape = list(facts["shape"])
        # Weights are drawn alike whatever the default device is, and moved with the module.
        with torch.device("cpu"):
            self.layers = self.make_layers(self.shape)
            if self.init_from is not None:
                self._load()

    # torch.compile passes over the forward of `nn.Sequential` itself.
    def forward(self, values: Tensor) -> Tensor:
        """[N, hidden_size] of values [N, *shape]."""
        return self.layers(values)

    def encode(self, batch: VectorBatch) -> Tensor:
        return self(batch.values.to(next(self.layers.parameters()).dtype))

    @property
    def network_config(self) -> dict[str, Any]:
        return {"shape": self.shape}

    def save_classifier(
        self, directory: Path, head: nn.Module, label_names: list[str], multi_label: bool
    ) -> bool:
        """Write `network.safetensors`: transformers knows no such network."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.layers.state_dict().items()}
        save_file(state, directory / WEIGHTS)
        return False

    def _weights_file(self) -> Path:
        file = Path(resolve_pretrained(self.init_from)) / WEIGHTS
        if not file.is_file():
            raise ValueError(
                f"init_from={self.init_from}: holds no {WEIGHTS}; {type(self).__name__} starts from a run (or its "
                "export/) that has the same backbone"
            )
        return file

    def _load(self) -> None:
        try:
            self.layers.load_state_dict(load_file(self._weights_file()))
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()
            raise ValueError(
                f"init_from={self.init_from}: holds another network than model.backbone describes ({first}); use the "
                "options of its run (its config.yaml)"
            ) from error


def _outermost(module: nn.Module, parameters: set[int]) -> Iterator[nn.Module]:
    """The largest parts of a module whose parameters all are among those of the ids `parameters`."""
    for child in module.children():
        own = {id(parameter) for parameter in child.parameters()}
        if own and own <= parameters:
            yield child
        elif own:
            yield from _outermost(child, parameters)
