"""Pictures of a run: the curve of the loss, and the mark of our own pictures."""

import math
import warnings

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.pictures import is_ours, loss_curve, save_marked


@pytest.mark.parametrize("losses", [[], [math.nan], [0.5], [0.5, 0.5], [1e-8, math.inf, 0.0, 1e8]])
def test_loss_curve_of_few_or_extreme_values_gives_no_warning(losses):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = loss_curve(list(range(len(losses))), losses)
    assert (curve.size, curve.mode) == ((800, 480), "RGB")
    is_white = bool((np.asarray(curve) == 255).all())
    assert is_white == (not np.isfinite(losses).any())


def test_only_marked_pictures_are_ours(tmp_path):
    picture = Image.new("RGB", (4, 4))
    for suffix in ("png", "jpg", "webp"):
        save_marked(picture, tmp_path / f"marked.{suffix}")
        assert is_ours(tmp_path / f"marked.{suffix}") == (suffix == "png")
    picture.save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("mine")
    assert not any(is_ours(tmp_path / f"{name}.png") for name in ("other", "text", "missing"))
