"""The U-Net of Denoising Diffusion Probabilistic Models (Ho et al. 2020, arXiv 2006.11239, appendix B).

One class covers two lineages, and only the configuration tells them apart. The *paper* lineage is Ho's code,
google/ddpm-* and every diffusers `UNet2DModel` of Down/AttnDown/Up/AttnUp blocks. The *annotated* lineage is the
network of the annotated tutorial.

This file is self-contained: a Hub repository ships it beside the weights, so it imports torch and diffusers only.
"""

import json
import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

# Arguments of `from_pretrained` that say where the configuration is.
WHERE_A_CONFIG_IS = ("subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")
# Devices on which channels last is faster, since they multiply matrices in hardware. Apple's GPUs are not among them:
# there PyTorch has no fast kernels for it, and had wrong ones.
CHANNELS_LAST_DEVICES = ("cuda", "xpu")


@dataclass
class DDPMUNetOutput(BaseOutput):
    """Output of [`DDPMUNetModel`].

    Attributes:
        sample (`torch.Tensor`, `(batch, out_channels, height, width)`): What the network predicts: the noise
            `eps_theta(x_t, t)`, or `x_0` or `v`, as the scheduler's `prediction_type` says.
    """

    sample: torch.Tensor


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of t (arXiv 1706.03762, section 3.5), then a two-layer perceptron."""

    def __init__(self, base_channels: int, embedding_dim: int, flip_sin_to_cos: bool, freq_shift: float):
        super().__init__()
        self.half_dim = base_channels // 2
        self.flip_sin_to_cos = flip_sin_to_cos
        self.freq_shift = freq_shift
        self.linear_1 = nn.Linear(base_channels, embedding_dim)
        self.linear_2 = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype, offset: torch.Tensor | None = None) -> torch.Tensor:
        i = torch.arange(self.half_dim, dtype=torch.float32, device=timestep.device)
        frequencies = torch.exp(-math.log(10000) * i / (self.half_dim - self.freq_shift))
        angles = timestep.float()[:, None] * frequencies  # (B, base_channels / 2)
        waves = (angles.cos(), angles.sin()) if self.flip_sin_to_cos else (angles.sin(), angles.cos())
        embedding = torch.cat(waves, dim=-1).to(dtype)  # (B, base_channels)
        if offset is not None:
            embedding = embedding + offset
        return self.linear_2(F.silu(self.linear_1(embedding)))  # (B, embedding_dim)


class GroupNorm(nn.GroupNorm):
    """Group normalisation (arXiv 1803.08494), which a compiled network computes in the memory layout of its input.

    PyTorch's own function returns another layout than channels last, forward and backward. Eager code is faster with it
    all the same. Compiled code would copy almost every gradient back into channels last, a sixth of a training step.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels_last = x.device.type != "cpu" and x.is_contiguous(memory_format=torch.channels_last)
        return self.compute(x) if channels_last and torch.compiler.is_compiling() else super().forward(x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Return the norm, in channels last."""
        h = x.float().permute(0, 2, 3, 1).unflatten(-1, (self.num_groups, -1))  # (B, H, W, groups, channels)
        # The variance of a group is the mean of its channels' variances, plus the variance of their means.
        within, means = torch.var_mean(h, dim=(1, 2), correction=0, keepdim=True)
        between, mean = torch.var_mean(means, dim=-1, correction=0, keepdim=True)
        h = (h - mean) * (within.mean(-1, keepdim=True) + between + self.eps).rsqrt()
        h = h.flatten(-2) * self.weight + self.bias
        return h.permute(0, 3, 1, 2).to(self.weight.dtype)


class ResidualBlock(nn.Module):
    """GroupNorm-SiLU-conv, add the projected time, GroupNorm-SiLU-dropout-conv, add the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + time
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.conv_shortcut(x) + h


class SelfAttention(nn.Module):
    """Attention of every pixel to every pixel of its feature map, with a residual connection.

    The annotated lineage has a group norm that it never applies. Its weights are frozen, and they are saved and loaded.
    """

    def __init__(self, channels: int, head_dim: int | None, groups: int, eps: float, normalize: bool):
        super().__init__()
        self.head_dim = head_dim or channels
        inner_dim = channels // self.head_dim * self.head_dim
        self.normalize = normalize
        self.group_norm = GroupNorm(groups, channels, eps).requires_grad_(normalize)
        self.to_qkv = nn.Linear(channels, 3 * inner_dim)
        self.to_out = nn.Linear(inner_dim, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.group_norm(x) if self.normalize else x
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, C), where N = H * W
        qkv = self.to_qkv(h).unflatten(-1, (3, -1, self.head_dim))  # (B, N, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, head_dim)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, heads * head_dim)
        return x + self.to_out(h).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Stem(nn.Conv2d):
    """The first convolution, which reads x_t in full precision, even under autocast.

    Rounding x_t to bf16 adds an error to it. At t = 0 the error is a tenth of the noise that the network predicts.
    """

    def forward(self, x_t: torch.Tensor) -> torch.Tensor:
        kind = x_t.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return super().forward(x_t.to(self.weight.dtype))


class Downsample(nn.Module):
    """A 3x3 stride-2 convolution, which halves height and width.

    `padding=0` stands for one pixel of padding at the right and at the bottom only (Ho's code).
    """

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.pad = (0, 1, 0, 1) if padding == 0 else (0, 0, 0, 0)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, self.pad) if any(self.pad) else x)


