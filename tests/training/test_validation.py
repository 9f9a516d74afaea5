"""The held-out loss of a run, its best pipeline, and the line when the curves part."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from runs import crash_at_rename, equal, metrics
from test_resume import assert_equal_runs

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel, cli
from ddpm_hf.config import TrainingConfig
from ddpm_hf.evaluation import command
from ddpm_hf.evaluation.likelihood import step_bits
from ddpm_hf.hub.card import render_card
from ddpm_hf.hub.push import _files
from ddpm_hf.images.batches import seed_of
from ddpm_hf.images.held_out import held_out_numbers
from ddpm_hf.pictures import loss_curve
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.training import run_folder, validation
from ddpm_hf.training.best import KeptBest
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.validation import HeldOutLoss, choose_pairs, memorising

FEW = {"validation_fraction": 0.25, "validation_steps": 1, "save_images_steps": 100, "ddpm_num_inference_steps": 1}


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch):
    monkeypatch.setattr(validation, "PAIRS", 12)


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        pixels = random.integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:02d}.png")
    return tmp_path / "pictures"


def read(path):
    return json.loads(path.read_text())


# ---- The loss -------------------------------------------------------------------------------------------------------


class Pictures(list):
    labels, form = None, PixelFormat("L", 1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_the_loss_is_the_formula(prediction_type, names):
    """Against a computation in float64, image by image, of the centre of images that are too wide.

    The loss of L_vlb is the bound that the evaluation measures, also in a run that draws timesteps by their losses.
    """
    random = np.random.default_rng(0)
    images = Pictures(random.integers(0, 256, (8, 12, 1), dtype=np.uint8) for _ in range(5))
    images.labels = names and np.array([0, 1, -1, 1, 0])
    unet = DDPMUNetModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), zero_init=False, dropout=0.5,
        class_names=names, num_class_embeds=names and 3,
    )  # fmt: skip
    scheduler = DDPMLinearScheduler(num_train_timesteps=100, prediction_type=prediction_type, clip_sample=False)
    config = TrainingConfig(
        resolution=8, preset="mnist", mixed_precision="no", ddpm_num_steps=100, train_batch_size=4, seed=3
    )
    held_out = HeldOutLoss(images, config, scheduler)
    before = torch.random.get_rng_state()
    numbers = held_out.measure(unet)
    assert torch.equal(torch.random.get_rng_state(), before)
    by_loss = dataclasses.replace(config, loss_weighting="vlb", timestep_sampling="loss_second_moment")
    bound = HeldOutLoss(images, by_loss, scheduler).measure(unet)

    unet = unet.double().eval()
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)).cumprod(0)
    losses, bits, quartiles = [], [], []
    assert sorted(np.unique(held_out.numbers, return_counts=True)[1]) == [2] * 5
    for i, t in zip(held_out.numbers.tolist(), held_out.timesteps.tolist()):
        x_0 = torch.from_numpy(images[i][:, 2:10]).double().permute(2, 0, 1)[None] / 127.5 - 1
        seed = seed_of(3, f"held-out noise at {t}", i)
        eps = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed)).double()[None]
        x_t = alpha_bar[t].sqrt() * x_0 + (1 - alpha_bar[t]).sqrt() * eps
        label = names and torch.tensor([2 if images.labels[i] < 0 else images.labels[i]])
        v = alpha_bar[t].sqrt() * eps - (1 - alpha_bar[t]).sqrt() * x_0
        target = eps if prediction_type == "epsilon" else v
        with torch.no_grad():
            losses.append(((unet(x_t, torch.tensor([t]), label).sample - target) ** 2).mean().item())
        if names is None:
            bits.append(100 * step_bits(unet, scheduler, (x_0 + 1) * 127.5, torch.tensor([t]), eps)[0].item())
        quartiles.append(1 + t // 25)
    assert numbers["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert names or bound["val_loss"] == pytest.approx(np.mean(bits), rel=1e-3)
    for q in (1, 2, 3, 4):
        mean = np.mean([loss for loss, quartile in zip(losses, quartiles) if quartile == q])
        assert numbers[f"val_loss_q{q}"] == pytest.approx(mean, rel=1e-5)


def test_pairs_spread_over_images_and_timesteps(monkeypatch):
    monkeypatch.setattr(validation, "PAIRS", 1000)
    for count, n in ((3, 3), (1000, 1000), (2500, 1000)):
        numbers, timesteps = choose_pairs(count, np.ones(1000), seed=0)
        images, times = np.unique(numbers, return_counts=True)
        assert (len(images), set(times)) == (n, {1000 // n})
        assert np.bincount(timesteps * 10 // 1000).tolist() == pytest.approx([len(numbers) / 10] * 10, abs=1)
        assert 0 <= timesteps.min() and timesteps.max() < 1000
    # If timesteps are trained unevenly, they come as often here.
    frequencies = np.array([1.0, 0, 2, 1])
    assert np.bincount(choose_pairs(10, frequencies, 0)[1]).tolist() == [250, 0, 500, 250]


# ---- Runs -----------------------------------------------------------------------------------------------------------


def test_a_run_has_the_bits_of_one_on_the_training_part_alone(train, pictures, tmp_path, capsys, monkeypatch):
    """And its files say what was held out, and the loss on it."""
    curves, draw = [], loss_curve
    monkeypatch.setattr(run_folder, "loss_curve", lambda *args, **how: curves.append(how) or draw(*args, **how))
    options = {**FEW, "validation_steps": 2, "logging_steps": 3, "train_data_dir": pictures}
    folder = train("held", "--keep_best", **options)
    facts = read(folder / "run.json")
    assert facts["images"] == 9
    assert (facts["held_out"]["images"], facts["held_out"]["of"]) == (3, 12)
    held_out = held_out_numbers(12, 3, 0, facts["held_out"]["fingerprint"])
    (tmp_path / "part").mkdir()
    for i in sorted({*range(12)} - {*held_out.tolist()}):
        shutil.copy(pictures / f"{i:02d}.png", tmp_path / "part")
    curve = curves[-1]["held_out"]
    alone = train("alone", train_data_dir=tmp_path / "part", **{"logging_steps": 3, "save_images_steps": 100})
    assert equal(folder, alone)
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [2, 3, 4]
    assert ["val_loss" in line for line in lines] == [True, False, True]
    assert lines[-1]["epoch"] == metrics(alone)[-1]["epoch"]

    points = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    assert curve == ([2, 4], [loss for _, loss in points])
    best_step, best_loss = min(points, key=lambda point: point[1])
    assert read(folder / "best" / "best.json") == {"metric": "loss", "value": best_loss, "step": best_step}
    DDPMPipelineCustom.from_pretrained(folder / "best")
    assert f"3 pictures were held out and never trained on; the loss on them was {points[-1][1]:.4f}" in render_card(
        folder
    )
    assert not [each.path_in_repo for each in _files(folder, render_card(folder)) if "best" in each.path_in_repo]
    said = capsys.readouterr().out
    assert "9 images (3 more are held out), 4 steps" in said
    assert f"the best model by loss, of step {best_step}" in said

    with pytest.raises(SystemExit, match=r"other options: --validation_fraction 0.25 -> 0.5"):
        train("held", **{**options, "validation_fraction": 0.5, "max_train_steps": 6})
    with pytest.raises(SystemExit, match=r"other options: --validation_fraction None -> 0.25"):
        train("alone", train_data_dir=tmp_path / "part", **{**FEW, "max_train_steps": 6})


def test_the_best_is_not_always_the_last(train, pictures, monkeypatch, capsys):
    """The losses are made up, and so is the moment when the curves part."""
    made_up = iter([0.5, 0.4, 0.45, None])
    monkeypatch.setattr(HeldOutLoss, "measure", lambda self, unet: {"val_loss": next(made_up)})
    monkeypatch.setattr(validation, "_have_parted", lambda held_out, trained: len(held_out) >= 3)
    monkeypatch.setattr(validation, "WINDOW", 1)
    folder = train("run", "--keep_best", train_data_dir=pictures, **FEW)
    assert read(folder / "best" / "best.json") == {"metric": "loss", "value": 0.4, "step": 2}
    assert not equal(folder / "best", folder)
    assert [line["val_loss"] for line in metrics(folder)] == [0.5, 0.4, 0.45, None]
    said = capsys.readouterr().out
    assert said.count("rose from 0.4 at step 2 to 0.45, and the training loss still falls: the network begins") == 1
    assert "memorise. best/ has step 2." in said


@pytest.mark.parametrize("moment", [pytest.param("before the best", marks=pytest.mark.slow), "before the numbers"])
def test_killed_and_resumed_equals_uninterrupted(train, pictures, monkeypatch, tmp_path, moment):
    """Dead while the held-out loss of step 3 is measured: after its checkpoint, or one step after the last one."""
    options = {**FEW, "train_data_dir": pictures, "checkpointing_steps": 3 if moment == "before the best" else 2}
    whole = train("whole", "--keep_best", **options)

    def dying(function):
        def die(*args):
            if any(step == 3 for step in args if isinstance(step, int)):
                raise KeyboardInterrupt
            return function(*args)

        return die

    with monkeypatch.context() as context:
        owner, name = (KeptBest, "offer") if moment == "before the best" else (RunFolder, "add_to_log")
        context.setattr(owner, name, dying(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            train("cut", "--keep_best", **options)
    cut = train("cut", "--keep_best", **options)
    assert_equal_runs(whole, cut)
    assert all("val_loss" in line for line in metrics(cut))
    assert read(whole / "best" / "best.json") == read(cut / "best" / "best.json")
    assert equal(whole / "best", cut / "best")
    assert (whole / "loss.png").read_bytes() == (cut / "loss.png").read_bytes()


def test_a_split_is_held_out_and_evaluated(train, pictures, tmp_path, monkeypatch):
    """`ddpm-hf evaluate` takes the training part, or with a flag the held-out one; also for the best pipeline."""
    (pictures / "train").mkdir()
    (pictures / "test").mkdir()
    for i, path in enumerate(sorted(pictures.glob("*.png"))):
        path.rename(pictures / ("test" if i < 4 else "train") / path.name)
    how = {"keep_best": "bpd", "eval_steps": 4, "eval_num_images": 2, "validation_split": "test"}
    del (few := dict(FEW))["validation_fraction"]
    run = train("split", train_data_dir=pictures, **few, **how)
    assert read(run / "best" / "best.json")["metric"] == "bpd"
    assert read(run / "run.json")["held_out"] == {"images": 4, "split": "test"}
    (tmp_path / "brightness.py").write_text("def of(pixels): return pixels.float().mean((1, 2, 3))[:, None]")
    monkeypatch.syspath_prepend(tmp_path)
    searched, draw = [], command.nearest_picture
    monkeypatch.setattr(command, "nearest_picture", lambda *args, k: searched.append(args[1]) or draw(*args, k=k))
    how = ["--metrics", "fid", "--features", "brightness:of", "--num_images", "2", "--num_inference_steps", "1"]
    cli.main(["evaluate", str(run / "best"), *how, "--held_out"])
    about = read(run / "best" / "evaluation.json")["fid"]
    assert (about["reference_images"], about["split"], about["part"]) == (4, "test", "held out")
    cli.main(["evaluate", str(run), *how])
    assert read(run / "evaluation.json")["fid"]["reference_images"] == 8
    assert [len(images) for images in searched] == [8, 8]


def test_a_fraction_is_evaluated_apart(train, pictures, tmp_path, monkeypatch):
    run = train("run", train_data_dir=pictures, max_train_steps=1, **FEW)
    how = ["--metrics", "bpd", "--num_images", "9", "--bpd_timesteps", "2"]
    counts = {}
    for flags in ([], ["--held_out"]):
        cli.main(["evaluate", str(run), *how, *flags, "--output", str(tmp_path / "n.json")])
        about = read(tmp_path / "n.json")["bpd"]
        counts[about["part"]] = (about["reference_images"], about["images"])
    assert counts == {"trained on": (9, 9), "held out": (3, 3)}
    with pytest.raises(SystemExit, match="--held_out: other pictures are named"):
        cli.main(["evaluate", str(run), *how, "--held_out", "--train_data_dir", str(tmp_path)])
    (pictures / "00.png").unlink()
    with pytest.raises(SystemExit, match="have changed: 12 then, 11 now, so nobody knows which were held out"):
        cli.main(["evaluate", str(run), *how])
    shutil.rmtree(run / "checkpoints")
    (run / "config.json").unlink()
    with pytest.raises(SystemExit, match="is no run that held pictures out"):
        cli.main(["evaluate", str(run), *how, "--held_out"])


# ---- The best pipeline ----------------------------------------------------------------------------------------------


class Weights:
    """A pipeline of two files."""

    def __init__(self, content):
        self.content = content

    def save_pretrained(self, folder):
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_text(self.content)
        (folder / "model_index.json").write_text(self.content)


def best_of(tmp_path, metric):
    options = {"keep_best": metric, "eval_steps": 1, "eval_metrics": "fid,prdc", "validation_fraction": 0.5}
    return KeptBest(TrainingConfig(output_dir=str(tmp_path), **options))


@pytest.mark.parametrize(("metric", "kept"), [("loss", 2), ("fid", 2), ("recall", 3)])
def test_lower_or_higher_is_better(tmp_path, metric, kept):
    name = "val_loss" if metric == "loss" else metric
    for step, value in enumerate([0.5, 0.4, 0.6, None, 0.5], 1):
        best_of(tmp_path, metric).offer({name: value, "other": 0.0}, step, Weights(f"{step}"))
    assert (tmp_path / "best" / "model_index.json").read_text() == f"{kept}"
    assert best_of(tmp_path, metric).record()["step"] == kept
    assert best_of(tmp_path, "fid" if metric == "loss" else "loss").record() is None


@pytest.mark.parametrize("crash_at", range(1, 7))
def test_a_crash_leaves_the_old_best_or_the_new(tmp_path, monkeypatch, crash_at):
    best = best_of(tmp_path, "loss")
    best.offer({"val_loss": 0.5}, 1, Weights("1"))
    (tmp_path / "best" / "notes.txt").write_text("mine")
    crash_at_rename(crash_at, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        best.offer({"val_loss": 0.4}, 2, Weights("2"))
    monkeypatch.undo()
    assert best.record() == {"metric": "loss", "value": 0.5, "step": 1}
    assert (tmp_path / "best" / "model_index.json").read_text() == "1"
    assert best.offer({"val_loss": 0.4}, 2, Weights("2"))
    assert best.record()["step"] == 2
    assert (tmp_path / "best" / "notes.txt").read_text() == "mine"


def test_a_new_run_removes_the_old_best_and_nothing_else(train, pictures, capsys):
    folder = train("run", "--keep_best", train_data_dir=pictures, max_train_steps=1, **FEW)
    (folder / "best" / "notes.txt").write_text("mine")
    train("run", "--overwrite_output_dir", train_data_dir=pictures, max_train_steps=1)
    assert "best/best.json" in capsys.readouterr().out
    assert [path.name for path in (folder / "best").rglob("*") if path.is_file()] == ["notes.txt"]
    Weights("mine").save_pretrained(folder / "best" / "x")
    (folder / "best" / "x" / "model_index.json").rename(folder / "best" / "model_index.json")
    with pytest.raises(SystemExit, match="holds a pipeline without best"):
        train("run", "--keep_best", train_data_dir=pictures, **FEW)


def test_a_broken_record_is_replaced(tmp_path, capsys):
    best = best_of(tmp_path, "loss")
    best.offer({"val_loss": 0.5}, 1, Weights("1"))
    (tmp_path / "best" / "best.json").write_text('{"metric": 5}')
    assert best.offer({"val_loss": 0.6}, 2, Weights("2"))
    assert "best.json is broken: `metric` is 5; expected a text. The next pipeline" in capsys.readouterr().out


# ---- When the curves part -------------------------------------------------------------------------------------------


def curves(held_out, trained, noise=0.0, seed=0):
    """Lines of metrics.jsonl: four of the training loss for each of the held-out loss."""
    random = np.random.default_rng(seed)
    lines = []
    for i, (v, u) in enumerate(zip(held_out, trained)):
        lines += [{"step": 40 * i + 10 * j, "loss": u * (1 + 0.02 * random.standard_normal())} for j in range(1, 5)]
        lines[-1]["val_loss"] = v * (1 + noise * random.standard_normal())
    return lines


def said(lines):
    """Every step at which the line is printed."""
    ends = [n for n, line in enumerate(lines, 1) if "val_loss" in line]
    return [lines[n - 1]["step"] for n in ends if memorising(lines[:n])]


X = np.arange(40)
FALLING = 0.03 + 0.05 * np.exp(-X / 10)
TURNING = 0.035 + 0.05 * np.exp(-X / 5) + 0.0005 * np.maximum(X - 20, 0)


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02])
def test_the_line_comes_once_when_the_network_memorises(noise):
    for seed in range(5):
        steps = said(curves(TURNING, FALLING, noise, seed))
        assert len(steps) == 1
        assert 40 * 23 <= steps[0] <= 40 * 38
    lines = curves(TURNING, FALLING)
    (step,) = said(lines)
    words = memorising([line for line in lines if line["step"] <= step])
    assert words.startswith("The held-out loss rose from 0.03592 at step 840 to 0.037")
    assert words.endswith("the network begins to memorise.")


@pytest.mark.parametrize(
    ("held_out", "trained", "noise"),
    [
        (FALLING, FALLING, 0.02),  # both fall
        (0.04 + 0 * X, FALLING, 0.005),  # a plateau
        (TURNING, TURNING, 0.0),  # both rise: too high a learning rate, say
        (np.where(X == 30, 0.08, FALLING), FALLING, 0.0),  # one bad value
        (TURNING[:5], FALLING[:5], 0.0),
        ([np.nan] * 0, [], 0.0),
    ],
)
def test_the_line_does_not_come_for_other_reasons(held_out, trained, noise):
    assert [said(curves(held_out, trained, noise, seed)) for seed in range(5)] == [[]] * 5
