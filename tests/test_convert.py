"""Models of every origin are converted, and back to diffusers' own classes: equal outputs, bit-equal round trips."""

import json

import httpx2
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from oracles import annotated_unet
from safetensors.torch import load_file, save_file

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.cli import main
from ddpm_hf.convert import from_annotated, to_stock_pipeline
from ddpm_hf.loading import load_pipeline
from ddpm_hf.weights import read_state_dict

WEIGHTS = "diffusion_pytorch_model"


# ---- The published models -------------------------------------------------------------------------------------------


def published_unet(levels, widths, attention_level):
    """Return config.json as google/ddpm-* publish it. diffusers 0.0.4 wrote it, so newer keys are missing."""
    down, up = ["DownBlock2D"] * levels, ["UpBlock2D"] * levels
    down[attention_level] = "AttnDownBlock2D"
    up[levels - 1 - attention_level] = "AttnUpBlock2D"
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": widths,
        "center_input_sample": False,
        "down_block_types": down,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32 if levels == 4 else 256,
        "time_embedding_type": "positional",
        "up_block_types": up,
    }


CIFAR10 = published_unet(4, [128, 256, 256, 256], 1)
# One network for celebahq, church, bedroom and cat, with and without EMA.
LARGE = published_unet(6, [128, 128, 256, 256, 512, 512], 4)
PUBLISHED_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}


def old_attention_keys(weights):
    """Return the names that attention weights had when those models were published."""
    for theirs, old in (
        (".to_q.", ".query."),
        (".to_k.", ".key."),
        (".to_v.", ".value."),
        (".to_out.0.", ".proj_attn."),
    ):
        weights = {key.replace(theirs, old): value for key, value in weights.items()}
    return weights


def write_published(folder, config, suffix):
    """Write a repository like google/ddpm-*, with the U-Net's files at the root. Return the network."""
    torch.manual_seed(0)
    unet = UNet2DModel(**{key: value for key, value in config.items() if key[0] != "_"}).eval()
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    for name, content in (
        ("model_index.json", index),
        ("config.json", config),
        ("scheduler_config.json", PUBLISHED_SCHEDULER),
    ):
        (folder / name).write_text(json.dumps(content))
    weights = old_attention_keys(unet.state_dict())
    if suffix == "bin":
        torch.save(weights, folder / f"{WEIGHTS}.bin")
    else:
        save_file(weights, folder / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
    return unet


@pytest.mark.slow
@pytest.mark.parametrize(("config", "suffix"), [(CIFAR10, "bin"), (CIFAR10, "safetensors"), (LARGE, "safetensors")])
def test_published_models(tmp_path, config, suffix):
    (tmp_path / "published").mkdir()
    theirs = write_published(tmp_path / "published", config, suffix)
    pipeline = load_pipeline(tmp_path / "published")
    assert type(pipeline.unet) is DDPMUNetModel
    assert type(pipeline.scheduler) is DDPMLinearScheduler
    assert pipeline.scheduler.config.variance_type == "fixed_large"

    with torch.no_grad():
        for batch, height, width, t in ((1, 32, 32, 0), (2, 64, 32, 500), (3, 32, 32, torch.tensor([1, 400, 999]))):
            x = torch.randn(batch, 3, height, width)
            torch.testing.assert_close(pipeline.unet(x, t).sample, theirs(x, t).sample, rtol=0, atol=1e-5)

    pipeline.save_pretrained(tmp_path / "ours")
    main(["convert", str(tmp_path / "ours"), str(tmp_path / "stock"), "--to", "diffusers"])
    again = DDPMPipeline.from_pretrained(tmp_path / "stock")
    assert type(again.unet) is UNet2DModel
    assert type(again.scheduler) is DDPMScheduler
    assert again.unet.config.sample_size == config["sample_size"]
    wanted, got = theirs.state_dict(), again.unet.state_dict()
    assert wanted.keys() == got.keys()
    assert all(torch.equal(got[key], value) for key, value in wanted.items())


# ---- The annotated tutorial's weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_annotated_file(tmp_path, suffix):
    weights, reference = annotated_unet()
    file = tmp_path / f"unet.{suffix}"
    torch.save(weights, file) if suffix == "pt" else save_file(weights, file)
    main(["convert", str(file), str(tmp_path / "out"), "--sample_size", "16"])

    pipeline = DDPMPipelineCustom.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        got = pipeline.unet(reference["sample"], reference["timestep"]).sample
    torch.testing.assert_close(got, reference["output"], rtol=0, atol=1e-5)
    assert pipeline.unet.config.sample_size == 16
    assert not pipeline.scheduler.config.clip_sample
    with pytest.raises(ValueError, match=r"UNet2DModel has no equal of `narrow_up_blocks=True` .*annotated lineage"):
        to_stock_pipeline(pipeline)


# ---- Small pipelines ------------------------------------------------------------------------------------------------


@pytest.fixture
def stock(tmp_path):
    """Save a stock pipeline in a folder `stock`."""
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipeline = DDPMPipeline(unet.eval(), DDPMScheduler(prediction_type="v_prediction", clip_sample_range=2.0))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "stock")
    return pipeline


