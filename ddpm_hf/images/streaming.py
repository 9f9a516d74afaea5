"""Training images that are read during the run, for data sets larger than the disk. The run resumes exactly."""

import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import datasets
import numpy as np

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.arrays import refuse_leaving
from ddpm_hf.images.batches import seed_of
from ddpm_hf.images.decoding import decode_rows, refuse_unreadable
from ddpm_hf.images.small import by_size, find_small, list_small, treat_small
from ddpm_hf.images.survey import choose_white
from ddpm_hf.pixel_format import BANDS, PixelFormat

CHUNK = 256  # rows decoded at once
PATIENCE = 5  # seconds to wait at the end for the thread that reads; it may hang in the network


@dataclass
class Block:
    """Consecutive images of a data set, their labels, where they begin, and those between them that cannot be read."""

    begins: dict[str, int] = field(default_factory=dict)  # epoch, file, row
    pixels: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    unreadable: list[dict] = field(default_factory=list)
    small: list[dict] = field(default_factory=list)
    rows: int = 0  # read, also those that are left out


class StreamedImages:
    """An endless row of the images of a data set. Each epoch takes the files in another order.

    The row is cut into blocks of `streaming_buffer_size` images. One block is in memory, shuffled by its number and the
    seed, and the next one is read meanwhile. A checkpoint holds only the place in the data set where the block begins.

    Args:
        dataset (`datasets.IterableDataset`): Undecoded images, and labels if the options ask for them, from
            [`load_dataset`].
        form ([`~ddpm_hf.pixel_format.PixelFormat`] or `str`): The pixels; "L" and "RGB" stand for such pictures.
        config ([`TrainingConfig`]): The options of the group "Data", and the seed.
        state (`dict`, *optional*): A [`state`] to go on from.

    Attributes:
        unreadable (`list[dict]`): `image` and `reason` of each image left out so far.
        small (`list[dict]`): The images so far that are smaller than the resolution; see
            [`~ddpm_hf.images.small.find_small`]. `row` counts the rows of a block.
        close: Call it to end the reading ahead. Otherwise it ends with the process.

    Raises:
        ValueError: If too many images of the first block cannot be read, if one does not fit the resolution, or if
            labels are asked for and none of these images has one.
    """

    images = held_out = fingerprint = None  # nothing is kept that could be read again

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        form: PixelFormat | str,
        config: TrainingConfig,
        state: dict | None = None,
    ):
        self.dataset, self.form, self.config = dataset, PixelFormat.of_mode(form), config
        self.size = config.streaming_buffer_size
        self.white = None if self.form.mode == BANDS else choose_white(dataset)
        self.unreadable: list[dict] = []
        self.small: list[dict] = []
        self.decoders = ThreadPoolExecutor()
        self.closed = threading.Event()
        self.readers: list[threading.Thread] = []
        self.close = weakref.finalize(self, _stop, self.closed, self.readers)
        state = state or {"block": 0, "begins": {"epoch": 0, "file": 0, "row": 0}}
        self.rows = self._rows(state["begins"])
        self.number = state["block"] - 1
        self.coming = self._read_ahead()
        self._advance()

    def take(self, positions: Iterable[int]) -> tuple[list[np.ndarray], list[int]]:
        """Return the images at these places of the row. No place may lie in a block before the one in memory.

        Returns:
            `tuple`: The images; and their labels, -1 for none.
        """
        images, labels = [], []
        for position in positions:
            number, place = divmod(position, self.size)
            while self.number < number:
                self._advance()
            assert self.number == number, "a stream does not go back"
            images.append(self.block.pixels[self.order[place]])
            labels.append(self.block.labels[self.order[place]])
        return images, labels

    def state(self) -> dict:
        """Return the number of the block in memory, and where in the data set it begins, in types that JSON has."""
        return {"block": self.number, "begins": self.block.begins}

    def _advance(self):
        """Take the block that was read ahead, and start to read the one after it."""
        self.block = self.coming.result()
        self.number += 1
        if self.number == 0:
            self._check_first_block()
        self.unreadable += self.block.unreadable
        self.small += self.block.small
        self.order = np.random.default_rng(seed_of(self.config.seed, "order", self.number)).permutation(self.size)
        self.coming = self._read_ahead()

    def _check_first_block(self):
        unreadable = self.block.unreadable
        refuse_unreadable(unreadable, self.size + len(unreadable), self.config, "in the first block of the stream")
        if self.block.small:
            self._treat_small(self.block, f"the first {self.block.rows:,} images")
        if self.config.class_conditional and max(self.block.labels) < 0:
            raise ValueError(
                f"--class_conditional: none of the first {self.size:,} images has a label; take another split with "
                "--dataset_split, or name another column with --label_column."
            )

    def _read_ahead(self) -> Future[Block]:
        """Read the next block in a thread of its own: those of a pool would hold up the end of the process."""
        coming: Future[Block] = Future()

        def read():
            try:
                coming.set_result(self._read_block())
            except BaseException as error:
                coming.set_exception(error)

        self.readers[:] = [threading.Thread(target=read, daemon=True)]
        self.readers[0].start()
        return coming

    def _read_block(self) -> Block:
        """Read and decode the next block."""
        block = Block()
        while len(block.pixels) < self.size:
            rows: dict[str, list] = {name: [] for name in self.dataset.features}
            for place, item in self.rows:
                if self.closed.is_set():
                    raise CancelledError("the stream is closed")
                block.begins = block.begins or place
                for name, column in rows.items():
                    column.append(item[name])
                if len(rows["image"]) == min(CHUNK, self.size - len(block.pixels)):
                    break
            rows, leaving = self._without_small(rows, block), list[dict]()
            for decoded, label in decode_rows(self.decoders, rows, 0, self.form, self.config, self.white):
                if isinstance(decoded, dict):
                    (block.unreadable if "reason" in decoded else leaving).append(decoded)
                else:
                    block.pixels.append(decoded)
                    block.labels.append(label)
            refuse_leaving(leaving, f"{len(rows['image']):,} images", self.form)
            if len(block.unreadable) > self.size:
                raise ValueError(
                    f"--dataset_name {self.config.dataset_name}: {len(block.unreadable):,} images cannot be read."
                )
        if block.small and self.config.small_images == "error":
            self._treat_small(block)
        return block

    def _without_small(self, rows: dict[str, list], block: Block) -> dict[str, list]:
        """Return the rows without the images smaller than the resolution, unless these are enlarged or padded."""
        found: list[dict | None] = [None] * len(rows["image"])
        if self.config.image_fit == "crop":
            found = find_small(self.decoders, rows["image"], block.rows, self.config)
        block.rows += len(found)
        block.small += [line for line in found if line is not None]
        if self.config.small_images == "upscale":
            return rows
        rows = {name: [item for item, line in zip(column, found) if line is None] for name, column in rows.items()}
        if len(block.small) > self.size and not (block.pixels or rows["image"]):
            self._treat_small(block)  # the block would never be full
        return rows

    def _treat_small(self, block: Block, of_images: str | None = None):
        """Do with the small images of a block as [`~ddpm_hf.images.small.treat_small`] says."""
        name, small = repr((self.config.dataset_name, self.config.dataset_split)), by_size(block.small)
        where = list_small(small, self.config, name)
        treat_small(small, of_images or f"{block.rows:,} images", self.config, where)

    def _rows(self, begin: dict[str, int]) -> Iterator[tuple[dict[str, int], dict]]:
        """Yield the rows of the data set without end from a place on, each with its place."""
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
    """End the reading ahead. Also called when the images are no longer used, and at the end of the process."""
    closed.set()
    for reader in readers:
        if reader is not threading.current_thread():
            reader.join(PATIENCE)
