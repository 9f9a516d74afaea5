"""A small classifier of the embedded digits, for benchmarks that judge the digits which a model draws."""

import itertools

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from ddpm_hf.images.sources import EMBEDDED_DIGITS

TRAINING_DIGITS = 7000  # for the classifier; the others are the reference


def train_classifier(epochs: int = 6, batch_size: int = 64):
    """Train the classifier.

    Returns:
        `tuple`: A function of images `(N, 1, 28, 28)` that returns their features `(N, 64)` as an array, and one that
            returns their classes `(N,)` as a tensor; then all digits `(10000, 1, 28, 28)` in [-1, 1].
    """
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
    classes = torch.no_grad()(lambda images: head(body(images)).argmax(1))
    accuracy = (classes(digits[TRAINING_DIGITS:]) == labels[TRAINING_DIGITS:]).float().mean()
    print(f"The classifier recognises {accuracy:.1%} of the digits that it was not trained on.")
    return torch.no_grad()(lambda images: body(images).numpy()), classes, digits