def test_there_and_back(stock, tmp_path):
    main(["convert", str(tmp_path / "stock"), str(tmp_path / "ours")])
    main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "diffusers"])
    for name in ("unet/config.json", "scheduler/scheduler_config.json", f"unet/{WEIGHTS}.safetensors"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("stock", "back"))
        assert first == second, name
    ours = DDPMPipelineCustom.from_pretrained(tmp_path / "ours")
    ours.set_progress_bar_config(disable=True)
    pictures = [
        p(2, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np").images for p in (ours, stock)
    ]
    assert abs(pictures[0] - pictures[1]).max() < 1e-5


def test_other_schedulers_are_kept(stock, tmp_path):
    from diffusers import DDIMScheduler

    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.save_pretrained(tmp_path / "ddim")
    assert type(load_pipeline(tmp_path / "ddim").scheduler) is DDIMScheduler

    set_key(tmp_path / "ddim" / "scheduler" / "scheduler_config.json", "beta_schedule", "other")
    with pytest.raises(ValueError, match=r"scheduler_config.json cannot be used: other is not implemented"):
        load_pipeline(tmp_path / "ddim")


# ---- Bad input ------------------------------------------------------------------------------------------------------


def change(weights, how):
    if how == "missing":
        del weights["up.1.res.norm1.bias"], weights["final.bias"]
    elif how == "extra":
        weights["middle.res3.conv1.weight"] = torch.zeros(1)
    elif how == "misshapen":
        weights["down.0.res.conv2.bias"] = torch.zeros(5)
    return weights


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"annotated tutorial's UNet with widths \(.*misses final.bias, up.1.res.norm1.bias\."),
        ("extra", r"annotated tutorial's UNet .*has the unknown middle.res3.conv1.weight\."),
        (
            "misshapen",
            r"annotated tutorial's UNet .*has in another shape down.0.res.conv2.bias \(5,\) instead of \(\d+,\)",
        ),
    ],
)
def test_annotated_keys_that_do_not_fit(how, message):
    with pytest.raises(ValueError, match=message):
        from_annotated(change(annotated_unet()[0], how))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv_in.bias"), "taken for a UNet2DModel, misses conv_in.bias"),
        (lambda w: w.update({"spare": torch.zeros(1)}), "taken for a UNet2DModel, has the unknown spare"),
        (
            lambda w: w.update({"conv_in.bias": torch.zeros(3)}),
            r"in another shape conv_in.bias \(3,\) instead of \(8,\)",
        ),
    ],
)
def test_stock_keys_that_do_not_fit(stock, tmp_path, change, message):
    file = tmp_path / "stock" / "unet" / f"{WEIGHTS}.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load_pipeline(tmp_path / "stock")


class Spy:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_with_code_are_refused(tmp_path):
    torch.save({"image_proj.weight": Spy(tmp_path / "written")}, tmp_path / "unet.pt")
    with pytest.raises(ValueError, match=r"unet\.pt is refused: it holds more than tensors"):
        read_state_dict(tmp_path / "unet.pt")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_files_are_named(tmp_path, suffix):
    file = tmp_path / f"unet.{suffix}"
    weights = annotated_unet()[0]
    torch.save(weights, file) if suffix == "pt" else save_file(weights, file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"unet\.{suffix} is broken"):
        load_pipeline(file)


def test_truncated_weights_in_a_folder_are_named(stock, tmp_path):
    file = tmp_path / "stock" / "unet" / f"{WEIGHTS}.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(OSError, match=f"{WEIGHTS}.safetensors"):
        load_pipeline(tmp_path / "stock")


@pytest.fixture
def ours(tmp_path):
    """Save a pipeline of this package in a folder `ours`."""
    unet = DDPMUNetModel(
        sample_size=8, block_out_channels=(8,), down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"],
        layers_per_block=1, norm_num_groups=4, add_attention=False,
    )  # fmt: skip
    DDPMPipelineCustom(unet, DDPMLinearScheduler()).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


