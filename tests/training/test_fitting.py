"""The options that nobody gave: what is chosen for them, and that a run keeps it."""

import json
import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from PIL import Image
from runs import equal

import ddpm_hf.training.fitting as fitting
from ddpm_hf import DDPMUNetModel
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.images.typical_size import typical_resolution
from ddpm_hf.model_sizes import COARSEST, SIZES, batch_of, network_of, settings_of, size_of
from ddpm_hf.training import out_of_memory
from ddpm_hf.training.step_cost import StepCost, measure_step


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


def accelerator(device="cpu", processes=1):
    facts = {"device": torch.device(device), "num_processes": processes, "distributed_type": DistributedType.NO}
    return SimpleNamespace(**facts, gradient_accumulation_steps=1)


def cost_by_width(factor, memory_for=math.inf):
    """A machine where a step takes `factor` seconds for each channel of the first level and each 64 images."""

    def measure(config, channels, accelerator):
        if config.train_batch_size > memory_for:
            return None
        seconds = factor * config.model["block_out_channels"][0] * config.train_batch_size / 64
        return StepCost(seconds * config.gradient_accumulation_steps, False)

    return measure


def fit(monkeypatch, flags, cost=None, images=100_000, on="cpu"):
    """The options that are chosen for a command, and the seconds of a step."""
    config, _ = parse_command_line(["--train_data_dir", "x", "--resolution", "32", *flags.split()])
    monkeypatch.setattr(fitting, "measure_step", cost or cost_by_width(1.0))
    return config, fitting.fit_settings(config, accelerator(on), 3, images)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [(8, 8), (28, 28), (36, 36), (64, 96), (256, 256)])
def test_networks_fit_the_pixels(size, pixels):
    config = network_of(SIZES[size], *pixels)
    with torch.device("meta"):
        DDPMUNetModel(sample_size=pixels, **config)
    coarsest = min(pixels) / 2 ** (len(config["block_out_channels"]) - 1)
    assert coarsest <= COARSEST or pixels == (36, 36)  # 36 can be halved twice
    assert size_of(config, *pixels) == size
    assert size_of({**config, "in_channels": 4, "out_channels": 4}, *pixels) == size


def test_larger_images_come_in_smaller_batches():
    small = SIZES["small"]
    assert [batch_of(small, n, n, None) for n in (8, 64, 65, 128, 256, 1024)] == [32, 32, 16, 16, 8, 8]
    assert batch_of(small, 8, 8, images=30) == 16
    assert settings_of(small, 5000, 8)["learning_rate"] == pytest.approx(small.learning_rate / 2)


def test_more_time_takes_a_larger_network(monkeypatch):
    """Each size is taken from the minutes on in which it takes its fewest steps."""
    for smaller, name in zip(SIZES, list(SIZES)[1:]):
        size = SIZES[name]
        at = size.fewest_steps * size.widths[0] * size.batch / 64 / 60 / fitting.SHARE
        for minutes, expected in ((at * 0.99, smaller), (at * 1.01, name)):
            config, cost = fit(monkeypatch, f"--max_train_minutes {minutes}")
            assert config.model_size == expected
            assert config.max_train_steps == pytest.approx(60 * minutes * fitting.SHARE / cost.seconds, abs=1)
            assert config.model == network_of(SIZES[expected], 32, 32)
            assert config.learning_rate == SIZES[expected].learning_rate


def test_what_is_given_stays(monkeypatch):
    config, _ = fit(monkeypatch, "--model_size base --max_train_steps 50 --learning_rate 1e-5 --train_batch_size 7")
    assert (config.model_size, config.max_train_steps, config.learning_rate) == ("base", 50, 1e-5)
    assert (config.train_batch_size, config.max_train_minutes) == (7, None)
    config, _ = fit(monkeypatch, "--num_epochs 2", images=640)
    assert (config.model_size, config.max_train_steps) == ("tiny", 20)
    assert config.checkpointing_steps == 1


def test_few_images_take_no_large_network(monkeypatch):
    fast = cost_by_width(1e-6)
    for images, size in ((100, "small"), (5000, "base"), (50_000, "large")):
        assert fit(monkeypatch, "--max_train_minutes 60", fast, images, "cuda")[0].model_size == size
    assert fit(monkeypatch, "", fast, images=10)[0].max_train_steps == math.ceil(3000 * 10 / 8)
    assert fit(monkeypatch, "", images=None)[0].max_train_minutes == 20


