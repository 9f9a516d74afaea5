"""The folder that a run writes into: nothing in it is lost that the run did not write itself."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from platforms import needs_links
from runs import equal, make_run, metrics

import ddpm_hf.train as loop
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.training import log_book
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.run_lock import alone_in

ROOT = Path(__file__).parents[2]


def contents(folder):
    """Every visible file, with its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def save_pictures(folder, count=6):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / f"{i}.png")


# ---- Folders of others ----------------------------------------------------------------------------------------------


def make_project(folder):
    save_pictures(folder / "samples")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-final").write_text("mine")
    (folder / "config.json").write_text('{"mine": 1}')


def make_stock_pipeline(folder):
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


@pytest.mark.parametrize("overwrite", [(), ("--overwrite_output_dir",)], ids=["plain", "overwrite"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make_project, "checkpoints, config.json, samples"),
        (make_stock_pipeline, "model_index.json, unet"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("[1]")), "config.json"),
        (lambda folder: (folder.mkdir(), (folder / "thesis.tex").write_text("")), "thesis.tex"),
    ],
    ids=["project", "stock pipeline", "list", "thesis"],
)
def test_a_folder_of_others_is_refused_and_left_as_it_is(train, tmp_path, make, name, overwrite):
    make(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(SystemExit, match=f"holds files that no run of train_ddpm.py wrote: {name}"):
        train("run", *overwrite)
    assert contents(tmp_path / "run") == before


def test_a_folder_with_hidden_files_is_empty(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".gitignore").write_text("*")
    assert (train() / "model_index.json").exists()
    assert (tmp_path / "run" / ".gitignore").read_text() == "*"


@pytest.mark.parametrize("overwrite", [(), ("--overwrite_output_dir",)], ids=["plain", "overwrite"])
@pytest.mark.parametrize(
    ("data", "output"), [("p/samples", "p"), ("p", "p"), pytest.param("link", "p", marks=needs_links)]
)
def test_pictures_inside_the_output_folder_are_refused(train, tmp_path, data, output, overwrite):
    """Also in a run of ours, and through a link."""
    make_run(tmp_path / "p")
    if data == "link":
        (tmp_path / "link").symlink_to(tmp_path / "p" / "samples")
    before = contents(tmp_path / "p")
    with pytest.raises(SystemExit, match="lies in --output_dir"):
        train("x", *overwrite, train_data_dir=tmp_path / data, output_dir=tmp_path / output)
    assert contents(tmp_path / "p") == before


def test_nothing_is_cleared_before_the_data_was_read(train, tmp_path):
    folder = train(max_train_steps=2)
    before = contents(folder)
    for options in ({"train_data_dir": tmp_path / "nowhere"}, {"resolution": 64}):
        with pytest.raises(SystemExit):
            train("run", "--overwrite_output_dir", **options)
        assert contents(folder) == before


# ---- A run again ----------------------------------------------------------------------------------------------------


def test_overwriting_says_what_goes_and_leaves_what_is_not_its_own(train, capsys):
    folder = train(max_train_steps=2, eval_steps=1, eval_num_images=2)
    others = {"notes.txt": b"mine", "samples/best.png": b"mine", "checkpoints/step-000002-copy/a": b"mine"}
    others |= {"unet/notes.txt": b"mine"}
    for name, content in others.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    capsys.readouterr()
    train("run", "--overwrite_output_dir", max_train_steps=1, seed=5)
    said = next(line for line in capsys.readouterr().out.splitlines() if "--overwrite_output_dir removes" in line)
    gone = ("checkpoints/step-000002", "samples/step-000002.png", "metrics.jsonl", "evaluations.jsonl", "loss.png")
    assert all(name in said for name in gone)
    assert not any(name in said for name in others)
    after = contents(folder)
    assert others.items() <= after.items()
    assert not {"checkpoints/step-000002/state.json", "samples/step-000002.png", "evaluations.jsonl"} & after.keys()
    assert [line["step"] for line in metrics(folder)] == [1]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("", "ddpm-mnist-mini"),
        ("--preset cifar10", "ddpm-cifar10"),
        ("--preset cifar10 --dataset_name uoft-cs/cifar10", "ddpm-cifar10"),
        ("--train_data_dir some/pictures/", "ddpm-pictures"),
        ("--preset celeba-64 --train_data_dir pictures", "ddpm-pictures"),
        ("--dataset_name user/cats", "ddpm-cats"),
        ("--train_data_dir .", f"ddpm-{Path.cwd().name}"),
        ("--train_data_dir /", "ddpm-pictures"),
        ("--train_data_dir pictures --output_dir here", "here"),
    ],
)
def test_the_folder_is_named_after_the_data(flags, name):
    assert parse_command_line(flags.split())[0].output_dir == name


