"""What several test files need: a fixed seed, and runs of train_ddpm.py."""

import gc
import signal
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from forks import Forks

import train_ddpm
from ddpm_hf import DDPMUNetModel
from ddpm_hf.signals import signals_to_end

# The tests' networks are too small for threads to help, and on a busy machine threads wait for each other.
torch.set_num_threads(1)


def pytest_collection_finish():
    """Leave what is imported and collected out of the collection of garbage, which each run asks for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


@pytest.fixture
def train(small, tmp_path, monkeypatch):
    """Run train_ddpm.py in this process, with `small` flags. The fixture returns the folder of the run."""

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
