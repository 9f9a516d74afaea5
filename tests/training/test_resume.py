"""Runs that end before they should, and go on: equal to runs that never ended, to the last bit."""

import json
import random
import signal

import pytest
import torch
from accelerate import Accelerator
from runs import equal, metrics, weights
from safetensors.torch import load_file

import ddpm_hf.train as loop
from ddpm_hf.checkpoint import find_checkpoint, load_state, verify_checkpoint
from ddpm_hf.signals import signals_to_end
from ddpm_hf.training.objective import denoising_loss

TIMING = ("images_per_second",)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def timeless(folder):
    return [{key: value for key, value in line.items() if key not in TIMING} for line in metrics(folder)]


def assert_equal_runs(a, b):
    """Weights, averages, optimizer, snapshots, the place in the batch plan, and every line of numbers."""
    assert equal(a, b)
    assert timeless(a) == timeless(b)
    last = checkpoints(a)[-1]
    assert checkpoints(b)[-1] == last
    for name in {path.name for folder in (a, b) for path in (folder / "checkpoints" / last).glob("*.safetensors")}:
        first, second = (load_file(folder / "checkpoints" / last / name) for folder in (a, b))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    first, second = (load_state(folder / "checkpoints" / last) for folder in (a, b))
    for key in ("step", "micro_batches", "losses"):
        assert first[key] == second[key]
    assert snapshots(a) == snapshots(b)


def snapshots(run):
    """The bytes of each file of the snapshots of two averages."""
    files = (path for path in (run / "posthoc_ema").rglob("*") if path.is_file())
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("fast", [("--compile",), ("--mixed_precision", "bf16")], ids=["compiled", "bf16"])
def test_fast_runs_resume_exactly_too(train, fast):
    options = {"lr_scheduler": "constant", "checkpointing_steps": 2}
    whole = train("whole", *fast, max_train_steps=4, **options)
    train("parts", *fast, max_train_steps=2, **options)
    parts = train("parts", *fast, max_train_steps=4, **options)
    assert_equal_runs(whole, parts)
    assert not any("_orig_mod" in name for name in weights(whole))
    slow = train("slow", max_train_steps=4, **options)
    for name, weight in weights(slow).items():
        torch.testing.assert_close(weights(whole)[name], weight, rtol=0, atol=2e-2, msg=name)


@pytest.fixture
def stop_after(monkeypatch):
    """Send this process a signal while step n is computed."""

    def arrange(step, number=signal.SIGTERM):
        calls = []

        def loss_and_signal(*args):
            calls.append(args)
            if len(calls) == step:
                signal.raise_signal(number)
            return denoising_loss(*args)

        monkeypatch.setattr(loop, "denoising_loss", loss_and_signal)
        return lambda: monkeypatch.setattr(loop, "denoising_loss", denoising_loss)

    return arrange


@pytest.mark.parametrize("number", signals_to_end()[1:])  # without Ctrl-C
def test_a_stopped_run_goes_on(train, stop_after, capsys, number):
    """Stopped between two notes of the loss, whose sums are part of the checkpoint."""
    options = {"max_train_steps": 7, "logging_steps": 3, "checkpointing_steps": 100, "posthoc_ema": 3}
    whole = train("whole", **options)
    steps = sorted(path.name for path in (whole / "posthoc_ema").iterdir())
    assert steps == ["step-000003", "step-000005", "step-000007"]
    restore = stop_after(4, number)
    stopped = train("stopped", **options)
    assert checkpoints(stopped) == ["step-000004"]
    assert f"{number.name}: saving" in capsys.readouterr().out
    restore()
    train("stopped", **options)
    assert "Going on from" in capsys.readouterr().out
    assert_equal_runs(whole, stopped)


