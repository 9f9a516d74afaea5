"""`ddpm-hf export`: the table of the steps, the graphs, and the reader, against schedulers and pipelines."""

import ast
import json
import re
import subprocess
import sys
from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UniPCMultistepScheduler
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel, cli
from ddpm_hf.export import draw, files, graph
from ddpm_hf.export.files import Export, noise_of, write_export
from ddpm_hf.export.graph import with_half_weights, with_int8_weights
from ddpm_hf.export.modules import is_noisy
from ddpm_hf.export.table import clip_of, table_of

CONFIGS = [
    {"prediction_type": kind, "clip_sample": clip, **keys}
    for kind, clip in product(("epsilon", "sample", "v_prediction"), (True, False))
    for keys in (
        {},
        {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 0.5},
        {"timestep_spacing": "linspace", "steps_offset": 1},
    )
] + [{}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}]
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")  # stock gives NaN for fixed_large_log

LABELS = {"num_class_embeds": 3, "class_names": ("cat", "dog"), "class_frequencies": (0.25, 0.75)}


class FakeNetwork:
    """Something nonlinear in place of a network, called as a model of onnxruntime."""

    def __init__(self, channels):
        self.channels = channels

    def run(self, _, inputs):
        x, t = inputs["sample"], inputs["timestep"].reshape(-1, 1, 1, 1).astype(np.float32)
        return [np.concatenate([np.sin((i + 2) * x + t / 100) for i in range(self.channels // x.shape[1])], axis=1)]


def tiny(**keys):
    torch.manual_seed(0)
    config = {"sample_size": (8, 12), "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), **keys}
    one = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    return DDPMUNetModel(**{**one, **config}, layers_per_block=1, norm_num_groups=4, zero_init=False).eval()


@pytest.fixture
def pipeline():
    pipeline = DDPMPipelineCustom(tiny(**LABELS), DDPMLinearScheduler(50, prediction_type="v_prediction"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.filterwarnings("ignore:With `variance_type")
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_reader_steps_as_stock_schedulers(config):
    """From the same noise, with any network: DDIM, and DDPM with each type of variance."""
    stocks = [(DDIMScheduler(**config), 1)]
    if not config.get("steps_offset"):  # stock's DDPM draws other timesteps than its DDIM with it
        stocks += [(DDPMScheduler(variance_type=kind, **config), 1 + (kind == "learned_range")) for kind in VARIANCES]
    for stock, channels in stocks:
        is_ddim = isinstance(stock, DDIMScheduler)
        ours = stock if is_ddim else DDPMLinearScheduler.from_config(stock.config)
        table = table_of(ours, 7)
        about = {"sample_shape": (1, 4, 4), "loop": False, "clip": clip_of(ours), "noisy": is_noisy(table)}
        x_t, z = noise_of(torch.Generator().manual_seed(1), 2, about := {**about, "steps": table})
        network = FakeNetwork(channels)

        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 1, 4, 4, generator=generator)
        stock.set_timesteps(7)
        for t in stock.timesteps:
            output = torch.from_numpy(network.run(None, {"sample": x.numpy(), "timestep": np.full(2, t)})[0])
            x = stock.step(output, t, x, **({} if is_ddim else {"generator": generator})).prev_sample
        expected = (x / 2 + 0.5).clamp(0, 1).numpy()
        np.testing.assert_allclose(draw.draw(network, about, x_t, None, z), expected, atol=2e-4)


def assert_draws_alike(pipeline, folder, about, **options):
    """Other batch sizes and picture sizes than those of the tracing."""
    pipeline.unet.register_to_config(sample_size=(16, 4))
    x_T, z = noise_of(torch.Generator().manual_seed(5), 5, {**about, "sample_shape": (1, 16, 4)})
    options |= {"class_labels": ["cat", "dog", "dog", "cat", "dog"], "output_type": "pt"}
    expected = pipeline(5, torch.Generator().manual_seed(5), len(about["steps"]["timesteps"]), **options).images
    network = onnxruntime.InferenceSession(folder / "model.onnx")
    images = draw.draw(network, about, x_T, np.array([0, 1, 1, 0, 1]), z)
    np.testing.assert_allclose(images, expected.numpy(), atol=1e-5)


def test_the_command_and_its_reader(pipeline, tmp_path, capsys):
    """The reader needs nothing but onnxruntime and NumPy. A new export replaces an old one."""
    pipeline.save_pretrained(tmp_path / "model")
    folder, flags = tmp_path / "out", ["--num_inference_steps", "3"]
    cli.main(["export", str(tmp_path / "model"), str(folder), *flags, "--format", "safetensors-only"])
    cli.main(["export", str(tmp_path / "model"), str(folder), *flags])
    assert re.search(r"model.onnx holds 0.\d+ MB. Its pictures differ by \de-0[678] of", capsys.readouterr().out)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "sampler.json", "draw.py"}
    about = json.loads((folder / "sampler.json").read_text())
    tree = list(ast.walk(ast.parse((folder / "draw.py").read_text())))
    modules = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in tree if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}

    subprocess.run([sys.executable, "draw.py", "3", "7"], cwd=folder, check=True, capture_output=True)
    rng = np.random.default_rng(7)
    labels = rng.choice(2, 3, p=LABELS["class_frequencies"])
    x_T, *z = rng.standard_normal((4, 3, 1, 8, 12), np.float32)
    network = onnxruntime.InferenceSession(folder / "model.onnx")
    images = draw.draw(network, about, x_T, labels, z)
    expected = np.hstack((images[:, 0] * 255).round().astype(np.uint8))
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "samples.pgm")), expected)
    assert_draws_alike(pipeline, folder, about)


@pytest.mark.slow
def test_a_guided_loop_draws_what_the_pipeline_draws(pipeline, tmp_path):
    """With all kinds of blocks."""
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = tiny(block_out_channels=(8, 8), mid_block_type="UNetMidBlock2D", **blocks, **LABELS)
    pipeline.register_modules(unet=unet, scheduler=DDIMScheduler.from_config(pipeline.scheduler.config))
    assert write_export(pipeline, tmp_path, Export("onnx", 3, loop=True, guidance_scale=3.0)) < 1e-5
    about = json.loads((tmp_path / "sampler.json").read_text())
    assert_draws_alike(pipeline, tmp_path, about, guidance_scale=3.0)


@pytest.mark.slow
def test_a_noisy_loop_draws_what_the_pipeline_draws(pipeline, tmp_path):
    assert write_export(pipeline, tmp_path, Export("onnx", 3, loop=True)) < 1e-5
    assert_draws_alike(pipeline, tmp_path, json.loads((tmp_path / "sampler.json").read_text()))
    assert write_export(pipeline, tmp_path, Export("torch.export", 2, loop=True)) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "sampler.json"}


