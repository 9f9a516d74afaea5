"""A judge of drawn pictures: the features of a classifier that was trained on pictures which no model sees.

Each training gives another judge, and other distances. So the judges of the documentation lie in the folder `judges`.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from picture_sets import Part
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from ddpm_hf.evaluation.distances import frechet_distance, kernel_distance, precision_recall

JUDGES = Path(__file__).parent / "judges"
FEATURES = 128
PASSES = 40_000  # pictures that the classifier is trained on, with repetitions
RARE = 0.1  # of the median deviation; features that vary less are left out
CERTAIN = 0.9  # the probability from which on a picture counts as recognised


class Judge:
    """Distances of drawn pictures to real ones.

    Features are scaled by their standard deviations over the reference, so that their number and not their size sets
    the scale of the distances. Those that hardly vary are left out.

    Args:
        part ([`Part`]): Pictures to train the classifier on.
        reference ([`Part`]): Pictures to compare with.
        name (`str`): Of the set. A classifier is trained if the folder has none of this name.
        folder (`Path`): Of the trained classifiers, whose weights are rounded to float16.
    """

    def __init__(self, part: Part, reference: Part, name: str, folder: Path = JUDGES):
        channels, classes = part.pixels.shape[3], int(part.labels.max()) + 1
        torch.manual_seed(0)
        widths = ((channels, 32), (32, 32), None, (32, 64), (64, 64), None, (64, 128))
        layers = [layer for pair in widths for layer in (_block(*pair) if pair else [nn.MaxPool2d(2)])]
        end = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 128, FEATURES), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers, *end), nn.Linear(FEATURES, classes)
        self.network = nn.Sequential(self.body, self.head)
        kept = folder / f"{name}.safetensors"
        if not kept.exists():
            self._train(part)
            state = self.network.state_dict()
            save_file({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, kept)
        self.network.load_state_dict(load_file(kept))
        self.network.eval()
        raw = self._raw(to_x(reference.pixels))
        self.scale = raw.std(0)
        # A feature that is zero in nearly all pictures would turn the few others into most of a distance.
        self.scale[self.scale <= RARE * np.median(self.scale)] = np.inf
        self.real = raw / self.scale
        predicted = self.head(torch.from_numpy(raw)).argmax(1).numpy()
        self.accuracy = float((predicted == reference.labels).mean())

    def _train(self, part: Part):
        x, y = to_x(part.pixels), torch.from_numpy(part.labels)
        steps = PASSES // 100
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=4e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in tqdm(range(steps), desc="Training the judge", unit="step"):
            chosen, (down, right) = torch.randint(len(x), (100,)), torch.randint(-2, 3, (2,)).tolist()
            loss = F.cross_entropy(self.network(x[chosen].roll((down, right), (2, 3))), y[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    @torch.no_grad()
    def _raw(self, x: torch.Tensor) -> np.ndarray:
        return torch.cat([self.body(some) for some in x.split(500)]).numpy()

    @torch.no_grad()
    def classes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the classes `(N,)` of pictures `(N, C, H, W)` in [-1, 1]."""
        return self.head(torch.from_numpy(self._raw(x))).argmax(1)

    @torch.no_grad()
    def measure(self, x: torch.Tensor, seed: int = 0) -> dict[str, float]:
        """Return Frechet and kernel distance, precision, recall, and the share recognised.

        Args:
            x (`torch.Tensor`, `(N, C, H, W)`): Pictures in [-1, 1].
            seed (`int`): Seed of the choices of pictures.
        """
        raw = self._raw(x)
        drawn, certainty = raw / self.scale, self.head(torch.from_numpy(raw)).softmax(1).amax(1)
        among = precision_recall(self.real, drawn, seed)
        return {
            "frechet": frechet_distance(self.real, drawn),
            "kernel": kernel_distance(self.real, drawn, seed)["value"],
            "precision": among["precision"],
            "recall": among["recall"],
            "recognised": (certainty > CERTAIN).float().mean().item(),
        }

    def of_real(self, others: Part) -> dict[str, float]:
        """Return the same numbers of real pictures, those that the models train on."""
        return self.measure(to_x(others.pixels))


def to_x(pixels: np.ndarray) -> torch.Tensor:
    """Return pictures `(N, H, W, C)` as the numbers in [-1, 1] that networks see, `(N, C, H, W)`."""
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