def test_ctrl_c_saves_too(train, stop_after, tmp_path):
    stop_after(2, signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        train()
    assert stop.value.code == 130
    assert checkpoints(tmp_path / "run") == ["step-000002"]
    assert (tmp_path / "run" / "model_index.json").exists()


def test_accumulation_and_a_longer_run_go_on(train):
    """A run that was made for fewer steps goes on as the longer one, if its learning rate does not depend on that."""
    options = {"gradient_accumulation_steps": 2, "lr_scheduler": "constant_with_warmup"}
    whole = train("whole", max_train_steps=6, **options)
    train("grown", max_train_steps=3, **options)
    grown = train("grown", max_train_steps=6, save_images_steps=1, **options)
    assert_equal_runs(whole, grown)


def test_gradient_checkpointing_may_begin_on_the_way(train):
    """Dropout is drawn again as it was, so on a CPU not one bit changes."""
    options = {"lr_scheduler": "constant"}
    whole = train("whole", max_train_steps=4, **options)
    train("parts", max_train_steps=2, **options)
    assert_equal_runs(whole, train("parts", "--gradient_checkpointing", max_train_steps=4, **options))


def test_micro_batches_that_do_not_meet_the_images_taken_are_refused(train):
    options = {"lr_scheduler": "constant", "train_batch_size": 4}
    train(max_train_steps=1, **options)
    train(max_train_steps=2, gradient_accumulation_steps=2, **options)
    with pytest.raises(SystemExit, match=r"--train_batch_size 8: .* has taken 12 images, .*; pass 4 and more"):
        train(max_train_steps=3, **{**options, "train_batch_size": 8})


def test_a_finished_run_says_so(train, capsys):
    folder = train()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    train()
    assert "is trained: 4 steps" in capsys.readouterr().out
    train(scheduler="ddim")
    assert "--scheduler is not applied to its model; `ddpm-hf sample` has this flag, too." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_precision_in_the_same_process_is_refused_in_one_line(train):
    with pytest.raises(
        SystemExit, match="--mixed_precision no: this process has used accelerate with another precision"
    ):
        Accelerator(cpu=True, mixed_precision="bf16")
        train()


def test_older_checkpoints_are_deleted(train):
    folder = train(max_train_steps=5, checkpointing_steps=1, checkpoints_total_limit=3)
    assert checkpoints(folder) == ["step-000003", "step-000004", "step-000005"]


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"learning_rate": 0.5}, "--learning_rate .* -> 0.5"),
        ({"seed": 3, "train_batch_size": 3}, "--seed 0 -> 3; --train_batch_size 4 -> 3. Repeat"),
        (
            {"train_batch_size": 2},
            "--train_batch_size 4 -> 2. With --gradient_accumulation_steps 2, a step takes 4 images",
        ),
    ],
)
def test_other_options_are_refused(train, options, difference):
    train(max_train_steps=2)
    with pytest.raises(SystemExit, match=f"run with other options: {difference}"):
        train(max_train_steps=4, **options)
    train("run", "--overwrite_output_dir", max_train_steps=4, **options)


def break_file(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_broken_newest_checkpoint_is_named_and_passed_over(train, capsys):
    whole = train("whole", max_train_steps=6, checkpointing_steps=2)
    train("broken", max_train_steps=6, checkpointing_steps=2)
    broken = train("broken", max_train_steps=6) / "checkpoints"
    for name in ("step-000006",):
        break_file(broken / name / "optimizer.safetensors")
    train("broken", max_train_steps=6, checkpointing_steps=2)
    printed = capsys.readouterr().out
    assert "Checkpoint step-000006 is broken and passed over" in printed
    assert "optimizer.safetensors is not what was saved" in printed
    assert "Going on from" in printed
    assert_equal_runs(whole, broken.parent)


def test_a_checkpoint_asked_for_by_name(train, tmp_path):
    """Snapshots of later steps are written again; the two averages that they are of change nothing else."""
    options = {"checkpointing_steps": 2, "posthoc_ema": 4}
    whole = train("whole", **options)
    named = train("named", **options)
    (named / "posthoc_ema" / "step-000002" / "ema-0.050.safetensors").unlink()  # what a crash while deleting leaves
    (named / "posthoc_ema" / "step-000002" / "manifest.json").unlink()
    (named / "posthoc_ema" / "step-000003" / "ema-0.050.safetensors").write_bytes(b"of another course")
    train("named", resume_from_checkpoint="step-000002", **options)
    assert_equal_runs(whole, named)
    assert equal(whole, train("without", checkpointing_steps=2))
    with pytest.raises(SystemExit, match="run with other options: --posthoc_ema None -> 2"):
        train("without", checkpointing_steps=2, posthoc_ema=2)
    with pytest.raises(SystemExit, match=r"--resume_from_checkpoint step-000009: there is no .*found step-000002"):
        train("named", resume_from_checkpoint="step-000009", **options)
    break_file(named / "checkpoints" / "step-000002" / "model.safetensors")
    with pytest.raises(SystemExit, match=r"step-000002 is broken: .*model.safetensors"):
        train("named", resume_from_checkpoint="step-000002", **options)


def test_no_whole_checkpoint_is_an_error(train):
    folder = train()
    (folder / "checkpoints" / "step-000004" / "manifest.json").unlink()
    with pytest.raises(SystemExit, match="None is whole; pass --overwrite_output_dir"):
        train()


def test_checkpoints_hold_no_pickles(train):
    path = train() / "checkpoints" / "step-000004"
    files = ["ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert sorted(file.name for file in path.iterdir()) == files
    verify_checkpoint(path)


# ---- Updates that are not finite ------------------------------------------------------------------------------------


def test_fewer_steps_than_taken_are_refused(train):
    """The run is not finished, so ending there would leave it without a last pipeline."""
    folder = train(max_train_steps=4, checkpointing_steps=2, lr_scheduler="constant")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "finished": False}))
    with pytest.raises(SystemExit, match=r"--max_train_steps 3: .*step-000004 has taken 4 steps already; pass"):
        train(max_train_steps=3, checkpointing_steps=2, lr_scheduler="constant")


