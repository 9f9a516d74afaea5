"""Class-conditional models: labels from the data to the network, and guidance towards them."""

import json
import re
import zipfile

import diffusers
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from diffusers import DDIMScheduler
from PIL import Image as PILImage
from runs import equal

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.cli import main
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.evaluation.during_training import measurement_of
from ddpm_hf.images.batches import Batches, ShuffledImages
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.sources import label_settings, load_dataset
from ddpm_hf.images.streaming import StreamedImages
from ddpm_hf.images.survey import common_mode
from ddpm_hf.pictures import image_grid
from ddpm_hf.sampling import Classes, Drawing, draw_images, open_model, pictures_in_order

KINDS = ["cat", "dog", "eel"]


def configure(tmp_path, *flags):
    flags = ["--class_conditional", "--resolution", "8", "--cache_dir", tmp_path / "cache", *flags]
    return parse_command_line([str(flag) for flag in flags])[0]


def save_parquet(folder, labels, feature, count=12):
    """Save a data set in which picture i has the grey i and the label i modulo 3."""
    folder.mkdir()
    columns = {
        "image": [PILImage.new("L", (8, 8), i) for i in range(count)],
        "kind": [labels[i % 3] for i in range(count)],
    }
    rows = Dataset.from_dict(columns, Features({"image": Image(), "kind": feature}))
    rows.to_parquet(folder / "train-00000.parquet")
    return folder


# ---- From the data to the batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "feature", "names"),
    [
        ([0, 1, 2], ClassLabel(names=KINDS), KINDS),
        (KINDS, Value("string"), KINDS),
        ([7, 8, 9], Value("int64"), ["7", "8", "9"]),
        ([2, 10, 11], Value("uint64"), ["2", "10", "11"]),
        (["-1", "9", "10"], Value("large_string"), ["-1", "9", "10"]),
        (["10", "9", "x"], Value("string"), ["10", "9", "x"]),
        (["9", "10", "11"], ClassLabel(names=["9", "10", "11"]), ["9", "10", "11"]),
        ([0, 1, 2], ClassLabel(names=["10", "9", "1"]), ["10", "9", "1"]),
    ],
)
def test_labels_of_any_type(tmp_path, labels, feature, names):
    folder = save_parquet(tmp_path / "set", labels, feature)
    config = configure(tmp_path, "--dataset_name", folder, "--label_column", "kind")
    dataset = load_dataset(config)
    settings = label_settings(dataset)
    shares = settings.pop("class_frequencies")
    assert settings == {"class_names": names, "num_class_embeds": 4}
    column = [label for label in dataset["label"] if label is not None and label >= 0]
    assert shares == pytest.approx([column.count(i) / len(column) for i in range(3)], abs=1e-6)
    images = load_images(dataset, common_mode(dataset), config)
    assert [int(image[0, 0, 0]) % 3 for image in images] == images.labels.tolist()


def test_labels_of_folders_without_their_broken_pictures(tmp_path):
    for i, kind in enumerate(KINDS):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for j in range(4):
            PILImage.new("L", (8, 8), 10 * i + j).save(tmp_path / "in" / kind / f"{j}.png")
    (tmp_path / "in" / "cat" / "1.png").write_bytes(b"broken")
    config = configure(tmp_path, "--train_data_dir", tmp_path / "in", "--max_unreadable", "0.2")
    dataset = load_dataset(config)
    images = load_images(dataset, common_mode(dataset), config)
    assert label_settings(dataset)["class_names"] == KINDS
    assert len(images) == len(images.labels) == 11
    assert [int(image[0, 0, 0]) // 10 for image in images] == images.labels.tolist()


def test_many_whole_numbers_and_rows_without_one(tmp_path):
    """Sorted as texts, the names would be 0, 1, 10, 11, 2, ..."""
    labels = [None, *range(12)]
    features = Features({"image": Image(), "label": Value("int16")})
    rows = {"image": [PILImage.new("L", (8, 8), i) for i in range(13)], "label": labels}
    (tmp_path / "set").mkdir()
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "set" / "train.parquet")
    config = configure(tmp_path, "--dataset_name", tmp_path / "set", "--label_column", "label")
    dataset = load_dataset(config)
    assert label_settings(dataset)["class_names"] == [str(i) for i in range(12)]
    assert load_images(dataset, common_mode(dataset), config).labels.tolist() == [-1, *range(12)]


