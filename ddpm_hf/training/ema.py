"""Averages of the weights that a run keeps."""

from contextlib import contextmanager

import torch

from ddpm_hf.power_averages import decay_at, gamma_of
from ddpm_hf.training.sharding import copy_whole


class Average:
    """An average of a model's parameters that forgets by a factor of each step.

    Args:
        model (`torch.nn.Module`): The model whose parameters are averaged; the average starts as a copy, in float32.
    """

    def __init__(self, model: torch.nn.Module):
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.average = [p.detach().to(torch.float32, copy=True) for p in self.parameters]

    def decay(self, step: int) -> float:
        """Return how much of the average stays at an optimizer step, counted from 1."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, step: int, skip: torch.Tensor | None = None):
        """Move the average towards the parameters.

        Args:
            step (`int`): The optimizer step that was taken, counted from 1.
            skip (`torch.Tensor`, *optional*): On the device, 1 if the step changed nothing and the average shall stay,
                else 0.
        """
        decay = self.decay(step)
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


class MovingAverage(Average):
    """Exponential moving average of a model's parameters, with a warm-up of the decay.

    At update s = 1, 2, ... the decay is `min(max_decay, 1 - (1 + s / inv_gamma) ** -power)`.

    Args:
        model (`torch.nn.Module`): See [`Average`].
        inv_gamma, power, max_decay (`float`): See the decay.
    """

    def __init__(self, model: torch.nn.Module, inv_gamma: float, power: float, max_decay: float):
        super().__init__(model)
        self.inv_gamma, self.power, self.max_decay = inv_gamma, power, max_decay

    def decay(self, step: int) -> float:
        return min(self.max_decay, 1 - (1 + step / self.inv_gamma) ** -self.power)


class PowerAverage(Average):
    """Average whose length is a share of the steps so far, see [`~ddpm_hf.power_averages`].

    It is updated at each step, also at one that changed nothing: the weights then count for another step. So its
    profile is exact.

    Args:
        model (`torch.nn.Module`): See [`Average`].
        std (`float`): The standard deviation of its profile, as a share of the steps.
    """

    def __init__(self, model: torch.nn.Module, std: float):
        super().__init__(model)
        self.gamma = gamma_of(std)

    def decay(self, step: int) -> float:
        return decay_at(step, self.gamma)