def spoil(monkeypatch, steps):
    """Make the loss of these steps, counted from 1, not finite."""
    calls = []

    def spoiled(*args):
        calls.append(args)
        return denoising_loss(*args) * (float("nan") if len(calls) in steps else 1)

    monkeypatch.setattr(loop, "denoising_loss", spoiled)


def test_updates_that_are_not_finite_are_skipped(train, monkeypatch):
    spoil(monkeypatch, {2, 3})
    folder = train(max_train_steps=5)
    assert [line["skipped_updates"] for line in metrics(folder)] == [0, 1, 2, 2, 2]
    assert [line["loss"] is None for line in metrics(folder)] == [False, True, True, False, False]
    assert all(
        value.isfinite().all() for value in load_file(folder / "checkpoints/step-000005/ema.safetensors").values()
    )


def test_a_diverged_run_stops_and_names_the_last_good_checkpoint(train, monkeypatch):
    spoil(monkeypatch, set(range(4, 100)))
    with pytest.raises(
        SystemExit, match=r"up to step 23, .* 20 times in a row; the last good checkpoint is .*step-000003"
    ):
        train(max_train_steps=50, checkpointing_steps=3, checkpoints_total_limit=100)


# ---- Killed ---------------------------------------------------------------------------------------------------------

DRIVER = """
import os, signal, sys, time
from ddpm_hf import checkpoint, files, manifest, prepare, train
from ddpm_hf.images import opening
from ddpm_hf.training import run_folder
import train_ddpm

def kill_after(event):
    count = 0
    def dying(function):
        def wrapper(*args, **kwargs):
            nonlocal count
            result = function(*args, **kwargs)
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapper
    for module, names in {{
        checkpoint: ["sync", "save_file"],
        manifest: ["sync"],
        files: ["sync"],
        os: ["rename", "replace", "mkdir"],
        checkpoint.shutil: ["rmtree"],
        run_folder: ["write_json_lines"],
        opening: ["load_images"],
        prepare: ["find_start"],
        train: ["load_tensors", "denoising_loss", "draw_samples"],
    }}.items():
        for name in names:
            setattr(module, name, dying(getattr(module, name)))

for event, seconds, output in {trials!r}:
    child = os.fork()  # so that nothing is imported again
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["train_ddpm.py", *{flags!r}, "--output_dir", output]
        kill_after(event)
        train_ddpm.start_training()
        os._exit(0)
    if seconds:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["again and again", "once", "at random"])
def test_killed_at_any_moment(train, small, forks, tmp_path, moments):
    """SIGKILL after a step, a file, a sync, a rename, a deletion, at the start and at a resumption.

    Again and again, until the run is through; or once at each of these moments of a run, which then is repeated; or
    after a random time, again and again.
    """
    options = {"max_train_steps": 4, "checkpointing_steps": 2, "save_model_steps": 1, "checkpoints_total_limit": 1}
    options |= {"save_images_steps": 2, "posthoc_ema": 2, "ddpm_num_inference_steps": 1, "eval_batch_size": 1}
    whole = train("whole", **options)
    match moments:
        case "again and again":
            trials = [(event, 0, "killed") for event in range(1, 100, 3)]
        case "once":
            trials = [(event, 0, f"killed-{n}") for n in range(1, 140, 20) for event in (n, 0)]
        case "at random":
            draw = random.Random(0).uniform
            trials = [
                (0, seconds, f"killed-{n}")
                for n in range(2)
                for seconds in (draw(0.1, 1), draw(0.1, 0.5), draw(0.1, 0.5), 0)
            ]
    done = forks.run("-c", DRIVER.format(trials=trials, flags=small("killed", **options)), cwd=tmp_path)
    codes = [int(line) for line in done.stdout.split()]
    assert len(codes) == len(trials), done.stderr
    assert set(codes) == {0, -signal.SIGKILL}, done.stderr
    # A fast machine is through before some of the random times.
    assert codes.count(-signal.SIGKILL) >= {"again and again": 10, "once": 7, "at random": 2}[moments]
    for folder in {tmp_path / output for *_, output in trials}:
        assert find_checkpoint(folder / "checkpoints", "latest")[1] == []  # none is broken
        assert_equal_runs(whole, folder)
        assert not list(folder.rglob(".unfinished*")) and not (folder / ".replaced").exists()
        assert (folder / "samples/step-000004.png").read_bytes() == (whole / "samples/step-000004.png").read_bytes()


def test_half_a_line_of_metrics_is_forgotten(train, stop_after):
    options = {"max_train_steps": 5, "checkpointing_steps": 2}
    whole = train("whole", **options)
    restore = stop_after(3)
    folder = train("cut", **options)
    restore()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 4, "loss": 1.0}) + '\n{"step": 5, "lo')
    train("cut", **options)
    assert_equal_runs(whole, folder)