class Upsample(nn.Conv2d):
    """Nearest-neighbour upsampling, which doubles height and width, then a 3x3 convolution with these weights.

    Both are computed as one 4x4 stride-2 transposed convolution. It is exact and takes 2.25 times fewer operations.
    Along an axis, the taps (w0, w1, w2) of an even output pixel 2m meet x[m-1], x[m], x[m]. Those of an odd one, 2m+1,
    meet x[m], x[m], x[m+1]. Taps that meet the same pixel are added first, which gives (w2, w1 + w2, w0 + w1, w0).
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight.transpose(0, 1)  # (in, out, 3, 3)
        w = torch.stack((w[:, :, 2], w[:, :, 1] + w[:, :, 2], w[:, :, 0] + w[:, :, 1], w[:, :, 0]), dim=2)
        w = torch.stack((w[..., 2], w[..., 1] + w[..., 2], w[..., 0] + w[..., 1], w[..., 0]), dim=3)  # (in, out, 4, 4)
        return F.conv_transpose2d(x, w, self.bias, stride=2, padding=1)


class Level(nn.Module):
    """The blocks of one resolution: residual blocks, each with its attention or identity, then one resampling.

    diffusers sets `gradient_checkpointing` and `_gradient_checkpointing_func` in every module that has the former.
    """

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], resample: nn.Module | None = None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample
        self.gradient_checkpointing = False

    def run(self, block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """Return one block's output. Gradient checkpointing computes its activations again on the way back."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)