CONFIGS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")


@pytest.mark.parametrize("content", [b"", b"[]", b'"x"', b"5", b"null", b'{"a": ', b"\xff\xfe", None])
@pytest.mark.parametrize("name", CONFIGS)
def test_broken_configurations_are_named(ours, name, content):
    (ours / name).unlink()
    if content is not None:
        (ours / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{name} is (broken|missing).*Take the file|holds no model_index.json"
    ) as error:
        load_pipeline(ours)
    assert "\n" not in str(error.value)


def set_key(file, key, value):
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("scheduler/scheduler_config.json", "num_train_timesteps", "many", "a whole number"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", -3, "a whole number, at least 1"),
        ("scheduler/scheduler_config.json", "beta_start", None, "a number"),
        ("scheduler/scheduler_config.json", "beta_end", float("nan"), "a number"),
        ("scheduler/scheduler_config.json", "beta_end", 3.7, "betas are not all in"),
        ("scheduler/scheduler_config.json", "beta_start", -1.0, "betas are not all in"),
        ("scheduler/scheduler_config.json", "clip_sample_range", -1.0, "more than 0"),
        ("scheduler/scheduler_config.json", "clip_sample", "yes", "true or false"),
        ("scheduler/scheduler_config.json", "trained_betas", ["a"], "a list of numbers"),
        ("scheduler/scheduler_config.json", "beta_schedule", "other", "one of"),
        ("unet/config.json", "_class_name", 3, "a text"),
        ("unet/config.json", "block_out_channels", 3, "a list"),
        ("unet/config.json", "sample_size", "x", "a whole number"),
        ("unet/config.json", "class_names", 5, "a list of names"),
        ("unet/config.json", "num_class_embeds", "a", "a whole number"),
        ("model_index.json", "_class_name", 5, "a text"),
        ("model_index.json", "unet", [], "two names"),
        ("model_index.json", "scheduler", "x", "two names"),
    ],
)
def test_values_of_another_type_are_named(ours, name, key, value, expected):
    set_key(ours / name, key, value)
    with pytest.raises(ValueError, match=f"{name}|{ours}.*`{key}.*expected {expected}") as error:
        load_pipeline(ours)
    assert name.split("/")[-1] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stock_unets_values_are_named(stock, tmp_path):
    set_key(tmp_path / "stock" / "unet" / "config.json", "in_channels", None)
    with pytest.raises(ValueError, match=r"unet/config.json cannot be used: `in_channels=None`"):
        load_pipeline(tmp_path / "stock")


def test_foreign_names_in_a_scheduler_are_loaded(ours):
    for key in ("variance_type", "prediction_type", "timestep_spacing"):
        set_key(ours / "scheduler" / "scheduler_config.json", key, "other")
    assert load_pipeline(ours).scheduler.config.variance_type == "other"


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\xff" * 100, b"\x10" + b"\0" * 7 + b"{no header}     "])
def test_broken_weights_are_named(ours, content):
    (ours / "unet" / f"{WEIGHTS}.safetensors").write_bytes(content)
    with pytest.raises(OSError, match=f"{WEIGHTS}.safetensors"):
        load_pipeline(ours)


