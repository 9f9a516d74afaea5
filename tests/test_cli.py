"""`ddpm-hf` finds errors before it loads a model, says each in one line without tokens, and overwrites nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from platforms import needs_links
from runs import equal, make_run

import ddpm_hf.demo.page  # these two keep what they import, so they are imported before anything is replaced
import ddpm_hf.evaluation.command  # noqa: F401
from ddpm_hf import cli

OUT_OF_MEMORY = "the memory does not suffice; a smaller --batch_size needs less."
TOKEN = "hf_OfAliceWhoMayWrite"
SUBCOMMANDS = ("train", "sample", "evaluate", "ema", "convert", "export", "push", "demo")


@pytest.fixture(scope="module")
def made_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "digits")


@pytest.fixture
def run(made_run, tmp_path):
    return shutil.copytree(made_run, tmp_path / "digits")


@pytest.fixture
def no_loading(monkeypatch):
    """Fail if a model is loaded."""
    for home in ("sampling.open_model", "loading.load_pipeline", "evaluation.command.evaluate"):
        monkeypatch.setattr(f"ddpm_hf.{home}", lambda *arguments, **options: pytest.fail("it was loaded"))


def error_of(*arguments):
    """Return what `ddpm-hf` ends with: the line of an error, or the exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return stop.value.code


# ---- Flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "x", "--num_inference_steps", "2.5"], "argument --num_inference_steps: invalid int value: '2.5'"),
        (["sample", "x", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["sample", "x", "--scheduler", "dpm"], "argument --scheduler: invalid choice: 'dpm'"),
        (["sample", "x", "--guidance_scal", "2"], "--guidance_scal 2 (did you mean --guidance_scale?)"),
        (["evaluate", "x", "--metrics", "is"], "argument --metrics: invalid choice: 'is'"),
        (["convert", "x", "y", "--to", "jax"], "argument --to: invalid choice: 'jax'"),
        (["convert", "x"], "the following arguments are required: output_dir"),
        (["push", "x", "--hub_tokn", TOKEN], "--hub_tokn hf_*** (did you mean --hub_token?)"),
        (["push", "x", f"--hub_tokn={TOKEN}"], "--hub_tokn=hf_*** (did you mean --hub_token?)"),
        (["push", "x", "--hub-token", "secret"], "--hub-token *** (did you mean --hub_token?)"),
        (["push", "x", TOKEN], "unrecognized arguments: hf_***"),
        ([TOKEN], "invalid choice: 'hf_***'"),
        (["demo", "x", "--server_port", TOKEN], "argument --server_port: invalid int value: 'hf_***'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_flags_that_cannot_be_read_end_with_code_2(arguments, message, capsys):
    assert error_of(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert TOKEN not in said and "secret" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", ".", "--num_inference_steps", "0"], "--num_inference_steps 0: expected at least 1."),
        (["sample", ".", "--seed", "-1"], "--seed -1: expected at least 0."),
        (["sample", ".", "--batch_size", "-2"], "--batch_size -2: expected at least 1."),
        (["sample", ".", "--guidance_scale", "nan"], "--guidance_scale nan: expected at least 0."),
        (["sample", ".", "--guidance_scale", "inf"], "--guidance_scale inf: expected at least 0."),
        (["sample", ".", "--guidance_interval", "0.5", "1"], "--guidance_interval 0.5 1 is a part of the guidance,"),
        (["sample", ".", "--output", "folder"], "--output folder is a folder; expected the name of a picture"),
        (["sample", ".", "--output", "a.psd"], "--output a.psd: expected the name of a picture"),
        (["sample", ".", "--output", "a"], "--output a: expected the name of a picture"),
        (["sample", ".", "--output", "file/a.png"], "--output file: file is a file; expected a folder."),
        (["sample", ".", "--num_images", "2", "--output", "file"], "--output file: file is a file; expected a folder."),
        (["evaluate", ".", "--seed", "-1"], "--seed -1: expected at least 0."),
        (["evaluate", ".", "--guidance_scale", "nan"], "--guidance_scale nan: expected at least 0."),
        (["evaluate", ".", "--guidance_interval", "1", "0"], "--guidance_interval 1 0: expected two numbers from"),
        (["evaluate", ".", "--output", "folder"], "--output folder is a folder; expected the name of a file"),
        (["convert", ".", "new", "--sample_size", "0"], "--sample_size 0: expected a number of pixels, such as 64, or"),
        (["convert", ".", "file"], "OUTPUT_DIR file: file is a file; expected a folder."),
        (["convert", ".", "folder"], "folder holds files; name an empty folder, or pass --overwrite_output_dir"),
        (["convert", ".", "folder", "--overwrite_output_dir"], "folder holds files and no pipeline (model_index.json)"),
        (["evaluate", ".", "--save_samples", "file"], "--save_samples file: file is a file; expected a folder."),
        (["convert", "folder/diary.txt", "folder", "--overwrite_output_dir"], "folder is, or holds, the source;"),
        (["convert", "folder", "folder"], "folder is, or holds, the source; name another"),
        (["convert", "folder", "link", "--overwrite_output_dir"], "link is, or holds, the source; name another"),
        (["demo", ".", "--server_port", "99999"], "--server_port 99999: expected 1 to 65535."),
    ],
)  # fmt: skip
@needs_links
def test_what_cannot_be_done_is_found_before_a_model_is_loaded(arguments, message, no_loading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("folder", "diary.txt").write_text("mine")
    Path("link").symlink_to("folder")
    said = error_of(*arguments)
    assert said.startswith(f"ddpm-hf: error: {message}")
    assert "\n" not in said
    assert sorted(os.listdir()) == ["file", "folder", "link"]
    assert os.listdir("folder") == ["diary.txt"]


@pytest.mark.skipif(os.name == "nt", reason="folders of Windows have no such mode")
@pytest.mark.skipif(os.name != "nt" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(no_loading, tmp_path):
    tmp_path.chmod(0o500)
    assert "may not be written to; name another" in error_of("sample", ".", "--output", tmp_path / "a.png")


def test_classes_of_a_model_without(run):
    message = f"--class_labels 3 do not fit an unconditional model, as that of {run} is"
    assert message in error_of("sample", run, "--class_labels", "3")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), OUT_OF_MEMORY),
        (torch.OutOfMemoryError("x"), OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), OUT_OF_MEMORY),
        (OSError(f"at https://me:word@x.org\nwith Bearer {TOKEN}"), "at https://***@x.org with Bearer hf_***."),
    ],
)  # fmt: skip
def test_what_ends_a_subcommand(error, code, monkeypatch):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("ddpm_hf.sampling.open_model", fail)
    assert error_of("sample", ".", "--output", "a.png") == f"ddpm-hf: error: {code}"