def test_refusals_do_not_lead_to_the_flag_that_deletes(train):
    folder = train(max_train_steps=2)
    with pytest.raises(SystemExit, match=r"name another --output_dir. \(--overwrite_output_dir would throw that run"):
        train(max_train_steps=2, learning_rate=0.5)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(SystemExit, match=r"name another folder. \(--overwrite_output_dir would throw it away"):
        train(max_train_steps=2)
    shutil.rmtree(folder / "unet")
    (folder / "model_index.json").unlink()
    with pytest.raises(SystemExit, match="holds what a run left and no checkpoint"):
        train(max_train_steps=2)


@pytest.mark.parametrize("step", [1, 3])
def test_stopped_before_the_first_checkpoint_it_begins_again(train, monkeypatch, tmp_path, step):
    """Dead after the first pipelines; the options of that run have to be repeated."""
    options = {"save_model_steps": 1, "save_images_steps": 2, "checkpointing_steps": 100}
    whole = train("whole", **options)
    save = RunFolder.save_pipeline

    def save_and_die(folder, pipeline):
        save(folder, pipeline)
        if folder.metrics[-1]["step"] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_pipeline", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train("killed", **options)
    monkeypatch.undo()
    assert (tmp_path / "killed" / "model_index.json").exists()
    with pytest.raises(SystemExit, match="other options: --seed 0 -> 1"):
        train("killed", seed=1, **options)
    assert equal(train("killed", **options), whole)


def test_going_back_keeps_the_checkpoint_just_written(train, tmp_path):
    options = {"checkpointing_steps": 2, "checkpoints_total_limit": 1, "lr_scheduler": "constant"}
    whole = train("whole", max_train_steps=3, **options)
    folder = train("back", max_train_steps=4, **{**options, "checkpoints_total_limit": 2})
    train("back", max_train_steps=3, resume_from_checkpoint="step-000002", **options)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000003"]
    assert equal(folder, whole)
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3]


