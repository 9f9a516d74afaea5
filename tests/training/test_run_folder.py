"""What a run leaves behind, on healthy and on full disks."""

import io
import json
import shutil

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image
from runs import crash_at_rename, metrics

from ddpm_hf.checkpoint import save_pipeline
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.pictures import image_grid, loss_curve
from ddpm_hf.training import run_folder
from ddpm_hf.training.run_folder import RunFolder


class FakePipeline(DiffusionPipeline):
    """Saves two files and an index; `fail_after` of them the disk is full."""

    def __init__(self, content: str, fail_after: int = 3):
        self.content, self.fail_after = content, fail_after

    def save_pretrained(self, folder):
        for i, name in enumerate(("unet/weights.safetensors", "scheduler/config.json", "model_index.json")):
            if i == self.fail_after:
                raise OSError(28, "No space left on device")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(self.content)


def contents(folder):
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def saved(content):
    return {"unet/weights.safetensors": content, "scheduler/config.json": content, "model_index.json": content}


def test_saving_replaces_the_older_pipeline_and_nothing_else(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.png").write_text("sample")
    for content in ("old", "new"):
        save_pipeline(FakePipeline(content), tmp_path)
        assert contents(tmp_path) == {**saved(content), "samples/a.png": "sample"}


@pytest.mark.parametrize("fail_after", [0, 1, 2])
def test_full_disk_leaves_the_older_pipeline(tmp_path, fail_after):
    save_pipeline(FakePipeline("old"), tmp_path)
    with pytest.raises(OSError, match=r"cannot save the pipeline.*No space left"):
        save_pipeline(FakePipeline("new", fail_after), tmp_path)
    assert contents(tmp_path) == saved("old")


@pytest.mark.parametrize("crash_at", range(1, 7))
def test_a_crash_between_the_renames_is_undone_or_complete(tmp_path, monkeypatch, crash_at):
    save_pipeline(FakePipeline("old"), tmp_path)
    crash_at_rename(crash_at, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        save_pipeline(FakePipeline("new"), tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "model_index.json").exists() or crash_at == 1
    with pytest.raises(OSError, match="No space"):
        save_pipeline(FakePipeline("newer", fail_after=0), tmp_path)
    assert contents(tmp_path) == saved("old")


def configure(tmp_path, *flags):
    return parse_command_line(["--output_dir", str(tmp_path / "run"), *flags])[0]


def make_run(tmp_path, *flags):
    run = RunFolder(configure(tmp_path, *flags))
    run.path.mkdir(exist_ok=True)
    run.begin(step=0)
    return run


def test_metrics_samples_and_curve(tmp_path):
    run = make_run(tmp_path)
    for step in (1, 2, 3):
        run.log(step=step, loss=1 / step)
    run.save_samples(3, [Image.new("L", (4, 4), 50 * i) for i in range(5)])
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": s, "loss": 1 / s} for s in (1, 2, 3)]
    assert Image.open(run.path / "samples" / "step-000003.png").size == (518, 333)
    assert Image.open(run.path / "loss.png").mode == "RGB"
    assert json.loads((run.path / "config.json").read_text())["preset"] == "mnist-mini"


def test_training_goes_on_when_writing_fails(tmp_path, capsys):
    run = make_run(tmp_path)
    run.save_pipeline(FakePipeline("new", fail_after=1))
    assert "Could not save the model" in capsys.readouterr().out
    with pytest.raises(OSError, match="No space"):
        run.save_last_pipeline(FakePipeline("new", fail_after=1))
    assert not (run.path / "model_index.json").exists()


def test_too_little_space(tmp_path):
    with pytest.raises(OSError, match="need 14000000000 MB"):
        make_run(tmp_path).check(model_bytes=10**15)


def test_a_full_disk_costs_no_line_of_numbers(tmp_path, monkeypatch, capsys):
    """A write that fails after half a line: the next one writes all lines again."""
    run = make_run(tmp_path)
    run.log(step=1, loss=1.0)

    class Full(io.TextIOWrapper):
        def write(self, text):
            super().write(text[: len(text) // 2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "open", lambda path, mode: Full(path.open(f"{mode}b")), raising=False)
    run.log(step=2, loss=0.5)
    assert "Could not write metrics.jsonl" in capsys.readouterr().out
    assert (run.path / "metrics.jsonl").read_text().count("\n") == 1
    monkeypatch.undo()
    run.log(step=3, loss=0.25)
    assert [line["step"] for line in metrics(run.path)] == [1, 2, 3]


def test_files_that_somebody_put_beside_the_weights_stay(tmp_path, monkeypatch):
    """Also after a crash between the renames and the end."""
    save_pipeline(FakePipeline("old"), tmp_path)
    (tmp_path / "unet" / "notes.txt").write_text("mine")
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    (tmp_path / ".unfinished").mkdir()
    with pytest.raises(KeyboardInterrupt):
        save_pipeline(FakePipeline("crashed"), tmp_path)
    monkeypatch.undo()
    for content in ("new", "newer"):
        save_pipeline(FakePipeline(content), tmp_path)
        assert contents(tmp_path) == {**saved(content), "unet/notes.txt": "mine"}


# ---- Pictures -------------------------------------------------------------------------------------------------------


def test_grid_is_filled_row_by_row():
    """With a white gap of a pixel, and 64 times as large, so that it can be seen."""
    grid = image_grid([Image.new("L", (2, 1), i + 1) for i in range(5)])
    assert grid.size == (64 * 8, 64 * 3)
    small = np.asarray(grid)[::64, ::64]
    assert small.tolist() == [[1, 1, 255, 2, 2, 255, 3, 3], [255] * 8, [4, 4, 255, 5, 5, 255, 255, 255]]
    assert image_grid([Image.new("RGB", (600, 20))]).size == (600, 20)


def test_loss_curve_falls_from_left_to_right():
    curve = loss_curve(list(range(1, 201)), [1 / s for s in range(1, 201)])
    blue = [
        (x, y) for x in range(curve.width) for y in range(curve.height) if curve.getpixel((x, y)) == (0x1F, 0x5F, 0xBF)
    ]
    left, right = min(blue), max(blue)
    assert left[0] < 100
    assert right[0] > 700
    assert left[1] < right[1]
    for losses in ([], [float("nan")], [0.5]):
        assert loss_curve(list(range(len(losses))), losses).size == (800, 480)
