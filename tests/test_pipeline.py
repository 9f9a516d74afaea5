"""DDPMPipelineCustom: the loop against a denoiser with a known answer, the pictures, saving and loading."""

import copy
import inspect
import io
import json
import math
import pickle

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from oracles import GaussianDenoiser
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.convert import to_unet2d


def generators(first, last):
    return [torch.Generator().manual_seed(i) for i in range(first, last)]


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def make_pipeline():
    def make(channels=1, size=8, T=10, **config):
        unet = DDPMUNetModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            zero_init=False,
            **config,
        )
        return quiet(DDPMPipelineCustom(unet.eval(), DDPMLinearScheduler(num_train_timesteps=T)))

    return make


# ---- The loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_exact_denoiser_gives_the_data_back(variance_type):
    """All 1000 steps on Gaussian data N(0.3, 0.2^2) give samples of its mean and standard deviation."""
    scheduler = DDPMLinearScheduler(variance_type=variance_type, clip_sample=False)
    pipeline = quiet(DDPMPipelineCustom(GaussianDenoiser(0.3, 0.2), scheduler))
    images = pipeline(64, torch.Generator().manual_seed(0), output_type="pt").images * 2 - 1
    assert images.mean().item() == pytest.approx(0.3, abs=0.01)
    assert images.std().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [kind.name for kind in KarrasDiffusionSchedulers])
def test_every_scheduler_gives_the_data_back(name, prediction_type):
    """Schedulers may scale their input, start at another sigma, take two steps in one, or use fractional t."""
    ours = DDPMLinearScheduler(clip_sample=False, prediction_type=prediction_type)
    scheduler = getattr(diffusers, name).from_config(ours.config)
    unet = GaussianDenoiser(0.3, 0.2, prediction_type=prediction_type)
    images = quiet(DDPMPipelineCustom(unet, scheduler))(64, torch.Generator().manual_seed(0), 50, "pt").images * 2 - 1
    assert images.mean().item() == pytest.approx(0.3, abs=0.02)
    assert images.std().item() == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("name", [kind.name for kind in KarrasDiffusionSchedulers])
def test_every_scheduler_is_saved_and_loaded(make_pipeline, tmp_path, name):
    """The configuration of our scheduler also survives, so the pictures are bit-equal."""
    pipeline = make_pipeline(T=1000)
    kind = getattr(diffusers, name)
    pipeline.save_pretrained(tmp_path / "ours")
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "other")
    loaded = DDPMPipelineCustom.from_pretrained(tmp_path / "other")
    switched = DDPMPipelineCustom.from_pretrained(tmp_path / "ours")
    switched.scheduler = kind.from_config(switched.scheduler.config)

    images = []
    for p in (pipeline, loaded, switched):
        assert type(p.scheduler) is kind
        torch.manual_seed(0)  # some schedulers take no generator
        images.append(quiet(p)(2, torch.Generator().manual_seed(0), 12, "np").images)
    np.testing.assert_array_equal(images[1], images[0])
    np.testing.assert_array_equal(images[2], images[0])