def test_ctrl_c_ends_the_command_without_a_traceback(monkeypatch):
    monkeypatch.setattr(cli, "main", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(
        "ddpm_hf.ending.LEFT_BEHIND", "only threads of this test"
    )  # else it ends the process of the tests
    with pytest.raises(SystemExit) as stop:
        cli.program()
    assert stop.value.code == 130


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AssertionError("x"), RuntimeError("x")])
def test_a_mistake_of_the_program_keeps_its_traceback(error, monkeypatch):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("ddpm_hf.sampling.open_model", fail)
    with pytest.raises(type(error)):
        cli.main(["sample", ".", "--output", "a.png"])


# ---- Grids -----------------------------------------------------------------------------------------------------------


def test_one_process_draws_the_grid(run, tmp_path, monkeypatch, capsys):
    arguments = ["sample", str(run), "--output", str(tmp_path / "grid.png"), "--batch_size", "2"]
    with monkeypatch.context() as other:
        another = SimpleNamespace(is_main_process=False, device=torch.device("cpu"))
        other.setattr("ddpm_hf.processes.this_process", lambda: another)
        cli.main(arguments)
    assert not (tmp_path / "grid.png").exists()
    assert capsys.readouterr().out == ""
    cli.main(arguments)
    assert capsys.readouterr().out == f"{tmp_path / 'grid.png'} holds 2 images.\n"


@pytest.mark.slow
def test_two_processes_draw_one_grid(run, forks, tmp_path):
    flags = ["-m", "ddpm_hf.cli", "sample", run, "--batch_size", "2", "--output"]
    both = [process.wait() for process in forks.start_two(*flags, "two.png", cwd=tmp_path)]
    assert [process.returncode for process in both] == [0, 0], both[0].stderr
    assert "".join(process.stdout for process in both) == "two.png holds 2 images.\n"
    assert forks.run(*flags, "one.png", cwd=tmp_path).returncode == 0
    pictures = [np.asarray(Image.open(tmp_path / name)) for name in ("one.png", "two.png")]
    np.testing.assert_array_equal(*pictures)


