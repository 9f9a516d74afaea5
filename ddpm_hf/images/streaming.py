"""Training images that are read as they come, for data sets larger than the disk; a run over them resumes exactly."""

import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import datasets
import numpy as np

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.batches import seed_of
from ddpm_hf.images.decoding import decode_rows, refuse_unreadable
from ddpm_hf.images.survey import choose_white

CHUNK = 256  # rows decoded at once
PATIENCE = 5  # seconds to wait at the end for a thread that reads; one that hangs in the network is left behind


class StreamedImages:
    """An endless row of the images of a data set: in every epoch, its files in another order, in shuffled blocks.

    A block of `streaming_buffer_size` images is in memory, in an order that its number and the seed decide, and the
    next one is read meanwhile. The place where a block begins in the data set is all that a checkpoint has to hold.

    Args:
        dataset (`datasets.IterableDataset`): Undecoded images, and labels if wanted, from [`load_dataset`].
        mode (`str`): "L" or "RGB".
        config ([`TrainingConfig`]): The options of the group "Data", and the seed.
        state (`dict`, *optional*): A [`state`] to go on from.

    Attributes:
        unreadable (`list[dict]`): `image` and `reason` of those left out so far.
        close: Call it to end the reading ahead, which else goes on until the end of the process.

    Raises:
        ValueError: If too many images of the first block cannot be read, or one is smaller than the resolution, or none
            has a label that is wanted.
    """

    images = fingerprint = None  # nothing is kept that could be read again

    def __init__(self, dataset: datasets.IterableDataset, mode: str, config: TrainingConfig, state: dict | None = None):
        self.dataset, self.mode, self.config = dataset, mode, config
        self.size = config.streaming_buffer_size
        self.white = choose_white(dataset)
        self.unreadable = []
        self.decoders = ThreadPoolExecutor()
        self.closed, self.readers = threading.Event(), []
        self.close = weakref.finalize(self, _stop, self.closed, self.readers)
        state = state or {"block": 0, "begins": {"epoch": 0, "file": 0, "row": 0}}
        self.rows = self._rows(state["begins"])
        self.block = state["block"] - 1
        self.coming = self._read_ahead()
        self._advance()

    def take(self, positions: Iterable[int]) -> tuple[list[np.ndarray], list[int]]:
        """The images at these places of the row, none of which may lie in a block before those taken earlier.

        Returns:
            `tuple`: The images, and their labels, -1 where there is none.
        """
        images, labels = [], []
        for position in positions:
            block, place = divmod(position, self.size)
            while self.block < block:
                self._advance()
            assert self.block == block, "a stream does not go back"
            images.append(self.pixels[self.order[place]])
            labels.append(self.labels[self.order[place]])
        return images, labels

    def state(self) -> dict:
        """The number of the block in memory, and where in the data set it begins, as JSON."""
        return {"block": self.block, "begins": self.begins}

    def _advance(self):
        """Take the block that was read ahead, and start to read the one after it."""
        self.pixels, self.labels, self.begins, unreadable = self.coming.result()
        self.block += 1
        if self.block == 0:
            refuse_unreadable(unreadable, self.size + len(unreadable), self.config, "in the first block of the stream")
        self.unreadable += unreadable
        self.order = np.random.default_rng(seed_of(self.config.seed, "order", self.block)).permutation(self.size)
        if self.block == 0 and self.config.class_conditional and max(self.labels) < 0:
            raise ValueError(
                f"--class_conditional: none of the first {self.size:,} images has a label; take another split with "
                "--dataset_split, or name another column with --label_column."
            )
        self.coming = self._read_ahead()

    def _read_ahead(self) -> Future:
        """Read the next block in a thread that, unlike those of a pool, does not hold up the end of the process."""
        coming = Future()

        def read():
            try:
                coming.set_result(self._read_block())
            except BaseException as error:
                coming.set_exception(error)

        self.readers[:] = [threading.Thread(target=read, daemon=True)]
        self.readers[0].start()
        return coming

    def _read_block(self) -> tuple[list[np.ndarray], list[int], dict, list[dict]]:
        """The next images, their labels, where they begin, and which between them cannot be read."""
        pixels, labels, begins, unreadable = [], [], None, []
        while len(pixels) < self.size:
            rows = {name: [] for name in self.dataset.features}
            for place, item in self.rows:
                if self.closed.is_set():
                    raise CancelledError("the stream is closed")
                begins = begins or place
                for name, column in rows.items():
                    column.append(item[name])
                if len(rows["image"]) == min(CHUNK, self.size - len(pixels)):
                    break
            for decoded, label in decode_rows(self.decoders, rows, 0, self.mode, self.config, self.white):
                if isinstance(decoded, dict):
                    unreadable.append(decoded)
                else:
                    pixels.append(decoded)
                    labels.append(label)
            if len(unreadable) > self.size:
                raise ValueError(
                    f"--dataset_name {self.config.dataset_name}: {len(unreadable):,} images cannot be read."
                )
        return pixels, labels, begins, unreadable

    def _rows(self, begin: dict) -> Iterator[tuple[dict, dict]]:
        """The images, with their labels, from a place on, without end, each with its place."""
        count = self.dataset.num_shards
        epoch, first_file, first_row = begin["epoch"], begin["file"], begin["row"]
        while True:
            empty = True
            order = np.random.default_rng(seed_of(self.config.seed, "files", epoch)).permutation(count).tolist()
            for file in range(first_file, count):
                shard = self.dataset.shard(num_shards=count, index=order[file])
                for row, item in enumerate(shard.skip(first_row), first_row):
                    empty = False
                    yield {"epoch": epoch, "file": file, "row": row}, item
                first_row = 0
            if empty:
                raise ValueError(f"--dataset_name {self.config.dataset_name} holds no images.")
            epoch, first_file = epoch + 1, 0


def _stop(closed: threading.Event, readers: list[threading.Thread]):
    """End the reading ahead; also called when the images are no longer used, and at the end of the process."""
    closed.set()
    for reader in readers:
        if reader is not threading.current_thread():
            reader.join(PATIENCE)
