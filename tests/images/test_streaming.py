"""Data sets that are streamed give the same guarantees as those that are decoded once."""

import io
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from datasets import Dataset, Features, Image, IterableDataset
from PIL import Image as PILImage
from runs import equal, metrics
from torch.distributed import HashStore

from ddpm_hf.command_line import parse_command_line
from ddpm_hf.ending import LEFT_BEHIND, ending_at_once
from ddpm_hf.images.batches import Batches
from ddpm_hf.images.decoding import decode_rows
from ddpm_hf.images.sharing import Sharing
from ddpm_hf.images.sources import load_dataset
from ddpm_hf.images.streaming import StreamedImages
from ddpm_hf.images.survey import common_mode

COUNT, FILES = 60, 4


@pytest.fixture
def parquet(tmp_path):
    """Return a folder of four parquet files of 15 pictures each. Picture i has the grey i."""
    (tmp_path / "set").mkdir()
    for file in range(FILES):
        pictures = [PILImage.new("L", (8, 8), i) for i in range(file, COUNT, FILES)]
        rows = Dataset.from_dict({"image": pictures}, Features({"image": Image()}))
        rows.to_parquet(tmp_path / "set" / f"train-{file:05d}.parquet")
    return tmp_path / "set"


def stream(folder, buffer_size=7, state=None, seed=0, max_unreadable=0.01):
    flags = ["--dataset_name", folder, "--streaming", "--streaming_buffer_size", buffer_size, "--resolution", 8]
    flags += ["--max_unreadable", max_unreadable]
    config = parse_command_line([str(flag) for flag in [*flags, "--seed", seed]])[0]
    dataset = load_dataset(config)
    assert common_mode(dataset) == "L"
    return StreamedImages(dataset, "L", config, state)


def greys(images, positions):
    return [int(image[0, 0, 0]) for image in images.take(positions)[0]]


@pytest.mark.parametrize("buffer_size", [1, 7, 20, 100])
def test_every_image_comes_once_in_an_epoch(parquet, buffer_size):
    """Count up to a place where an epoch and a block end together."""
    epochs = math.lcm(COUNT, buffer_size) // COUNT
    seen = greys(stream(parquet, buffer_size), range(COUNT * epochs))
    assert sorted(seen) == sorted(list(range(COUNT)) * epochs)
    assert seen != sorted(seen)
    assert seen == greys(stream(parquet, buffer_size), range(COUNT * epochs))
    assert seen != greys(stream(parquet, buffer_size, seed=1), range(COUNT * epochs))


def test_epochs_differ(parquet):
    seen = greys(stream(parquet, 60), range(180))
    assert seen[:60] != seen[60:120] != seen[120:]


@pytest.mark.parametrize("stop", [1, 7, 20, 61, 100])
def test_a_stream_goes_on_from_where_it_was(parquet, stop):
    whole = greys(stream(parquet), range(130))
    first = stream(parquet)
    greys(first, range(stop))
    assert greys(stream(parquet, state=first.state()), range(stop, 130)) == whole[stop:]


def test_unreadable_images_are_left_out(parquet):
    broken = [{"bytes": b"broken", "path": "b.png"}, None]
    Dataset.from_dict({"image": broken}, Features({"image": Image()})).to_parquet(parquet / "train-broken.parquet")
    images = stream(parquet, 60, max_unreadable=0.1)
    assert sorted(greys(images, range(60))) == list(range(60))
    assert [line["reason"] for line in images.unreadable] == [
        "the file is no picture, or of an unknown format",
        "there is no image",
    ]
    with pytest.raises(
        ValueError, match=r"2 of 62 images cannot be read, and --max_unreadable 0.01 allows 0.*first block"
    ):
        stream(parquet, 60)


def test_a_run_over_a_stream_resumes_bit_for_bit(parquet, train):
    options = {
        "dataset_name": parquet,
        "resolution": 8,
        "streaming_buffer_size": 10,
        "checkpointing_steps": 3,
        "max_train_steps": 8,
        "lr_scheduler": "constant",
    }
    whole = train("whole", "--streaming", **options)
    train("parts", "--streaming", **{**options, "max_train_steps": 5})
    parts = train("parts", "--streaming", **options)
    assert equal(whole, parts)
    assert [m["loss"] for m in metrics(whole)] == [m["loss"] for m in metrics(parts)]
    assert np.isfinite([m["loss"] for m in metrics(whole)]).all()


