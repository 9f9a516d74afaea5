"""Fine-tuning: the weights of the base, adapted to the channels and the labels of the run's images."""

from collections.abc import Callable
from typing import Any

import torch

from ddpm_hf.config import TrainingConfig
from ddpm_hf.convert import add_to_every_image
from ddpm_hf.loading import load_unet
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.run_files import CHECKPOINTS, list_checkpoints
from ddpm_hf.unet_ddpm import DDPMUNetModel
from ddpm_hf.weights import StateDict


def start_at_base(unet: DDPMUNetModel, config: TrainingConfig) -> list[str]:
    """Give the network the weights of `--pretrained_model_name_or_path`, if it is passed.

    A run that goes on has its weights in a checkpoint, and then the base is not read.

    Args:
        unet ([`DDPMUNetModel`]): The network, which is changed.
        config ([`TrainingConfig`]): The options.

    Returns:
        `list[str]`: What was adapted, in sentences.

    Raises:
        ValueError: If the weights cannot be read, or are broken or of another network.
    """
    name = config.pretrained_model_name_or_path
    if not name:
        return []
    if list_checkpoints(config.folder / CHECKPOINTS) and not config.overwrite_output_dir:
        return []
    try:
        return adapt(load_unet(name, token=config.hub_token), unet)
    except (ValueError, OSError) as error:
        raise ValueError(f"--pretrained_model_name_or_path {name}: {error}") from error


def adapt(base: DDPMUNetModel, unet: DDPMUNetModel) -> list[str]:
    """Copy the weights of a network into one of other channels or other labels.

    Args:
        base ([`DDPMUNetModel`]): The network to copy; it is not changed.
        unet ([`DDPMUNetModel`]): The network that gets the weights. Both are alike but for the channels and the labels.

    Returns:
        `list[str]`: What was adapted, in sentences.
    """
    weights = dict(base.state_dict())
    notes = [_adapt_channels(weights, base.config.in_channels, unet.config.in_channels)]
    notes += _adapt_labels(weights, base.config, unet.config)
    before, now = (PixelFormat.of_model(network.config) for network in (base, unet))
    if (before.settings() or now.settings()) and before != now:
        notes.append(f"Its samples were {before.describe()}, and those of this run are {now.describe()}.")
    with unet.without_augment_embedding():  # no base has this layer
        unet.load_state_dict(weights)
    return [note for note in notes if note]


# ---- Channels --------------------------------------------------------------------------------------------------------


def _adapt_channels(weights: StateDict, before: int, now: int) -> str:
    """Adapt the first and the last convolution.

    From one channel to several, the network sees the mean of the channels and predicts the same for each. From several
    to one, it sees the one as all of them, and the mean of its predictions counts. So a grey picture has the same
    activations in grey and in colour. Otherwise the channels that both have keep their weights; a new one has no effect
    at first, and zero is predicted for it.
    """
    if before == now:
        return ""
    first = weights["conv_in.weight"]  # (width, before, 3, 3)
    last, bias = weights["conv_out.weight"], weights["conv_out.bias"]  # (before or 2 before, width, 3, 3)
    # A learned variance has channels of its own, after those of the prediction.
    halves = [each.split(before) for each in (last, bias)]

    def joined(adapt: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        last, bias = (torch.cat([adapt(half) for half in each]) for each in halves)
        return last, bias

    if before == 1:
        first = first.expand(-1, now, -1, -1) / now
        last, bias = joined(lambda rows: rows.expand(now, *rows.shape[1:]))
        how = "it sees the mean of the channels and predicts the same for each at first"
    elif now == 1:
        first = first.sum(1, keepdim=True)
        last, bias = joined(lambda rows: rows.mean(0, keepdim=True))
        how = "it sees the one channel as all, and the mean of its predictions counts at first"
    else:
        first = _resized(first.transpose(0, 1), now).transpose(0, 1)
        last, bias = joined(lambda rows: _resized(rows, now))
        how = "the first ones keep their weights" + ("; the new ones start at zero" if now > before else "")
    weights.update({"conv_in.weight": first, "conv_out.weight": last, "conv_out.bias": bias})
    return f"Its first and last convolution are adapted from {before} to {now} channels: {how}."


def _resized(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first `count` rows, with rows of zeros if there are fewer."""
    missing = rows.new_zeros(max(count - len(rows), 0), *rows.shape[1:])
    return torch.cat((rows[:count], missing))


# ---- Labels ----------------------------------------------------------------------------------------------------------


def _adapt_labels(weights: StateDict, before: Any, now: Any) -> list[str]:
    """Adapt the embedding of the labels.

    An unconditional network gets an embedding of zeros, which changes no output. A class that the base knows by name
    keeps its embedding; any other starts at the embedding for no label, which draws all classes. If the run has no
    labels, the embedding for no label is added to the bias of the layer before it. A stock model numbers its classes
    and has no label for none; the mean of its embeddings takes that place.

    Args:
        weights (`dict[str, torch.Tensor]`): The weights of the base, which are changed.
        before, now: The configurations of the base and of the new network.
    """
    theirs = weights.pop("class_embedding.weight", None)  # (labels, width), the last for no label if they have names
    if now.num_class_embeds is None:
        if theirs is None:
            return []
        add_to_every_image(weights, _no_label(theirs, before))
        exactly = "" if before.class_names else " on the average, since it has no label for none"
        return [f"Its labels are given up: it starts as it is without one{exactly}. --class_conditional keeps them."]
    names = list(now.class_names)
    if theirs is None:
        width = len(weights["time_embedding.linear_2.bias"])
        weights["class_embedding.weight"] = weights["conv_in.weight"].new_zeros(now.num_class_embeds, width)
        return [f"It had no labels: the embedding of the {len(names)} classes starts at zero."]
    no_label = _no_label(theirs, before)
    known = list(before.class_names or map(str, range(len(theirs))))
    rows = [theirs[known.index(name)] if name in known else no_label for name in names]
    weights["class_embedding.weight"] = torch.stack([*rows, no_label])
    if names == list(before.class_names or ()):
        return []
    kept = sum(name in known for name in names)
    return [f"{kept} of the {len(names)} classes are known to it by name; the others start as it is without a label."]


def _no_label(embedding: torch.Tensor, config: Any) -> torch.Tensor:
    """Return the embedding that stands for no label, or the mean of all if there is none."""
    return embedding[-1] if config.class_names else embedding.mean(0)