@pytest.mark.slow
def test_smaller_weights_and_a_learned_variance(tmp_path):
    """The rounding of 16 bits is that of the weights, and nothing else."""
    unet = tiny(in_channels=3, out_channels=6, block_out_channels=(16,))
    pipeline = DDPMPipelineCustom(unet, DDPMLinearScheduler(50, variance_type="learned_range"))
    pipeline.set_progress_bar_config(disable=True)
    sizes = {}
    for dtype, most in (("fp32", 1e-5), ("int8", 0.5), ("fp16", 0.02)):
        assert write_export(pipeline, tmp_path, Export(num_inference_steps=3, dtype=dtype)) < most
        sizes[dtype] = (tmp_path / "model.onnx").stat().st_size
    assert sizes["fp16"] < 0.8 * sizes["fp32"]
    assert sizes["int8"] < 0.8 * sizes["fp32"]
    for parameter in unet.parameters():
        if parameter.numel() >= 64:
            parameter.data = parameter.half().float()
    x, t = torch.randn(2, 3, 8, 12), torch.tensor([3, 40])
    (out,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(
        None, {"sample": x.numpy(), "timestep": t.numpy()}
    )
    np.testing.assert_allclose(out, unet(x, t).sample.detach().numpy(), atol=1e-4)


def test_torch_export_draws_what_the_pipeline_draws(pipeline, tmp_path):
    assert write_export(pipeline, tmp_path, Export("torch.export", 3)) < 1e-5
    program = torch.export.load(tmp_path / "model.pt2").module()
    x, labels, t = torch.randn(4, 1, 16, 4), torch.tensor([0, 1, 2, 1]), torch.tensor([3, 7, 9, 40])
    output = program(sample=x, timestep=t, class_labels=labels)
    torch.testing.assert_close(output, pipeline.unet(x, t, labels).sample)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_safetensors_only_is_the_network(dtype, pipeline, tmp_path):
    assert write_export(pipeline, tmp_path, Export("safetensors-only", 3, dtype=dtype)) is None
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "sampler.json"}
    unet = DDPMUNetModel.from_config(json.loads((tmp_path / "config.json").read_text()))
    unet.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for a, b in zip(unet.parameters(), pipeline.unet.parameters(), strict=True):
        torch.testing.assert_close(a, b.half().float() if dtype == "fp16" else b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        (
            {"scheduler": UniPCMultistepScheduler()},
            {},
            "UniPCMultistepScheduler cannot be exported: pass --scheduler ddim",
        ),
        ({"scheduler": DDIMScheduler(thresholding=True)}, {}, "`thresholding` cannot be exported"),
        ({"scheduler": DDPMLinearScheduler(variance_type="learned")}, {}, "'learned'` cannot be exported with DDPM"),
        ({"unet": tiny()}, {"guidance_scale": 2.0}, "--guidance_scale 2 needs a model of named classes"),
        ({"unet": tiny(sample_size=None)}, {}, "The U-Net's configuration has no `sample_size`"),
    ],
)
def test_models_that_cannot_be_exported(change, how, message, pipeline, tmp_path):
    pipeline.register_modules(**change)
    with pytest.raises(ValueError, match=message):
        write_export(pipeline, tmp_path / "out", Export(num_inference_steps=3, **how))
    assert not (tmp_path / "out").exists()


