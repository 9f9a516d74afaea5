"""The mean loss between two lines of metrics.jsonl."""

import torch
from accelerate import Accelerator


class LossMeter:
    """Mean loss since the last note, over all timesteps and by quartile of them: t in [0, T/4), ..., [3T/4, T).

    Losses that are not finite are left out. All stays on the device until it is read.
    """

    def __init__(self, num_timesteps: int, device: torch.device):
        self.num_timesteps = num_timesteps
        self.table = torch.zeros(2, 4, device=device)  # sums and counts
        quartiles = torch.arange(num_timesteps) * 4 // num_timesteps
        self.shares = (quartiles.bincount(minlength=4) / num_timesteps).to(device)  # of all timesteps

    def add(self, losses: torch.Tensor, t: torch.Tensor):
        """Add the losses `(batch,)` at timesteps t `(batch,)`."""
        quartile = t * 4 // self.num_timesteps
        finite = losses.isfinite()
        self.table[0].index_add_(0, quartile, losses.detach().where(finite, 0))
        self.table[1].index_add_(0, quartile, finite.float())

    def add_estimates(self, estimates: torch.Tensor, t: torch.Tensor):
        """Add losses L_t / (T p_t) `(batch,)` at timesteps t `(batch,)` that were drawn from p.

        Their mean estimates that of L_t over all timesteps, whatever p is. So each counts for all quartiles.
        """
        finite = estimates.isfinite()
        self.table[0].index_add_(0, t * 4 // self.num_timesteps, estimates.detach().where(finite, 0))
        self.table[1] += finite.sum() * self.shares

    def read(self, accelerator: Accelerator) -> dict[str, float | None]:
        """Return `loss`, and `loss_q1` to `loss_q4`, of all processes, and start again at zero.

        A mean over no loss is None.
        """
        sums, counts = accelerator.reduce(self.table, "sum").tolist()
        self.table.zero_()
        means = [total / count if count else None for total, count in zip(sums, counts)]
        return {
            "loss": sum(sums) / sum(counts) if any(counts) else None,
            **{f"loss_q{i}": mean for i, mean in enumerate(means, 1)},
        }