# ---- Convert ---------------------------------------------------------------------------------------------------------


def test_converting_replaces_a_pipeline_and_nothing_else(run, tmp_path):
    target = tmp_path / "new" / "plain"
    cli.main(["convert", str(run), str(target), "--to", "diffusers"])
    first = (target / "model_index.json").read_text()
    (target / "notes.txt").write_text("mine")
    (target / "README.md").write_text("mine")
    assert "pass --overwrite_output_dir" in error_of("convert", run, target)
    assert (target / "model_index.json").read_text() == first

    cli.main(["convert", str(run), str(target), "--overwrite_output_dir"])
    assert (target / "model_index.json").read_text() != first
    assert [(target / name).read_text() for name in ("notes.txt", "README.md")] == ["mine"] * 2

    index = (target / "model_index.json").read_text()
    for other in ("[]", index.replace("{", '{"vae": ["diffusers", "AutoencoderKL"],', 1)):
        (target / "model_index.json").write_text(other)
        assert "ame an empty folder" in error_of("convert", run, target, "--overwrite_output_dir")
    (target / "model_index.json").write_text(index)
    (target / "unet" / "diary.txt").write_text("mine")
    cli.main(["convert", str(run), str(target), "--overwrite_output_dir"])
    assert (target / "unet" / "diary.txt").read_text() == "mine"


def test_a_folder_of_hidden_files_is_empty(run, tmp_path):
    (tmp_path / "out" / ".git").mkdir(parents=True)
    cli.main(["convert", str(run), str(tmp_path / "out")])
    assert (tmp_path / "out" / ".git").is_dir()
    assert (tmp_path / "out" / "model_index.json").exists()


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_help_is_there(subcommand, capsys):
    assert error_of(subcommand, "--help") == 0
    assert f"usage: ddpm-hf {subcommand}" in capsys.readouterr().out


HEAVY = {"torch", "diffusers", "accelerate", "datasets", "huggingface_hub", "numpy", "PIL", "scipy", "gradio"}
ANSWERED_AT_ONCE = f"""
import sys
from ddpm_hf import __version__, cli, command_line
for arguments in ("--help", "--version", "nosuch", "sample x --sed 1", "train --learning_rat 1", "train --help",
                  "sample x --num_images 0", "evaluate x --seed -1",
                  "train --train_data_dir x --help", "train --resolution 64x"):
    try:
        cli.main(arguments.split())
    except SystemExit:
        print("answered", arguments)
assert not {HEAVY} & sys.modules.keys(), {HEAVY} & sys.modules.keys()
for arguments in ("sample ./no/such", "demo no/such/one", "train --train_data_dir nosuch", "train --dataset_name ~/a"):
    try:
        cli.main(arguments.split())
    except SystemExit as stop:
        print("mistyped", stop)
left = {HEAVY} - {{"huggingface_hub"}}  # it knows the form of a Hub id
assert not left & sys.modules.keys(), left & sys.modules.keys()
"""


def test_nothing_heavy_is_imported_to_answer():
    done = subprocess.run([sys.executable, "-c", ANSWERED_AT_ONCE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("answered") == 10 and done.stdout.count("there is no such folder") == 4
    assert "did you mean --learning_rate?" in done.stderr and "--resolution 64x" in done.stderr


def test_classes_are_imported_when_they_are_asked_for():
    import ddpm_hf

    assert set(ddpm_hf.__all__) <= set(dir(ddpm_hf))
    assert all(getattr(ddpm_hf, name).__name__ == name for name in ddpm_hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'DDPMUNet'"):
        _ = ddpm_hf.DDPMUNet


@pytest.mark.slow
def test_train_is_the_script_without_a_launcher(train, small, forks, tmp_path):
    script = train("script", max_train_steps=2)
    done = forks.run("-m", "ddpm_hf.cli", "train", *small("command", max_train_steps=2))
    assert done.returncode == 0, done.stderr
    assert equal(script, tmp_path / "command")