@pytest.mark.parametrize("stock_pipeline", [DDPMPipeline, DDIMPipeline])
@pytest.mark.parametrize("stock_unet", [False, True])
def test_parts_in_stock_pipelines(make_pipeline, tmp_path, stock_pipeline, stock_unet):
    """In diffusers' pipelines, our scheduler and our U-Net draw what diffusers' own classes draw."""
    ours = make_pipeline(channels=3, T=50)
    theirs = to_unet2d(ours.unet).eval()
    images = []
    for unet, scheduler in (
        (theirs if stock_unet else ours.unet, ours.scheduler),
        (theirs, DDPMScheduler(num_train_timesteps=50)),
    ):
        pipeline = quiet(stock_pipeline(unet, scheduler))
        images.append(pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np").images)
    np.testing.assert_allclose(images[0], images[1], rtol=0, atol=1e-5)


def test_stock_unet_in_our_pipeline_leaves_no_path(make_pipeline, tmp_path):
    UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    ).save_pretrained(tmp_path / "stock")  # fmt: skip
    unet = UNet2DModel.from_pretrained(tmp_path / "stock")
    pipeline = quiet(DDPMPipelineCustom(unet, DDPMLinearScheduler(num_train_timesteps=5)))
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = quiet(DDPMPipelineCustom.from_pretrained(tmp_path / "saved"))
    a, b = (p(2, torch.Generator().manual_seed(0), output_type="np").images for p in (pipeline, loaded))
    np.testing.assert_array_equal(a, b)
    for file in (tmp_path / "saved").rglob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_equals_stock_pipeline(make_pipeline):
    ours = make_pipeline(T=50)
    stock = quiet(DDPMPipeline(ours.unet, DDPMScheduler(num_train_timesteps=50)))
    a = ours(3, torch.Generator().manual_seed(0), 20, output_type="np").images
    b = stock(3, torch.Generator().manual_seed(0), 20, output_type="np").images
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_all_training_steps_by_default(make_pipeline):
    steps = []
    pipeline = make_pipeline(T=7)
    pipeline(callback_on_step_end=lambda pipe, i, t, kwargs: steps.append((i, int(t))))
    assert steps == [(i, 6 - i) for i in range(7)]


@pytest.mark.parametrize("options", [{}, {"class_labels": ["zero", "one"], "guidance_scale": 2.0}])
def test_no_value_travels_from_the_device_to_the_host(make_pipeline, options):
    """A GPU never waits for Python between the steps. Tensors on the meta device have no values to read."""
    pipeline = make_pipeline(class_names=("zero", "one"), num_class_embeds=3).to("meta")
    assert pipeline(2, num_inference_steps=5, output_type="pt", **options).images.device.type == "meta"


def test_callback_can_replace_the_sample(make_pipeline):
    pipeline = make_pipeline()

    def callback(pipe, i, t, kwargs):
        assert pipe is pipeline
        assert kwargs["sample"].shape == (2, 1, 8, 8)
        return {"sample": torch.full_like(kwargs["sample"], 0.5)} if i == 9 else {}

    images = pipeline(2, output_type="pt", callback_on_step_end=callback).images
    assert (images == 0.75).all()


def test_an_image_depends_on_its_generator_only(make_pipeline):
    pipeline = make_pipeline()
    together = pipeline(5, generators(0, 5), output_type="np").images
    for parts in ((1, 4), (2, 3), (1, 1, 1, 1, 1)):
        ends = np.cumsum((0, *parts))
        split = [pipeline(n, generators(a, a + n), output_type="np").images for n, a in zip(parts, ends)]
        np.testing.assert_allclose(np.concatenate(split), together, rtol=0, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


class FullMemory(TorchDispatchMode):
    """Stand-in for a device whose memory is too small for a convolution of more than `images` images."""

    def __init__(self, images):
        super().__init__()
        self.images, self.sizes = images, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.sizes.append(len(args[0]))
            if len(args[0]) > self.images:
                raise torch.OutOfMemoryError("The memory is full.")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("guidance_scale", "too_many"), [(1.0, [7, 3]), (2.0, [14, 7, 3])])
def test_a_batch_too_big_for_the_memory_is_split(make_pipeline, guidance_scale, too_many):
    pipeline = make_pipeline(class_names=("zero", "one"), num_class_embeds=3)
    arguments = {"class_labels": [0, 1, 1, 0, 1, 0, 0], "guidance_scale": guidance_scale, "output_type": "pt"}
    whole = pipeline(generator=generators(0, 7), **arguments).images
    with FullMemory(images=2) as memory:
        split = pipeline(generator=generators(0, 7), **arguments).images
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-5)
    assert [size for size in memory.sizes if size > 2] == too_many
    with FullMemory(images=0), pytest.raises(torch.OutOfMemoryError, match="full"):
        pipeline(**arguments)