def test_true_and_false(tmp_path):
    folder = save_parquet(tmp_path / "set", [False, True, True], Value("bool"))
    dataset = load_dataset(configure(tmp_path, "--dataset_name", folder, "--label_column", "kind"))
    assert label_settings(dataset)["class_names"] == ["false", "true"]
    assert dataset[:3]["label"] == [0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0.5, 1.5, 2.5], Value("float32"), "kind holds float32"),
        ([[0], [1], [2, 0]], List(Value("int64")), "kind holds List"),
        ([[0], [1], [2, 0]], List(ClassLabel(names=KINDS)), "kind holds List"),
        ([{"a": 1}] * 3, {"a": Value("int64")}, "kind holds dict"),
        ([None] * 3, Value("null"), "kind holds null"),
        ([None] * 3, Value("int64"), "no image has a label; take another split with --dataset_split, .*--label_column"),
        ([-1] * 3, Value("int64"), "no image has a label"),
        ([-1] * 3, ClassLabel(names=KINDS), "no image has a label"),
        ([0] * 3, ClassLabel(names=["train"]), "the folders train are splits"),
        (["Val", "test", "test"], Value("string"), "the folders Val, test are splits"),
    ],
)
def test_columns_without_labels(tmp_path, labels, feature, message):
    folder = save_parquet(tmp_path / "set", labels, feature)
    by_class = r".*\(pics/cat/1.png, pics/dog/1.png\)"
    with pytest.raises(ValueError, match=message + by_class):
        load_dataset(configure(tmp_path, "--dataset_name", folder, "--label_column", "kind"))
    if feature == Value("float32"):
        with pytest.raises(
            ValueError, match="image holds Image, kind holds float32. Labels are ClassLabel, texts, " + by_class
        ):
            load_dataset(configure(tmp_path, "--dataset_name", folder))
        with pytest.raises(ValueError, match=r"--label_column image: .*image holds Image"):
            load_dataset(configure(tmp_path, "--dataset_name", folder, "--label_column", "image"))


def test_a_stream_without_labels(tmp_path):
    folder = save_parquet(tmp_path / "set", [-1] * 3, ClassLabel(names=KINDS))
    config = configure(tmp_path, "--dataset_name", folder, "--streaming", "--streaming_buffer_size", "5")
    with pytest.raises(ValueError, match="none of the first 5 images has a label"):
        StreamedImages(load_dataset(config), "L", config)


# ---- Folders by class, and metadata ----------------------------------------------------------------------------------


def pictures(folder, *names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("L", (8, 8), i).save(path)
    return folder


def from_folder(tmp_path, *flags):
    return load_dataset(configure(tmp_path, "--train_data_dir", tmp_path / "in", *flags))


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["1/a.png", "10/a.png", "2/a.png"], ["1", "2", "10"], [0, 2, 1]),
        (["a 1/a.png", "a 10/a.png", "a 2/a.png"], ["a 1", "a 10", "a 2"], [0, 1, 2]),
        (["train/cat/a.png", "train/dog/a.png", "test/eel/a.png"], ["cat", "dog"], [0, 1]),
        (["all/cat/a.png", "all/train/a.png"], ["cat", "train"], [0, 1]),
    ],
)
def test_folders_by_class(tmp_path, names, classes, labels):
    pictures(tmp_path / "in", *names)
    dataset = from_folder(tmp_path)
    assert label_settings(dataset)["class_names"] == classes
    assert dataset["label"][:] == labels


def test_archives_by_class(tmp_path):
    folder = pictures(tmp_path / "in", "a.png")
    for kind in KINDS:
        with zipfile.ZipFile(folder / f"{kind}.zip", "w") as archive:
            archive.write(folder / "a.png", "a.png")
    (folder / "a.png").unlink()
    dataset = from_folder(tmp_path)
    assert label_settings(dataset)["class_names"] == KINDS
    assert dataset["label"][:] == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat_1.png", "dog_1.png"], "all lie in one folder"),
        (["train/1.png", "train/2.png", "test/1.png"], "all lie in train"),
        (["cat/1.png", "dog/1.png", "1.png"], "some lie deeper than others"),
        (["a/train/1.png", "a/test/1.png"], "the folders test, train are splits"),
    ],
)
def test_folders_without_classes(tmp_path, names, message):
    pictures(tmp_path / "in", *names)
    with pytest.raises(ValueError, match=message + r".*\(pics/cat/1.png, pics/dog/1.png\).*--label_column"):
        from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"--label_column kind: the metadata of .* holds the columns \[\]"):
        from_folder(tmp_path, "--label_column", "kind")


