"""Timesteps drawn by their losses: importance sampling (Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.3).

E_{t ~ p}[L_t / (T p_t)] is the mean of L_t over all timesteps, whatever p is. Its estimate from draws has the least
noise for p_t in proportion to sqrt(E[L_t^2]).
"""

import torch
from accelerate import Accelerator

LENGTH = 10  # losses of each timestep that are kept
UNIFORM = 0.001  # share of p that is uniform, as in the code of the paper, so that no timestep is left out for long


def images_until_full(num_timesteps: int) -> int:
    """Return after about how many images, drawn uniformly, each of T timesteps has had ten."""
    draws = torch.arange(LENGTH, 10 * LENGTH, 0.5)  # of a timestep, on the average; their number is a Poisson variable
    fewer = torch.special.gammaincc(torch.tensor(float(LENGTH)), draws)  # the probability that it is below ten
    is_likely = (-num_timesteps * fewer).exp() >= 0.5  # that no timestep is left
    return int(draws[is_likely.int().argmax()] * num_timesteps)


class LossHistory:
    """The last losses at each timestep, and the p_t that follow from them. Until each timestep has ten, p is uniform.

    All processes have the same history: that of all micro-batches of the steps so far. It stays on the device, and no
    step waits for it.

    Args:
        num_timesteps (`int`): T.
        device (`torch.device`): Of the training.

    Attributes:
        losses (`torch.Tensor`, `(T, 10)`): The last losses; the n-th loss at a timestep is in column n mod 10.
        counts (`torch.Tensor`, `(T,)`): How many losses each timestep has had.
        density (`torch.Tensor`, `(T,)`): T p_t. It is float64 on a CPU, and float32 on other devices, of which some
            know no float64.
    """

    def __init__(self, num_timesteps: int, device: torch.device):
        self.losses = torch.zeros(num_timesteps, LENGTH, device=device)
        self.counts = torch.zeros(num_timesteps, dtype=torch.long, device=device)
        self.density = self._density()
        self.noted: list[tuple[torch.Tensor, torch.Tensor]] = []

    def importance(self, t: torch.Tensor) -> torch.Tensor:
        """Return 1 / (T p_t), with which a loss at t counts, `(batch,)` float32."""
        return (1 / self.density[t]).float()

    def note(self, losses: torch.Tensor, t: torch.Tensor):
        """Note the losses `(batch,)` of a micro-batch at timesteps t `(batch,)`, for the steps after this one."""
        self.noted.append((losses.detach().float(), t))

    def end_step(self, accelerator: Accelerator, skip: torch.Tensor):
        """Add what was noted in a step, by all processes. All of them have to call it.

        Args:
            accelerator ([`~accelerate.Accelerator`]): The processes.
            skip (`torch.Tensor`): 1 if the step changed nothing, since its gradient was not finite; then nothing is
                added. Else 0.
        """
        noted = (torch.stack(parts) for parts in zip(*self.noted))  # each (A, B), for A micro-batches
        self.noted = []
        # Micro-batch a of process p is number a P + p, for P processes.
        losses, t = (
            torch.stack(accelerator.gather(part[None]).unbind(), dim=1).flatten()  # (P, A, B) -> (A P B,)
            for part in noted
        )
        self.add(losses, t, losses.isfinite() & (skip == 0))

    def add(self, losses: torch.Tensor, t: torch.Tensor, keep: torch.Tensor):
        """Add losses `(N,)` at timesteps t `(N,)`, in this order, where `keep` `(N,)` is true."""
        T = len(self.counts)
        # 1. Sort by timestep, and in each by age. What is not kept comes last, as a timestep T that nobody has.
        order = torch.where(keep, t, T).argsort(stable=True)
        losses, t = losses[order], torch.where(keep, t, T)[order]
        place = torch.arange(len(t), device=t.device)
        first, end = torch.searchsorted(t, t), torch.searchsorted(t, t, right=True)

        # 2. Write each into the column after that of the loss before it. Of more than ten, only the last ten count.
        counts = torch.cat((self.counts, self.counts.new_zeros(1)))
        column = (counts[t] + place - first) % LENGTH
        row = torch.where(end - place <= LENGTH, t, T)
        table = torch.cat((self.losses, self.losses.new_zeros(1, LENGTH)))
        table[row, column] = losses
        self.losses = table[:T]
        self.counts = counts.index_add(0, t, torch.ones_like(t))[:T]
        self.density = self._density()

    def _density(self) -> torch.Tensor:
        """Return T p_t."""
        losses = self.losses.double() if self.losses.device.type == "cpu" else self.losses
        losses = losses / losses.max().clamp(min=1e-30)  # only their proportions count, and no square overflows
        root = losses.square().mean(1).sqrt()  # sqrt(E[L_t^2])
        density = (1 - UNIFORM) * root / root.mean() + UNIFORM
        return torch.where(self.counts.min() >= LENGTH, density, torch.ones_like(density))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint holds."""
        return {"losses": self.losses, "counts": self.counts}

    def load(self, tensors: dict[str, torch.Tensor]):
        """Take over what a checkpoint holds."""
        self.losses, self.counts = (tensors[name].to(self.losses.device, copy=True) for name in ("losses", "counts"))
        self.density = self._density()
