"""Prepare the next micro-batch in a thread, while the device computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Ahead:
    """Values of a function at g, g + stride, g + 2 stride, ..., each computed while the one before it is used.

    Args:
        function (callable): Called with whole numbers, in a thread, one call at a time.
        stride (`int`): See above. Any other number can be asked for, too, and takes its time.
    """

    def __init__(self, function: Callable[[int], Any], stride: int):
        self.function, self.stride = function, stride
        self.thread = ThreadPoolExecutor(1, "ahead")
        self.next: tuple[int, Future] | None = None

    def take(self, g: int) -> Any:
        """Return the value at g, and begin with the one at g + stride. What the function raised is raised here."""
        number, future = self.next or (None, None)
        if number != g or future is None:
            future = self.thread.submit(self.function, g)
        self.next = (g + self.stride, self.thread.submit(self.function, g + self.stride))
        return future.result()