def test_a_cpu_computes_a_bounded_number_of_pixels_at_once(make_pipeline):
    pipeline = make_pipeline(size=128)  # CPU_PIXELS are four such images
    singly = [pipeline(1, [g], 2, output_type="pt").images for g in generators(0, 5)]
    with FullMemory(images=4) as memory:
        together = pipeline(5, generators(0, 5), 2, output_type="pt").images
    assert set(memory.sizes) == {4, 1}
    torch.testing.assert_close(together, torch.cat(singly), rtol=0, atol=1e-5)


# ---- Pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures(make_pipeline, channels, mode):
    pipeline = make_pipeline(channels, size=(8, 12))
    pictures = pipeline(2, torch.Generator().manual_seed(0)).images
    assert [(p.mode, p.size) for p in pictures] == [(mode, (12, 8))] * 2
    arrays = pipeline(2, torch.Generator().manual_seed(0), output_type="np").images
    assert arrays.shape == (2, 8, 12, channels)
    assert arrays.min() >= 0
    assert arrays.max() <= 1
    np.testing.assert_array_equal(np.asarray(pictures[0]), (arrays[0] * 255).round().astype("uint8").squeeze())
    tensors = pipeline(2, torch.Generator().manual_seed(0), output_type="pt", return_dict=False)[0]
    np.testing.assert_array_equal(tensors.permute(0, 2, 3, 1).numpy(), arrays)


def test_progress_bar_can_be_turned_off(make_pipeline, capsys):
    pipeline = make_pipeline()
    pipeline()
    assert capsys.readouterr().err == ""
    pipeline.set_progress_bar_config(disable=False)
    pipeline()
    assert "10/10" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_pipeline, dtype):
    pipeline = make_pipeline().to(dtype)
    assert np.isfinite(pipeline(2, output_type="np").images).all()
    assert pipeline(2).images[0].mode == "L"


# ---- Saving and loading ---------------------------------------------------------------------------------------------


def test_saves_and_loads_bit_equal(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "a")
    loaded = quiet(DDPMPipelineCustom.from_pretrained(tmp_path / "a"))
    assert type(loaded.unet) is DDPMUNetModel
    assert type(loaded.scheduler) is DDPMLinearScheduler
    a, b = (p(4, torch.Generator().manual_seed(0), output_type="np").images for p in (pipeline, loaded))
    np.testing.assert_array_equal(a, b)

    loaded.save_pretrained(tmp_path / "b")
    files = sorted(f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*") if f.is_file())
    assert files == sorted(f.relative_to(tmp_path / "b") for f in (tmp_path / "b").rglob("*") if f.is_file())
    assert [f.suffix for f in files if f.parent.name == "unet"] == [".json", ".safetensors", ".py"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert str(tmp_path).encode() not in (tmp_path / "a" / file).read_bytes()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_and_copies(make_pipeline, protocol):
    pipeline = make_pipeline()
    images = pipeline(2, generators(0, 2), 3, "np").images
    file = io.BytesIO()
    torch.save(pipeline, file)
    file.seek(0)
    for again in (
        pickle.loads(pickle.dumps(pipeline, protocol)),
        torch.load(file, weights_only=False),
        copy.deepcopy(pipeline),
    ):
        np.testing.assert_array_equal(again(2, generators(0, 2), 3, "np").images, images)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", r"is \[\]; expected the names of classes"),
        ('"x"', "is 'x'; expected"),
        ("{}", r"is \{\}"),
        ('{"_class_name": "DDPMPipeline", "unet": []}', r"has `unet=\[\]`; expected two names"),
        ('{"_class_name": "DDPMPipeline", "unet": "x"}', "has `unet='x'`"),
        ('{"_class_name": "DDPMPipeline", "scheduler": ["diffusers", null]}', r"has `scheduler=\['diffusers', None\]`"),
        ('{"_class_name": [1, 2]}', r"has `_class_name=\[1, 2\]`"),
    ],
)
def test_a_bad_index_is_refused(tmp_path, index, message):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=rf"model_index\.json of .* {message}"):
        DDPMPipelineCustom.from_pretrained(tmp_path)


