"""DDPMUNetModel against diffusers' UNet2DModel, the annotated tutorial's network, and float64."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from oracles import annotated_unet
from safetensors.torch import load_file, save_file

from ddpm_hf import DDPMUNetModel
from ddpm_hf.convert import from_annotated, from_unet2d, to_unet2d
from ddpm_hf.presets import PRESETS
from ddpm_hf.unet_ddpm import GroupNorm, Upsample

# Configurations of stock U-Nets: the paper's, train_unconditional.py's, heads, groups, odd sizes.
STOCK = {
    "paper": {
        "sample_size": 32,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    },
    "train_unconditional": {
        "sample_size": 16,
        "block_out_channels": (32, 32, 64, 64),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    },
    "heads and groups": {
        "sample_size": (16, 24),
        "in_channels": 2,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "attention_head_dim": 3,
        "norm_num_groups": 2,
        "attn_norm_num_groups": 4,
        "layers_per_block": 1,
    },
    "class labels": {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "num_class_embeds": 10,
        "add_attention": False,
    },
    "no middle": {
        "sample_size": 8,
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 4,
        "mid_block_type": None,
    },
}


def perturbed(model):
    """Add noise to every parameter, so that no norm is the identity and no layer is zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tiny(**kwargs):
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return DDPMUNetModel(**{**config, **kwargs})


# ---- Parity ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def memory_format(request, monkeypatch):
    """Both memory layouts, on the CPU."""
    monkeypatch.setattr(DDPMUNetModel, "memory_format_on", lambda unet, device: request.param)
    return request.param