def test_what_the_last_step_owes_is_given_out_by_the_same_command(train, monkeypatch, tmp_path, capsys):
    """Dead between the last checkpoint and the last outputs."""
    whole = train("whole", eval_steps=2, eval_num_images=2)
    with monkeypatch.context() as context:
        context.setattr(RunFolder, "save_last_pipeline", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train("cut", eval_steps=2, eval_num_images=2)
    assert not (tmp_path / "cut" / "model_index.json").exists()
    cut = train("cut", eval_steps=2, eval_num_images=2)
    assert equal(cut, whole)
    for name in ("samples/step-000004.png", "denoising.png", "denoising.webp", "loss.png", "evaluations.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    capsys.readouterr()
    train("cut", eval_steps=2, eval_num_images=2)
    assert "is trained: 4 steps" in capsys.readouterr().out


def test_a_moved_folder_of_the_same_pictures_goes_on(train, tmp_path, capsys):
    """Other pictures do not, wherever they are."""
    options = {"lr_scheduler": "constant", "output_dir": tmp_path / "run"}
    save_pictures(tmp_path / "pictures")
    whole = train(train_data_dir=tmp_path / "pictures", **{**options, "output_dir": tmp_path / "whole"})
    train(train_data_dir=tmp_path / "pictures", max_train_steps=2, **options)
    (tmp_path / "pictures").rename(tmp_path / "moved")
    moved = train(train_data_dir=tmp_path / "moved", **options)
    assert equal(moved, whole)
    (tmp_path / "moved").rename(tmp_path / "again")
    train(train_data_dir=tmp_path / "again", **options)
    assert "is trained: 4 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other pictures: 6 images then, 10000 now"):
        train(preset="auto", **options)
    (tmp_path / "again").rename(tmp_path / "moved")
    Image.new("L", (28, 28), 7).save(tmp_path / "moved" / "0.png")
    with pytest.raises(SystemExit, match="other pictures: 6 images then, 6 now, and not with the same pixels"):
        train(train_data_dir=tmp_path / "moved", **{**options, "max_train_steps": 6})
    (tmp_path / "moved" / "0.png").unlink()
    with pytest.raises(SystemExit, match="other pictures: 6 images then, 5 now"):
        train(train_data_dir=tmp_path / "moved", **{**options, "max_train_steps": 6})


def test_what_changes_by_rounding_only_is_said_and_accepted(train, capsys):
    options = {"lr_scheduler": "constant"}
    train(max_train_steps=1, **options)
    capsys.readouterr()
    train("run", "--gradient_checkpointing", max_train_steps=2, **options)
    assert "--gradient_checkpointing False -> True changes the numbers by rounding only." in capsys.readouterr().out


# ---- Two at once ----------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused(train, tmp_path):
    owner = re.escape(f"process {os.getpid()} on {socket.gethostname()}")
    with alone_in(tmp_path / "run"):
        with pytest.raises(SystemExit, match=f"another run is in it, {owner}"):
            train("run", "--overwrite_output_dir")
        assert sorted(os.listdir(tmp_path / "run")) == [".ddpm_hf.lock", ".ddpm_hf.running.json"]
        train("run", "--dry_run")
    train()


def test_a_crash_frees_the_folder(tmp_path, capsys):
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from ddpm_hf.training.run_lock import alone_in
with alone_in(Path({str(tmp_path / "run")!r})):
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    owner = json.loads((tmp_path / "run" / ".ddpm_hf.running.json").read_text())["process"]
    with alone_in(tmp_path / "run"):
        assert f"process {owner} on" in capsys.readouterr().out


def test_a_folder_made_for_nothing_goes_again(train, tmp_path):
    with pytest.raises(SystemExit):
        train("made", train_data_dir=tmp_path / "nowhere")
    assert not (tmp_path / "made").exists()


# ---- A measurement or a drawing that fails --------------------------------------------------------------------------


def test_training_goes_on_when_outputs_fail(train, monkeypatch, capsys):
    """And the checkpoint of that step is written all the same."""

    def failing(name):
        def fail(*args):
            raise RuntimeError(f"no {name}")

        return fail

    options = {"eval_steps": 2, "eval_num_images": 2, "save_images_steps": 2, "checkpointing_steps": 2}
    plain = train("plain", **options)
    monkeypatch.setattr(loop, "track_samples", failing("track_samples"))
    folder = train("failing", **options)
    assert equal(folder, plain) and (folder / "checkpoints" / "step-000002").exists()
    assert "no track_samples. Training goes on" in capsys.readouterr().out
    for name in ("draw_samples", "track_numbers", "evaluate_during_training"):
        monkeypatch.setattr(loop, name, failing(name))
    monkeypatch.setattr(log_book, "track_numbers", failing("track_numbers"))
    assert equal(train("failing", "--overwrite_output_dir", **options), plain)
    printed = capsys.readouterr().out
    for name in ("draw_samples", "track_numbers", "evaluate_during_training"):
        assert printed.count(f"no {name}. Training goes on") >= 2


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with alone_in(tmp_path / "run"):
        assert "without locks; make sure that no other run uses it" in capsys.readouterr().out


def test_a_refused_folder_gets_no_file_of_ours(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(SystemExit):
        train()
    assert os.listdir(tmp_path / "run") == ["thesis.tex"]
    with pytest.raises(SystemExit, match="is a file; expected a folder"):
        train("x", output_dir=tmp_path / "run" / "thesis.tex")


def test_a_folder_in_the_place_of_a_checkpoint_is_left_alone(train, tmp_path, capsys):
    """The run says so, goes on, and writes its next checkpoint."""
    mine = tmp_path / "run" / "checkpoints" / "step-000002"
    train(max_train_steps=1, lr_scheduler="constant")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    folder = train(max_train_steps=3, checkpointing_steps=2, lr_scheduler="constant")
    assert (mine / "notes.txt").read_text() == "mine"
    assert f"{mine} was not written by a run; move it away. Training goes on." in capsys.readouterr().out
    assert (folder / "checkpoints" / "step-000003" / "manifest.json").exists()


def test_what_a_crash_left_of_a_checkpoint_is_replaced(train, tmp_path):
    """It was being deleted, and its manifest was the first to go."""
    half = tmp_path / "run" / "checkpoints" / "step-000002"
    train(max_train_steps=1, lr_scheduler="constant")
    half.mkdir()
    (half / "optimizer.safetensors").write_text("")
    train(max_train_steps=3, checkpointing_steps=2, lr_scheduler="constant")
    assert (half / "manifest.json").exists()


@needs_links
def test_folders_named_like_checkpoints_are_left_alone(train, tmp_path):
    """One that is no checkpoint, and a link, neither of which a run wrote."""
    folder = train(max_train_steps=1, lr_scheduler="constant")
    (folder / "checkpoints" / "step-000999").mkdir()
    (folder / "checkpoints" / "step-000999" / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (folder / "checkpoints" / "step-000777").symlink_to(tmp_path / "elsewhere")
    train(max_train_steps=2, lr_scheduler="constant", checkpoints_total_limit=1)
    train("run", "--overwrite_output_dir", max_train_steps=1)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-000001", "step-000777", "step-000999"]
    assert (folder / "checkpoints" / "step-000999" / "notes.txt").read_text() == "mine"


def test_records_of_a_run_whose_model_was_removed_stay(train):
    folder = train(max_train_steps=2)
    for name in ("checkpoints", "unet", "scheduler"):
        shutil.rmtree(folder / name)
    for name in ("model_index.json", "run.json"):
        (folder / name).unlink()
    before = contents(folder)
    with pytest.raises(SystemExit, match="holds what a run left and no checkpoint"):
        train(max_train_steps=2, seed=7)
    assert contents(folder) == before
