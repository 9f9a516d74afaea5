"""Checkpoints that are written while the training goes on."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import torch

from ddpm_hf.checkpoint import prune_checkpoints, write_checkpoint
from ddpm_hf.ending import LEFT_BEHIND
from ddpm_hf.terminal import going_on


class CheckpointWriter:
    """Writes checkpoints and snapshots in a thread, one after the other, and deletes checkpoints over the limit.

    An error is reported, and the run goes on with the older checkpoints.

    Args:
        folder (`Path`): The run's checkpoints.
        total_limit (`int`): How many to keep.
        when_written (callable): Called in the thread after each checkpoint.
    """

    def __init__(self, folder: Path, total_limit: int, when_written: Callable[[], None]):
        self.folder, self.total_limit, self.when_written = folder, total_limit, when_written
        self.thread: Thread | None = None

    def write(self, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict):
        """Copy the tensors to the memory of the host, and begin to write them.

        The checkpoint before is finished first, so only one copy is in memory. See
        [`~ddpm_hf.checkpoint.write_checkpoint`] for the arguments.
        """

        def write(copies):
            write_checkpoint(self.folder, step, copies, state)
            self.when_written()
            with going_on("delete older checkpoints"):
                prune_checkpoints(self.folder, self.total_limit, newest=step)

        self._begin("save a checkpoint", tensors, write)

    def write_snapshot(self, folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]]):
        """Begin to write a snapshot into another folder, as [`write`] does. Later checkpoints wait for it."""
        self._begin("save a snapshot", tensors, lambda copies: write_checkpoint(folder, step, copies, {"step": step}))

    def _begin(self, what: str, tensors: dict[str, dict[str, torch.Tensor]], write: Callable[[dict], None]):
        self.wait()
        with going_on(what):
            copies = {
                file: {key: t.to("cpu", copy=True) for key, t in named.items()} for file, named in tensors.items()
            }

            def in_thread():
                with going_on(what):
                    write(copies)

            # A process that ends at once does not wait for a daemon. What it leaves half-written is no checkpoint.
            self.thread = Thread(target=in_thread, name=LEFT_BEHIND, daemon=True)
            self.thread.start()

    def wait(self):
        """Wait until the newest checkpoint is on the disk. After Ctrl-C, later calls do not wait."""
        if self.thread:
            thread, self.thread = self.thread, None
            thread.join()