def test_a_wrong_graph_is_not_written(pipeline, tmp_path, monkeypatch):
    """An operator that ONNX lacks, and a graph that computes something else."""
    how = Export(num_inference_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(DDPMUNetModel, "forward", lambda self, x, t, y, return_dict: (torch.special.bessel_j1(x),))
        with pytest.raises(
            ValueError, match=r"ONNX cannot express this network \(.*bessel.*\); try --format torch.export"
        ):
            write_export(pipeline, tmp_path / "out", how)
    monkeypatch.setattr(graph, "to_onnx", lambda *_: _identity())
    with pytest.raises(
        ValueError, match=r"differ by 0\.\d+ of the range; expected at most 0.0001. Nothing was written"
    ):
        write_export(pipeline, tmp_path / "out", how)
    assert not (tmp_path / "out").exists()


def _identity():
    info = {
        name: helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in ("timestep", "class_labels")
    }
    x, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("sample", "out_sample"))
    nodes = [helper.make_node("Identity", ["sample"], ["out_sample"])]
    whole = helper.make_graph(nodes, "identity", [x, *info.values()], [out])
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dtype int8 --format torch.export", "--dtype int8: --format torch.export has fp32."),
        ("--loop --format safetensors-only", "--loop: --format safetensors-only holds weights, and no graph"),
        (
            "--loop --format torch.export --num_inference_steps 41",
            "writes each of the 41 steps; pass --num_inference_steps 40 or fewer",
        ),
        ("--num_inference_steps 0", "--num_inference_steps 0: expected at least 1"),
        ("--guidance_scale nan", "--guidance_scale nan: expected at least 0"),
    ],
)
def test_flags_that_do_not_fit(flags, message, pipeline, tmp_path, monkeypatch):
    """They are refused before anything is traced or written."""
    monkeypatch.setattr(files, "MOST_UNROLLED", 40)
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=message):
        cli.main(["export", str(tmp_path / "model"), str(tmp_path / "out"), *flags.split()])
    assert not (tmp_path / "out").exists()


def test_files_of_others_stay(pipeline, tmp_path):
    """Files of other names do in an export, too. A changed one stands in the way, and a missing one does not."""
    how = Export("safetensors-only", 2)
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files, and no older export \(sampler.json\); name an empty folder"):
        write_export(pipeline, tmp_path, how)
    folder = tmp_path / "out"
    write_export(pipeline, folder, how)
    (folder / "model.safetensors").unlink()  # a kill can leave that
    (folder / "diary.txt").write_text("mine")
    write_export(pipeline, folder, how)
    for name in ("config.json", "draw.py"):
        theirs = {"config.json": "{}", "draw.py": "print('mine')"}[name]
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_text(theirs)
        with pytest.raises(ValueError, match=f"{name} is not what an export wrote; move it, or name a new folder"):
            write_export(pipeline, folder, how)
        assert (folder / name).read_text() == theirs
        (folder / name).write_bytes(before) if before else (folder / name).unlink()
    write_export(pipeline, folder, how)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "sampler.json", "diary.txt"}
    assert (tmp_path / "diary.txt").read_text() == (folder / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize("with_fewer_bits", [with_half_weights, with_int8_weights])
def test_only_matrices_get_fewer_bits(with_fewer_bits):
    """Not what a product or an index reads: the frequencies of the time embedding, and the table of a loop."""
    shapes = {"conv": (64, 64, 3, 3), "frequencies": (64,), "table": (8, 64)}
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["a", "frequencies"], ["b"]),
        helper.make_node("Gather", ["table", "i"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64, 8, 64]) for name in "xy")
    i = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    parts = helper.make_graph(nodes, "parts", [x, i], [y], weights)
    model = helper.make_model(parts, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    kept = {each.name for each in with_fewer_bits(model).graph.initializer if each.data_type == TensorProto.FLOAT}
    assert kept - {name for name in kept if "scale" in name} == {"frequencies", "table"}
