"""The judge of benchmarks/quality.py: real pictures are near, others are far."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Import the judge and the sets as the script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("judge", "picture_sets", "avatars"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_real_digits_are_nearer_than_blurred_and_noisy_ones(benchmark, monkeypatch, tmp_path):
    import judge
    import picture_sets

    monkeypatch.setattr(judge, "PASSES", 4000)
    train, for_judge, reference = picture_sets.load_set("digits", tmp_path)
    assert [len(part.pixels) for part in (train, for_judge, reference)] == list(picture_sets.PARTS["digits"])
    reference = picture_sets.Part(reference.pixels[:500], reference.labels[:500])
    judged = judge.Judge(for_judge, reference, "digits", tmp_path)
    assert judged.accuracy > 0.8
    x = judge.to_x(train.pixels[:500])
    real = judged.measure(x)
    noisy = judged.measure((x + 0.5 * torch.randn_like(x)).clamp(-1, 1))
    blurred = judged.measure(torch.nn.functional.avg_pool2d(x, 5, 1, 2))
    few = judged.measure(x[:10].repeat(50, 1, 1, 1))
    for worse in (noisy, blurred, few):
        assert worse["frechet"] > 2 * real["frechet"] and worse["kernel"] > 2 * abs(real["kernel"])
    assert few["recall"] < 0.1 < real["recall"]
    again = judge.Judge(for_judge, reference, "digits", tmp_path)
    assert again.measure(x) == real
    np.testing.assert_array_equal(judged.classes(x), again.classes(x))


def test_the_judge_of_the_documentation_is_kept(benchmark, tmp_path):
    import judge
    import picture_sets

    assert {file.stem for file in judge.JUDGES.iterdir()} == set(picture_sets.PARTS)
    _, for_judge, reference = picture_sets.load_set("digits", tmp_path)
    assert judge.Judge(for_judge, reference, "digits").accuracy > 0.97


def test_a_face_and_its_class_do_not_depend_on_the_size(benchmark):
    from avatars import draw_labelled

    labels = [[draw_labelled(seed, size)[1] for seed in range(40)] for size in (8, 16)]
    assert labels[0] == labels[1] and len(set(labels[0])) > 10
