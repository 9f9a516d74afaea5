"""The exponential moving average of the weights."""

from contextlib import contextmanager

import torch

from ddpm_hf.training.sharding import copy_whole


class MovingAverage:
    """Exponential moving average of a model's parameters, with a warm-up of the decay.

    At update s = 1, 2, ... the decay is `min(max_decay, 1 - (1 + s / inv_gamma) ** -power)`.

    Args:
        model (`torch.nn.Module`): The model whose parameters are averaged; the average starts as a copy, in float32.
        inv_gamma, power, max_decay (`float`): See the decay.
    """

    def __init__(self, model: torch.nn.Module, inv_gamma: float, power: float, max_decay: float):
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.average = [p.detach().to(torch.float32, copy=True) for p in self.parameters]
        self.inv_gamma, self.power, self.max_decay = inv_gamma, power, max_decay

    @torch.no_grad()
    def update(self, step: int, skip: torch.Tensor | None = None):
        """Move the average towards the parameters.

        Args:
            step (`int`): The optimizer step that was taken, counted from 1.
            skip (`torch.Tensor`, *optional*): On the device, 1 if the step changed nothing and the average shall stay,
                else 0.
        """
        decay = min(self.max_decay, 1 - (1 + step / self.inv_gamma) ** -self.power)
        if skip is None:
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
            return
        distances = torch._foreach_sub([p.detach() for p in self.parameters], self.average)
        torch._foreach_mul_(distances, (1 - decay) * (1 - skip))
        torch._foreach_add_(self.average, distances)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {str(i): average for i, average in enumerate(self.average)}

    def load_state_dict(self, state: dict[str, torch.Tensor]):
        for i, average in enumerate(self.average):
            copy_whole(state[str(i)], average)

    @contextmanager
    def applied(self):
        """Put the average into the model while the context is open. The parameters are set aside, not copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self):
        for parameter, average in zip(self.parameters, self.average):
            parameter.data, average.data = average.data, parameter.data
