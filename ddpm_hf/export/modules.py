"""The modules that are exported: the network, and one step or all steps of the denoising loop around it."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.export import Dim

from ddpm_hf.unet_ddpm import DDPMUNetModel


class Network(nn.Module):
    """A U-Net as a function of tensors alone.

    Args:
        unet ([`DDPMUNetModel`]): The network.
        guidance_scale (`float`): w of classifier-free guidance (arXiv 2207.12598); 1 for none.
    """

    def __init__(self, unet: DDPMUNetModel, guidance_scale: float = 1.0):
        super().__init__()
        self.unet, self.guidance_scale = unet, guidance_scale

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the prediction, `(batch, out_channels, height, width)`.

        Args:
            sample (`torch.Tensor`, `(batch, channels, height, width)`): x_t.
            timestep (`torch.Tensor`, `(batch,)`): t.
            class_labels (`torch.Tensor`, `(batch,)`, *optional*): Of a class-conditional network.
        """
        if self.guidance_scale == 1 or class_labels is None:
            return self.unet(sample, timestep, class_labels, return_dict=False)[0]
        no_class = torch.full_like(class_labels, len(self.unet.config.class_names))
        twice = torch.cat((sample, sample)), torch.cat((timestep, timestep)), torch.cat((class_labels, no_class))
        both = self.unet(*twice, return_dict=False)[0]
        B, C = sample.shape[:2]
        with_label, without = both[:B], both[B:]  # `chunk` would fix the batch size
        guided = without + self.guidance_scale * (with_label - without)
        return torch.cat((guided[:, :C], with_label[:, C:]), dim=1)  # a learned variance is not guided


class Step(nn.Module):
    """One denoising step, by its row of a table of [`~ddpm_hf.export.table.table_of`].

    Args:
        network ([`Network`]): The network.
        table (`dict`): The table.
        clip (`float`, *optional*): Bound of the predicted x_0.
    """

    def __init__(self, network: Network, table: Mapping[str, list], clip: float | None):
        super().__init__()
        self.network, self.clip = network, clip
        self.timesteps: torch.Tensor
        self.register_buffer("timesteps", torch.tensor(table["timesteps"]))
        names = [name for name in table if name != "timesteps"]
        self.columns = {name: i for i, name in enumerate(names)}
        self.numbers: torch.Tensor  # (steps, columns)
        self.register_buffer("numbers", torch.tensor([table[name] for name in names]).T.contiguous())

    def forward(
        self,
        sample: torch.Tensor,
        index: torch.Tensor,
        noise: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return x_{t-1}.

        Args:
            sample (`torch.Tensor`, `(batch, channels, height, width)`): x_t.
            index (`torch.Tensor`, `()`): Number of the step, from 0.
            noise (`torch.Tensor`, `(steps, batch, channels, height, width)`, *optional*): z of all steps.
            class_labels (`torch.Tensor`, `(batch,)`, *optional*): See [`Network`].
        """
        row = self.numbers.index_select(0, index.reshape(1))[0]
        number = {name: row[i] for name, i in self.columns.items()}
        t = self.timesteps.index_select(0, index.reshape(1)).expand(sample.shape[0])
        prediction = self.network(sample, t, class_labels)
        output, v = prediction[:, : sample.shape[1]], prediction[:, sample.shape[1] :]
        x_0 = number["x_0_from_sample"] * sample + number["x_0_from_output"] * output
        if self.clip is not None:
            x_0 = x_0.clamp(-self.clip, self.clip)
        mean = number["next_from_x_0"] * x_0 + number["next_from_sample"] * sample + number["next_from_output"] * output
        if noise is None:
            return mean
        std = number.get("std")
        if std is None:
            low, high = number["log_variance_low"], number["log_variance_high"]
            std = torch.exp((low + (v + 1) / 2 * (high - low)) / 2) * (t[0] > 0)
        return mean + std * noise.index_select(0, index.reshape(1))[0]


class Loop(nn.Module):
    """All steps, one after the other: from x_T to images in [0, 1]."""

    def __init__(self, step: Step):
        super().__init__()
        self.step = step

    def forward(
        self, sample: torch.Tensor, noise: torch.Tensor | None = None, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        for index in range(len(self.step.timesteps)):
            sample = self.step(sample, torch.tensor(index), noise, class_labels)
        return (sample / 2 + 0.5).clamp(0, 1)


def is_noisy(table: Mapping[str, list]) -> bool:
    """Tell whether the steps of a table add noise."""
    return any(table.get("std", [1.0]))


def example(unet: DDPMUNetModel, names: Sequence[str], steps: int = 1) -> tuple[dict, dict]:
    """Return inputs to trace a module with, and which of their dimensions are free.

    Args:
        unet ([`DDPMUNetModel`]): The network. Height and width are free multiples of what its levels need.
        names (`Sequence[str]`): Which inputs: `sample`, `timestep`, `index`, `noise`, `class_labels`.
        steps (`int`): Denoising steps of `noise`.
    """
    config = unet.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    batch, height, width = Dim("batch"), factor * Dim("height"), factor * Dim("width")
    x = torch.zeros(2, config.in_channels, 2 * factor, 4 * factor)
    inputs = {
        "sample": x,
        "timestep": torch.zeros(2, dtype=torch.int64),
        "index": torch.zeros((), dtype=torch.int64),
        "noise": torch.zeros(steps, *x.shape),
        "class_labels": torch.zeros(2, dtype=torch.int64),
    }
    free = {
        "sample": {0: batch, 2: height, 3: width},
        "timestep": {0: batch},
        "index": {},
        "noise": {1: batch, 3: height, 4: width},
        "class_labels": {0: batch},
    }
    chosen = [name for name in inputs if name in names]  # in the order in which the modules take them
    return {name: inputs[name] for name in chosen}, {name: free[name] for name in chosen}
