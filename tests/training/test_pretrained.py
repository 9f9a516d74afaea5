"""Fine-tuning: what a run takes over from a trained model, and how it is adapted to other images."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import ModelCard
from loopback_hub import File, LoopbackHub, Repository
from oracles import annotated_unet
from PIL import Image
from runs import make_run, metrics, weights
from safetensors.torch import load_file, save_file

from ddpm_hf import DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.hub.card import render_card
from ddpm_hf.loading import load_pipeline
from ddpm_hf.sampling import open_model
from ddpm_hf.training.model import make_model
from ddpm_hf.training.objective import loss_weights, timestep_weights
from ddpm_hf.training.pretrained import adapt, start_at_base

ROOT = Path(__file__).parents[2]
NETWORK = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}
SCHEDULER = {"prediction_type": "v_prediction", "beta_end": 0.03, "clip_sample_range": 2.0, "num_train_timesteps": 50}


def save_stock(folder, scheduler=None, **keys):
    """Save a pipeline of diffusers in a folder, and return the folder."""
    unet = UNet2DModel(**{"in_channels": 1, "out_channels": 1, **NETWORK, **keys})
    DDPMPipeline(unet, scheduler or DDPMScheduler(**SCHEDULER)).save_pretrained(folder)
    return folder


def to_oldest_layout(folder):
    """Move the files of both parts to the root, as diffusers 0.1 wrote them."""
    for path in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
        path.rename(folder / path.name)
    for part in ("unet", "scheduler"):
        (folder / part).rmdir()


@pytest.fixture
def base(tmp_path):
    return save_stock(tmp_path / "base")


@pytest.fixture
def tune(train, base, tmp_path):
    """Run train_ddpm.py from the base, unless another is passed, on six grey pictures of two classes."""
    for i in range(6):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)).save(path)

    def run(name="tuned", *switches, **options):
        defaults = {"pretrained_model_name_or_path": base, "model_config_name_or_path": None}
        return train(name, *switches, **{**defaults, "train_data_dir": tmp_path / "pictures", **options})

    return run


def assert_equal_weights(folder, other):
    """The networks of two pipelines are equal, whichever classes they are saved in."""
    ours, theirs = weights(folder), load_pipeline(other).unet.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


def configure(*flags):
    return parse_command_line([str(flag) for flag in flags])[0]


# ---- What is taken over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["today", "oldest"])
def test_a_run_starts_at_the_weights_and_settings_of_the_base(tune, base, layout, capsys):
    if layout == "oldest":
        to_oldest_layout(base)
    tuned = tune(learning_rate=0, max_train_steps=1)
    assert_equal_weights(tuned, base)
    theirs = DDPMScheduler(**SCHEDULER).config
    ours = json.loads((tuned / "scheduler" / "scheduler_config.json").read_text())
    assert {key: ours[key] for key in inspect.signature(DDPMScheduler).parameters} == {
        key: theirs[key] for key in inspect.signature(DDPMScheduler).parameters
    }
    out = capsys.readouterr().out
    assert f"weights are those of {base}, and instead of the preset's: ddpm_num_steps 50, resolution 8." in out
    assert f"It is fine-tuned from {base}." in out


def test_it_learns_from_there(tune, base):
    tuned = tune(max_train_steps=2)
    assert not torch.equal(weights(tuned)["conv_in.weight"], load_pipeline(base).unet.state_dict()["conv_in.weight"])


def test_a_flag_overrules_the_base_and_is_named(base, capsys):
    flags = ("--pretrained_model_name_or_path", base, "--prediction_type", "epsilon", "--resolution", 32)
    config = configure(*flags, "--no_clip_sample")
    assert (config.prediction_type, config.resolution, config.clip_sample) == ("epsilon", 32, False)
    assert config.ddpm_num_steps == 50
    lines = capsys.readouterr().out.splitlines()
    assert f"--resolution 32 is used; {base} has 8." in lines
    assert f"--clip_sample no is used; {base} has yes." in lines
    why = "so the network has to learn another target."
    assert f"--prediction_type epsilon is used; {base} has v_prediction, {why}" in lines
    scheduler = make_model(config, channels=1)[1]
    assert (scheduler.config.prediction_type, scheduler.config.beta_end) == ("epsilon", 0.03)


def test_the_base_lies_between_preset_and_file(base, tmp_path):
    (tmp_path / "options.yaml").write_text(f"pretrained_model_name_or_path: {base}\nvariance_type: fixed_large\n")
    config = configure("--config", tmp_path / "options.yaml", "--preset", "cifar10")
    assert config.model["block_out_channels"] == [8, 16]
    assert (config.resolution, config.variance_type, config.prediction_type) == (8, "fixed_large", "v_prediction")
    assert (config.learning_rate, config.random_flip) == (2e-4, True)


def test_the_options_of_a_run_repeat_it(base, tmp_path):
    config = configure("--pretrained_model_name_or_path", base, "--output_dir", "x", "--prediction_type", "sample")
    config.model |= {"class_names": ["a", "b"], "num_class_embeds": 3}
    (tmp_path / "config.json").write_text(config.to_json())
    again = configure("--config", tmp_path / "config.json")
    assert config.model.pop("class_names") and config.model.pop("num_class_embeds")
    assert again == config


def test_the_last_named_network_counts(base, tmp_path):
    """A flag replaces the network of a file, whichever of the two options names it."""
    DDPMUNetModel(**NETWORK | {"layers_per_block": 2}).save_config(tmp_path / "other")
    scratch, tuned = tmp_path / "scratch.json", tmp_path / "tuned.json"
    scratch.write_text(configure("--model_config_name_or_path", tmp_path / "other").to_json())
    tuned.write_text(configure("--pretrained_model_name_or_path", base).to_json())
    config = configure("--config", scratch, "--pretrained_model_name_or_path", base)
    assert (config.model["layers_per_block"], config.model_config_name_or_path) == (1, None)
    config = configure("--config", tuned, "--model_config_name_or_path", tmp_path / "other")
    assert (config.model["layers_per_block"], config.pretrained_model_name_or_path, config.base) == (2, None, {})


def test_other_schedulers_give_their_betas(tmp_path, capsys):
    ddim = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.001, prediction_type="v_prediction")
    base = save_stock(tmp_path / "ddim", ddim)
    scheduler = make_model(configure("--pretrained_model_name_or_path", base), channels=1)[1]
    assert torch.equal(scheduler.betas, ddim.betas)
    assert f"The DDIMScheduler of {base} becomes a DDPMLinearScheduler of the same betas." in capsys.readouterr().out


def test_betas_in_a_list_are_taken_over(tmp_path, capsys):
    betas = [0.01, 0.02, 0.04]
    base = save_stock(tmp_path / "trained", DDPMScheduler(num_train_timesteps=3, trained_betas=betas))
    flags = ("--pretrained_model_name_or_path", base)
    assert make_model(configure(*flags), channels=1)[1].betas.tolist() == pytest.approx(betas)
    for flag in ("--ddpm_num_steps 10", "--ddpm_beta_schedule squaredcos_cap_v2"):
        with pytest.raises(SystemExit):
            configure(*flags, *flag.split())
        assert f"{flag}: {base} has betas of its own" in capsys.readouterr().err
    scheduler = DDPMScheduler(num_train_timesteps=3, trained_betas=betas, beta_schedule="scaled_linear")
    file = tmp_path / "config.json"
    file.write_text(configure(flags[0], save_stock(tmp_path / "scaled", scheduler)).to_json())
    assert configure("--config", file).ddpm_num_steps == 3  # the file of such a run names another schedule


@pytest.mark.parametrize("timestep_sampling", ["uniform", "lognormal"])
def test_a_base_whose_last_step_is_pure_noise(tmp_path, timestep_sampling):
    """There alpha_bar is 0, and neither its weight nor its frequency is NaN."""
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    flags = ("--pretrained_model_name_or_path", save_stock(tmp_path / "base", scheduler))
    config = configure(*flags, "--timestep_sampling", timestep_sampling, "--loss_weighting", "min_snr")
    scheduler = make_model(config, channels=1)[1]
    assert scheduler.alphas_cumprod[-1] == 0
    for table in (timestep_weights(scheduler, config), loss_weights(scheduler, config)):
        assert table.isfinite().all() and (table >= 0).all()


def test_weights_of_the_annotated_tutorial(tmp_path):
    tensors, reference = annotated_unet()
    save_file(tensors, tmp_path / "unet.safetensors")
    flags = ("--pretrained_model_name_or_path", tmp_path / "unet.safetensors", "--output_dir", tmp_path / "run")
    config = configure(*flags, "--resolution", 16)
    unet, scheduler = make_model(config, channels=1)
    assert start_at_base(unet, config) == []
    assert (scheduler.config.variance_type, scheduler.config.clip_sample) == ("fixed_large", False)
    with torch.no_grad():
        output = unet(reference["sample"], reference["timestep"]).sample
    torch.testing.assert_close(output, reference["output"], rtol=0, atol=1e-5)
    assert config.model["dropout"] == 0
    assert configure("--preset", "annotated", *flags).model["dropout"] == 0.1  # weights do not tell it


def test_the_folder_of_a_run_is_a_base(tune):
    first = tune("first", max_train_steps=1)
    second = tune("second", pretrained_model_name_or_path=first, learning_rate=0, max_train_steps=1)
    assert_equal_weights(second, first)


# ---- Channels and labels ---------------------------------------------------------------------------------------------


def network(channels=1, names=None, **keys):
    """A network with random weights everywhere."""
    labels = {"class_names": names, "num_class_embeds": len(names) + 1} if names else {}
    sizes = {"in_channels": channels, "out_channels": channels, "zero_init": False}
    return DDPMUNetModel(**{**NETWORK, **sizes, **labels, **keys}).eval()


def adapted(base, **keys):
    unet = network(**keys)
    return unet, adapt(base, unet)


@torch.no_grad()
def predict(unet, x, *labels):
    return unet(x, torch.tensor([3, 40]), *labels).sample


@pytest.fixture
def grey():
    return torch.randn(2, 1, 8, 8)


@pytest.mark.parametrize("channels", [3, 4, 5])
def test_grey_to_more_channels(grey, channels):
    """A grey picture as one of several channels has the grey prediction in each channel."""
    base = network(1)
    unet, notes = adapted(base, channels=channels)
    expected = predict(base, grey).expand(-1, channels, -1, -1)
    torch.testing.assert_close(predict(unet, grey.expand(-1, channels, -1, -1)), expected)
    x = torch.randn(2, channels, 8, 8)
    torch.testing.assert_close(predict(unet, x)[:, :1], predict(base, x.mean(1, keepdim=True)))
    assert sum(f"adapted from 1 to {channels} channels" in note for note in notes) == 1


def test_colour_to_grey(grey):
    base = network(3)
    unet, _ = adapted(base, channels=1)
    expected = predict(base, grey.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    torch.testing.assert_close(predict(unet, grey), expected)


def test_grey_to_colour_and_back_is_the_same_network(grey):
    base = network(1)
    unet, _ = adapted(adapted(base, channels=3)[0], channels=1)
    torch.testing.assert_close(predict(unet, grey), predict(base, grey))


def test_channels_that_both_have_keep_their_weights():
    base, x = network(3), torch.randn(2, 4, 8, 8)
    more, _ = adapted(base, channels=4)
    assert torch.equal(predict(more, x)[:, 3:], torch.zeros(2, 1, 8, 8))
    torch.testing.assert_close(predict(more, x)[:, :3], predict(base, x[:, :3]))
    fewer, _ = adapted(base, channels=2)
    x[:, 2] = 0
    torch.testing.assert_close(predict(fewer, x[:, :2]), predict(base, x[:, :3])[:, :2])


def test_equal_channels_are_copied_and_nothing_is_said(grey):
    base = network(1)
    unet, notes = adapted(base)
    assert torch.equal(predict(unet, grey), predict(base, grey)) and notes == []


def test_labels_are_new_and_change_nothing_at_first(grey):
    base = network()
    unet, notes = adapted(base, names=["a", "b"])
    assert torch.equal(predict(unet, grey), predict(base, grey))
    assert torch.equal(predict(unet, grey, torch.tensor([0, 1])), predict(base, grey))
    assert notes == ["It had no labels: the embedding of the 2 classes starts at zero."]


def test_classes_of_the_same_name_are_kept(grey):
    base = network(names=["cat", "dog", "owl"])
    unet, notes = adapted(base, names=["ant", "dog", "cat"])
    assert torch.equal(predict(unet, grey, torch.tensor([2, 1])), predict(base, grey, torch.tensor([0, 1])))
    assert torch.equal(predict(unet, grey, torch.tensor([0, 3])), predict(base, grey))
    assert torch.equal(predict(unet, grey), predict(base, grey))
    assert notes == ["2 of the 3 classes are known to it by name; the others start as it is without a label."]
    assert adapted(base, names=["cat", "dog", "owl"])[1] == []


def test_labels_are_given_up(grey):
    base = network(names=["cat", "dog"])
    unet, notes = adapted(base)
    torch.testing.assert_close(predict(unet, grey), predict(base, grey))
    assert notes == ["Its labels are given up: it starts as it is without one. --class_conditional keeps them."]


def test_numbered_classes_of_a_stock_model(grey):
    """It has no label for none. The mean of the embeddings takes its place."""
    base = network(num_class_embeds=3)
    unet, _ = adapted(base, names=["2", "7"])
    assert torch.equal(predict(unet, grey, torch.tensor([0, 0])), predict(base, grey, torch.tensor([2, 2])))
    plain, notes = adapted(base)
    torch.testing.assert_close(predict(plain, grey), predict(unet, grey, torch.tensor([1, 2])))
    assert "on the average, since it has no label for none" in notes[0]


def test_a_run_with_labels_from_a_base_without(tune, base):
    tuned = tune("labelled", "--class_conditional", max_train_steps=1, learning_rate=0)
    unet, theirs = DDPMPipelineCustom.from_pretrained(tuned).unet, load_pipeline(base).unet
    assert unet.config.class_names == ["a", "b"]
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(predict(unet, x, torch.tensor([1, 2])), predict(theirs, x))


# ---- A run that goes on ----------------------------------------------------------------------------------------------


def last_checkpoint(folder):
    return {path.name: load_file(path) for path in (folder / "checkpoints" / "step-000004").glob("*.safetensors")}


def test_a_run_goes_on_without_its_base(tune, base, capsys):
    options = {"lr_scheduler": "constant", "checkpointing_steps": 2}
    whole = tune("whole", max_train_steps=4, **options)
    tune("parts", max_train_steps=2, **options)
    shutil.rmtree(base)
    parts = tune("parts", max_train_steps=4, **options)
    assert [line["loss"] for line in metrics(parts)] == [line["loss"] for line in metrics(whole)]
    a, b = last_checkpoint(whole), last_checkpoint(parts)
    assert a.keys() == b.keys() == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert all(torch.equal(a[file][key], value) for file in b for key, value in b[file].items())
    assert "are those of" not in capsys.readouterr().out.split("Going on from")[1]
    config = open_model(str(parts), "latest", None, None).scheduler.config
    assert {key: config[key] for key in SCHEDULER} == SCHEDULER
    with pytest.raises(SystemExit, match="is of a run with other options: --pretrained_model_name_or_path"):
        tune("parts", pretrained_model_name_or_path=save_stock(base.with_name("other")), max_train_steps=5, **options)


def test_overwriting_starts_at_the_base_again(tune, base):
    tune(max_train_steps=2)
    again = tune("tuned", "--overwrite_output_dir", max_train_steps=1, learning_rate=0)
    assert_equal_weights(again, base)
    shutil.rmtree(base)
    with pytest.raises(SystemExit):
        tune("tuned", "--overwrite_output_dir", max_train_steps=1)
    assert (again / "checkpoints" / "step-000001").exists()


def test_a_dry_run_tries_the_base_and_writes_nothing(tune, capsys):
    folder = tune("dry", "--dry_run", "--class_conditional")
    assert not folder.exists()
    assert "the embedding of the 2 classes starts at zero" in capsys.readouterr().out


@pytest.mark.slow
def test_a_base_on_the_hub(base, small, tmp_path):
    """Its settings come first, its weights later. The run goes on after the Hub has gone."""
    files = {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    with LoopbackHub({}) as hub:
        hub.repositories["alice/base"] = Repository(private=False)
        hub.repositories["alice/base"].commit(
            {name: File(file, lfs=len(file) > 10_000) for name, file in files.items()}
        )
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        options = {"model_config_name_or_path": None, "pretrained_model_name_or_path": "alice/base", "resolution": 28}
        options["lr_scheduler"] = "constant"

        def launch(**more):
            command = [sys.executable, ROOT / "train_ddpm.py", *small("run", **options, **more)]
            return subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True)

        said = launch(learning_rate=0, max_train_steps=1).stdout
    run = tmp_path / "run"
    assert_equal_weights(run, base)
    assert "--resolution 28 is used; alice/base has 8." in said
    assert ModelCard(render_card(run)).data.base_model == "alice/base"
    shutil.rmtree(tmp_path / "home")
    assert "Going on from" in launch(learning_rate=0, max_train_steps=2).stdout


# ---- The card --------------------------------------------------------------------------------------------------------


def test_the_card_names_a_base_of_the_hub_and_no_path(tmp_path, base):
    run = make_run(tmp_path / "run")
    noted = configure("--pretrained_model_name_or_path", base).base
    for name, hub_id in (("alice/digits", "alice/digits"), (str(base), None), ("a/b", "a/b](http://evil) [c")):
        config = json.loads((run / "config.json").read_text())
        config |= {"pretrained_model_name_or_path": name, "base": {**noted, "hub_id": hub_id}}
        (run / "config.json").write_text(json.dumps(config))
        card = render_card(run)
        is_named = name == "alice/digits"
        assert ModelCard(card).data.base_model == ("alice/digits" if is_named else None)
        assert ("fine-tuned from [`alice/digits`](https://huggingface.co/alice/digits)" in card) == is_named
        assert ("It was fine-tuned from another model." in card) != is_named
        assert str(tmp_path) not in card and "evil" not in card


def test_the_card_of_a_run_from_scratch_names_none(tmp_path):
    card = render_card(make_run(tmp_path / "run"))
    assert "fine-tuned" not in card and ModelCard(card).data.base_model is None


# ---- Errors ----------------------------------------------------------------------------------------------------------


def set_keys(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: save_stock(base, out_channels=2), "1 input channels and 2 output channels; expected 1 for the"),
        (lambda base: save_stock(base, out_channels=3), "1 input channels and 3 output channels; expected 1 for"),
        (lambda base: set_keys(base / "unet" / "config.json", class_embed_type="timestep"), "class_embed_type='timest"),
        (lambda base: set_keys(base / "model_index.json", vae=["diffusers", "AutoencoderKL"]), "expected a DDPM pipel"),
        (lambda base: set_keys(base / "model_index.json", unet=["diffusers", "UNet1DModel"]), "expected a DDPM pipel"),
        (lambda base: set_keys(base / "model_index.json", scheduler=["diffusers", "ScoreSdeVeScheduler"]), "add noise"),
        (
            lambda base: set_keys(base / "scheduler" / "scheduler_config.json", prediction_type="flow"),
            "its scheduler has the prediction_type flow; expected one of epsilon, sample, v_prediction",
        ),
        (
            lambda base: set_keys(base / "scheduler" / "scheduler_config.json", variance_type="learned_range"),
            "1 input channels and 1 output channels; expected 2 for the variance_type learned_range",
        ),
        (
            lambda base: set_keys(base / "scheduler" / "scheduler_config.json", trained_betas=[0.1]),
            "its scheduler has 1 `trained_betas`; expected 50, its `num_train_timesteps`",
        ),
        (shutil.rmtree, "there is no such folder"),
        (lambda base: (base / "model_index.json").unlink(), "holds no model_index.json"),
    ],
)  # fmt: skip
def test_other_models_are_refused_in_one_line(base, change, message, capsys):
    change(base)
    with pytest.raises(SystemExit):
        configure("--pretrained_model_name_or_path", base)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"error: --pretrained_model_name_or_path {base}: " in lines[0] and message in lines[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model_config_name_or_path", "x.json"), "both name the network; pass one of them"),
        (("--resolution", "27"), "--resolution 27: the U-Net halves its input 1 times, so the resolution has to be"),
        (("--config", "options.yaml"), "its network has `layers_per_block` 1, and --config says 3; take `model` out"),
    ],
)
def test_flags_that_do_not_fit_the_base(base, tmp_path, monkeypatch, flags, message, capsys):
    monkeypatch.chdir(tmp_path)
    DDPMUNetModel(**NETWORK).save_config(tmp_path)
    (tmp_path / "config.json").rename("x.json")
    (tmp_path / "options.yaml").write_text(
        f"pretrained_model_name_or_path: {base}\nmodel:\n  layers_per_block: 3\n  norm_num_groups: 4\n"
    )
    with pytest.raises(SystemExit):
        configure(*(() if "--config" in flags else ("--pretrained_model_name_or_path", base)), *flags)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_the_base_is_not_overwritten(tune, base):
    with pytest.raises(SystemExit, match=r"--pretrained_model_name_or_path .* lies in --output_dir"):
        tune(output_dir=base)
    with pytest.raises(SystemExit, match="lies in --output_dir"):
        tune("x", "--overwrite_output_dir", output_dir=base)


def test_weights_that_miss_some_are_refused_before_images_are_decoded(tune, base, monkeypatch):
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if key != "conv_in.bias"}, file)
    monkeypatch.setattr("ddpm_hf.prepare.open_images", None)
    with pytest.raises(SystemExit, match=r"--pretrained_model_name_or_path .* misses conv_in.bias"):
        tune()


def test_a_run_that_has_no_model_yet(base, capsys):
    (base / "model_index.json").unlink()
    (base / "checkpoints" / "step-000002").mkdir(parents=True)
    with pytest.raises(SystemExit):
        configure("--pretrained_model_name_or_path", base)
    assert "It holds checkpoints of a run, but no model yet; " in capsys.readouterr().err