def test_small_memory_takes_smaller_parts_of_a_batch(monkeypatch):
    config, _ = fit(monkeypatch, "--model_size small --max_train_minutes 600", cost_by_width(0.1, memory_for=16))
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (16, 2)
    assert config.learning_rate == SIZES["small"].learning_rate
    monkeypatch.setattr(out_of_memory, "peak_memory", lambda config, *machine: config.train_batch_size * 10**6)
    monkeypatch.setattr(out_of_memory, "checkpoint_memory", lambda *_: 0)
    message = (
        r"--train_batch_size 64 at 32 pixels needs about 64 MB .* --train_batch_size 32 --gradient_accumulation_steps 2"
    )
    with pytest.raises(ValueError, match=message):
        fit(monkeypatch, "--model_size small --train_batch_size 64", cost_by_width(0.1, memory_for=16))


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([(28, 28)] * 3, 28), ([(300, 200)] * 3, 64), ([(33, 50)] * 9 + [(5, 5)], 32), ([(3, 9)], 4), ([], 64)],
)
def test_the_resolution_is_one_that_most_pictures_have(sides, expected, tmp_path):
    names = []
    for i, (width, height) in enumerate(sides):
        Image.new("L", (width, height)).save(tmp_path / f"{i}.png")
        names.append({"bytes": None, "path": str(tmp_path / f"{i}.png")})
    dataset = datasets.Dataset.from_dict({"image": [*names, {"bytes": b"broken", "path": None}]})
    assert typical_resolution(dataset) == expected


def test_steps_are_measured(monkeypatch, small):
    config, _ = parse_command_line(small("x"))
    cost = measure_step(config, 1, accelerator())
    assert 0 < cost.seconds < 60
    assert not cost.is_estimated
    monkeypatch.setattr("ddpm_hf.training.step_cost.PATIENCE", 0)
    config.train_batch_size = 64
    assert measure_step(config, 1, accelerator()).is_estimated


def options_of(pictures, **others):
    """A run on 8 x 8 pictures whose network, batch and steps are chosen, in a minute of a made-up machine."""
    free = dict.fromkeys(("model_config_name_or_path", "max_train_steps", "train_batch_size", "lr_warmup_steps"))
    return {**free, "train_data_dir": pictures, "resolution": 8, "max_train_minutes": 1, **others}


def test_a_run_keeps_what_was_chosen(train, pictures, monkeypatch):
    """Killed and resumed, it measures nothing again and ends with the same weights."""
    monkeypatch.setattr(fitting, "measure_step", cost_by_width(4.0))  # 16 channels, 8 images: 7 steps in a minute
    options = options_of(pictures, checkpointing_steps=2)
    whole = train("whole", **options)
    chosen = json.loads((whole / "config.json").read_text())
    assert (chosen["preset"], chosen["model_size"], chosen["max_train_steps"]) == ("auto", "tiny", 7)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ddpm_hf.train.stop_if_diverged", stop_after(3))
        train("run", **options)

    monkeypatch.setattr(fitting, "measure_step", None)
    run = train("run", **{**options, "max_train_minutes": None})
    assert equal(run, whole)
    assert json.loads((run / "config.json").read_text()) == {**chosen, "output_dir": str(run)}

    monkeypatch.setattr(fitting, "measure_step", cost_by_width(3.0))
    longer = train("run", **{**options, "max_train_minutes": 1.3})  # on a faster machine: more steps, the same network
    now = json.loads((longer / "config.json").read_text())
    assert (now["model"], now["max_train_steps"]) == (chosen["model"], 12)


def test_a_run_without_results_chooses_again(train, pictures, monkeypatch, tmp_path):
    """A run that was killed before its first checkpoint begins again, with what fits now."""
    monkeypatch.setattr(fitting, "measure_step", cost_by_width(4.0))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ddpm_hf.train.RunState", interrupted)
        train("run", **options_of(pictures))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resolution"] == 8
    monkeypatch.setattr(fitting, "measure_step", cost_by_width(1.0))
    run = train("run", **options_of(pictures, resolution=4))
    chosen = json.loads((run / "config.json").read_text())
    assert (chosen["resolution"], chosen["max_train_steps"]) == (4, 28)
    assert chosen["model"]["block_out_channels"] == [16]


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_what_is_held_out_is_seen_often(monkeypatch):
    config, _ = fit(monkeypatch, "--max_train_steps 120 --validation_fraction 0.1")
    assert config.validation_steps == 10
    assert fit(monkeypatch, "--max_train_steps 120")[0].validation_steps is None


def stop_after(step):
    def stop(config, state):
        if state.step == step:
            raise KeyboardInterrupt

    return stop
