"""What the model card says about the training data: its origin, its licence and its preprocessing."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from ddpm_hf.hub.card_text import bare

_CELEBA_LICENCE = {
    "license": "other",
    "license_name": "celeba-non-commercial-research",
    "license_link": "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
}


@dataclass(frozen=True)
class DatasetDescription:
    """A data set, as the card describes it.

    Args:
        name (`str`): The name within a sentence.
        origin (`str`): A sentence on where the pictures come from.
        licence (`str`): A sentence on the licence of the pictures.
        hub_id (`str`, *optional*): The data set on the Hub.
        model_licence (`dict`): The card's metadata on the licence of the model.
        limits, citation (`str`): What is added to these sections of the card.
    """

    name: str
    origin: str
    licence: str = "unknown; find out before you use or share what the model draws."
    hub_id: str | None = None
    model_licence: dict = field(default_factory=lambda: {"license": "unknown"})
    limits: str = ""
    citation: str = ""


def _mnist(count: str) -> DatasetDescription:
    return DatasetDescription(
        name=f"{count} handwritten digits of MNIST",
        origin=f"{count[0].upper()}{count[1:]} pictures of the training set of MNIST, by Yann LeCun, Corinna Cortes "
        "and Christopher J. C. Burges ([`ylecun/mnist`](https://huggingface.co/datasets/ylecun/mnist)), derived from "
        "NIST Special Databases 1 and 3.",
        licence="MIT as the data set's card on the Hub states; other distributions state CC BY-SA 3.0.",
        hub_id="ylecun/mnist",
        model_licence={"license": "apache-2.0"},
        limits=" The digits were written by employees and pupils in the United States around 1990.",
        citation="The data: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document "
        "recognition, Proceedings of the IEEE 86(11), 1998.",
    )


def _celeba(hub_id: str) -> DatasetDescription:
    return DatasetDescription(
        name="faces of CelebA",
        origin=f"CelebA, pictures of the faces of celebrities ([`{hub_id}`](https://huggingface.co/datasets/{hub_id})).",
        licence="CelebA is for non-commercial research only, and so is this model.",
        hub_id=hub_id,
        model_licence=_CELEBA_LICENCE,
        limits=" The faces are of celebrities who were not asked; they are not a fair sample of people in age, gender "
        "or skin colour. Do not use the model to depict or identify persons.",
        citation="The data: Z. Liu, P. Luo, X. Wang and X. Tang, Deep Learning Face Attributes in the Wild, ICCV 2015.",
    )


_KNOWN = {
    "ylecun/mnist": _mnist("the 60,000"),
    "uoft-cs/cifar10": DatasetDescription(
        name="the pictures of CIFAR-10",
        origin="CIFAR-10, pictures of ten kinds of animals and vehicles "
        "([`uoft-cs/cifar10`](https://huggingface.co/datasets/uoft-cs/cifar10)).",
        licence="unknown; its authors state none.",
        hub_id="uoft-cs/cifar10",
        citation="The data: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
    ),
    **{name: _celeba(name) for name in ("nielsr/CelebA-faces", "flwrlabs/celeba", "korexyz/celeba-hq-256x256")},
}


def describe_dataset(config: dict) -> DatasetDescription:
    """Describe the data set that the options of a run name. Of a local path, only the last part is told.

    Args:
        config (`dict`): The options, as config.json holds them; empty if they are not recorded.
    """
    if not config:
        return DatasetDescription(
            "pictures that are not recorded", "Which pictures the model was trained on is not recorded."
        )
    if path := config.get("train_data_dir"):
        folder = f"folder of pictures, `{bare(Path(path).name)}`"
        return DatasetDescription(f"a {folder}", f"A {folder}.")
    name = config.get("dataset_name")
    if not name:
        return _mnist("the first 10,000")
    if name in _KNOWN:
        return _KNOWN[name]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists():
        link = f"[`{name}`](https://huggingface.co/datasets/{name})"
        return DatasetDescription(f"the data set {link}", f"The data set {link} on the Hub.", hub_id=name)
    local = f"data set, `{bare(Path(name).name)}`"
    return DatasetDescription(f"a {local}", f"A local {local}.")


def describe_preprocessing(config: dict) -> str:
    """Say in one sentence what was done to the pictures before training, as far as it is recorded."""
    resolution = config.get("resolution")
    if resolution is None or "image_fit" not in config:
        return "not recorded."
    steps = []
    if config.get("celeba_crop"):
        steps.append("the 140-pixel centre crop of the aligned pictures of 178x218")
    size = f"{resolution}x{resolution}" if isinstance(resolution, int) else f"{resolution} (height x width)"
    is_centred = config.get("center_crop", True)
    if config["image_fit"] == "pad":
        steps.append(f"centred on black, {size}, without resizing")
    elif isinstance(resolution, int):
        cut = "its centre" if is_centred else "another random square each time"
        steps.append(f"short side resized to {resolution} pixels (bicubic, antialiased), the long one cut to {cut}")
    else:
        cut = "its centre" if is_centred else "another random part each time"
        steps.append(f"shrunk until one side fits {size} pixels (bicubic, antialiased), the other cut to {cut}")
    if (small := config.get("small_images", "error")) != "error":
        steps.append("smaller pictures enlarged" if small == "upscale" else "smaller pictures left out")
    if config.get("random_flip"):
        steps.append("mirrored left to right with probability 1/2")
    if config.get("augment"):
        paper = "[Karras et al. 2022](https://arxiv.org/abs/2206.00364), appendix F.2"
        steps.append(f"augmented with probability {config['augment_probability']} and labels ({paper})")
    about = (config.get("model") or {}).get("pixel_format")
    values = f"values from {about['low']:.9g} to {about['high']:.9g}" if about else "values"
    return "; ".join([*steps, f"{values} scaled to [-1, 1]"]) + "."
