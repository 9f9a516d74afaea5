"""`ddpm-hf ema`: averages from the snapshots of a run, as pipelines with cards, and the best of them."""

import json
import re

import pytest
import torch
from runs import equal, weights
from safetensors.torch import load_file

from ddpm_hf import DDPMPipelineCustom, cli, ema_command
from ddpm_hf.checkpoint import write_checkpoint
from ddpm_hf.config import TrainingConfig


@pytest.fixture
def run(train, capsys):
    """A run of four steps with a snapshot at each, and pictures that it held out."""
    folder = train(max_train_steps=4, posthoc_ema=16, validation_fraction=0.001, seed=3)
    said = capsys.readouterr().out
    assert re.search(r"Snapshots of two averages: 16, which take \d+ MB of disk", said)
    assert f"{folder / 'posthoc_ema'}" in said
    return folder


def ema(run, *arguments):
    cli.main(["ema", str(run), *map(str, arguments)])


def error_of(*arguments):
    with pytest.raises(SystemExit) as stop:
        ema(*arguments)
    return stop.value.code


def interrupt(*_):
    raise KeyboardInterrupt


def test_averages_and_the_best_of_them(run, cache_dir, tmp_path, capsys, train, monkeypatch):
    out, before = tmp_path / "averages", {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    flags = ("--num_images", 8, "--bpd_timesteps", 3, "--cache_dir", cache_dir)
    ema(run, "--std", 0.05, 0.1, 0.2, "--choose", "bpd", "--output_dir", out, *flags)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    said = capsys.readouterr().out
    assert "The snapshots give 0.2 only roughly; a higher --posthoc_ema keeps more of them." in said

    # Those that the run kept are the snapshots; another one counts as the profile says.
    kept = {std: load_file(run / f"posthoc_ema/step-000004/ema-{std:.3f}.safetensors") for std in (0.05, 0.1)}
    for std, expected in kept.items():
        found = weights(out / f"{out.name}-std-{std}")
        assert found.keys() == expected.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)

    # The one with the lowest number is in the folder itself, and the table says so.
    values = {}
    for std in (0.05, 0.1, 0.2):
        entry = json.loads((out / f"{out.name}-std-{std}" / "evaluation.json").read_text())["bpd"]
        assert (entry["part"], entry["images"]) == ("held out", 8)
        values[std] = entry["value"]
    best = min(values, key=values.get)
    assert equal(out, out / f"{out.name}-std-{best}")
    assert re.search(rf"^{best} .* {values[best]:.4f} \+- [\d.]+   the best length$", said, flags=re.MULTILINE)
    assert re.search(r"^the run's own  .* \d\.\d{4} \+- [\d.]+$", said, flags=re.MULTILINE)
    card = (out / "README.md").read_text()
    assert f"`ddpm-hf ema run --std {best}`. The standard deviation of its profile is {best} of the 4 steps." in card
    assert f"| bpd | {values[best]:.4g} |" in card
    assert "Trained for 4 optimizer steps" in card
    assert "ema_max_decay" not in card and "never trained on" not in card
    assert "--posthoc_ema 16" in card
    assert DDPMPipelineCustom.from_pretrained(out)(batch_size=1, num_inference_steps=2).images[0].size == (28, 28)

    # It is no run to go on with.
    with pytest.raises(SystemExit, match="holds a trained model and no checkpoint to go on from"):
        train(output_dir=out, max_train_steps=5, posthoc_ema=16, validation_fraction=0.001, seed=3)
    assert "averages holds no snapshots to make averages from; train with --posthoc_ema" in error_of(out, "--std", 0.1)
    assert f"--output_dir {out} holds files; name an empty folder." in error_of(run, "--std", 0.1, "--output_dir", out)
    assert "run is, or holds, the source" in error_of(run, "--std", 0.1, "--output_dir", run)

    # One length, by FID, from what is left if a snapshot is broken.
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "features.py").write_text("def means(images):\n    return images.float().mean((2, 3))[:, :2]\n")
    (run / "posthoc_ema/step-000001/ema-0.100.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="--features no:where"):
        ema(
            run, "--std", 0.15, "--choose", "fid", "--num_images", 8, "--cache_dir", cache_dir, "--features", "no:where"
        )
    flags = ("--num_images", 8, "--num_inference_steps", 2, "--cache_dir", cache_dir, "--features", "features:means")
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(ema_command, "save_pipeline", interrupt)
        ema(run, "--std", 0.15, "--choose", "fid", *flags)
    assert (tmp_path / "run-ema/average.json").exists()
    assert "--output_dir run-ema holds files; name an empty folder." in error_of(run, "--std", 0.1)  # another length
    ema(run, "--std", 0.15, "--choose", "fid", *flags)  # the same command, once more
    said = capsys.readouterr().out
    assert "Snapshot step-000001 is broken and left out: " in said
    assert "Averages at step 4, from snapshots at 3 steps." in said
    assert "run-ema holds that average." in said
    assert json.loads((tmp_path / "run-ema/evaluation.json").read_text())["fid"]["part"] == "trained on"
    assert json.loads((tmp_path / "run-ema/average.json").read_text())["snapshots"] == 3

    # A student has no bits per dimension.
    index = json.loads((run / "model_index.json").read_text()) | {"distilled": {"steps": 4, "guidance_scale": 1.0}}
    (run / "model_index.json").write_text(json.dumps(index))
    flags = ("--std", 0.1, "--output_dir", tmp_path / "of-student", "--choose", "bpd")
    assert "--choose bpd needs a model of all timesteps" in error_of(run, *flags)
    assert not (tmp_path / "of-student").exists()


def test_what_cannot_be_made_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    for step in (50, 100):
        tensors = {f"ema-{std}": {"weight": torch.zeros(2)} for std in ("0.050", "0.100")}
        write_checkpoint(run / "posthoc_ema", step, tensors, {"step": step})
    assert "run: expected the folder of a run; its snapshots are in it" in error_of(run, "--std", 0.1)
    (run / "config.json").write_text(TrainingConfig(output_dir=str(run)).to_json())
    assert "holds snapshots and no model yet; the command of the run goes on" in error_of(run, "--std", 0.1)
    (run / "model_index.json").write_text("{}")
    far = (
        f"--std 0.01: the snapshots at 2 steps of {run} give this length with an error of 61% of its profile; expected"
    )
    assert far in error_of(run, "--std", 0.1, 0.01)
    for std in (0, -0.1, 1e-170, 0.2887, "nan"):
        assert "expected at least 0.001 and below 0.2887" in error_of(run, "--std", std)
    assert "--std 0.1 is there twice" in error_of(run, "--std", 0.1, 0.1000001)
    unused = "--bpd_timesteps changes nothing with --choose fid; leave it out."
    assert unused in error_of(run, "--std", 0.1, "--choose", "fid", "--bpd_timesteps", 3)
    assert "--num_images is for a measurement; pass --choose, too." in error_of(run, "--std", 0.1, "--num_images", 5)
    assert "--cache_dir is for a measurement" in error_of(run, "--std", 0.1, "--cache_dir", "x")
    assert "--seed -1: expected at least 0." in error_of(run, "--std", 0.1, "--choose", "bpd", "--seed", -1)
    assert "user/repo: there is no such folder; the snapshots of a run are on the disk alone." in error_of(
        "user/repo", "--std", 0.1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
