"""Which scheduler, in how many steps? Time, and distance to real digits, for a model trained on the embedded digits.

    python benchmarks/schedulers.py ddpm-mnist-mini --num_images 500

The distance is Frechet's (Heusel et al. 2017, arXiv 1706.08500), between features of drawn digits and of real ones that
neither the features nor the comparison of real with real have seen. The features are the last hidden layer of a small
classifier, trained here first, so the numbers compare rows of one table and nothing else. Prints a table in Markdown.
"""

import argparse
import itertools
import time

import datasets
import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import nn
from tqdm.auto import tqdm

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom
from ddpm_hf.data import EMBEDDED_DIGITS

TRAINING_DIGITS = 7000  # for the classifier; the others are compared with
ROWS = [
    ("DDPMLinearScheduler", (1000, 250, 100, 50, 20)),
    ("DDIMScheduler", (50, 20, 10)),
    ("DPMSolverMultistepScheduler", (50, 20, 10)),
    ("UniPCMultistepScheduler", (20, 10)),
    ("EulerDiscreteScheduler", (50, 20)),
    ("EulerAncestralDiscreteScheduler", (50, 20)),
    ("HeunDiscreteScheduler", (20, 10)),
    ("PNDMScheduler", (50, 20)),
]


def main():
    parser = argparse.ArgumentParser(description="Compare schedulers on a model of the embedded digits.")
    parser.add_argument("model", help="folder or Hub id of a pipeline trained on the digits, 28 pixels")
    parser.add_argument("--num_images", type=int, default=500, help="digits to draw for each row")
    parser.add_argument("--batch_size", type=int, default=100)
    arguments = parser.parse_args()

    features, digits = train_features()
    real = [features(part) for part in digits[TRAINING_DIGITS:].split((len(digits) - TRAINING_DIGITS) // 2)]
    pipeline = DDPMPipelineCustom.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(leave=False)
    config = pipeline.scheduler.config

    print("| scheduler | steps | seconds an image | distance |\n| --- | --- | --- | --- |")
    print(f"| (real digits) | | | {frechet_distance(*real):.0f} |")
    for name, all_steps in ROWS:
        kind = DDPMLinearScheduler if name == "DDPMLinearScheduler" else getattr(diffusers, name)
        for steps in all_steps:
            pipeline.scheduler = kind.from_config(config)
            started = time.perf_counter()
            drawn = draw(pipeline, steps, arguments.num_images, arguments.batch_size)
            seconds = (time.perf_counter() - started) / len(drawn)
            print(
                f"| `{name}` | {steps} | {seconds:.3f} | {frechet_distance(features(drawn), real[0]):.0f} |", flush=True
            )


def draw(pipeline: DDPMPipelineCustom, steps: int, count: int, batch_size: int) -> torch.Tensor:
    batches = []
    for start in range(0, count, batch_size):
        generator = torch.Generator().manual_seed(start)
        batches.append(pipeline(min(batch_size, count - start), generator, steps, output_type="pt").images)
    return torch.cat(batches) * 2 - 1  # (N, 1, 28, 28)


def train_features(epochs: int = 6, batch_size: int = 64):
    """Train a classifier. Returns the function to its features, `(N, 1, 28, 28) -> (N, 64)`, and all digits."""
    rows = datasets.Dataset.from_parquet(str(EMBEDDED_DIGITS))
    digits = torch.tensor(np.stack([np.asarray(image) for image in rows["image"]]))[:, None] / 127.5 - 1
    labels = torch.tensor(rows["label"])
    torch.manual_seed(0)
    widths = (1, 32, 64, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        for a, b in itertools.pairwise(widths)
    ]
    body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * 9, 64), nn.ReLU())
    head = nn.Linear(64, 10)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=2e-3)
    for _ in tqdm(range(epochs), desc="Training the classifier", unit="epoch"):
        for indices in torch.randperm(TRAINING_DIGITS).split(batch_size):
            loss = F.cross_entropy(head(body(digits[indices])), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    body.eval()
    with torch.no_grad():
        held_out = slice(TRAINING_DIGITS, None)
        accuracy = (head(body(digits[held_out])).argmax(1) == labels[held_out]).float().mean()
    print(f"The classifier recognises {accuracy:.1%} of the digits that it was not trained on.")
    return torch.no_grad()(body), digits


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """`|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))` of the means and covariances of two sets of features."""
    a, b = a.double().numpy(), b.double().numpy()
    C_a, C_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The root exists for regular matrices only, and some features may never be active.
    C_a, C_b = (C + 1e-6 * np.eye(len(C)) for C in (C_a, C_b))
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(C_a + C_b - 2 * sqrtm(C_a @ C_b).real))


if __name__ == "__main__":
    main()
