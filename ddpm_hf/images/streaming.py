"""Training images that are read during the run, for data sets larger than the disk. The run resumes exactly."""

import weakref
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future

import datasets
import numpy as np

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.blocks import Block, BlockReader
from ddpm_hf.images.decoding import refuse_unreadable
from ddpm_hf.images.sharing import Sharing
from ddpm_hf.pixel_format import PixelFormat


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
        sharing ([`~ddpm_hf.images.sharing.Sharing`], *optional*): Which images this process uses; by default all.

    Attributes:
        unreadable (`list[dict]`): `image` and `reason` of each image left out so far.
        small (`list[dict]`): The images so far that are smaller than the resolution; see
            [`~ddpm_hf.images.small.find_small`]. `row` counts the rows of a block.

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
        sharing: Sharing | None = None,
    ):
        self.config, self.sharing = config, sharing or Sharing()
        self.size = config.streaming_buffer_size
        self.unreadable: list[dict] = []
        self.small: list[dict] = []
        state = state or {"block": 0, "begins": {"epoch": 0, "file": 0, "row": 0}}
        self.reader = BlockReader(dataset, PixelFormat.of_mode(form), config, self.sharing, state)
        weakref.finalize(self, self.reader.close)
        self.number = self.last_asked = state["block"] - 1
        self.coming: deque[Future[Block]] = deque()
        self._read_ahead(state["block"])
        self._advance()

    def take(self, positions: Iterable[int]) -> tuple[list[np.ndarray], list[int]]:
        """Return the images at these places of the row. No place may lie in a block before the one in memory.

        Returns:
            `tuple`: The images; and their labels, -1 for none.
        """
        images, labels = [], []
        for position in positions:
            number, place = divmod(position, self.size)
            # The others wait for what this process says about their blocks, and it may soon wait for them.
            self._read_ahead(self.sharing.reach(position) // self.size)
            while self.number < number:
                self._advance()
            assert self.number == number, "a stream does not go back"
            pixels = self.block.pixels[self.block.order[place]]
            assert pixels is not None, "another process uses this image"
            images.append(pixels)
            labels.append(self.block.labels[self.block.order[place]])
        return images, labels

    def state(self) -> dict:
        """Return the number of the block in memory, and where in the data set it begins, in types that JSON has."""
        return {"block": self.number, "begins": self.block.begins}

    def close(self):
        """End the reading ahead, without waiting for a row that is being read."""
        self.reader.close()

    def _read_ahead(self, number: int):
        """Ask for all blocks up to this one."""
        while self.last_asked < number:
            self.coming.append(self.reader.ask())
            self.last_asked += 1

    def _advance(self):
        """Take the block that was read ahead, and start to read the one after it."""
        self.block = self.coming.popleft().result()
        self.number += 1
        if self.number == 0:
            self._check_first_block()
        self.unreadable += self.block.unreadable
        self.small += self.block.small
        self._read_ahead(self.number + 1)

    def _check_first_block(self):
        unreadable = self.block.unreadable
        refuse_unreadable(unreadable, self.size + len(unreadable), self.config, "in the first block of the stream")
        if self.block.small:
            self.reader.treat_small(self.block, f"the first {self.block.rows:,} images")
        if self.config.class_conditional and max(self.block.labels) < 0:
            raise ValueError(
                f"--class_conditional: none of the first {self.size:,} images has a label; take another split with "
                "--dataset_split, or name another column with --label_column."
            )