def test_a_broken_list_of_weights_is_named(ours):
    (ours / "unet" / f"{WEIGHTS}.safetensors").unlink()
    (ours / "unet" / f"{WEIGHTS}.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"safetensors.index.json is broken"):
        load_pipeline(ours)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(stock, tmp_path, number):
    stock.unet.conv_in.bias.data[2:5] = number
    stock.save_pretrained(tmp_path / "stock")
    message = r"stock holds broken weights: 3 of the 8 numbers of conv_in.bias are NaN or infinite\."
    with pytest.raises(ValueError, match=message):
        load_pipeline(tmp_path / "stock")
    with pytest.raises(SystemExit, match=message):
        main(["sample", str(tmp_path / "stock"), "--output", str(tmp_path / "samples.png")])
    assert not (tmp_path / "samples.png").exists()

    weights = annotated_unet()[0]
    weights["final.bias"][0] = number
    weights["image_proj.bias"][0] = number
    save_file(weights, tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match=r"1 of the \d+ numbers of .*, and so are numbers of other tensors \(1\)\."):
        load_pipeline(tmp_path / "unet.safetensors")


# ---- Sources that do not exist --------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Make the Hub unreachable. Record what it is asked for."""
    requests = []

    def refuse(url, **options):
        requests.append(url)
        raise httpx2.ConnectError("Name or service not known")

    monkeypatch.setattr("ddpm_hf.places.get_hf_file_metadata", refuse)
    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", refuse)
    return requests


@pytest.mark.parametrize(
    "source",
    ["nosuch", "./no/such", "no/such/", "/no/such", "~/such", "~", "a/b/c", "no\\such", "no such/x", "../such", "ä/b",
     "https://huggingface.co/a/b", "no//such", "-a/b"],
)  # fmt: skip
def test_the_hub_is_not_asked_for_a_mistyped_folder(asked, source):
    with pytest.raises(ValueError, match=r"there is no such folder, and it is no Hub id, .*owner/name") as error:
        load_pipeline(source)
    assert source in str(error.value)
    assert asked == []


def test_the_hub_is_asked_once_where_it_cannot_be_reached(asked):
    with pytest.raises(
        SystemExit, match=r"nobody/nothing: there is no such folder, and the Hub.*cannot be reached \(Name"
    ):
        main(["sample", "nobody/nothing"])
    assert len(asked) == 1


def test_a_copy_of_a_repository_is_read_where_the_hub_cannot_be_reached(asked, ours, monkeypatch):
    monkeypatch.setattr("ddpm_hf.places.try_to_load_from_cache", lambda *args: str(ours / "model_index.json"))
    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", lambda *args, **kw: ours / "model_index.json")
    monkeypatch.setattr(DDPMPipelineCustom, "download", lambda *args, **kw: str(ours))
    assert type(load_pipeline("somebody/something").unet) is DDPMUNetModel
    assert asked == []


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model_index.json, so it is not the folder of a pipeline\.$"):
        load_pipeline(tmp_path)
    (tmp_path / "checkpoints" / "step-000500").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"It holds checkpoints of a run: add --checkpoint latest\."):
        load_pipeline(tmp_path)


def test_other_pipelines_are_named(tmp_path):
    index = {"_class_name": "LDMPipeline", "_diffusers_version": "0.42.1"}
    index |= {part: ["diffusers", kind] for part, kind in (("vqvae", "VQModel"), ("unet", "UNet2DModel"))}
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(ValueError, match=r"is a LDMPipeline of vqvae \(VQModel\), unet .*; expected a DDPM pipeline"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [("nothing", "model_index.json"), ("words.pt", "words.pt"), ("other.safetensors", "no `image_proj.weight`")],
)
def test_command_says_what_is_wrong_in_one_line(tmp_path, source, message):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "words.pt").write_text("no tensors")
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path / source), str(tmp_path / "out")])
    assert message in stopped.value.code
    assert "\n" not in stopped.value.code
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", [("--class_label", "b"), ("--no_class",)])
def test_one_class_alone_loads_in_stock_diffusers(tmp_path, flag):
    """The pipelines of diffusers pass no labels."""
    keys = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    classes = {"class_names": ["a", "b"], "num_class_embeds": 3, "class_frequencies": [0.5, 0.5]}
    shape = {"in_channels": 1, "out_channels": 1, "sample_size": 8, "norm_num_groups": 4}
    unet = DDPMUNetModel(**keys, **classes, **shape, zero_init=False).eval()
    DDPMPipelineCustom(unet, DDPMLinearScheduler()).save_pretrained(tmp_path / "model")
    main(["convert", str(tmp_path / "model"), str(tmp_path / "stock"), "--to", "diffusers", *flag])
    stock = DDPMPipeline.from_pretrained(tmp_path / "stock")
    x_t = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        ours = unet(x_t, 5, torch.tensor([1 if "b" in flag else 2] * 2)).sample
        torch.testing.assert_close(stock.unet(x_t, 5).sample, ours, rtol=0, atol=1e-5)
    assert len(stock(1, num_inference_steps=2).images) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--class_label", "c"], "--class_label c: there is no such class; expected one of a, b"), ([], "")],
)
def test_a_class_that_is_not_there(tmp_path, flags, message):
    keys = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    classes = {"class_names": ["a", "b"], "num_class_embeds": 3} if flags else {}
    unet = DDPMUNetModel(**keys, **classes, in_channels=1, out_channels=1, sample_size=8, norm_num_groups=4)
    DDPMPipelineCustom(unet, DDPMLinearScheduler()).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=message or "the model has no classes; leave it out"):
        main(["convert", str(tmp_path / "model"), str(tmp_path / "other"), *(flags or ["--no_class"])])