def test_recommended_steps_are_saved_and_taken(make_pipeline, tmp_path, caplog):
    """Calls take them, unless they say otherwise. Stock classes read the same file without a word about it."""
    plain = make_pipeline(T=10)
    pipeline = DDPMPipelineCustom(plain.unet, plain.scheduler, num_inference_steps=4)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = quiet(DDPMPipelineCustom.from_pretrained(tmp_path / "saved"))
    steps = []
    for options in ({}, {"num_inference_steps": 3}):
        loaded(callback_on_step_end=lambda pipeline, i, t, tensors: steps.append(i), **options)
    assert steps == [0, 1, 2, 3, 0, 1, 2]
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model_index.json").read_text() == (tmp_path / "saved/model_index.json").read_text()
    other = DDPMPipelineCustom.from_pretrained(tmp_path / "saved", num_inference_steps=6)
    assert other.default_num_inference_steps == 6
    other.scheduler = DDPMLinearScheduler(num_train_timesteps=5)
    assert other.default_num_inference_steps == 5
    assert plain.default_num_inference_steps == 10

    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    diffusers.utils.logging.enable_propagation()
    try:
        assert DDPMPipeline.extract_init_dict(index)[1] == {}
    finally:
        diffusers.utils.logging.disable_propagation()
    assert not caplog.records


@pytest.mark.parametrize("steps", [0, -1, 2.5, "4"])
def test_bad_recommendations_are_refused(make_pipeline, steps):
    plain = make_pipeline()
    with pytest.raises(ValueError, match=f"num_inference_steps={steps!r}"):
        DDPMPipelineCustom(plain.unet, plain.scheduler, num_inference_steps=steps)


class OfAnotherDevice(torch.Generator):
    """Stand-in for a generator of a GPU."""

    device = torch.device("cuda:0")


