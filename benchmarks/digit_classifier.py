"""A small classifier of the embedded digits, for benchmarks that have to judge what a model of them draws."""

import itertools

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import nn
from tqdm.auto import tqdm

from ddpm_hf.images.sources import EMBEDDED_DIGITS

TRAINING_DIGITS = 7000  # for the classifier; the others are compared with


def train_classifier(epochs: int = 6, batch_size: int = 64):
    """Train the classifier.

    Returns:
        `tuple`: The functions to its features, `(N, 1, 28, 28) -> (N, 64)`, and to the classes, `(N, 1, 28, 28) ->
            (N,)`; all digits, `(10000, 1, 28, 28)` in [-1, 1], and their labels, `(10000,)`.
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
    return torch.no_grad()(body), classes, digits, labels


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """`|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))` of the means and covariances of two sets of features."""
    a, b = a.double().numpy(), b.double().numpy()
    C_a, C_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The root exists for regular matrices only, and some features may never be active.
    C_a, C_b = (C + 1e-6 * np.eye(len(C)) for C in (C_a, C_b))
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(C_a + C_b - 2 * sqrtm(C_a @ C_b).real))