@pytest.mark.parametrize(("amx", "channels", "on_cpu"), [(False, 32, False), (True, 32, True), (True, 8, False)])
def test_memory_format_depends_on_the_device(amx, channels, on_cpu, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    unet = tiny(block_out_channels=(channels, channels))
    assert unet.conv_out.weight.is_contiguous(memory_format=torch.channels_last) == on_cpu
    asked = {device: unet.memory_format_on(torch.device(device)) for device in ("cpu", "cuda", "xpu", "mps", "meta")}
    last = [device for device, layout in asked.items() if layout is torch.channels_last]
    assert last == ["cpu"] * on_cpu + ["cuda", "xpu"]


@pytest.mark.parametrize("on_cpu", [False, True])
def test_memory_format_follows_the_weights(on_cpu, monkeypatch):
    """The device "meta" stands for a GPU. Its tensors have a layout and no values."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: on_cpu)
    monkeypatch.setattr("ddpm_hf.unet_ddpm.CHANNELS_LAST_DEVICES", () if on_cpu else ("meta",))
    unet = tiny(block_out_channels=(32, 32))
    unet(torch.randn(1, 1, 8, 8), 1).sample.sum().backward()

    def layouts():
        tensors = [t for p in unet.parameters() for t in (p, p.grad) if p.ndim == 4 and p.shape[2] > 1 < p.shape[1]]
        return {t.is_contiguous(memory_format=torch.channels_last) for t in tensors}

    assert layouts() == {on_cpu}
    unet.to("meta")
    assert layouts() == {not on_cpu}
    unet.to_empty(device="cpu")
    assert layouts() == {on_cpu}
    unet.half().float()
    assert layouts() == {on_cpu}
    unet.to(memory_format=torch.contiguous_format if on_cpu else torch.channels_last)
    assert layouts() == {not on_cpu}  # as its user asks


@pytest.mark.parametrize("name", STOCK)
def test_equals_stock_unet(name, memory_format):
    stock = perturbed(UNet2DModel(**STOCK[name]))
    ours = from_unet2d(stock).eval()
    labels = {"class_labels": torch.tensor([3, 9, 0])} if "num_class_embeds" in STOCK[name] else {}
    for height, width in ((16, 16), (24, 8)):
        x = torch.randn(3, stock.config.in_channels, height, width)
        for t in (torch.tensor([0, 500, 999]), torch.tensor(7), 999, torch.tensor([10.5, 0.25, 3.0])):
            wanted = stock(x, t, **labels).sample
            got = ours(x, t, **labels).sample
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert all(p.is_contiguous(memory_format=memory_format) for p in ours.parameters() if p.ndim == 4)


@pytest.mark.parametrize("name", STOCK)
def test_gradients_equal_stock_unet(name, memory_format):
    stock = perturbed(UNet2DModel(**STOCK[name]))
    ours = from_unet2d(stock).eval()
    x = torch.randn(2, stock.config.in_channels, 16, 16)
    labels = {"class_labels": torch.tensor([3, 9])} if "num_class_embeds" in STOCK[name] else {}
    for model in (stock, ours):
        model(x, torch.tensor([5, 700]), **labels).sample.square().mean().backward()
    # Our gradients are converted to stock's layout as if they were weights.
    for parameter in ours.parameters():
        parameter.data = parameter.grad
    for (key, parameter), (_, gradient) in zip(stock.named_parameters(), to_unet2d(ours).named_parameters()):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5, msg=key)


def test_bf16_is_close_to_float64(memory_format):
    """Under autocast, as in training: the errors of the prediction and of the gradients, relative to their norms."""
    unet = perturbed(tiny(block_out_channels=(16, 32)))
    x, t = torch.randn(4, 1, 16, 16), torch.tensor([0, 10, 500, 999])

    def run(dtype, autocast):
        unet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = unet.to(dtype)(x.to(dtype), t).sample.double()
        output.square().mean().backward()
        return [output.detach(), torch.cat([p.grad.double().flatten() for p in unet.parameters()])]

    for exact, coarse in zip(run(torch.float64, False), run(torch.float32, True)):
        assert ((exact - coarse).norm() / exact.norm()).item() < 2e-2


def test_autocast_does_not_round_x_t():
    """bf16 has no numbers between 1 and 1.0078. The smallest noise of the linear schedule is 0.01."""
    unet = perturbed(tiny()).eval()
    ones = torch.ones(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(unet(ones, 0).sample, unet(1.003 * ones, 0).sample)
        assert unet(ones.bfloat16(), 0).sample.dtype == torch.bfloat16


def test_default_is_the_papers_cifar10_model():
    stock = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    assert DDPMUNetModel().num_parameters() == stock.num_parameters() == 35_746_307


def test_equals_annotated_unet():
    weights, reference = annotated_unet()
    unet = from_annotated(weights).eval()
    got = unet(reference["sample"], reference["timestep"]).sample
    torch.testing.assert_close(got, reference["output"], rtol=0, atol=1e-5)


def test_annotated_preset_has_the_tutorials_layout():
    """Widths multiply level by level: 64, 128, 256, 1024. Each level narrows before upsampling."""
    with torch.device("meta"):
        unet = DDPMUNetModel(**PRESETS["annotated"]["model"])
    shapes = {k: tuple(p.shape) for k, p in unet.named_parameters()}
    assert shapes["mid_block.resnets.0.conv1.weight"] == (1024, 1024, 3, 3)
    assert shapes["up_blocks.0.resnets.2.conv1.weight"] == (256, 1024 + 256, 3, 3)
    assert shapes["up_blocks.0.resample.weight"] == (256, 256, 4, 4)
    assert shapes["up_blocks.0.attentions.2.to_qkv.weight"] == (3 * 256, 256)
    assert not unet.mid_block.attentions[0].group_norm.weight.requires_grad
    assert unet.conv_norm_out.num_groups == 8


def test_conversion_round_trip_is_bit_equal():
    stock = perturbed(UNet2DModel(**STOCK["paper"]))
    again = to_unet2d(from_unet2d(stock))
    for (key, a), (_, b) in zip(stock.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    with pytest.raises(ValueError, match="annotated lineage"):
        to_unet2d(from_annotated(annotated_unet()[0]))
    with pytest.raises(ValueError, match="time_embedding_type='fourier'"):
        from_unet2d(UNet2DModel(**{**STOCK["no middle"], "time_embedding_type": "fourier"}))


def test_upsampling_equals_nearest_and_convolution():
    upsample = Upsample(3).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    wanted = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), upsample.weight, upsample.bias, padding=1)
    got = upsample(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    weights = torch.randn_like(got)
    for parameter in (x, upsample.weight, upsample.bias):
        a, b = (torch.autograd.grad((y * weights).sum(), parameter, retain_graph=True)[0] for y in (got, wanted))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# ---- Shapes, memory, precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_size_and_channels(channels):
    unet = tiny(in_channels=channels, out_channels=channels)
    for size in ((2, 2), (8, 8), (6, 10), (34, 2)):
        assert unet(torch.randn(2, channels, *size), 3).sample.shape == (2, channels, *size)


def test_one_timestep_stands_for_the_batch():
    unet = perturbed(tiny())
    x = torch.randn(3, 1, 8, 8)
    wanted = unet(x, torch.tensor([4, 4, 4])).sample
    for t in (4, 4.0, torch.tensor(4), torch.tensor([4]), torch.tensor(4.0)):
        torch.testing.assert_close(unet(x, t, return_dict=False)[0], wanted, rtol=0, atol=1e-6)


def test_new_model_predicts_zero_and_learns():
    """Ho's initialisation: every residual branch and the output start at zero."""
    unet = tiny()
    x = torch.randn(2, 1, 8, 8)
    assert unet(x, 0).sample.abs().max() == 0
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = (unet(x, 0).sample - x).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


def test_initialisation_has_the_variance_of_its_layers():
    """A fused layer is initialised like the layers that it stands for, each with variance 1 / fan_avg."""
    torch.manual_seed(0)
    unet = DDPMUNetModel(
        block_out_channels=(128, 256), down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2
    )
    parts = {
        (512, 128): unet.time_projection.weight[: unet.time_widths[0]],
        (256, 256): unet.mid_block.attentions[0].to_qkv.weight[256:512],
        (9 * 128, 9 * 128): unet.down_blocks[0].resnets[0].conv1.weight,
    }
    for (fan_in, fan_out), weight in parts.items():
        assert weight.var().item() == pytest.approx(2 / (fan_in + fan_out), rel=0.03)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        unet = perturbed(tiny()).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
            assert unet.is_gradient_checkpointing
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        unet(x, torch.tensor([3, 500])).sample.square().mean().backward()
        gradients.append([p.grad for p in unet.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_gradient_checkpointing_reaches_the_blocks():
    """diffusers' own model tests expect this."""
    unet = tiny()
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    assert [block.gradient_checkpointing for block in blocks] == [False] * 5
    unet.enable_gradient_checkpointing()
    assert [block.gradient_checkpointing for block in blocks] == [True] * 5
    asked = []
    unet.up_blocks[0]._gradient_checkpointing_func = lambda block, *inputs: asked.append(block) or block(*inputs)
    unet(torch.zeros(1, 1, 8, 8), 1)
    assert asked == [m for pair in zip(unet.up_blocks[0].resnets, unet.up_blocks[0].attentions) for m in pair]
    unet.disable_gradient_checkpointing()
    assert not any(block.gradient_checkpointing for block in blocks)
    assert not unet.is_gradient_checkpointing


def test_float32_against_float64():
    unet = perturbed(tiny())
    x = torch.randn(2, 1, 8, 8)
    single = unet(x, 10).sample
    double = unet.double()(x.double(), 10).sample
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_bfloat16_against_float64():
    unet = perturbed(tiny())
    x = torch.randn(2, 1, 8, 8)
    wanted = unet.double()(x.double(), 10).sample
    got = unet.bfloat16()(x.bfloat16(), 10).sample.double()
    assert (got - wanted).norm() / wanted.norm() < 2e-2


def test_dropout_acts_in_training_only():
    unet = perturbed(tiny(dropout=0.5))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(unet(x, 1).sample, unet(x, 1).sample)
    unet.train()
    assert not torch.equal(unet(x, 1).sample, unet(x, 1).sample)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_saves_and_loads_bit_equal(tmp_path, variant):
    unet = perturbed(tiny())
    unet.save_pretrained(tmp_path, variant=variant)
    loaded = DDPMUNetModel.from_pretrained(tmp_path, variant=variant)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(unet(x, 10).sample, loaded(x, 10).sample)
    assert str(tmp_path) not in loaded.to_json_string()
    assert [f.suffix for f in tmp_path.iterdir() if f.name != "config.json"] == [".safetensors"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_and_copies(protocol):
    unet, x = perturbed(tiny()), torch.randn(1, 1, 8, 8)
    for again in (pickle.loads(pickle.dumps(unet, protocol)), copy.deepcopy(unet)):
        assert torch.equal(again(x, 10).sample, unet(x, 10).sample)


def test_the_folder_of_a_stock_unet_is_refused(tmp_path):
    UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    ).save_pretrained(tmp_path / "unet")
    for options in ({}, {"device_map": "auto"}, {"low_cpu_mem_usage": False}):
        with pytest.raises(ValueError, match=r"holds a UNet2DModel, .*ddpm-hf convert FOLDER NEW_FOLDER"):
            DDPMUNetModel.from_pretrained(tmp_path, subfolder="unet", **options)


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False}])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv_in.bias"), r"it misses conv_in\.bias\."),
        (lambda w: w.update(more=torch.zeros(1)), r"it has the unknown more\."),
        (lambda w: w.clear() or w.update(more=torch.zeros(1)), r"misses .*conv_in\.bias, .*; has the unknown more\."),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, message, options):
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    with pytest.raises(ValueError, match=message):
        DDPMUNetModel.from_pretrained(tmp_path, **options)
    options = {**options, "output_loading_info": True}  # returns the keys instead
    assert type(DDPMUNetModel.from_pretrained(tmp_path, **options)[0]) is DDPMUNetModel