def write_metadata(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = Dataset.from_list(rows)
        table.to_csv(path) if path.suffix == ".csv" else table.to_parquet(path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_labels_of_metadata(tmp_path, capsys, suffix):
    """One number is missing, and one picture is not listed. The sub-folder has a metadata file of its own."""
    folder = pictures(tmp_path / "in", "a.png", "b.png", "c.png", "d.png", "deep/e.png")
    rows = [{"file_name": "./b.png", "n": 10}, {"file_name": "a.png", "n": 9}, {"file_name": "c.png", "n": None}]
    write_metadata(folder / f"metadata.{suffix}", rows)
    write_metadata(folder / "deep" / f"metadata.{suffix}", [{"file_name": "e.png", "n": 10}])
    dataset = from_folder(tmp_path, "--label_column", "n")
    assert label_settings(dataset)["class_names"] == ["9", "10"]
    assert dataset["label"][:] == [0, 1, None, None, 1]
    assert re.search("Without a label in the metadata of .*in: 2 of 5 pictures", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "metadata.csv",
            "file_name,label\na.png,1\ngone.png,2\n",
            "metadata.csv names 'gone.png': there is no such",
        ),
        ("metadata.csv", "file_name,label\n../in/a.png,1\n", r"metadata.csv names '../in/a.png'"),
        ("metadata.csv", "name,label\na.png,1\n", r"has the columns \['name', 'label'\]; expected file_name"),
        ("metadata.csv", "file_name,label\na.png,1,2\n", "cannot be read: .* Mend it"),
        ("metadata.csv", "", "cannot be read: .* Mend it"),
        ("metadata.jsonl", '{"file_name": "a.png", "lab', "cannot be read: .* Mend it"),
        ("metadata.parquet", "PAR", "cannot be read: .* Mend it"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": [1]}', "holds list.*, and labels are texts"),
        ("metadata.csv", "file_name,label\na.png,0.5\n", "holds double, and labels are texts"),
        ("metadata.csv", "file_name,label\na.png,\n", "no image has a label"),
    ],
)
def test_broken_metadata_is_named(tmp_path, name, text, message):
    folder = pictures(tmp_path / "in", "a.png")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        from_folder(tmp_path)
    assert name in str(error.value) or "no image" in message
    assert "\n" not in str(error.value)


def test_labels_of_a_stream(tmp_path):
    folder = save_parquet(tmp_path / "set", [0, 1, 2], ClassLabel(names=KINDS))
    flags = ("--dataset_name", folder, "--streaming", "--streaming_buffer_size", "5")
    config = configure(tmp_path, *flags)
    images, labels = StreamedImages(load_dataset(config), "L", config).take(range(24))
    assert [int(image[0, 0, 0]) % 3 for image in images] == labels


def test_a_data_set_without_labels(tmp_path):
    folder = save_parquet(tmp_path / "set", [0.5, 1.5, 2.5], Value("float32"))
    with pytest.raises(ValueError, match=r"--label_column None: the columns that can be labels are \[\], of \['image'"):
        load_dataset(configure(tmp_path, "--dataset_name", folder))
    with pytest.raises(ValueError, match="--label_column kind"):
        load_dataset(configure(tmp_path, "--dataset_name", folder, "--label_column", "kind"))


def test_labels_belong_to_their_images_and_some_are_dropped():
    pixels = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    labels = [-1, *(i % 3 for i in range(1, 100))]  # the first image has none
    settings = (1, 1), 5000, 0, True, torch.device("cpu")
    conditional = Batches(ShuffledImages(pixels, 0, labels), *settings, num_classes=3, cond_dropout=0.2)
    plain = Batches(ShuffledImages(pixels, 0, labels), *settings)
    random, other = conditional.generator(0), plain.generator(0)
    x_0, known = conditional.draw(0, random)
    assert torch.equal(x_0, plain.draw(0, other)[0])
    drawn = conditional.drop_labels(known, random)
    assert plain.drop_labels(known, other) is None
    image = ((x_0.flatten() + 1) * 127.5).round().long()
    assert (drawn[image == 0] == 3).all()
    left_out = drawn[image != 0] == 3
    assert left_out.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(drawn[drawn != 3], (image % 3)[drawn != 3])


# ---- The network and the pipeline -----------------------------------------------------------------------------------


@pytest.fixture
def pipeline():
    unet = DDPMUNetModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=4,
        class_names=tuple(KINDS),
        zero_init=False,
    )
    pipeline = DDPMPipelineCustom(unet.eval(), DDPMLinearScheduler(num_train_timesteps=10, clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, *arguments, **options):
    return pipeline(*arguments, generator=torch.Generator().manual_seed(0), output_type="pt", **options).images


def test_no_label_is_the_last_label(pipeline):
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    without = pipeline.unet(x_t, t).sample
    assert torch.equal(without, pipeline.unet(x_t, t, torch.tensor([3, 3])).sample)
    assert not torch.equal(without, pipeline.unet(x_t, t, torch.tensor([0, 1])).sample)


def test_names_need_one_label_more():
    with pytest.raises(ValueError, match=r"num_class_embeds=3.*expected 4, one more than class_names"):
        DDPMUNetModel(num_class_embeds=3, class_names=("a", "b", "c"))


def test_no_guidance_gives_the_plain_conditional_model(pipeline):
    """Compare bit for bit with the loop written out, of one forward pass a step."""
    images = draw(pipeline, class_labels=["dog", "eel"], guidance_scale=1.0)
    generator, scheduler = torch.Generator().manual_seed(0), pipeline.scheduler
    x = torch.randn(2, 1, 8, 8, generator=generator)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t, torch.tensor([1, 2])).sample, t, x, generator=generator).prev_sample
    assert torch.equal(images, (x / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_guidance_is_the_line_through_both_predictions(pipeline, scale):
    """Compare in float64 with two forward passes a step."""
    pipeline.to(torch.float64)
    images = draw(pipeline, class_labels="dog", batch_size=3, guidance_scale=scale)
    generator, scheduler = torch.Generator().manual_seed(0), pipeline.scheduler
    x = torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for t in scheduler.timesteps:
            of_class, of_none = (pipeline.unet(x, t, torch.tensor([label])).sample for label in (1, 3))
            eps = (1 - scale) * of_none + scale * of_class
            x = scheduler.step(eps, t, x, generator=generator).prev_sample
    torch.testing.assert_close(images, (x / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "options", "steps", "guided"),
    [
        (DDPMLinearScheduler, {}, 10, {6, 5, 4}),
        (DDPMLinearScheduler, {"variance_type": "learned_range"}, 10, {6, 5, 4}),
        (DDIMScheduler, {}, 5, {6, 4}),
    ],
)
def test_guidance_in_a_part_of_the_steps(pipeline, kind, options, steps, guided):
    """Compare bit for bit with the loop written out. Both ends are guided; the other steps take half the rows."""
    unet = DDPMUNetModel.from_config(pipeline.unet.config, out_channels=1 + len(options)).eval()
    scheduler = kind(10, clip_sample=False, **options)
    pipeline.register_modules(unet=unet, scheduler=scheduler)
    calls = calls_of(unet)
    how = {"num_inference_steps": steps, "class_labels": ["dog", "eel"], "guidance_scale": 2.5}
    in_part = {**how, "guidance_interval": (0.4, 0.6)}
    images = draw(pipeline, **in_part)
    assert [rows for rows, _ in calls] == [4 if int(t) in guided else 2 for t in scheduler.timesteps]

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(x, t, torch.tensor([1, 2])).sample
            if int(t) in guided:
                output, of_none = unet(torch.cat((x, x)), t, torch.tensor([1, 2, 3, 3])).sample.chunk(2)
                eps = of_none[:, :1] + 2.5 * (output[:, :1] - of_none[:, :1])
                output = torch.cat((eps, output[:, 1:]), dim=1)
            x = scheduler.step(output, t, x, generator=generator).prev_sample
    assert torch.equal(images, (x / 2 + 0.5).clamp(0, 1))
    led = draw(pipeline, **in_part, guidance_fn=lambda x_0, t: x_0.mean((1, 2, 3)), guidance_fn_scale=0)
    assert torch.equal(led, images)
    in_all = draw(pipeline, **how)
    assert not torch.equal(in_all, images)
    for interval in ((0, 1), [0.0, 1.0], torch.tensor([0.0, 1.0])):
        assert torch.equal(draw(pipeline, guidance_interval=interval, **how), in_all)


@pytest.mark.parametrize("name", ["PNDM", "EulerDiscrete", "HeunDiscrete", "DPMSolverSDE", "EDMEuler"])
def test_the_interval_is_the_same_part_for_every_scheduler(pipeline, name):
    """Their timesteps may be no whole numbers, and may be visited twice."""
    config = {"sigma_max": 10} if name == "EDMEuler" else DDPMLinearScheduler().config
    pipeline.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(config)
    calls = calls_of(pipeline.unet)
    how = {"num_inference_steps": 8, "class_labels": "eel", "guidance_scale": 2.0, "guidance_interval": (0.31, 0.77)}
    draw(pipeline, **how)
    assert [rows for rows, _ in calls] == [2 if 0.31 <= 1 - t / 1000 <= 0.77 else 1 for _, t in calls]
    assert {rows for rows, _ in calls} == {1, 2}
    draw(pipeline, **how, guidance_fn=lambda x_0, t: x_0.mean((1, 2, 3)))
    assert calls[len(calls) // 2 :] == calls[: len(calls) // 2]


def calls_of(unet):
    """Return a list to which each call of a network adds its rows and its timestep."""
    calls = []
    unet.register_forward_pre_hook(lambda _, inputs: calls.append((len(inputs[0]), float(inputs[1]))))
    return calls


@pytest.mark.parametrize(
    "interval", [(0.5, 0.2), (0.5, 0.5), (-0.1, 1), (0, 1.1), (0, np.nan), (0, 0.5, 1), ("0", "1"), "01", 0.5, None]
)
def test_intervals_that_are_no_part_of_the_steps(pipeline, interval):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    shown = re.escape(f"`guidance_interval={interval!r}`; expected two numbers from 0, pure noise, to 1")
    with pytest.raises(ValueError, match=shown):
        pipeline(1, generator, class_labels="dog", guidance_scale=2.0, guidance_interval=interval)
    with pytest.raises(ValueError, match=r"`guidance_interval=\(0.5, 1\)` .* `guidance_scale=1` is none; pass another"):
        pipeline(1, generator, class_labels="dog", guidance_interval=(0.5, 1))
    with pytest.raises(ValueError, match=r"`guidance_interval=\(0.0, 0.1\)` holds no step: those of 4 steps are at"):
        pipeline(1, generator, 4, class_labels="dog", guidance_scale=2.0, guidance_interval=(0, 0.1))
    assert torch.equal(generator.get_state(), before)


def test_labels_by_name_number_list_and_tensor(pipeline):
    expected = draw(pipeline, class_labels=["dog", "dog"])
    for labels in ([1, 1], torch.tensor([1, 1]), ("dog", 1)):
        assert torch.equal(draw(pipeline, class_labels=labels), expected)
    assert torch.equal(draw(pipeline, 2, class_labels="dog"), expected)


def test_names_are_saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = DDPMPipelineCustom.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded, class_labels=["eel"]), draw(pipeline, class_labels=[2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": "cow"}, "there is no 'cow'; expected one of cat, dog, eel, or its number from 0 to 3"),
        ({"class_labels": [4]}, "there is no 4"),
        ({"class_labels": [0, 1], "batch_size": 3}, "has 2 labels; expected one, or one for each of 3"),
        ({"guidance_scale": 2.0}, "leads to `class_labels`"),
    ],
)
def test_labels_that_do_not_fit(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)


def test_an_unconditional_model_takes_neither(pipeline):
    plain = DDPMPipelineCustom(DDPMUNetModel(block_out_channels=(32,) * 4), pipeline.scheduler)
    with pytest.raises(ValueError, match="do not fit an unconditional model"):
        plain(class_labels=3)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0.*--class_conditional"):
        plain(class_labels=3, guidance_scale=2.0)


# ---- Whole runs -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_trains_on_labels_resumes_and_draws_classes(train, tmp_path, monkeypatch):
    options = {"max_train_steps": 4, "lr_scheduler": "constant"}
    whole = train("whole", "--class_conditional", **options)
    train("parts", "--class_conditional", **{**options, "max_train_steps": 2})
    parts = train("parts", "--class_conditional", **options)
    assert equal(whole, parts)
    assert not equal(whole, train("without", "--class_conditional", cond_dropout=1, **options))
    plain = train("plain", **options)
    config = json.loads((whole / "unet" / "config.json").read_text())
    assert config["class_names"] == [str(i) for i in range(10)]
    card = (whole / "README.md").read_text()
    assert "The classes are 0, 1, 2, " in card
    snippet = re.search(r"```python\n(from ddpm_hf .*?)```", card, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace('"user/whole"', repr(str(whole))), namespace := {})
    assert len(namespace["images"]) == 4
    assert (tmp_path / "sample.png").exists()
    flags = ["--num_inference_steps", "2", "--batch_size", "3", "--output", str(tmp_path / "out.png")]
    main(["sample", str(whole), "--class_labels", "3", "7", "--guidance_scale", "1.5", *flags])
    assert PILImage.open(tmp_path / "out.png").size[0] > 28
    with pytest.raises(SystemExit, match="there is no 'cow'; expected one of 0, 1,"):
        main(["sample", str(whole), "--class_labels", "cow", *flags])
    with pytest.raises(SystemExit, match="do not fit an unconditional model"):
        main(["sample", str(plain), "--class_labels", "3", *flags])


def test_a_run_and_the_command_guide_in_a_part_of_the_steps(train, tmp_path):
    """So much guidance that a model which has learned little shows it."""
    guidance = ["--guidance_scale", "1000", "--guidance_interval", "0.4", "1"]
    run = train("run", "--class_conditional", *guidance)
    grid = np.asarray(PILImage.open(run / "samples" / "step-000004.png"))
    pipeline = open_model(str(run), None, None, None)
    labels = tuple(pipeline.unet.config.class_names)

    def drawn(*interval):
        how = Drawing(num_inference_steps=3, classes=Classes(labels, 1000.0, *interval))
        return np.asarray(image_grid(pictures_in_order(pipeline, draw_images(pipeline, range(3), how))))

    np.testing.assert_array_equal(grid, drawn((0.4, 1.0)))
    assert (grid != drawn()).any()
    assert "the classes in turns, guidance scale 1000.0 from 0.4 to 1.0 of the way." in (run / "README.md").read_text()

    def sample(*flags):
        main(["sample", str(run), "--num_inference_steps", "3", *map(str, flags)])

    sample(*guidance, "--batch_size", 3, "--output", tmp_path / "grid.png")
    np.testing.assert_array_equal(np.asarray(PILImage.open(tmp_path / "grid.png")), grid)
    for name, flags in (("part", guidance), ("all", guidance[:2])):
        sample(*flags, "--num_images", 1, "--output", tmp_path / name)
    part, whole = (json.loads((tmp_path / name / "sampling.json").read_text())["classes"] for name in ("part", "all"))
    assert whole == {"labels": list(labels), "guidance_scale": 1000.0}  # as in older folders
    assert part == {**whole, "guidance_interval": "0.4 to 1.0"}
    with pytest.raises(SystemExit, match="drawn otherwise: classes"):
        sample(*guidance[:2], "--num_images", 2, "--output", tmp_path / "part")
    flags = ["--class_conditional", *guidance, "--eval_steps", "1", "--eval_metrics", "bpd"]
    assert measurement_of(parse_command_line(flags)[0]).guidance_interval == (0.4, 1.0)
    with pytest.raises(SystemExit, match=r"holds no step: those of 3 steps are at"):
        train("without", "--class_conditional", *guidance[:2], "--guidance_interval", "0.7", "0.9")
    assert not list((tmp_path / "without").glob("samples/*"))


def test_options_that_need_labels():
    for flags in (["--label_column", "kind"], ["--guidance_scale", "3"], ["--guidance_interval", "0", "1"]):
        with pytest.raises(SystemExit):
            parse_command_line(["--no_class_conditional", *flags])


def test_a_folder_that_is_sorted_by_class_is_told_so(tmp_path, capsys):
    def tell(count, *names):
        folder = tmp_path / "-".join((str(count), *names))
        for name in names:
            (folder / name).mkdir(parents=True)
            for i in range(count):
                PILImage.new("L", (8, 8), i).save(folder / name / f"{i}.png")
        flags = ["--train_data_dir", str(folder), "--cache_dir", str(tmp_path / "cache"), "--resolution", "8"]
        load_dataset(parse_command_line(flags)[0], hint=True)
        return "--class_conditional learns them" in "".join(capsys.readouterr())

    assert tell(20, "cat", "dog")
    assert not tell(19, "cat", "dog")
    assert not tell(20, "cat")
