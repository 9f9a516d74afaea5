"""Muon: an optimizer that steps equally far in all directions of the weight of a convolution."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ddpm_hf.training.sharding import like, whole

MOMENTUM = 0.95
ITERATIONS = 5
# Of the polynomial a X + b (X X') X + c (X X')^2 X (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon for the convolutions between the first and the last one, AdamW for all else.

    Muon (Jordan et al. 2024) takes the weight of a convolution as a matrix, `(out_channels, in_channels * height *
    width)`, with both channels swapped if it is transposed. It steps along the matrix with orthogonal rows or columns
    that is nearest to the momentum, so no direction counts more than another. Each step is scaled to the length that is
    usual for Adam (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that both share a learning rate.

    Args:
        unet ([`DDPMUNetModel`]): The network.
        options: Those of [`~torch.optim.AdamW`]. The betas and epsilon are for what AdamW changes.

    Attributes:
        found_inf (`torch.Tensor`, *optional*): On the device, 1 if a step shall change nothing, else 0; as for the
            fused AdamW.
    """

    found_inf: torch.Tensor | None = None

    def __init__(self, unet: nn.Module, **options):
        inner = {
            id(module.weight)
            for name, module in unet.named_modules()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and name not in ("conv_in", "conv_out")
        }
        learn = [p for p in unet.parameters() if p.requires_grad]
        others = [p for p in learn if id(p) not in inner]
        self.adamw: Any = torch.optim.AdamW(others, **options)  # its flag `found_inf` is in no type
        groups = [{"params": others}, {"params": [p for p in learn if id(p) in inner]}]
        super().__init__(groups, self.adamw.defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step, as [`torch.optim.Optimizer.step`] does."""
        self.adamw.param_groups, self.adamw.state = self.param_groups[:1], self.state
        self.adamw.found_inf = self.found_inf
        loss = self.adamw.step(closure)
        moves = 1 if self.found_inf is None else 1 - self.found_inf
        convolutions = self.param_groups[1]
        learning_rate, decay = convolutions["lr"], convolutions["weight_decay"]
        for weights in self._of_one_shape(convolutions["params"]):
            directions = orthogonal(torch.stack([self._momentum(weight).flatten(1) for weight in weights]))
            length = 0.2 * max(directions.shape[1:]) ** 0.5  # then its entries have a root mean square of 0.2
            for weight, direction in zip(weights, directions):
                weight.mul_(1 - learning_rate * decay * moves)
                step = direction.reshape(weight.shape) * moves
                weight.sub_(like(step, weight), alpha=learning_rate * length)
        return loss

    def _of_one_shape(self, weights: Iterable[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
        """Return the weights that have gradients, those of the same shape together: they are computed at once."""
        by_shape = defaultdict(list)
        for weight in weights:
            if weight.grad is not None:
                by_shape[weight.shape].append(weight)
        return by_shape.values()

    def _momentum(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the momentum of a weight, in Nesterov's form, after this step's gradient."""
        assert weight.grad is not None  # `_of_one_shape` leaves the others out
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum, gradient = state["momentum"], weight.grad
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf.bool(), momentum, gradient)  # then the momentum stays as it is
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return whole(torch.lerp(gradient, momentum, MOMENTUM))


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return about the nearest matrices with orthogonal rows or columns, by Newton-Schulz iterations.

    Args:
        matrices (`torch.Tensor`, `(count, rows, columns)`): M = U S V'.

    Returns:
        `torch.Tensor`: Like U V'; its singular values are between about 0.7 and 1.2, and 0 where those of M are 0.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        squared = x @ x.mT
        x = a * x + torch.baddbmm(squared, squared, squared, beta=b, alpha=c) @ x
    return x.mT if is_tall else x
