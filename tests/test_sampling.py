"""`ddpm-hf sample`: grids, folders, checkpoints, schedulers."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import weights

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel, sample_folder, sampling
from ddpm_hf.cli import main
from ddpm_hf.images.batches import seed_of
from ddpm_hf.other_schedulers import make_scheduler
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.sampling import Drawing, draw_images, generators_of, open_model, save_grid
from ddpm_hf.schedulers import SCHEDULERS


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder in which the first test that needs a run leaves one."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(train, trained, tmp_path):
    if not trained.exists():
        shutil.copytree(train(checkpointing_steps=2), trained)
    return Path(shutil.copytree(trained, tmp_path / "run", dirs_exist_ok=True))


def pixels(path):
    return np.asarray(Image.open(path))


def tiny_pipeline(channels, **options):
    unet = DDPMUNetModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8,),
        down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
        norm_num_groups=4,
        **options,
    )
    return DDPMPipelineCustom(unet, DDPMLinearScheduler())


def sample(*flags):
    main(["sample", *map(str, flags), "--num_inference_steps", "3"])


def test_the_grid_is_that_of_the_run(run, tmp_path):
    """The run drew its last grid with these settings, so the command draws the same bits."""
    sample(run, "--batch_size", 3, "--output", tmp_path / "grid.png")
    np.testing.assert_array_equal(pixels(tmp_path / "grid.png"), pixels(run / "samples" / "step-000004.png"))
    sample(run, "--batch_size", 3, "--seed", 1, "--output", tmp_path / "other.png")
    assert not np.array_equal(pixels(tmp_path / "other.png"), pixels(tmp_path / "grid.png"))


@pytest.mark.parametrize(("flags", "used", "note"), [("", "bf16", ""), ("--mixed_precision no", "no", "no is used; ")])
def test_the_precision_of_the_launcher_is_used(flags, used, note, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    capsys.readouterr()
    sample(run, "--num_images", 1, "--output", tmp_path / "images", *flags.split())
    assert json.loads((tmp_path / "images" / "sampling.json").read_text())["mixed_precision"] == used
    said = capsys.readouterr().out
    assert note in said and ("accelerate was told bf16" in said) == bool(note)


def test_an_interrupted_folder_is_continued(run, tmp_path):
    """Image i does not depend on the batch, and existing images are not drawn again."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    sample(run, "--num_images", 5, "--batch_size", 5, "--output", whole)
    sample(run, "--num_images", 2, "--batch_size", 1, "--output", parts)
    before = os.stat(parts / "000000.png").st_mtime_ns
    (parts / "000001.png").unlink()
    sample(run, "--num_images", 5, "--batch_size", 2, "--output", parts)
    names = [f"{i:06d}.png" for i in range(5)]
    assert sorted(path.name for path in parts.iterdir()) == [*names, "sampling.json"]
    for name in names:
        # The last bit of a convolution depends on the batch, and may change the rounding of a pixel.
        assert np.abs(pixels(whole / name).astype(int) - pixels(parts / name)).max() <= 1
    assert os.stat(parts / "000000.png").st_mtime_ns == before
    with pytest.raises(SystemExit, match="holds images drawn otherwise: seed 0 -> 1; name another"):
        sample(run, "--num_images", 5, "--seed", 1, "--output", parts)


@pytest.mark.parametrize("switches", [(), ("--no_use_ema",)])
def test_a_checkpoint_holds_the_pipeline_of_its_step(train, switches):
    folder = train("run", *switches, save_model_steps=2, checkpointing_steps=2)
    last = open_model(str(folder), "latest", None, None)
    for name, tensor in weights(folder).items():
        assert (last.unet.state_dict()[name] == tensor).all()
    saved = DDPMPipelineCustom.from_pretrained(folder)
    for part in ("unet", "scheduler"):
        for key, value in getattr(last, part).config.items():
            if key != "_use_default_values":  # keys that were not passed, or not saved
                assert getattr(saved, part).config[key] == value
    earlier = open_model(str(folder), "step-000002", None, None)
    assert any((a != b).any() for a, b in zip(earlier.unet.parameters(), last.unet.parameters()))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_by_name(run, tmp_path, name):
    flags = f"--scheduler {name} --batch_size 2 --num_inference_steps 10 --output".split()
    main(["sample", str(run), *flags, str(tmp_path / "grid.png")])
    assert pixels(tmp_path / "grid.png").shape == (252, 513)