class DDPMUNetModel(ModelMixin, ConfigMixin):
    r"""U-Net that predicts the noise in `x_t`, `eps_theta(x_t, t)` (Ho et al. 2020, section 3.2 and appendix B).

    Keys that diffusers' `UNet2DModel` has too have its names and meanings. The defaults are the paper's CIFAR-10 model
    (35.7 M parameters).

    Args:
        sample_size (`int` or `tuple[int, int]`, *optional*): Height and width of the samples that a pipeline draws. The
            network itself takes any size divisible by `2 ** (levels - 1)`.
        in_channels (`int`): Channels of the input sample.
        out_channels (`int`): Channels of the output.
        block_out_channels (`tuple[int, ...]`): Width of each level, finest first; the first is also the stem's width.
        down_block_types (`tuple[str, ...]`): `"DownBlock2D"` or `"AttnDownBlock2D"` (attention after each residual
            block) for each level.
        up_block_types (`tuple[str, ...]`): `"UpBlock2D"` or `"AttnUpBlock2D"` for each level, coarsest first.
        mid_block_type (`str`, *optional*): `"UNetMidBlock2D"`, or None for no middle block.
        add_attention (`bool`): Whether the middle block attends.
        layers_per_block (`int`): Residual blocks per level on the way down. The way up has one more.
        dropout (`float`): Dropout probability inside each residual block, in [0, 1).
        attention_head_dim (`int`, *optional*): Width of an attention head; None for one head as wide as the level.
        norm_num_groups (`int`): Groups of each group norm. It has to divide every width.
        attn_norm_num_groups (`int`, *optional*): Groups of the middle block's attention norm, if different.
        norm_eps (`float`): Epsilon of each group norm.
        flip_sin_to_cos (`bool`): Whether the cosines come first in the time embedding.
        freq_shift (`float`): The time embedding's frequencies are `10000 ** (-i / (half - freq_shift))`.
        downsample_padding (`int`): 1, or 0 for one pixel of padding at the right and at the bottom only (Ho's code).
        upsample_type (`str`): `"conv"` (nearest neighbour, 3x3 convolution) or `"conv_transpose"` (4x4, stride 2).
        num_class_embeds (`int`, *optional*): Number of labels of a class-conditional model, with the one for no class.
        narrow_up_blocks (`bool`): Whether the last residual block of each level on the way up narrows to the width of
            the next finer level, so that upsampling happens at that width (True: annotated lineage).
        attention_norm (`bool`): Whether attention normalises its input (False: annotated lineage).
        norm_out_num_groups (`int`, *optional*): Groups of the last group norm, if different (8: annotated lineage).
        zero_init (`bool`): Whether to initialise as Ho's code does: uniform weights of variance 1 / fan_avg, zero
            biases, and zeros in the last layer of each block and of the network. False keeps PyTorch's initialisation.
        class_names (`tuple[str, ...]`, *optional*): Names of the classes 0, 1, .... The label after them, the last of
            `num_class_embeds`, stands for no class. A call without labels uses it.
        class_frequencies (`tuple[float, ...]`, *optional*): Share of each class in the training images. A pipeline
            draws labels with them if it is given none.
        pixel_format (`dict`, *optional*): What samples are, unless they are 8-bit pictures, grey or RGB: `mode`,
            `dtype`, `low` and `high`, which the network sees as -1 and 1, `stored` and `suffix`.

    Raises:
        ValueError: If a value has another type or the keys do not fit together.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm"]
    _repeated_blocks = ["ResidualBlock", "SelfAttention"]
    _no_split_modules = ["ResidualBlock", "SelfAttention"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 256),
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types: tuple[str, ...] = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        add_attention: bool = True,
        layers_per_block: int = 2,
        dropout: float = 0.0,
        attention_head_dim: int | None = None,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-6,
        flip_sin_to_cos: bool = False,
        freq_shift: float = 1,
        downsample_padding: int = 0,
        upsample_type: str = "conv",
        num_class_embeds: int | None = None,
        narrow_up_blocks: bool = False,
        attention_norm: bool = True,
        norm_out_num_groups: int | None = None,
        zero_init: bool = True,
        class_names: tuple[str, ...] | None = None,
        pixel_format: dict | None = None,
        class_frequencies: tuple[float, ...] | None = None,
    ):
        super().__init__()
        check_config(self.config)
        widths = tuple(block_out_channels)
        time_channels = 4 * widths[0]
        upsampler = {"conv": Upsample, "conv_transpose": lambda c: nn.ConvTranspose2d(c, c, 4, stride=2, padding=1)}
        time_widths: list[int] = []  # widths of the residual blocks, in the order of the forward pass

        def resnet(in_width, out_width):
            time_widths.append(out_width)
            return ResidualBlock(in_width, out_width, norm_num_groups, norm_eps, dropout)

        def attention(width, wanted, groups=norm_num_groups):
            if not wanted:
                return nn.Identity()
            return SelfAttention(width, attention_head_dim, groups, norm_eps, attention_norm)

        self.time_embedding = TimeEmbedding(widths[0], time_channels, flip_sin_to_cos, freq_shift)
        self.class_embedding = nn.Embedding(num_class_embeds, time_channels) if num_class_embeds else None
        self.augment_embedding: nn.Linear | None = None  # see `add_augment_embedding`
        self.conv_in = Stem(in_channels, widths[0], 3, padding=1)

        # Down. The way up reads every output again, so the widths are kept.
        skip_widths, h_width = [widths[0]], widths[0]
        self.down_blocks: Any = nn.ModuleList()  # of Level
        for i, (kind, width) in enumerate(zip(down_block_types, widths)):
            resnets, attentions = [], []
            for _ in range(layers_per_block):
                resnets.append(resnet(h_width, width))
                attentions.append(attention(width, kind.startswith("Attn")))
                h_width = width
                skip_widths.append(h_width)
            last = i == len(widths) - 1
            if not last:
                skip_widths.append(h_width)
            self.down_blocks.append(
                Level(resnets, attentions, None if last else Downsample(h_width, downsample_padding))
            )

        # Middle.
        mid_groups = attn_norm_num_groups or norm_num_groups
        self.mid_block: Any = mid_block_type and Level(
            [resnet(h_width, h_width), resnet(h_width, h_width)], [attention(h_width, add_attention, mid_groups)]
        )

        # Up. Each residual block reads its input and the last output of the way down that was not yet read.
        self.up_blocks: Any = nn.ModuleList()  # of Level
        for i, kind in zip(reversed(range(len(widths))), up_block_types):
            resnets, attentions = [], []
            for j in range(layers_per_block + 1):
                narrow = narrow_up_blocks and j == layers_per_block
                width = widths[max(i - 1, 0)] if narrow else widths[i]
                resnets.append(resnet(h_width + skip_widths.pop(), width))
                attentions.append(attention(width, kind.startswith("Attn")))
                h_width = width
            self.up_blocks.append(Level(resnets, attentions, upsampler[upsample_type](h_width) if i > 0 else None))

        self.conv_norm_out = GroupNorm(norm_out_num_groups or norm_num_groups, h_width, norm_eps)
        self.conv_out = nn.Conv2d(h_width, out_channels, 3, padding=1)

        # One matrix product projects the time embedding for all residual blocks.
        self.time_widths = time_widths
        self.time_projection = nn.Linear(time_channels, sum(time_widths))

        # On a CPU, channels last is faster only with AMX. But group norm is several times slower in it. With narrow
        # groups, that costs more than the convolutions gain.
        self.channels_last_on_cpu = torch.cpu._is_amx_tile_supported() and widths[0] >= 4 * norm_num_groups

        if zero_init:
            self._init_weights()
        self._store_in_own_memory()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, output_loading_info: bool = False, **kwargs):
        """Load a saved model, as [`~diffusers.ModelMixin.from_pretrained`] does, in the memory layout of a new one.

        Raises:
            ValueError: If the folder holds a `UNet2DModel`, or if weights are missing or unknown. With
                `output_loading_info=True`, the returned information names such weights instead.
        """
        source = pretrained_model_name_or_path
        options = {key: value for key, value in kwargs.items() if key in WHERE_A_CONFIG_IS}
        if cls.load_config(source, **options).get("_class_name") == "UNet2DModel":
            raise ValueError(
                f"{source} holds a UNet2DModel, whose weights have other names than a DDPMUNetModel's. Convert the "
                "folder of its pipeline first: ddpm-hf convert FOLDER NEW_FOLDER."
            )
        model, info = super().from_pretrained(source, output_loading_info=True, **kwargs)
        if not output_loading_info:
            _check_keys(source, info["missing_keys"], info["unexpected_keys"])
        model._store_in_own_memory()
        return (model, info) if output_loading_info else model

    @classmethod
    def load_config(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Read config.json, as [`~diffusers.ConfigMixin.load_config`] does, and check that it is a dictionary.

        Raises:
            ValueError: If the file holds something else.
        """
        loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(config, dict):
            where = f"The {cls.config_name} of {pretrained_model_name_or_path}"
            raise ValueError(f"{where} is of type {type(config).__name__}; expected keys and values.")
        return loaded

    def memory_format_on(self, device: torch.device) -> torch.memory_format:
        """Return the memory layout of images and weights that is fastest on a device."""
        pays = device.type in CHANNELS_LAST_DEVICES or (device.type == "cpu" and self.channels_last_on_cpu)
        return torch.channels_last if pays else torch.contiguous_format

    def _apply(self, fn, recurse=True):
        """Move or convert all tensors, as [`torch.nn.Module`] does. What changes its device changes its layout, too."""

        def apply_and_lay_out(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            if result.ndim != 4 or result.device.type == tensor.device.type:
                return result
            return result.contiguous(memory_format=self.memory_format_on(result.device))

        return super()._apply(apply_and_lay_out, recurse)

    def to_json_string(self) -> str:
        """Return the contents of config.json, without the path that the model was loaded from."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def add_augment_embedding(self, num_labels: int):
        """Add the layer that reads augmentation labels in training (arXiv 2206.00364, appendix F.2).

        It has no bias, so labels of zero add nothing, and the network equals the one without the layer. The
        configuration does not mention it: a model that is saved is a plain one. Its weight is the last parameter.
        """
        self.augment_embedding = nn.Linear(num_labels, self.config.block_out_channels[0], bias=False)
        nn.init.xavier_uniform_(self.augment_embedding.weight)

    @contextmanager
    def without_augment_embedding(self):
        """Take the layer of the augmentation labels away while the context is open, to save or to draw."""
        layer, self.augment_embedding = self.augment_embedding, None
        try:
            yield self
        finally:
            self.augment_embedding = layer

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        augment_labels: torch.Tensor | None = None,
    ) -> DDPMUNetOutput | tuple[torch.Tensor]:
        """Predict the noise in `x_t`.

        Args:
            sample (`torch.Tensor`, `(batch, in_channels, height, width)`): `x_t`.
            timestep (`torch.Tensor`, `float` or `int`): t, one for all samples or one for each; 0 is one noising step.
            class_labels (`torch.Tensor`, `(batch,)`, *optional*): Labels, for a class-conditional model only. A model
                with `class_names` may be called without them, for images of no class.
            return_dict (`bool`): Whether to return a [`DDPMUNetOutput`] instead of a tuple.
            augment_labels (`torch.Tensor`, `(batch, num_labels)`, *optional*): How the samples were augmented, for a
                network with the layer of [`~DDPMUNetModel.add_augment_embedding`]. The default and zeros: not at all.

        Returns:
            [`DDPMUNetOutput`] or `tuple`: The prediction, `(batch, out_channels, height, width)`.

        Raises:
            ValueError: If a shape does not fit the network.
        """
        self._check_inputs(sample, timestep, class_labels, augment_labels)

        # 1. Time: one embedding for each t, and one projection for each residual block.
        if torch.is_tensor(timestep):
            timestep = timestep.to(sample.device, non_blocking=True).reshape(-1)
        else:
            timestep = torch.full((1,), timestep, device=sample.device)
        offset = None
        if self.augment_embedding is not None and augment_labels is not None:
            offset = self.augment_embedding(augment_labels.to(sample.dtype))
        embedding = self.time_embedding(timestep, sample.dtype, offset)
        if self.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.full((1,), len(self.config.class_names), device=sample.device)
            embedding = embedding + self.class_embedding(class_labels)
        times = self.time_projection(F.silu(embedding))[:, :, None, None]
        dtype = times.dtype  # autocast's, or that of the weights
        time = iter(times.split(self.time_widths, dim=1))  # each (B or 1, width, 1, 1)

        # 2. Down.
        h = self.conv_in(sample).to(dtype, memory_format=self.memory_format_on(sample.device))
        skips = [h]
        for level in self.down_blocks:
            for resnet, attention in zip(level.resnets, level.attentions):
                h = level.run(attention, level.run(resnet, h, next(time)))
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)

        # 3. Middle.
        if self.mid_block is not None:
            level = self.mid_block
            h = level.run(level.resnets[0], h, next(time))
            h = level.run(level.attentions[0], h)
            h = level.run(level.resnets[1], h, next(time))

        # 4. Up.
        for level in self.up_blocks:
            for resnet, attention in zip(level.resnets, level.attentions):
                h = level.run(resnet, torch.cat((h, skips.pop()), dim=1), next(time))
                h = level.run(attention, h)
            if level.resample is not None:
                h = level.resample(h)

        # 5. Out.
        output = self.conv_out(F.silu(self.conv_norm_out(h)))
        return DDPMUNetOutput(sample=output) if return_dict else (output,)

    def _init_weights(self):
        """Initialise as Ho's code does: uniform of variance 1 / fan_avg, biases 0, last layer of each branch 0."""
        for name, module in self.named_modules():
            if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                continue
            assert module.bias is not None  # all layers here have one
            nn.init.zeros_(module.bias)
            if name.endswith(("conv2", "to_out", "conv_out")):
                nn.init.zeros_(module.weight)
                continue
            # A fused layer stands for several layers, and each has its own fan_out.
            rows = len(module.weight)
            parts = self.time_widths if name == "time_projection" else rows // 3 if name.endswith("to_qkv") else rows
            for part in module.weight.data.split(parts):
                nn.init.xavier_uniform_(part)

    def _store_in_own_memory(self):
        """Copy the weights out of a memory-mapped file, whose alignment changes the last bits of the output."""
        for parameter in self.parameters():
            layout = self.memory_format_on(parameter.device) if parameter.ndim == 4 else torch.contiguous_format
            parameter.data = parameter.data.clone(memory_format=layout)

    def _check_inputs(self, sample, timestep, class_labels, augment_labels):
        """Raise a ValueError if a shape does not fit the network."""
        channels, factor = self.config.in_channels, 2 ** (len(self.config.block_out_channels) - 1)
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(f"`sample` has shape {tuple(sample.shape)}; expected (batch, {channels}, height, width).")
        if sample.shape[2] % factor or sample.shape[3] % factor or 0 in sample.shape[2:]:
            raise ValueError(
                f"`sample` is {sample.shape[2]}x{sample.shape[3]} pixels; with {len(self.config.block_out_channels)} "
                f"levels, height and width have to be multiples of {factor}."
            )
        batch = sample.shape[0]
        if torch.is_tensor(timestep) and timestep.shape not in ((), (1,), (batch,)):
            raise ValueError(
                f"`timestep` has shape {tuple(timestep.shape)}; expected one t, or one for each of {batch}."
            )
        if class_labels is None and self.class_embedding is not None and not self.config.class_names:
            raise ValueError("`class_labels` are missing: this network is class-conditional (`num_class_embeds`).")
        if class_labels is not None and self.class_embedding is None:
            raise ValueError("`class_labels` were passed, but this network is unconditional (no `num_class_embeds`).")
        if augment_labels is not None and self.augment_embedding is None:
            raise ValueError("`augment_labels` were passed, but this network has no layer for them.")


def _check_keys(source, missing: list[str], extra: list[str]):
    """Raise a ValueError if weights are missing or unknown. diffusers would only warn about it."""
    parts = {"misses": missing, "has the unknown": extra}
    problems = [f"{verb} {', '.join(sorted(keys))}" for verb, keys in parts.items() if keys]
    if problems:
        raise ValueError(
            f"{source} does not hold the weights of the network that its configuration describes: it "
            f"{'; '.join(problems)}. Use the weights and the config.json of the same model."
        )


def check_config(config):
    """Raise a ValueError if a value has another type or the keys do not fit together; say what would fit.

    Args:
        config ([`~diffusers.configuration_utils.FrozenDict`]): All arguments of [`DDPMUNetModel`].
    """

    def check(fits, key, expected):
        if not fits:
            raise ValueError(f"`{key}={config[key]!r}` does not fit a DDPMUNetModel: expected {expected}.")

    for key in ("in_channels", "out_channels", "layers_per_block", "norm_num_groups"):
        check(_is_positive(config[key]), key, "a whole number, at least 1")
    for key in ("attention_head_dim", "attn_norm_num_groups", "norm_out_num_groups", "num_class_embeds"):
        check(config[key] is None or _is_positive(config[key]), key, "None, or a whole number, at least 1")
    for key in ("dropout", "norm_eps", "freq_shift"):
        check(isinstance(config[key], Real) and not isinstance(config[key], bool), key, "a number")
    for key in ("add_attention", "flip_sin_to_cos", "narrow_up_blocks", "attention_norm", "zero_init"):
        check(isinstance(config[key], bool), key, "True or False")

    widths = config.block_out_channels
    check(_is_list(widths) and widths, "block_out_channels", "a list of one width for each level")
    check(all(_is_positive(width) for width in widths), "block_out_channels", "positive whole numbers")
    levels, groups = len(widths), config.norm_num_groups
    check(widths[0] % 2 == 0, "block_out_channels", "an even first width, for the sines and cosines of the time")
    check(all(w % groups == 0 for w in widths), "block_out_channels", f"multiples of norm_num_groups={groups}")
    check(widths[0] / 2 > config.freq_shift, "freq_shift", f"less than half the first width, {widths[0] // 2}")
    kinds: tuple[str | int | None, ...]
    for key, kinds in (
        ("down_block_types", ("DownBlock2D", "AttnDownBlock2D")),
        ("up_block_types", ("UpBlock2D", "AttnUpBlock2D")),
    ):
        listed = _is_list(config[key]) and len(config[key]) == levels
        check(listed, key, f"one of {kinds} for each of the {levels} block_out_channels")
        check(all(kind in kinds for kind in config[key]), key, f"only {kinds}")
    for key, kinds in (
        ("mid_block_type", ("UNetMidBlock2D", None)),
        ("downsample_padding", (0, 1)),
        ("upsample_type", ("conv", "conv_transpose")),
    ):
        check(config[key] in kinds, key, f"one of {kinds}")
    check(0 <= config.dropout < 1, "dropout", "a probability in [0, 1)")
    check(config.norm_eps > 0, "norm_eps", "a positive number")
    head_dim, narrowest = config.attention_head_dim, min(widths)
    check(head_dim is None or head_dim <= narrowest, "attention_head_dim", f"None, or 1 to {narrowest}")
    for key, width in (("attn_norm_num_groups", widths[-1]), ("norm_out_num_groups", widths[0])):
        check(config[key] is None or width % config[key] == 0, key, f"None, or a divisor of {width}")
    names = config.class_names
    if names is not None:
        texts = _is_list(names) and all(isinstance(name, str) for name in names)
        check(texts, "class_names", "None, or a list of names")
        expected = len(names) + 1
        check(config.num_class_embeds == expected, "num_class_embeds", f"{expected}, one more than class_names")
    shares = config.class_frequencies
    if shares is not None:
        numbers = _is_list(shares) and all(_is_share(share) for share in shares) and sum(shares) > 0
        fits = numbers and names is not None and len(shares) == len(names)
        check(fits, "class_frequencies", "None, or a list with a share for each of class_names")
    about = config.pixel_format
    check(about is None or _is_pixel_format(about), "pixel_format", "None, or mode, dtype, low, high, stored, suffix")
    size, factor = config.sample_size, 2 ** (levels - 1)
    pair = size if _is_list(size) else (size, size)
    fits = len(pair) == 2 and all(_is_positive(side) and side % factor == 0 for side in pair)
    check(
        size is None or fits,
        "sample_size",
        f"a whole number or two, multiples of {factor}, since {levels} levels halve the sample {levels - 1} times",
    )


def _is_pixel_format(value) -> bool:
    kinds = {"mode": str, "dtype": str, "low": Real, "high": Real, "stored": str, "suffix": str}
    fits = isinstance(value, dict) and value.keys() == kinds.keys()
    return fits and all(isinstance(value[key], kind) for key, kind in kinds.items()) and value["low"] < value["high"]


def _is_positive(value) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_share(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


def _is_list(value) -> TypeGuard[list | tuple]:
    return isinstance(value, (list, tuple))
