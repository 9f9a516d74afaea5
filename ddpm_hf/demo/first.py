"""The pictures that the page shows when it opens. They are drawn once, before it is served."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.demo.model import DemoModel, Track
from ddpm_hf.run_files import SAMPLES, list_samples
from ddpm_hf.sampling import Classes

NUM_FIRST = 12
PATIENCE = 20  # seconds for the first pictures, with each of two schedulers


@dataclass(frozen=True)
class First:
    """What the page opens with.

    Attributes:
        scheduler (`str`): A key of `SCHEDULERS`, the one that is chosen at first.
        samples (`list[PIL.Image.Image]`): Its samples 0, 1, ... of the seed 0. There are none if the model is slow.
        grid (`PIL.Image.Image`, *optional*): The newest samples of the run, if they are shown instead.
    """

    scheduler: str = "ddpm"
    samples: Sequence[Image.Image] = ()
    grid: Image.Image | None = None


def first_pictures(model: DemoModel, folder: Path) -> First:
    """Draw the first samples with the recommended steps, or with a scheduler of few steps if the model is slow.

    If that is slow, too, it takes the newest samples in the folder of the run, if there are some.
    """
    for scheduler in model.schedulers_at_first:
        steps = model.recommended_steps(scheduler)
        with suppress(TimeoutError):
            return First(scheduler, model.sample(NUM_FIRST, 0, scheduler, steps, every_class(model), patient(PATIENCE)))
    print("The model is slow here, so no pictures are drawn before the page opens.")
    for path in list_samples(folder / SAMPLES)[-1:]:
        with Image.open(path) as grid:
            return First(scheduler, grid=grid.copy())
    return First(scheduler)


def every_class(model: DemoModel) -> Classes:
    """Return all classes in turns, as `ddpm-hf sample` draws them."""
    return Classes(tuple(model.labels))


def patient(seconds: float) -> Track:
    """Return a progress bar that raises a TimeoutError as soon as it expects its loop to take longer than this."""

    def track(steps) -> Iterator:
        steps = list(steps)
        begin = time.monotonic()
        for done, step in enumerate(tqdm(steps, desc="Drawing the first pictures", leave=False)):
            passed = time.monotonic() - begin
            if passed > seconds or (done > 4 and passed / done * len(steps) > seconds):  # the first steps may be slow
                raise TimeoutError
            yield step

    return track