@pytest.mark.slow
@pytest.mark.parametrize("switches", [[], ["--streaming"]], ids=["decoded", "streamed"])
def test_other_micro_batches_take_the_images_that_are_left(parquet, train, monkeypatch, capsys, switches):
    """Three sizes of micro-batches in one epoch: every image comes once, in the order of a run with one size."""
    taken, draw = [], Batches.draw

    def noted(batches, g, generator):
        x_0, labels = draw(batches, g, generator)
        taken.append(((x_0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist())
        return x_0, labels

    monkeypatch.setattr(Batches, "draw", noted)
    options = {"dataset_name": parquet, "resolution": 8, "streaming_buffer_size": 6, "lr_scheduler": "constant"}
    splits = {2: (10, 1), 4: (2, 5), 6: (5, 2)}  # steps -> images in a micro-batch, micro-batches in a step
    for steps, (batch, parts) in splits.items():
        split = {"train_batch_size": batch, "gradient_accumulation_steps": parts}
        folder = train("parts", *switches, max_train_steps=steps, **split, **options)
    assert "--train_batch_size 2 -> 5: the images come in the same order, with other noise" in capsys.readouterr().out
    assert [len(greys) for greys in taken] == [10] * 2 + [2] * 10 + [5] * 4
    in_parts = [grey for greys in taken for grey in greys]
    assert sorted(in_parts) == list(range(COUNT))
    epochs = [line["epoch"] for line in metrics(folder)]
    assert epochs == ([None] * 6 if switches else pytest.approx([1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1], abs=1e-4))
    taken.clear()
    train("whole", *switches, max_train_steps=6, train_batch_size=10, **options)
    assert [grey for greys in taken for grey in greys] == in_parts


@pytest.mark.parametrize("flags", [[], ["--train_data_dir", "pictures"], ["--dataset_name", "x", "--num_epochs", "3"]])
def test_a_stream_has_no_known_length(flags, capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--streaming", *flags])
    assert "--streaming reads a data set of unknown length" in capsys.readouterr().err


# ---- Several processes ---------------------------------------------------------------------------------------------


def add_bad_rows(folder):
    """Add a file of good pictures, broken ones, small ones, and some that are cut off behind the header."""
    good, small = io.BytesIO(), io.BytesIO()
    PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(good, "PNG")
    PILImage.new("L", (8, 6)).save(small, "PNG")
    kinds = [good.getvalue(), b"broken", small.getvalue(), good.getvalue(), good.getvalue()[:-40]]
    rows = [{"bytes": kinds[i % 5], "path": "6.png" if i == 6 else None} for i in range(40)]
    Dataset.from_dict({"image": rows}, Features({"image": Image()})).to_parquet(folder / "train-bad.parquet")


def taken(folder, sharing, numbers, batch_size, buffer_size, state=None, same_step=None):
    """Return what one process takes as micro-batches of these numbers, and its images."""
    flags = ["--dataset_name", folder, "--streaming", "--streaming_buffer_size", buffer_size, "--resolution", 8]
    flags += ["--max_unreadable", 0.9, "--small_images", "skip", "--cache_dir", folder.parent / "cache"]
    config = parse_command_line([str(flag) for flag in flags])[0]
    images, batches = StreamedImages(load_dataset(config), "L", config, state, sharing), []
    for g in numbers:
        batches.append([image.tolist() for image in images.take(range(g * batch_size, (g + 1) * batch_size))[0]])
        if same_step:
            same_step.wait(20)
    return batches, images


@pytest.mark.parametrize("bad_rows", [False, True])
@pytest.mark.parametrize(("batch_size", "buffer_size", "start"), [(1, 7, 0), (4, 7, 3), (3, 50, 7), (8, 3, 0)])
def test_processes_share_the_decoding(parquet, monkeypatch, bad_rows, batch_size, buffer_size, start):
    """Also where the run goes on from an odd micro-batch, and where a batch is longer than a block."""
    if bad_rows:
        add_bad_rows(parquet)
    decoded = Counter()

    def count(pool, rows, *arguments):
        decoded[pool] += len(rows["image"])
        return decode_rows(pool, rows, *arguments)

    sizes, last = (batch_size, buffer_size), start + 150 // batch_size // 2 * 2
    before = taken(parquet, None, range(start), *sizes)[1]
    wanted, whole = taken(parquet, None, range(start, last), *sizes, before.state())
    monkeypatch.setattr("ddpm_hf.images.blocks.decode_rows", count)
    store, same_step = HashStore(), threading.Barrier(2)  # the gradients hold each process back until all have theirs

    def process(rank):
        sharing = Sharing(batch_size, start, rank, 2, store)
        return taken(parquet, sharing, range(start + rank, last, 2), *sizes, before.state(), same_step)

    with ThreadPoolExecutor(2) as pool:
        (first, one), (second, two) = pool.map(process, (0, 1))
    assert [batch for both in zip(first, second) for batch in both] == wanted
    assert two.state() == whole.state()  # both have taken the last micro-batch
    assert (two.unreadable, two.small) == (whole.unreadable, whole.small)
    assert bool(two.unreadable) == bool(two.small) == bad_rows
    for images in (one, two):  # one may have asked for more blocks than the other
        images._read_ahead(max(one.last_asked, two.last_asked))
    for images in (one, two):
        for block in images.coming:
            block.result()
        places = range(before.number * buffer_size, images.reader.number * buffer_size)
        used = sum(images.sharing.uses(place) for place in places)
        assert used <= decoded[images.reader.decoders] <= (len(places) + len(two.unreadable) if bad_rows else used)
        assert used == pytest.approx(len(places) / 2, abs=max(sizes))


def test_an_error_on_one_process_reaches_the_other():
    """And its thread ends when the other one waits for it in vain."""
    store, closed = HashStore(), threading.Event()
    one, two = (Sharing(1, 0, rank, 2, store) for rank in (0, 1))
    one.fail("the network is down")
    with pytest.raises(ValueError, match="process 0: the network is down"):
        two.gathered([], closed)
    closed.set()
    with pytest.raises(CancelledError):
        two.gathered([], closed)


# ---- The end -------------------------------------------------------------------------------------------------------


class SlowRows(IterableDataset):
    """A stand-in for a data set. Each row but the first four takes some seconds."""

    features, num_shards = Features({"image": Image(decode=False)}), 1

    def __init__(self, seconds):
        self.seconds = seconds

    def __iter__(self):
        for i in range(1000):
            time.sleep(self.seconds * (i >= 4))
            yield {"image": {"bytes": PNG.getvalue(), "path": None}}

    def take(self, n):
        return [next(iter(self))]

    def skip(self, n):
        return self

    def shard(self, num_shards, index):
        return self


PNG = io.BytesIO()
PILImage.new("L", (8, 8)).save(PNG, "PNG")


def slow_stream(seconds):
    """Return a stream that is reading ahead."""
    flags = ["--dataset_name", "x", "--streaming", "--streaming_buffer_size", "4", "--resolution", "8"]
    return StreamedImages(SlowRows(seconds), "L", parse_command_line([*flags, "--max_train_steps", "1"])[0])


def test_closing_ends_the_reading_ahead():
    images, started = slow_stream(0.5), time.monotonic()
    images.close()
    assert time.monotonic() - started < 0.4
    images.reader.thread.join(1)
    assert not images.reader.thread.is_alive()
    with pytest.raises(CancelledError):
        images.take([4])


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [(None, 0, ""), (SystemExit("no"), 1, "no\n"), (OSError("no"), 1, "OSError: no\n"), (KeyboardInterrupt(), 130, "")],
)
def test_a_program_ends_without_threads_that_hang(end, code, says, monkeypatch, capsys):
    left, done = [], threading.Event()
    monkeypatch.setattr("ddpm_hf.ending.os._exit", left.append)
    monkeypatch.setattr("ddpm_hf.ending.atexit", Mock())
    threading.Thread(target=done.wait, name=f"{LEFT_BEHIND} on", daemon=True).start()
    with pytest.raises(SystemExit), ending_at_once():  # `os._exit` of the test returns
        if end:
            raise end
    done.set()
    assert left == [code]
    printed = capsys.readouterr().err
    assert printed.endswith(says) and bool(printed) == bool(says)


AT_THE_END = """
import atexit
from test_streaming import *

atexit.register(print, "goodbye")
with ending_at_once():
    images = slow_stream(3600)
    print(time.monotonic())
"""


@pytest.mark.slow
def test_the_end_of_the_process_does_not_wait_for_the_reading():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", AT_THE_END]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    began, goodbye = run.stdout.splitlines()
    assert time.monotonic() - float(began) < 2
    assert goodbye == "goodbye"
    assert not run.stderr
