"""A small convolutional network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from torch import nn

from lightning_modules.networks.base import ArrayBackbone

NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
}


class CNN(ArrayBackbone):
    """Convolutions with norm and ReLU, max-pooling to half the size between them, the mean over the image at the end.

    The statistics of a batch norm are those of the rank's own rows (`trainer.sync_batchnorm=true`: of all ranks').

    Args:
        channels: of each convolution; the last one's are the vector that a row gets.
        kernel_size: width of the kernels, an odd number; the image's size stays.
        norm: of every convolution: its batch's, or the image's own ("layer").
        dropout: probability that a whole channel is dropped.
        init_from, network_config, lora, head, attention: given by techniques, see `ArrayBackbone`.

    Raises:
        ValueError: an option is out of its range; from `build`, that images are too small.
    """

    needs = frozenset({"image"})

    def __init__(
        self,
        channels: list[Annotated[int, "x >= 1"]],
        kernel_size: Annotated[int, "x >= 1"] = 3,
        norm: Literal["none", "batch", "layer"] = "batch",
        dropout: Annotated[float, "0 <= x < 1"] = 0.0,
        **of_technique: Any,
    ):
        super().__init__(**of_technique)
        if not channels or min(channels) < 1:
            raise ValueError(f"channels={channels}: must be one or more numbers, each at least 1")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: must be an odd number")
        if norm not in NORMS:
            raise ValueError(f"norm={norm}: must be one of {', '.join(NORMS)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be at least 0 and below 1")
        self.channels = list(channels)
        self.hidden_size = self.channels[-1]
        self.kernel_size, self.norm, self.dropout = kernel_size, norm, dropout

    def make_layers(self, shape: list[int]) -> nn.Sequential:
        if len(shape) != 3:
            raise ValueError(
                f"model.backbone: CNN takes images, the corpus has {shape}; type model/backbone=mlp"
            )
        halvings = len(self.channels) - 1
        if min(shape[1:]) < 2**halvings:
            raise ValueError(
                f"model.backbone.channels={self.channels}: {halvings} halvings leave nothing of images of "
                f"{shape[1]} x {shape[2]}; give fewer channels"
            )
        sizes = [shape[0], *self.channels]
        blocks = [self._block(before, after) for before, after in zip(sizes, sizes[1:], strict=False)]
        for block in blocks[1:]:
            block.insert(0, nn.MaxPool2d(2))
        blocks[-1].extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
        return nn.Sequential(*blocks)

    def _block(self, before: int, after: int) -> nn.Sequential:
        norm = NORMS[self.norm]
        block = nn.Sequential(
            # A norm has a shift of its own.
            nn.Conv2d(before, after, self.kernel_size, padding=self.kernel_size // 2, bias=norm is None)
        )
        if norm is not None:
            block.append(norm(after))
        block.append(nn.ReLU())
        if self.dropout:
            block.append(nn.Dropout2d(self.dropout))
        return block