def test_a_configuration_that_is_a_list_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    for load in (DDPMUNetModel.from_pretrained, DDPMUNetModel.load_config):
        with pytest.raises(ValueError, match=r"The config\.json of .* is of type list; expected keys and values"):
            load(tmp_path)


# ---- Devices and compilation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}},
        {"device_map": "auto", "max_memory": {"cpu": "10KB"}},  # all weights stay on the disk
        {"device_map": "auto", "max_memory": {"cpu": "20KB"}},  # some weights stay on the disk
    ],
)
def test_device_map(tmp_path, options):
    unet = tiny(zero_init=False).eval()
    unet.save_pretrained(tmp_path / "unet")
    loaded = DDPMUNetModel.from_pretrained(tmp_path / "unet", offload_folder=tmp_path / "weights", **options)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(loaded(x, 3).sample, unet(x, 3).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(tmp_path, dtype):
    unet = tiny(zero_init=False).eval()
    unet.save_pretrained(tmp_path)
    x = torch.randn(2, 1, 8, 8)
    half = DDPMUNetModel.from_pretrained(tmp_path, torch_dtype=dtype)(x.to(dtype), 3).sample
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), unet(x, 3).sample, rtol=0.02, atol=0.02)


def test_layerwise_casting():
    """Weights are stored in 8 bits. Each layer casts its own to the type of the sample."""
    unet = tiny(zero_init=False).eval()
    x = torch.randn(2, 1, 8, 8)
    wanted = unet(x, 3).sample
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    got = unet(x, 3).sample
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.2)
    assert not torch.equal(got, wanted)


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    unet = tiny(zero_init=False).eval()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(3)
    wanted = unet(x, t).sample
    keys = list(unet.state_dict())
    unet.compile(fullgraph=True)
    torch.testing.assert_close(unet(x, t).sample, wanted, rtol=0, atol=1e-5)
    assert list(unet.state_dict()) == keys