# ---- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2, "generator": generators(0, 3)}, "list of 3; expected one for each of 2"),
        ({"num_inference_steps": 11}, "num_inference_steps.*11.*10"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"output_type": "tf"}, "'tf'"),
        *(({"batch_size": n}, "`batch_size=.*whole number, at least 1") for n in (2.0, "2", True, -1, math.nan, [2])),
        *(({"num_inference_steps": n}, "`num_inference_steps=.*whole") for n in (2.5, 2.0, "2", True, -1, [2])),
        *(({"guidance_scale": w}, "`guidance_scale=.*finite") for w in ("2", None, math.nan, math.inf, True, [1, 2])),
        ({"generator": 3}, r"`generator=3`; expected torch.Generator\(\).manual_seed\(n\)"),
        ({"generator": np.random.default_rng(0)}, "`generator=Generator"),
        ({"generator": [3]}, r"`generator=\[3\]`"),
        ({"generator": ()}, "list of 0; expected one for each of 1"),
        ({"generator": OfAnotherDevice()}, "is on cuda:0; expected one on the CPU or on cpu"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end=3`; expected a function"),
    ],
)
@pytest.mark.parametrize("scheduler", [DDPMLinearScheduler, DDIMScheduler])
def test_bad_input(make_pipeline, kwargs, message, scheduler):
    pipeline, steps = make_pipeline(), []
    pipeline.scheduler = scheduler(num_train_timesteps=10)
    pipeline.unet.register_forward_hook(lambda *args: steps.append(args))
    with pytest.raises(ValueError, match=message) as error:
        pipeline(**kwargs)
    assert "\n" not in str(error.value)
    assert steps == []


@pytest.mark.parametrize("whole", [np.int64, torch.tensor])
def test_numbers_of_every_kind_and_a_tuple_of_generators(make_pipeline, whole):
    pipeline = make_pipeline()
    images = pipeline(whole(2), tuple(generators(0, 2)), whole(3), "np").images
    np.testing.assert_array_equal(images, pipeline(2, generators(0, 2), 3, "np").images)


@pytest.mark.parametrize(
    "returned",
    [
        *(torch.zeros(1), torch.zeros(1, 1, 8, 8), 0, False, [], {"sample": None}, {"sample": torch.zeros(3)}),
        *({"latents": torch.zeros(1)}, {"foo": 1}, {"sample": torch.zeros(1, 1, 8, 8).double()}),
    ],
)
def test_bad_results_of_callbacks_are_refused(make_pipeline, returned):
    with pytest.raises(
        ValueError, match=r"`callback_on_step_end` returned .*; expected None, or a dictionary"
    ) as error:
        make_pipeline()(callback_on_step_end=lambda *args: returned)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("0", "5", "9"), [5, 9, 0], [1, 2, 0]),
        (("0", "5", "9"), ["5", "0", 9], [1, 0, 2]),
        (("1", "2", "10"), torch.tensor([10, 1]), [2, 0]),
        (("-1", "cat", "007"), [7, -1, "cat"], [2, 0, 1]),
        (("cat", "dog", "eel"), np.array([2, 0]), [2, 0]),
        (("cat", "dog", "eel"), (np.int64(1), torch.tensor(2), 3), [1, 2, 3]),
        (("cat", "dog", "eel"), range(2), [0, 1]),
    ],
)
def test_a_number_means_the_label_of_that_name(make_pipeline, names, labels, expected):
    pipeline = make_pipeline(class_names=names, num_class_embeds=4)
    assert pipeline._label_numbers(labels, None, 1.0) == expected


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (("0", "5", "9"), [2], r"there is no 2; expected one of 0, 5, 9\."),
        (("0", "5", "9"), 3, "there is no 3"),  # the number of "no class"
        (("1", "cat", "x"), [1, 0], r"there is no 0; expected one of 1, cat, x\."),
        (("cat", "dog", "eel"), [4], "there is no 4; expected one of cat, dog, eel, or its number from 0 to 3"),
        (("cat", "dog", "eel"), [-1], "there is no -1"),
        (("cat", "dog", "eel"), [1.0], "there is no 1.0"),
        (("cat", "dog", "eel"), [True], "there is no True"),
        (("cat", "dog", "eel"), [["cat"]], r"there is no \['cat'\]"),
        (("cat", "dog", "eel"), [], r"`class_labels=\[\]`; expected a label or a list of them"),
        (("cat", "dog", "eel"), {"cat": 1}, "expected a label or a list of them"),
        (("cat", "dog", "eel"), 1.5, "`class_labels=1.5`"),
    ],
)
def test_unknown_labels_are_refused(make_pipeline, names, labels, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(class_names=names, num_class_embeds=4)(class_labels=labels)


def test_a_model_without_names_needs_labels(make_pipeline):
    with pytest.raises(ValueError, match=r"`class_labels` are missing: .* expected a whole number from 0 to 3"):
        make_pipeline(num_class_embeds=4)()


def test_bad_models(make_pipeline):
    with pytest.raises(ValueError, match="2 channels"):
        make_pipeline(channels=2)()
    pipeline = make_pipeline()
    pipeline.unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match="sample_size"):
        pipeline()


def test_signature():
    names = [
        "self",
        "batch_size",
        "generator",
        "num_inference_steps",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "class_labels",
        "guidance_scale",
        "guidance_interval",
        "guidance_fn",
        "guidance_fn_scale",
    ]
    assert list(inspect.signature(DDPMPipelineCustom.__call__).parameters) == names


def test_labels_that_nobody_names_come_as_often_as_in_training(make_pipeline):
    """Also from a list of generators, where an image does not depend on the others of its batch."""
    pipeline = make_pipeline(class_names=("a", "b"), num_class_embeds=3, class_frequencies=(0.75, 0.25))
    seen = []
    pipeline._network = lambda labels, *guidance: seen.extend(labels) or (lambda x, t: torch.zeros_like(x))
    pipeline.set_progress_bar_config(disable=True)
    pipeline(4000, torch.Generator().manual_seed(0), 1)
    assert len(seen) == 4000 and seen.count(0) / 4000 == pytest.approx(0.75, abs=0.03)
    drawn = []
    for batch in ([3, 4, 5], [5]):
        seen.clear()
        pipeline(len(batch), [torch.Generator().manual_seed(i) for i in batch], 1)
        drawn.append(list(seen))
    assert drawn[0][-1:] == drawn[1]
