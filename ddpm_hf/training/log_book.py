"""What a run tells while it trains: the bar at the terminal, metrics.jsonl, and the trackers."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from tqdm.auto import tqdm

from ddpm_hf.config import TrainingConfig
from ddpm_hf.terminal import going_on
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.state import RunState
from ddpm_hf.training.trackers import track_numbers

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"  # short, since a terminal cuts what is longer


class LogBook:
    """The numbers of a run, noted every `logging_steps` and after the last step.

    Args:
        config ([`TrainingConfig`]): The options.
        accelerator ([`~accelerate.Accelerator`]): Its main process writes.
        folder ([`RunFolder`]): It holds metrics.jsonl.
        count (`int`, *optional*): Images in an epoch; None for a stream.
        images_per_step (`int`): Images in an optimizer step, on all processes.
        first_step (`int`): The step that the run goes on from.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        folder: RunFolder,
        count: int | None,
        images_per_step: int,
        first_step: int,
    ):
        self.config, self.accelerator, self.folder = config, accelerator, folder
        self.count, self.images_per_step = count, images_per_step
        self.steps, self.seconds = 0, 0.0  # since the last note; saving and drawing do not count
        self.first_step, self.training, self.others = first_step, 0.0, 0.0  # seconds of steps, and of all else
        self.loss = ""
        steps, hidden = config.total_steps, not accelerator.is_main_process
        self.bar = tqdm(total=steps, initial=first_step, desc="Training", disable=hidden, bar_format=BAR)

    @contextmanager
    def timed_step(self) -> Iterator[None]:
        """Count the step inside, and its time."""
        with self._timed():
            yield
        self.steps += 1
        self._tell()
        self.bar.update()

    def wait_for(self, state: RunState):
        """Wait until the device has taken all steps, so that their time is not counted to what comes after them."""
        with self._timed():
            state.norm.item()

    @contextmanager
    def timed_output(self) -> Iterator[None]:
        """Count the time of saving, measuring and drawing inside, apart from that of the steps."""
        began = time.perf_counter()
        yield
        self.others += time.perf_counter() - began

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.seconds, self.training = self.seconds + took, self.training + took

    def _tell(self):
        """Show the time that the steps have taken and will take, and apart from it that of all else."""
        done = self.bar.n + 1 - self.first_step
        left = self.training / done * (self.config.total_steps - self.first_step - done)
        times = f"{tqdm.format_interval(self.training)}<{tqdm.format_interval(left)}"
        others = f"drawing {tqdm.format_interval(self.others)}" if self.others >= 1 else ""
        self.bar.set_postfix_str(", ".join(filter(None, (times, others, self.loss))), refresh=False)

    def note(self, state: RunState) -> bool:
        """Note the mean loss since the last note, and how fast the training is, if a note is due.

        One is due, too, where the held-out loss will be added to its line. Reading the numbers waits for the device.

        Returns:
            `bool`: Whether one was due.
        """
        intervals = filter(None, (self.config.logging_steps, self.config.validation_steps))
        if state.step != self.config.total_steps and all(state.step % steps for steps in intervals):
            return False
        with self._timed():  # a GPU ends the steps here that it was given before
            numbers = state.meter.read(self.accelerator)
        rate = self.steps * self.images_per_step / self.seconds
        self.steps, self.seconds = 0, 0.0
        self.loss = f"loss={numbers['loss'] or math.nan:.4f}, {rate:.1f} img/s"
        if self.count:
            numbers["epoch"] = round(state.micro_batches * self.config.train_batch_size / self.count, 4)
        else:
            numbers["epoch"] = None
        numbers.update(grad_norm=state.grad_norm, learning_rate=state.learning_rate, skipped_updates=state.skipped)
        numbers["images_per_second"] = round(rate, 1)
        if self.accelerator.is_main_process:
            self.folder.log(step=state.step, **numbers)
        with going_on("track the numbers"):
            track_numbers(self.accelerator, numbers, state.step)
        return True
