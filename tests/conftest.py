"""What several test files need: a fixed seed, and runs of train_ddpm.py.

Libraries are imported inside of the functions, since the process that shares out the tests needs none of them.
"""

import gc
import hashlib
import signal
import sys
from pathlib import Path

import pytest
from forks import Forks
from PIL import Image

import train_ddpm
from ddpm_hf.signals import signals_to_end


def pytest_collection_finish():
    import torch

    # The tests' networks are too small for threads to help, and on a busy machine threads wait for each other.
    torch.set_num_threads(1)
    # Each run collects garbage; what is imported and collected by now is none, and looking through it takes long.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_accelerator_is_left():
    """A run in this process leaves its precision behind, and accelerate refuses the next run another one."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory, worker_id):
    """Return a folder where all tests, of all workers, keep decoded images."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "cache"


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Start processes that need not import the libraries."""
    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture
def small(tmp_path, cache_dir):
    """Flags of runs that take seconds: the embedded digits, decoded once for all tests, a tiny network with dropout."""
    from ddpm_hf import DDPMUNetModel

    model = DDPMUNetModel(
        block_out_channels=(8, 8),
        down_block_types=["DownBlock2D"] * 2,
        up_block_types=["UpBlock2D"] * 2,
        layers_per_block=1,
        norm_num_groups=4,
        dropout=0.1,
        add_attention=False,
    )
    model.save_config(tmp_path / "model")
    defaults = {
        "mixed_precision": "no",  # so that numbers can be compared
        "model_config_name_or_path": tmp_path / "model",
        "cache_dir": cache_dir,
        "max_train_steps": 4,
        "train_batch_size": 4,
        "logging_steps": 1,
        "lr_warmup_steps": 2,
        "ddpm_num_inference_steps": 3,
        "eval_batch_size": 3,
    }

    def flags(name, *switches, **options):
        options = {**defaults, "output_dir": tmp_path / name, **options}
        given = {key: value for key, value in options.items() if value is not None}
        texts = [text for key, value in given.items() for text in (f"--{key}", str(value))]
        labels = [] if {"dataset_name", "train_data_dir"} & given.keys() else ["--no_class_conditional"]
        return [*texts, *labels, *switches]

    return flags


def sketch(*numbers, size=(800, 480), **more_numbers):
    """Return a picture that stands for the curve of the loss: of another colour for other numbers."""
    return Image.new("RGB", size, tuple(hashlib.sha256(repr((numbers, more_numbers)).encode()).digest()[:3]))


@pytest.fixture
def train(small, tmp_path, monkeypatch):
    """Run train_ddpm.py in this process, with `small` flags. The fixture returns the folder of the run.

    Drawing the curve of the loss takes as long as the four steps, so only the tests of pictures do it.
    """
    from accelerate.state import AcceleratorState

    monkeypatch.setattr("ddpm_hf.training.run_folder.loss_curve", sketch)

    def run(name="run", *switches, **options):
        monkeypatch.setattr(sys, "argv", ["train_ddpm.py", *small(name, *switches, **options)])
        handlers = {number: signal.getsignal(number) for number in signals_to_end()}
        try:
            train_ddpm.start_training()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            AcceleratorState._reset_state(reset_partial_state=True)
        return Path(options.get("output_dir", tmp_path / name))

    return run