def test_the_scheduler_of_the_model_draws_the_same_by_name(run, tmp_path, capsys):
    for flags in ((), ("--scheduler", "ddpm")):
        sample(run, "--batch_size", 2, *flags, "--output", tmp_path / f"{len(flags)}.png")
    np.testing.assert_array_equal(pixels(tmp_path / "0.png"), pixels(tmp_path / "2.png"))
    advice = "3 steps are few for DDPM; --scheduler sde-dpmsolver++ often draws better with as many."
    assert capsys.readouterr().out.count(advice) == 2


def test_a_format_that_cannot_hold_the_pictures_is_refused_before_drawing(tmp_path, monkeypatch):
    pipeline = tiny_pipeline(4, **PixelFormat("RGBA", 4).settings())
    monkeypatch.setattr(sampling, "draw_images", None)
    with pytest.raises(ValueError, match="such a file holds no RGBA picture"):
        save_grid(pipeline, tmp_path / "grid.jpg", Drawing())


def test_images_depend_on_seed_and_index_alone(tmp_path):
    pipeline = tiny_pipeline(1, zero_init=False)
    pipeline.set_progress_bar_config(disable=True)
    drawn = dict(draw_images(pipeline, [7, 2, 5], Drawing(0, 4, 2)))
    assert list(drawn) == [7, 2, 5]
    (alone,) = draw_images(pipeline, [5], Drawing(0, 4, 1))
    assert np.abs(np.asarray(alone[1]).astype(int) - np.asarray(drawn[5])).max() <= 1
    assert len({seed_of(0, "sample", i) for i in range(1000)}) == 1000


def test_mixed_precision(run, tmp_path):
    flags = "--num_images", 2, "--output", tmp_path
    sample(run, *flags, "--mixed_precision", "bf16")
    pipeline = open_model(str(run), None, None, None)
    pipeline.set_progress_bar_config(disable=True)
    with torch.autocast("cpu", torch.bfloat16):
        images = pipeline(2, generators_of(pipeline.device, 0, range(2)), 3).images
    for i, image in enumerate(images):
        np.testing.assert_array_equal(pixels(tmp_path / f"{i:06d}.png"), np.asarray(image))
    with pytest.raises(SystemExit, match="drawn otherwise: mixed_precision bf16 -> no"):
        sample(run, *flags)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_x_t_is_not_rounded_under_autocast(name):
    pipeline, types = tiny_pipeline(1, zero_init=False), set()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(name, pipeline.scheduler.config, 4)
    with torch.autocast("cpu", torch.bfloat16):
        pipeline(1, None, 4, callback_on_step_end=lambda pipeline, i, t, kept: types.add(kept["sample"].dtype) or {})
    assert types == {torch.float32}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_images", "0"], "--num_images 0: expected at least 1"),
        (["--checkpoint", "step-7"], "--checkpoint step-7: there is no .*; found step-000002, step-000004"),
        (["--output", "out.txt"], "--output out.txt: expected the name of a picture"),
        (["--num_inference_steps", "2000"], "--num_inference_steps 2000: .* has 1000 timesteps; pass 1000 or fewer"),
        (["--num_inference_steps", "2000", "--scheduler", "ddim"], "pass 1000 or fewer"),
        (["--num_inference_steps", "3", "--scheduler", "pndm"], "--num_inference_steps 3: pndm takes 4 or more"),
        (["--checkpoint", "latest", "--revision", "v1"], "--revision v1 is for a Hub id, and .* is a folder"),
    ],
)
def test_bad_input_ends_in_one_line(run, flags, message):
    with pytest.raises(SystemExit, match=message) as stop:
        main(["sample", str(run), *flags])
    assert "\n" not in stop.value.code


