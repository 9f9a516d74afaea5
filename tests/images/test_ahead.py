"""What is prepared ahead is what would be computed in turn."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ddpm_hf.command_line import parse_command_line
from ddpm_hf.images.ahead import Ahead
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.sources import load_dataset


def test_values_come_in_any_order_and_the_next_one_is_begun():
    asked, begun = [], threading.Event()

    def square(g):
        asked.append(g)
        if g == 7:
            begun.set()
        return g * g

    ahead = Ahead(square, stride=2)
    assert [ahead.take(g) for g in (1, 3, 5)] == [1, 9, 25]
    assert begun.wait(10)  # nobody has asked for it yet
    assert [ahead.take(g) for g in (4, 7, 9)] == [16, 49, 81]
    assert asked[:4] == [1, 3, 5, 7]


def test_an_error_comes_where_its_value_is_taken():
    def inverse(g):
        return 1 / (2 - g)

    ahead = Ahead(inverse, stride=1)
    assert ahead.take(1) == 1
    with pytest.raises(ZeroDivisionError):
        ahead.take(2)
    assert ahead.take(3) == -1


def test_two_threads_read_one_cache(cache_dir):
    """The thread reads training images, while the main one may read others of the same file."""
    config, _ = parse_command_line(["--cache_dir", str(cache_dir)])
    images = load_images(load_dataset(config), "L", config)
    wanted = [images[i].copy() for i in range(400)]

    def wrong(start):
        places = [(start + i) % 400 for i in range(3000)]
        return sum(not np.array_equal(images[i], wanted[i]) for i in places)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(wrong, (0, 200))) == [0, 0]
