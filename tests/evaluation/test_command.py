"""`ddpm-hf evaluate`: extractors, reference sets, records, resuming, processes, and bad input."""

import json
import os
import sys
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.cli import main
from ddpm_hf.evaluation.distances import frechet_distance
from ddpm_hf.evaluation.during_training import evaluate_during_training
from ddpm_hf.evaluation.features import _load_inception, load_extractor
from ddpm_hf.evaluation.image_sets import PictureFolder
from ddpm_hf.evaluation.measurement import Measurement
from ddpm_hf.evaluation.reference import open_reference
from ddpm_hf.hub.card import write_card

CPU = torch.device("cpu")


class Means(torch.nn.Module):
    """Four features: the means over the quarters of an image, from 0 to 1."""

    def forward(self, pixels):
        means = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2)
        return means.mean(1).flatten(1)


EXTRACTORS = """
import torch
def means(pixels):
    assert pixels.dtype == torch.uint8
    return torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).mean(1).flatten(1)
network = torch.nn.Sequential(torch.nn.Flatten())
def maps(pixels): return pixels.float()
def whole(pixels): return pixels.flatten(1)
def one(pixels): return pixels.float().flatten(1)[:1]
def pair(pixels): return means(pixels), 0
def infinite(pixels): return means(pixels) / 0
def broken(pixels): return pixels.float() @ torch.ones(3, 3)
"""


@pytest.fixture
def extractors(tmp_path, monkeypatch):
    """Return a folder with a module of extractors. It is the current folder."""
    (tmp_path / "my_features.py").write_text(EXTRACTORS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_features", raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != os.getcwd()])
    return tmp_path


def small_pipeline(channels=1, class_names=None, **options):
    torch.manual_seed(0)
    unet = DDPMUNetModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(8,), norm_num_groups=4,
        layers_per_block=1, down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], add_attention=False,
        class_names=class_names, num_class_embeds=class_names and len(class_names) + 1,
    )  # fmt: skip
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return DDPMPipelineCustom(unet, DDPMLinearScheduler(num_train_timesteps=10, beta_end=0.5, **options))


@pytest.fixture
def model(extractors):
    """Return the folder of a tiny model. Beside it is `pictures` with 40 greyscale images of its size."""
    small_pipeline().save_pretrained(extractors / "model")
    save_pictures(extractors / "pictures")
    return extractors / "model"


