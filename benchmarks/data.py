"""How long does it take to get a training image: decoded in each step, or read from the cache of pixels?

    python benchmarks/data.py --num_images 2000

Writes JPEGs of CelebA's size, 178x218, and reads them at 64 pixels, in both ways by turns. Prints a table in Markdown.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.command_line import parse_command_line
from ddpm_hf.images.batches import ShuffledImages
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.decoding import decode_image
from ddpm_hf.images.sources import load_dataset

BATCH = 64


class DecodedInEachStep:
    """The images of a data set, decoded at each access."""

    unreadable = ()

    def __init__(self, dataset, config):
        self.dataset, self.config = dataset, config

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        return decode_image(self.dataset[int(i)]["image"], "RGB", self.config)


def main():
    parser = argparse.ArgumentParser(description="Time the decoding and the caching of training images.")
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20, help="batches of 64 to time, each way")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        random = np.random.default_rng(0)
        for i in tqdm(range(arguments.num_images), desc="Writing pictures", unit="img"):
            coarse = Image.fromarray(random.integers(0, 256, (14, 11, 3), dtype=np.uint8))
            file = io.BytesIO()
            coarse.resize((178, 218), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            (pictures / f"{i:06d}.jpg").write_bytes(file.getvalue())
        flags = ["--preset", "celeba-64", "--train_data_dir", str(pictures), "--cache_dir", folder]
        config = parse_command_line(flags)[0]
        dataset = load_dataset(config)
        sources = {
            "decoded in each step": DecodedInEachStep(dataset, config),
            "from the cache": load_images(dataset, "RGB", config),
        }
        rows = {name: ShuffledImages(images, 0) for name, images in sources.items()}
        seconds = {name: [] for name in rows}
        for g in tqdm(range(arguments.rounds + 2), desc="Timing", unit="round"):
            for name, row in rows.items():
                started = time.perf_counter()
                row.take(range(g * BATCH, (g + 1) * BATCH))
                if g >= 2:  # the first rounds warm up
                    seconds[name].append((time.perf_counter() - started) / BATCH)
    medians = {name: statistics.median(times) * 1e6 for name, times in seconds.items()}
    slowest = max(medians.values())
    print("| images | microseconds each | times as fast |\n| --- | --- | --- |")
    for name, median in medians.items():
        print(f"| {name} | {median:.1f} | {slowest / median:.0f} |")


if __name__ == "__main__":
    main()
