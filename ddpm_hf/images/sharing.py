"""Share out the decoding of a stream among the processes of a run: each one decodes the images that it uses."""

import json
import os
import threading
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

PAUSE = 0.005  # seconds between two looks for what the others say


class Sharing:
    """Which images of a row this process uses, and what the processes tell each other about them.

    The micro-batches go to the processes in turns. Only who decodes an image learns whether it can be read, and then
    tells the others. They talk while the network is trained, in threads of their own, where collective operations would
    mix with those of the training. So they write to a store, which the main process serves.

    Args:
        batch_size (`int`): Images in a micro-batch.
        first (`int`): The number of the micro-batch that the run begins with, or goes on with.
        rank, processes (`int`): Which process this is, and of how many.
        store (`torch.distributed.Store`, *optional*): Where they write; None for one process.
    """

    def __init__(
        self,
        batch_size: int = 1,
        first: int = 0,
        rank: int = 0,
        processes: int = 1,
        store: torch.distributed.Store | None = None,
    ):
        self.batch_size, self.first, self.rank, self.processes = batch_size, first, rank, processes
        self.store = store
        self.talks = 0

    @classmethod
    def of_run(cls, accelerator: Accelerator, batch_size: int, first: int) -> "Sharing":
        """Share out the micro-batches of a run. All processes have to call this; see [`Sharing`]."""
        if accelerator.num_processes == 1:
            return cls(batch_size, first)
        host, is_main = os.environ["MASTER_ADDR"], accelerator.is_main_process  # where the main process is
        store = None if not is_main else torch.distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        port = broadcast_object_list([store and store.port])[0]
        store = store or torch.distributed.TCPStore(host, port, wait_for_workers=False)
        return cls(batch_size, first, accelerator.process_index, accelerator.num_processes, store)

    def uses(self, position: int) -> bool:
        """Return whether this process uses the image at a place of the row."""
        return (position // self.batch_size - self.first) % self.processes == self.rank

    def reach(self, position: int) -> int:
        """Return the last place that another process may need while this one takes images up to a place."""
        return position + (self.processes - 1) * self.batch_size

    def gathered(self, value: Any, closed: threading.Event) -> list:
        """Return what all processes say, in the order of their ranks. All have to call this equally often.

        Args:
            value: What this process says, in types that JSON has.
            closed (`threading.Event`): It ends the waiting for the others.

        Raises:
            ValueError: If another process called [`fail`].
            CancelledError: If the event is set.
        """
        if self.store is None:
            return [value]
        self.store.set(self._key(self.rank), json.dumps({"value": value}))
        keys = [self._key(rank) for rank in range(self.processes)]
        while not self.store.check(keys):
            if closed.wait(PAUSE):
                raise CancelledError("the stream is closed")
        told = [json.loads(self.store.get(key)) for key in keys]
        self.talks += 1
        if self.talks > 1:  # all have read what was said before
            self.store.delete_key(f"{self.talks - 2}/{self.rank}")
        for rank, each in enumerate(told):
            if "failure" in each:
                raise ValueError(f"process {rank}: {each['failure']}")
        return [each["value"] for each in told]

    def fail(self, reason: str):
        """Tell the others, when they ask the next time, that this process has failed."""
        if self.store is not None:
            with suppress(RuntimeError):  # the main process, which serves the store, may have ended
                self.store.set(self._key(self.rank), json.dumps({"failure": reason}))

    def _key(self, rank: int) -> str:
        return f"{self.talks}/{rank}"
