"""WEISSI: a regulariser that rescaling layers against one another does not change.

Liu, Cui and Su 2020, "Improve Generalization and Robustness of Neural Networks via Weight Scale Shifting Invariant
Regularizations", arXiv 2008.02965; Su Jianlin, kexue.fm/archives/7681.
"""

from __future__ import annotations

import logging
import re
from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_modules.precision import in_full
from lightning_modules.regularizers.base import Penalty

log = logging.getLogger(__name__)

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# The product of these two goes through a softmax, which is not homogeneous.
QUERIES_AND_KEYS = re.compile(r"(^|[._])(query|key|q_proj|k_proj|q_lin|k_lin)[._]")


class WEISSI(Penalty):
    """lambda1 * sum log |W| + lambda2 * sum of the L1 norms of W / |W|, |W| the Frobenius norm of a layer's weight.

    A network of homogeneous layers (linear, convolution, ReLU, max-pooling) computes the same when its weights are
    multiplied by factors whose product is 1 (biases along with them), and this sum stays the same, too.

    The first term has no lower bound and the gradient lambda1 / |W|. Norms are computed in float32 at least, as
    sqrt(|W|^2 + epsilon), so that a weight of zeros has the value log(epsilon) / 2 and the gradient 0.

    Args:
        lambda1: weight of the logarithms; from about 0.5 on training failed on small networks.
        lambda2: weight of the directions' L1 norms, which are up to sqrt(size of W).
        epsilon: keeps norms from zero.
        include: see `Penalty`; without it, the weights of queries and keys are left out as well.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        lambda1: Annotated[float, "x >= 0"] = 0.1,
        lambda2: Annotated[float, "x >= 0"] = 0.0,
        epsilon: Annotated[float, "x > 0"] = 1e-12,
        include: str | None = None,
    ):
        super().__init__(include)
        for name, value in (("lambda1", lambda1), ("lambda2", lambda2)):
            if not value >= 0:
                raise ValueError(f"{name}={value}: must be at least 0")
        if not epsilon > 0:
            raise ValueError(f"epsilon={epsilon}: must be above 0")
        self.lambda1 = lambda1
        self.lambda2 = lambda2
        self.epsilon = epsilon

    def forward(self, parameters: dict[str, nn.Parameter]) -> Tensor:
        weights = [in_full(parameter) for parameter in parameters.values()]
        squares = torch.stack([weight.square().sum() for weight in weights]) + self.epsilon
        value = self.lambda1 * squares.log().sum() / 2
        if self.lambda2:
            lengths = torch.stack([weight.abs().sum() for weight in weights])
            value = value + self.lambda2 * (lengths / squares.sqrt()).sum()
        return value

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        if any(isinstance(module, NORMS) for module in model.modules()):
            log.info(
                "weissi: the network has norms; a weight before one is invariant to its scale already, and the first term "
                "only changes its effective learning rate"
            )
        return super().select(model)

    def _takes(self, name: str, parameter: nn.Parameter, is_embedding: bool) -> bool:
        taken = super()._takes(name, parameter, is_embedding)
        return taken and (self.include is not None or not QUERIES_AND_KEYS.search(name))
