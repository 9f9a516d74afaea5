"""What the pages name: folders of pictures, data sets, and models on the Hub, all tiny."""

from pathlib import Path

import datasets
import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from loopback_hub import File, LoopbackHub, Repository
from oracles import annotated_unet
from PIL import Image

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel

ROOT = Path(__file__).parents[1]
# For `--features features:means`, in place of Inception, whose weights would be fetched.
FEATURES = "def means(images):\n    return images.float().mean((2, 3))\n"
CLASSES = {"animals/cat": 2, "animals/dog": 2}


def make_files(folder: Path):
    """Fill the folder that a reader of the pages stands in."""
    random = np.random.default_rng(0)

    def pictures(name, count, shape=(64, 64, 3), dtype=np.uint8, low=0, high=256):
        for i in range(count):
            (folder / name).mkdir(parents=True, exist_ok=True)
            yield folder / name / f"{i}.png", random.integers(low, high, shape, dtype)

    for name, count in {"pictures": 20, "drawings": 4, "sorted/train": 4, "sorted/test": 2, **CLASSES}.items():
        for path, pixels in pictures(name, count):
            Image.fromarray(pixels).save(path)
    for path, pixels in pictures("icons", 4, (64, 64, 4)):
        Image.fromarray(pixels).save(path)
    for path, pixels in pictures("sixteen_bit", 4, (64, 64), np.uint16, high=2**16):
        Image.fromarray(pixels).save(path)
    for path, pixels in pictures("scans", 4, (64, 64), np.int16, low=-1000, high=3001):
        np.save(path.with_suffix(".npy"), pixels)
    for name in ("one.png", "another.png"):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)
    Image.new("L", (8, 8), 255).save(folder / "mask.png")

    # The loopback Hub has no data sets. `datasets` reads folders of the same names.
    for name, splits in {"user/dataset": ["train"], "uoft-cs/cifar10": ["train", "test"]}.items():
        for split in splits:
            images = [Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(8)]
            rows = datasets.Dataset.from_dict({"img": images, "label": [i % 2 for i in range(8)]})
            (folder / name).mkdir(parents=True, exist_ok=True)
            rows.to_parquet(folder / name / f"{split}.parquet")

    torch.save(annotated_unet()[0], folder / "unet.pt")
    tiny_unet(DDPMUNetModel).save_config(folder / "tiny")
    (folder / "MODEL").symlink_to("tiny")  # as the card calls a configuration that it cannot name
    (folder / "features.py").write_text(FEATURES)
    for name in ("train_ddpm.py", "pipelines", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)


def tiny_unet(kind, **keys):
    return kind(
        sample_size=8,
        block_out_channels=(4, 4),
        down_block_types=["DownBlock2D"] * 2,
        up_block_types=["UpBlock2D"] * 2,
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
        attention_head_dim=4,
        **keys,
    )


def fill_hub(hub: LoopbackHub, folder: Path):
    """Put the models that the pages name on the Hub: pipelines of this package, and of diffusers."""
    classes = {"num_class_embeds": 3, "class_names": ["a cat", "a dog"]}
    digits = {"num_class_embeds": 11, "class_names": [str(i) for i in range(10)]}
    pipelines = {
        "user/repo": DDPMPipelineCustom(tiny_unet(DDPMUNetModel), DDPMLinearScheduler(), num_inference_steps=4),
        "user/classes": DDPMPipelineCustom(tiny_unet(DDPMUNetModel, **classes), DDPMLinearScheduler(10)),
        "user/ten": DDPMPipelineCustom(tiny_unet(DDPMUNetModel, **digits), DDPMLinearScheduler(10)),
        "google/ddpm-cifar10-32": DDPMPipeline(tiny_unet(UNet2DModel), DDPMScheduler(500)),
        "google/ddpm-celebahq-256": DDPMPipeline(tiny_unet(UNet2DModel), DDPMScheduler(10)),
    }
    for repo_id, pipeline in pipelines.items():
        pipeline.save_pretrained(folder / repo_id)
        files = [path for path in (folder / repo_id).rglob("*") if path.is_file()]
        contents = {path.relative_to(folder / repo_id).as_posix(): path.read_bytes() for path in files}
        hub.repositories[repo_id] = Repository(private=False)
        hub.repositories[repo_id].commit({name: File(content, lfs=False) for name, content in contents.items()})