# ---- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"block_out_channels": (8, 18)}, r"block_out_channels=\(8, 18\).*multiples of norm_num_groups=4"),
        ({"block_out_channels": (8, 16, 32)}, "down_block_types.*each of the 3"),
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "SkipDownBlock2D.*AttnDownBlock2D"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
        ({"sample_size": 9}, "sample_size=9.*multiples of 2"),
        ({"sample_size": (8, 7)}, "sample_size"),
        ({"attention_head_dim": 32}, "attention_head_dim=32.*1 to 8"),
        ({"in_channels": 0}, "in_channels=0.*at least 1"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"downsample_padding": 2}, "downsample_padding"),
        ({"upsample_type": "resnet"}, "conv_transpose"),
        ({"norm_out_num_groups": 3}, "divisor of 8"),
        ({"freq_shift": 4}, "freq_shift=4"),
        ({"num_class_embeds": 0}, "num_class_embeds"),
        ({"num_class_embeds": "a"}, "num_class_embeds='a'.*whole number"),
        ({"block_out_channels": 3}, "block_out_channels=3.*a list"),
        ({"block_out_channels": []}, "block_out_channels=.*a list"),
        ({"block_out_channels": (8, "16")}, "block_out_channels=.*positive whole numbers"),
        ({"sample_size": "x"}, "sample_size='x'.*multiples of 2"),
        ({"sample_size": (8,)}, "sample_size"),
        ({"sample_size": 8.0}, "sample_size=8.0.*a whole number"),
        ({"class_names": 5}, "class_names=5.*a list of names"),
        ({"class_names": "ab", "num_class_embeds": 3}, "class_names='ab'.*a list of names"),
        ({"class_names": (1, 2), "num_class_embeds": 3}, "class_names.*a list of names"),
        ({"class_frequencies": (0.5, 0.5)}, "class_frequencies.*a share for each of class_names"),
        (
            {"class_names": ("a",), "num_class_embeds": 2, "class_frequencies": (-1,)},
            "class_frequencies=.*a share for each of class_names",
        ),
        ({"in_channels": "3"}, "in_channels='3'.*whole number"),
        ({"layers_per_block": True}, "layers_per_block=True.*whole number"),
        ({"down_block_types": None}, "down_block_types=None.*each of the 2"),
        ({"up_block_types": "ab"}, "up_block_types='ab'"),
        ({"up_block_types": ["UpBlock2D", {}]}, "up_block_types.*only"),
        ({"dropout": "0.1"}, "dropout='0.1'.*a number"),
        ({"norm_eps": None}, "norm_eps=None.*a number"),
        ({"norm_eps": math.nan}, "norm_eps=nan"),
        ({"attention_norm": "false"}, "attention_norm='false'.*True or False"),
    ],
)
def test_bad_config(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny(**kwargs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 8, 8), 1), r"\(2, 3, 8, 8\).*\(batch, 1, height, width\)"),
        ((torch.zeros(1, 8, 8), 1), r"\(1, 8, 8\)"),
        ((torch.zeros(2, 1, 9, 8), 1), "9x8 pixels.*multiples of 2"),
        ((torch.zeros(2, 1, 8, 8), torch.zeros(3)), r"\(3,\).*each of 2"),
        ((torch.zeros(2, 1, 8, 8), 1, torch.zeros(2)), "unconditional"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny()(*arguments)
    with pytest.raises(ValueError, match="class-conditional"):
        tiny(num_class_embeds=3)(torch.zeros(2, 1, 8, 8), 1)


def test_compiled_group_norm_keeps_channels_last():
    """Forward and backward; exact in float64's eyes, also where the mean is far from zero."""
    torch.manual_seed(0)
    norm = GroupNorm(4, 16, 1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (3 * torch.randn(2, 16, 6, 4) + 50).to(memory_format=torch.channels_last).requires_grad_()
    expected = F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6)
    output = norm.compute(x)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)
    weight = torch.randn_like(output)
    (there,), (gradient,) = (torch.autograd.grad((y * weight).sum(), x) for y in (expected, output))
    torch.testing.assert_close(gradient, there, rtol=0, atol=1e-5)
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (output, gradient))