def save_pictures(folder, count=40, size=8, mode="L"):
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        shape = (size, size) if mode == "L" else (size, size, 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")


def evaluate(model, *flags, metrics=("fid",)):
    defaults = {"features": "my_features:means", "num_images": 12, "num_inference_steps": 2, "cache_dir": "cache"}
    defaults = [text for key, value in defaults.items() for text in (f"--{key}", str(value))]
    main(["evaluate", str(model), "--train_data_dir", "pictures", *defaults, "--metrics", *metrics, *map(str, flags)])
    output = flags[flags.index("--output") + 1] if "--output" in flags else model / "evaluation.json"
    return json.loads(Path(output).read_text())


# ---- Extractors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["torchscript", "export", "export named pt", "function", "module"])
def test_extractors_of_every_kind(extractors, kind):
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    expected = Means()(pixels)
    if kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(Means()).save("means.pt")
    elif kind.startswith("export"):
        shapes = ({0: torch.export.Dim("N")},)
        torch.export.save(torch.export.export(Means(), (pixels,), dynamic_shapes=shapes), "means.pt2")
        if kind == "export named pt":
            os.rename("means.pt2", "means.pt")
    name = {"export": "means.pt2", "function": "my_features:means", "module": "my_features:network"}.get(
        kind, "means.pt"
    )
    extractor = load_extractor(name, CPU)
    if kind == "module":
        expected = pixels.flatten(1).float()
        extractor.function.append(torch.nn.Linear(64, 64, bias=False))
        torch.nn.init.eye_(extractor.function[1].weight)
        extractor.function.insert(1, ToFloat())
    torch.testing.assert_close(extractor(pixels), expected)
    assert len(extractor.fingerprint) == 64
    assert load_extractor(name, CPU).fingerprint == extractor.fingerprint or kind == "module"


class ToFloat(torch.nn.Module):
    def forward(self, x):
        return x.float()


def test_fingerprint_of_a_module_changes_with_its_weights(extractors):
    first = load_extractor("my_features:network", CPU)
    first.function.append(torch.nn.BatchNorm1d(64))  # one of its weights is a scalar
    second = load_extractor("my_features:network", CPU)
    assert second.function is first.function
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_features:maps", r"returns torch.float32 \(3, 1, 8, 8\) for images \(3, 1, 8, 8\); expected .* \(3, D\)"),
        ("my_features:one", r"returns torch.float32 \(1, 64\)"),
        ("my_features:pair", "returns tuple for images"),
        ("my_features:whole", r"returns torch.uint8 \(3, 64\) .*; expected finite floats"),
        ("my_features:infinite", "expected finite floats"),
        ("my_features:broken", r"my_features:broken fails on uint8 images \(3, 1, 8, 8\): "),
        ("my_features:nothing", "has no attribute 'nothing'"),
        ("not_there:means", "No module named 'not_there'"),
        ("resnet", "expected inception, a file .pt or .pt2, or module:callable"),
        ("missing.pt", "No such file"),
        ("text.pt", "expected a file written by torch.jit.save or torch.export.save"),
    ],
)
def test_bad_extractors_are_refused_in_words(extractors, name, message):
    Path("text.pt").write_text("no network")
    with pytest.raises(ValueError, match=message) as raised:
        load_extractor(name, CPU)(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert f"--features {name}" in str(raised.value)


def test_inception_without_its_packages_or_weights_says_what_to_put_where(monkeypatch):
    import torchmetrics.image.fid as fid

    def no_package(*args, **options):
        raise ModuleNotFoundError("NoTrainInceptionV3 module requires that `Torch-fidelity` is installed.")

    def no_network(*args, **options):
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(fid, "NoTrainInceptionV3", no_package)
    with pytest.raises(ValueError, match=r"pip install torchmetrics torch-fidelity.* --metrics bpd needs none"):
        load_extractor("inception", CPU)
    monkeypatch.setattr(fid, "NoTrainInceptionV3", no_network)
    with pytest.raises(ValueError, match=r"name resolution.* Put https://.*pth into .*/hub/checkpoints"):
        load_extractor("inception", CPU)


def test_inception_gets_three_channels_and_is_loaded_once(monkeypatch, request):
    import torchmetrics.image.fid as fid

    class Colours(torch.nn.Module):
        def __init__(self, **options):
            super().__init__()

        def forward(self, pixels):
            assert pixels.shape[1:] == (3, 8, 8) and pixels.dtype == torch.uint8
            return pixels.float().mean((2, 3))

    monkeypatch.setattr(fid, "NoTrainInceptionV3", Colours)
    request.addfinalizer(_load_inception.cache_clear)
    grey, colour = torch.randint(0, 256, (2, 1, 8, 8)).byte(), torch.randint(0, 256, (2, 3, 8, 8)).byte()
    extractor = load_extractor("inception", CPU)
    torch.testing.assert_close(extractor(grey), grey.float().mean((2, 3)).expand(2, 3))
    torch.testing.assert_close(extractor(colour), colour.float().mean((2, 3)))
    assert load_extractor("inception", CPU) is extractor


# ---- The command ---------------------------------------------------------------------------------------------------


def test_numbers_are_recorded_with_all_they_depend_on(model, capsys):
    metrics = evaluate(
        model, "--save_samples", "kept", "--seed", 3, "--bpd_timesteps", 99, metrics=("bpd", "fid", "kid", "prdc")
    )
    assert metrics.keys() == {"bpd", "fid", "kid", "prdc"}
    for numbers in metrics.values():
        assert numbers["dataset"] == "pictures" and numbers["split"] == "train"
        assert numbers["preprocessing"] == {"resolution": 8, "channels": 1, "image_fit": "crop", "celeba_crop": False}
        assert (numbers["reference_images"], numbers["seed"]) == (40, 3)
        assert numbers["versions"]["torch"] == torch.__version__
    fid = metrics["fid"]
    assert (fid["num_images"], fid["num_inference_steps"], fid["scheduler"]) == (12, 2, "DDPMLinearScheduler")
    assert (fid["extractor"], fid["features"]) == ("my_features:means", 4)
    assert fid["note"] == "few samples: 12, so not comparable with numbers of more."
    assert "note" not in metrics["bpd"]
    assert (metrics["bpd"]["images"], metrics["bpd"]["timesteps_per_image"]) == (12, 10)

    # The number belongs to the samples that were kept.
    pictures = [np.asarray(Image.open(path)) for path in sorted(Path("pictures").iterdir())]
    real, fake = np.stack(pictures)[:, None], np.stack(list(PictureFolder(Path("kept"), 12))).transpose(0, 3, 1, 2)
    real, fake = (Means()(torch.from_numpy(pixels)).numpy() for pixels in (real, fake))
    assert fid["value"] == pytest.approx(frechet_distance(real, fake), rel=1e-6)

    curve = [json.loads(line) for line in (model / "progressive.jsonl").read_text().splitlines()]
    assert [line["t"] for line in curve] == list(range(9, -1, -1))
    assert curve[-1]["rate"] == pytest.approx(metrics["bpd"]["rate"])
    assert Image.open(model / "nearest.png").size[1] == 7 * 8 * 8  # eight rows of 8 pixels, enlarged
    printed = capsys.readouterr().out
    assert f"fid        {fid['value']:>10.4f}" in printed and "few samples: 12" in printed


def test_classes_of_samples_take_turns(model):
    pipeline = small_pipeline(class_names=("cat", "dog", "eel"))
    torch.nn.init.normal_(pipeline.unet.down_blocks[0].resnets[0].conv2.weight)  # else the label does not matter
    pipeline.save_pretrained(model)
    options = "--num_images", 6, "--guidance_scale", 3
    record = evaluate(model, *options, "--save_samples", "drawn", metrics=("fid", "bpd"))
    assert (record["fid"]["class_labels"], record["fid"]["guidance_scale"]) == (["cat", "dog", "eel"], 3.0)
    assert record["bpd"]["class_labels"] is None
    main(["sample", str(model), *map(str, options), "--output", "wanted", "--num_inference_steps", "2"])
    for i in range(6):
        assert (Path("drawn") / f"{i:06d}.png").read_bytes() == (Path("wanted") / f"{i:06d}.png").read_bytes()
    assert evaluate(model, "--num_images", 6)["fid"]["value"] != record["fid"]["value"]


def test_the_numbers_of_a_checkpoint_replace_none(extractors, train):
    run = train(checkpointing_steps=2)
    save_pictures(extractors / "digits", size=28)
    evaluate(run, "--train_data_dir", "digits")
    names = ("evaluation.json", "nearest.png", "README.md")
    before = {name: (run / name).read_bytes() for name in names}
    evaluate(run, "--train_data_dir", "digits", "--checkpoint", "checkpoints/step-000002")
    write_card(run)
    assert before == {name: (run / name).read_bytes() for name in names}
    earlier, last = (json.loads((run / f"evaluation{of}.json").read_text()) for of in ("-step-000002", ""))
    assert earlier["fid"]["model_fingerprint"] != last["fid"]["model_fingerprint"]
    assert (run / "nearest-step-000002.png").exists()


def test_guidance_in_a_part_of_the_steps(model):
    pipeline = small_pipeline(class_names=("cat", "dog"))
    torch.nn.init.normal_(pipeline.unet.down_blocks[0].resnets[0].conv2.weight)  # else the label does not matter
    pipeline.save_pretrained(model)
    options = "--num_images", 6, "--guidance_scale", 3
    in_all = evaluate(model, *options)["fid"]
    assert in_all["guidance_scale"] == 3.0 and "guidance_interval" not in in_all
    options = *options, "--guidance_interval", 0.6, 1
    in_part = evaluate(model, *options, "--save_samples", "drawn")["fid"]
    assert in_part["guidance_interval"] == "0.6 to 1.0" and in_part["value"] != in_all["value"]
    with pytest.raises(SystemExit, match="holds no step: those of 2 steps"):
        evaluate(model, *options[:-2], 0.6, 0.9)
    main(["sample", str(model), *map(str, options), "--output", "wanted", "--num_inference_steps", "2"])
    for i in range(6):
        assert (Path("drawn") / f"{i:06d}.png").read_bytes() == (Path("wanted") / f"{i:06d}.png").read_bytes()


def test_an_interrupted_command_can_be_continued(model, monkeypatch):
    evaluate(model, "--output", "whole.json")
    assert not list(Path().glob("*samples*"))
    drawn, save = [], Image.Image.save

    def save_three(image, path, **options):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(path)
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", save_three)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, "--output", "whole2.json")
    monkeypatch.setattr(Image.Image, "save", lambda *args, **options: (drawn.append(args[1]), save(*args, **options)))
    assert evaluate(model, "--output", "whole2.json") == json.loads(Path("whole.json").read_text())
    assert len([path for path in drawn if "samples" in str(path)]) == 12
    assert not list(Path().glob("*samples*"))


def test_features_of_the_reference_set_are_kept(model, monkeypatch):
    first = evaluate(model)
    from ddpm_hf.evaluation import measure

    extracted, extract = [], measure.extract
    monkeypatch.setattr(
        measure, "extract", lambda e, images, *rest: extracted.append(len(images)) or extract(e, images, *rest)
    )
    assert evaluate(model) == first
    assert extracted == [12]
    Path("my_features.py").write_text(EXTRACTORS.replace("/ 255", "/ 510"))
    del sys.modules["my_features"]
    assert evaluate(model)["fid"]["value"] == pytest.approx(first["fid"]["value"] / 4)
    assert extracted == [12, 40, 12]


def test_numbers_of_the_same_model_are_kept_together(model):
    evaluate(model)
    assert evaluate(model, metrics=("bpd",)).keys() == {"fid", "bpd"}
    pipeline = small_pipeline()
    pipeline.unet.conv_in.bias.data += 1
    pipeline.save_pretrained(model)
    assert evaluate(model, metrics=("bpd",)).keys() == {"bpd"}


def test_another_scheduler_draws_other_samples_and_leaves_the_bound(model):
    first = evaluate(model, metrics=("bpd", "fid"))
    others = {"ddim": "DDIMScheduler", "sde-dpmsolver++": "DPMSolverMultistepScheduler, sde-dpmsolver++"}
    for name, described in others.items():
        other = evaluate(model, "--scheduler", name, "--output", "other.json", metrics=("bpd", "fid"))
        assert other["fid"]["scheduler"] == described
        assert other["fid"]["value"] != first["fid"]["value"]
        assert other["bpd"] == {key: value for key, value in first["bpd"].items() if key != "progressive"}
    assert evaluate(model, "--scheduler", "ddim")["bpd"] == first["bpd"]  # it is kept


def test_numbers_do_not_depend_on_the_batch_size(model):
    one, other = (
        evaluate(model, "--batch_size", size, "--output", f"{size}.json", metrics=("bpd", "fid")) for size in (1, 5)
    )
    assert one["bpd"]["value"] == pytest.approx(other["bpd"]["value"], rel=1e-5)
    assert one["fid"]["value"] == pytest.approx(other["fid"]["value"], rel=1e-3)  # a pixel may round the other way


def test_a_run_is_compared_with_its_own_images_unless_others_are_named(model, tmp_path):
    options = {"train_data_dir": "pictures", "dataset_split": "train", "image_fit": "pad", "learning_rate": 1}
    options.update(cache_dir=str(tmp_path / "cache"), dataset_name=None, image_column=None)
    _, record = open_reference(small_pipeline(), options, {})
    assert (record["dataset"], record["preprocessing"]["image_fit"]) == ("pictures", "pad")
    load_dataset_of = {"train_data_dir": None, "dataset_split": "test", "dataset_config_name": "x", "image_column": "y"}
    _, record = open_reference(small_pipeline(), {**options, **load_dataset_of}, {"train_data_dir": "pictures"})
    assert (record["dataset"], record["split"], record["dataset_config"]) == ("pictures", "train", None)
    assert record["preprocessing"]["image_fit"] == "pad"


def test_measuring_during_training_changes_nothing_of_the_run(model, tmp_path):
    pipeline = DDPMPipelineCustom.from_pretrained(model)
    images, _ = open_reference(pipeline, {}, {"train_data_dir": "pictures", "cache_dir": "cache"})
    wanted = Measurement(("bpd", "fid"), num_images=12, num_inference_steps=2, features="my_features:means")
    (tmp_path / "evaluation-samples").mkdir()
    (tmp_path / "evaluation-samples" / "000000.png").write_text("of an earlier step")
    before = torch.random.get_rng_state(), [p.clone() for p in pipeline.unet.parameters()]
    stale = {"step": 7, "bpd": 1.0}, {"step": 9, "bpd": 2.0}
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in stale))
    numbers = evaluate_during_training(pipeline, images, wanted, tmp_path, step=9)
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert lines == [stale[0], {"step": 9, **numbers}]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert all(map(torch.equal, pipeline.unet.parameters(), before[1]))
    assert not (tmp_path / "evaluation-samples").exists()
    saved = evaluate(model, metrics=("bpd", "fid"))
    assert numbers["bpd"] == pytest.approx(saved["bpd"]["value"])
    assert numbers["fid"] == pytest.approx(saved["fid"]["value"])
    assert numbers.keys() == {"bpd", "rate", "distortion", "rmse", "fid"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--num_images", "4"),
            "--metrics fid: 4 samples and 40 reference images; with 4 features, at least 5 of each",
        ),
        (("--train_data_dir", "small"), "3 of 3 images have fewer pixels than --resolution 8; the smallest: "),
        (("--train_data_dir", "colour"), "the reference set holds colour images, and the model draws greyscale ones"),
        (("--train_data_dir", "missing"), "--train_data_dir missing: there is no such folder"),
        (("--features", "my_features:maps"), "--features my_features:maps returns torch.float32 (40, 1, 8, 8)"),
        (("--num_images", "0"), "--num_images 0: expected at least 1"),
        (("--bpd_timesteps", "1", "--metrics", "bpd"), "--bpd_timesteps 1: expected at least 2"),
        (("--features", "inception"), "--features inception"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, flags, message):
    save_pictures(Path("small"), 3, size=4)
    save_pictures(Path("colour"), 3, mode="RGB")
    with pytest.raises(SystemExit) as ended:
        evaluate(model, *flags)
    assert str(ended.value).startswith("ddpm-hf: error: ")
    assert message in str(ended.value) and "\n" not in str(ended.value)
    assert not (model / "evaluation.json").exists()


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(model, forks):
    one = evaluate(model, "--output", "one.json", metrics=("bpd", "fid", "kid", "prdc"))
    flags = "--train_data_dir pictures --features my_features:means --num_images 12 --num_inference_steps 2"
    flags += " --output two.json --cache_dir other"
    codes, said = forks.run_two("-m", "ddpm_hf.cli", "evaluate", model, *flags.split(), cwd=Path.cwd())
    assert codes == [0, 0], said
    assert said.count("All numbers") == 1
    two = json.loads(Path("two.json").read_text())
    for metric, numbers in one.items():
        assert two[metric].keys() == numbers.keys()
        for name in ("value", "standard_error", "precision", "recall"):
            if name in numbers:
                assert two[metric][name] == pytest.approx(numbers[name], rel=1e-3)