@pytest.mark.slow
def test_two_processes_share_a_folder(run, forks, tmp_path):
    flags = ["--num_images", "5", "--batch_size", "2", "--num_inference_steps", "3", "--output", tmp_path / "both"]
    codes, said = forks.run_two("-m", "ddpm_hf.cli", "sample", run, *flags)
    assert codes == [0, 0], said
    sample(run, "--num_images", 5, "--batch_size", 2, "--output", tmp_path / "alone")
    for i in range(5):
        a, b = (pixels(tmp_path / name / f"{i:06d}.png").astype(int) for name in ("both", "alone"))
        assert np.abs(a - b).max() <= 1
    assert json.loads((tmp_path / "both" / "sampling.json").read_text())["seed"] == 0


def test_a_folder_is_not_continued_with_another_model(run, train, tmp_path):
    """Not even if the names of the model and of its checkpoint are the same."""
    flags = ("--checkpoint", "latest", "--output", tmp_path / "drawn")
    sample(run, *flags, "--num_images", 1)
    other = train("other", seed=3)
    with pytest.raises(SystemExit, match=r"holds images drawn otherwise: model .* -> "):
        sample(other, *flags, "--num_images", 2)


def test_the_default_picture_of_others_is_not_overwritten(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        sample(run, "--batch_size", 1)
    (tmp_path / "samples.png").write_text("mine")
    with pytest.raises(SystemExit, match="name another with --output"):
        sample(run, "--batch_size", 1)


def test_a_folder_is_packed_into_one_array(run, tmp_path, capsys):
    flags = ("--num_images", 5, "--output", tmp_path / "drawn", "--npz", tmp_path / "drawn.npz")
    sample(run, *flags)
    assert "images/s, 16 at once." in capsys.readouterr().out
    packed = np.load(tmp_path / "drawn.npz")["arr_0"]
    assert (packed.shape, packed.dtype) == ((5, 28, 28, 1), np.uint8)
    for i in range(5):
        np.testing.assert_array_equal(packed[i, ..., 0], pixels(tmp_path / "drawn" / f"{i:06d}.png"))
    sample(run, *flags)  # all are there
    assert "images/s" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--npz", "a.npz"), "--npz a.npz packs a folder of images; pass --num_images, too"),
        (("--npz", "a.zip", "--num_images", 2), "--npz a.zip: expected the name of a file, such as samples.npz"),
        (("--compile",), "pays for many images; pass --num_images, too"),
    ],
)
def test_what_is_for_folders(run, flags, message):
    with pytest.raises(SystemExit, match=message):
        sample(run, *flags)


@pytest.mark.parametrize(("full_at", "fastest"), [(16, 16), (64, 64), (10_000, 64)])
def test_the_fastest_batch_is_taken(run, monkeypatch, full_at, fastest):
    """A step takes as long for one image as for `full_at`, and a CPU computes no more than its pixels at once."""
    monkeypatch.setattr(sample_folder, "_seconds_of_a_step", lambda pipeline, size, how: max(size, full_at) / full_at)
    pipeline = open_model(str(run), None, None, None)
    assert sample_folder.fastest_batch_size(pipeline, 1000, Drawing()) == fastest
    assert sample_folder.fastest_batch_size(pipeline, 5, Drawing()) == 16


def test_a_full_disk_ends_in_one_line(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(sample_folder, "save_sample", full)
    with pytest.raises(SystemExit, match="No space left on device"):
        sample(run, "--num_images", 3, "--output", tmp_path / "drawn")


def test_a_command_that_failed_before_its_first_image_leaves_the_folder_free(run, tmp_path):
    flags = ("--num_images", 1, "--output", tmp_path / "drawn")
    with pytest.raises(SystemExit, match="guidance_scale"):
        sample(run, *flags, "--guidance_scale", 2)
    assert not list((tmp_path / "drawn").iterdir())
    sample(run, *flags)
    with pytest.raises(SystemExit, match="drawn otherwise: seed 0 -> 1"):
        sample(run, *flags, "--seed", 1)


def test_settings_of_somebody_else_are_not_overwritten(run, tmp_path):
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "sampling.json").write_text('{"rate": 48000}')
    with pytest.raises(SystemExit, match="name another"):
        sample(run, "--num_images", 1, "--output", tmp_path / "drawn")
    assert json.loads((tmp_path / "drawn" / "sampling.json").read_text()) == {"rate": 48000}
