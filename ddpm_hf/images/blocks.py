"""Read a stream of images in a thread, one block of consecutive images after the other."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np

from ddpm_hf.config import TrainingConfig
from ddpm_hf.ending import LEFT_BEHIND, READERS
from ddpm_hf.images.arrays import name_of, refuse_leaving
from ddpm_hf.images.batches import seed_of
from ddpm_hf.images.decoding import decode_rows, labels_of
from ddpm_hf.images.sharing import Sharing
from ddpm_hf.images.small import by_size, find_small, list_small, treat_small
from ddpm_hf.images.survey import choose_white
from ddpm_hf.pixel_format import BANDS, PixelFormat
from ddpm_hf.terminal import one_line

CHUNK = 256  # rows decoded at once


@dataclass
class Block:
    """Consecutive images of a data set, their labels, where they begin, and those between them that cannot be read.

    Pixels that other processes use are None.
    """

    order: np.ndarray  # place in the row -> number in the block
    begins: dict[str, int] = field(default_factory=dict)  # epoch, file, row
    pixels: list[np.ndarray | None] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    unreadable: list[dict] = field(default_factory=list)
    small: list[dict] = field(default_factory=list)
    rows: int = 0  # read, also those that are left out


class BlockReader:
    """Reads the blocks of a stream in a thread, one each time that one is asked for.

    Every process reads all rows, since the places of the images depend on those that cannot be read. It decodes the
    images that it uses, and learns from the others which of theirs cannot be read.

    Args:
        dataset, form, config: See [`~ddpm_hf.images.streaming.StreamedImages`].
        sharing ([`~ddpm_hf.images.sharing.Sharing`]): Which images this process uses.
        state (`dict`): The number of the first block, and where it begins.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        form: PixelFormat,
        config: TrainingConfig,
        sharing: Sharing,
        state: dict,
    ):
        self.dataset, self.form, self.config, self.sharing = dataset, form, config, sharing
        self.size, self.number = config.streaming_buffer_size, state["block"]
        self.white = None if form.mode == BANDS else choose_white(dataset)
        self.rows = self._rows(state["begins"])
        self.decoders = ThreadPoolExecutor(thread_name_prefix=LEFT_BEHIND)
        self.closed = threading.Event()
        self.asked: queue.SimpleQueue[Future[Block] | None] = queue.SimpleQueue()
        # The threads of a pool would hold up the end of the process.
        self.thread = threading.Thread(target=self._answer, name=LEFT_BEHIND, daemon=True)
        self.thread.start()
        READERS.add(self)

    def ask(self) -> Future[Block]:
        """Begin to read the next block."""
        coming: Future[Block] = Future()
        self.asked.put(coming)
        return coming

    def close(self):
        """End the reading. The thread ends when it has read the row that it waits for."""
        self.closed.set()
        self.asked.put(None)
        self.decoders.shutdown(wait=False, cancel_futures=True)

    def _answer(self):
        failure: BaseException | None = None  # then no block can follow
        for coming in iter(self.asked.get, None):
            try:
                if failure:
                    raise failure
                coming.set_result(self._read_block())
            except BaseException as error:
                is_new, failure = failure is None, error
                coming.set_exception(CancelledError("the stream is closed") if self.closed.is_set() else error)
                if is_new and not self.closed.is_set():
                    self.sharing.fail(one_line(error))

    def _read_block(self) -> Block:
        """Read the next block, and decode what this process uses."""
        block = Block(np.random.default_rng(seed_of(self.config.seed, "order", self.number)).permutation(self.size))
        places = self.number * self.size + np.argsort(block.order)  # number in the block -> place in the row
        used = [self.sharing.uses(place) for place in places.tolist()]
        while len(block.pixels) < self.size:
            rows = self._next_rows(block)
            rows = self._without_small(rows, block)
            self._decode(rows, block, used)
            if len(block.unreadable) > self.size:
                raise ValueError(
                    f"--dataset_name {self.config.dataset_name}: {len(block.unreadable):,} images cannot be read."
                )
        if block.small and self.config.small_images == "error":
            self.treat_small(block)
        self.number += 1
        return block

    def _next_rows(self, block: Block) -> dict[str, list]:
        """Read as many rows as the block needs, but no more than are decoded at once."""
        rows: dict[str, list] = {name: [] for name in self.dataset.features}
        for place, item in self.rows:
            if self.closed.is_set():
                raise CancelledError("the stream is closed")
            block.begins = block.begins or place
            for name, column in rows.items():
                column.append(item[name])
            if len(rows["image"]) == min(CHUNK, self.size - len(block.pixels)):
                break
        return rows

    def _without_small(self, rows: dict[str, list], block: Block) -> dict[str, list]:
        """Return the rows without the images smaller than the resolution, unless these are enlarged or padded."""
        images, found = rows["image"], list[dict]()
        if self.config.image_fit == "crop":
            mine = range(self.sharing.rank, len(images), self.sharing.processes)
            numbers = [block.rows + i for i in mine]
            lines = find_small(self.decoders, [images[i] for i in mine], numbers, self.config)
            told = self.sharing.gathered([line for line in lines if line is not None], self.closed)
            found = sorted((line for lines in told for line in lines), key=lambda line: line["row"])
        left_out = {line["row"] - block.rows for line in found}
        block.rows += len(images)
        block.small += found
        if self.config.small_images == "upscale":
            return rows
        rows = {name: [item for i, item in enumerate(column) if i not in left_out] for name, column in rows.items()}
        if len(block.small) > self.size and not (block.pixels or rows["image"]):
            self.treat_small(block)  # the block would never be full
        return rows

    def _decode(self, rows: dict[str, list], block: Block, used: list[bool]):
        """Add the images of these rows to the block, except those that cannot be read on the process that uses them."""
        begin, count = len(block.pixels), len(rows["image"])
        # While all can be read, row i is number begin + i of the block.
        decoded = self._decoded(rows, [i for i in range(count) if used[begin + i]])
        told = self.sharing.gathered([[i, line] for i, line in decoded.items() if isinstance(line, dict)], self.closed)
        bad = dict(sorted((i, line) for lines in told for i, line in lines))
        refuse_leaving([line for line in bad.values() if "reason" not in line], f"{count:,} images", self.form)
        block.unreadable += bad.values()
        good = [i for i in range(count) if i not in bad]
        # Those after an unreadable one move up, and so other processes may use them.
        moved = [i for number, i in enumerate(good, begin) if used[number] and i not in decoded]
        decoded |= self._decoded(rows, moved)
        for i in moved:
            if isinstance(line := decoded[i], dict):
                name = name_of(rows["image"][i], i)
                raise OSError(f"image {name} could be read by one process, and not by another: {line['reason']}")
        labels = labels_of(rows)
        for number, i in enumerate(good, begin):
            block.pixels.append(decoded[i] if used[number] else None)
            block.labels.append(labels[i])

    def _decoded(self, rows: dict[str, list], numbers: list[int]) -> dict[int, Any]:
        """Decode some of the rows. See [`~ddpm_hf.images.decoding.decode_rows`]."""
        chosen = {name: [column[i] for i in numbers] for name, column in rows.items()}
        pairs = decode_rows(self.decoders, chosen, numbers, self.form, self.config, self.white)
        return {i: decoded for i, (decoded, _) in zip(numbers, pairs)}

    def treat_small(self, block: Block, of_images: str | None = None):
        """Do with the small images of a block as [`~ddpm_hf.images.small.treat_small`] says."""
        name, small = repr((self.config.dataset_name, self.config.dataset_split)), by_size(block.small)
        where = list_small(small, self.config, name, writes=self.sharing.rank == 0)
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
