"""What is prepared ahead is what would be computed in turn."""

import threading

import pytest

from ddpm_hf.images.ahead import Ahead


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
