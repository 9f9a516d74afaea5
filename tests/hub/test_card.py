"""The model card: huggingface_hub can parse it, it tells what the run did, and it keeps what a person wrote."""

import ast
import email.message
import json
import re
import shlex

import pytest
from huggingface_hub import ModelCard
from runs import make_run

from ddpm_hf.command_line import parse_command_line
from ddpm_hf.hub.card import merge_cards, pictures_in, render_card, write_card
from ddpm_hf.hub.card_training import command_of

RECORD = {"dataset": "mnist-mini", "split": "train", "seed": 0, "model_fingerprint": "0123", "versions": {}}
EVALUATION = {
    "bpd": {"value": 3.5, "standard_error": 0.01, **RECORD, "dataset": "/home/alice/cats", "split": "test"},
    "fid": {"value": 12.3456789, **RECORD, "num_images": 1000, "extractor": "/home/alice/features.pt"},
    "prdc": {"precision": 0.5, "recall": 0.25, **RECORD},
}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "digits")


def edited(card):
    """Return a card with the edits of a person: a key, a tag, two sections, and no section on limits."""
    card = card.replace("library_name:", "co2_eq_emissions: 3\nlibrary_name:").replace("- ddpm\n", "- ddpm\n- mine\n")
    card = re.sub(r"## Limits\n.*?(?=## Citation)", "## My section\n\nWith my words.\n\n", card, flags=re.DOTALL)
    return card.replace("## Training\n", "## How I trained it\n\nOn a rainy day.\n")


def test_metadata_is_what_the_hub_reads(run):
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    data = ModelCard(render_card(run, "alice/digits")).data
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "unconditional-image-generation")
    assert (data.license, data.datasets) == ("apache-2.0", ["ylecun/mnist"])
    assert data.tags == ["ddpm", "diffusers", "unconditional-image-generation", "pytorch"]
    assert data.widget == [{"text": "samples", "output": {"url": "samples/step-000004.png"}}]
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "bpd": 3.5,
        "fid": 12.3456789,
        "precision": 0.5,
        "recall": 0.25,
    }
    fid, bpd = results["fid"], results["bpd"]
    assert fid.task_type == "unconditional-image-generation"
    assert (fid.dataset_type, fid.dataset_split) == ("ylecun/mnist", "train")
    assert fid.metric_args == {"num_images": 1000, "seed": 0, "extractor": "features.pt"}
    assert (bpd.dataset_type, bpd.dataset_name, bpd.dataset_split) == ("unknown", "a data set, `cats`", "test")
    assert "/home" not in render_card(run)


def test_card_of_a_pipeline_without_a_run_has_no_empty_table(run):
    assert "| setting | value |" in render_card(run)
    (run / "config.json").unlink()
    assert "| setting | value |" not in render_card(run)


def test_caption_tells_of_classes(run):
    def caption(**options):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, **options}))
        return next(line for line in render_card(run).splitlines() if line.startswith("Samples, not selected"))

    assert caption().endswith("seed 0.")
    assert caption(class_conditional=True).endswith("seed 0, the classes in turns.")
    assert caption(guidance_scale=1.0).endswith("guidance scale 1.0.")


def test_card_says_what_the_run_left_behind(run):
    card = render_card(run)
    assert "model-index" not in card
    for words in (
        "greyscale pictures of 8x8 pixels",
        "![A grid of samples that the model drew, not selected](samples/step-000004.png)",
        "(denoising.png)",
        "(denoising.webp)",
        "(loss.png)",
        "Trained for 4 optimizer steps of 4 images each, on 100 pictures",
        "Hardware: abacus; training took 0.0 minutes",
        "| learning_rate | 0.0001 |",
        "Licence of the data: MIT as the data set's card",
        "https://arxiv.org/abs/2006.11239",
        'from_pretrained("user/digits", revision="main", trust_remote_code=True)',
        "No metrics have been measured",
    ):
        assert words in card
    assert str(run.parent) not in card
    assert pictures_in(card, run) == ["samples/step-000004.png", "denoising.webp", "denoising.png", "loss.png"]

    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    how = "split train, num images 1000, seed 0, extractor features.pt"
    assert f"| fid | 12.35 |  |  | {how} |" in render_card(run)


def test_numbers_come_with_intervals_and_with_what_real_images_have(run):
    numbers = {
        "bpd": {"value": 2.5, "standard_error": 0.01},
        "fid": {"value": 30.0, "of_real_images": {"value": 4.0, "images": 50}},
        "prdc": {"precision": 0.8, "recall": 0.0, "images_of_each": 100, "of_real_images": {"precision": 0.9}},
    }
    (run / "evaluation.json").write_text(json.dumps(numbers))
    rows = [line.split(" | ") for line in render_card(run).splitlines() if line.startswith("| ")]
    found = {row[0].removeprefix("| "): row[1:4] for row in rows if len(row) == 5}
    assert found["bpd"] == ["2.5", "2.48 to 2.52", ""]  # 1.96 standard errors
    assert found["fid"] == ["30", "", "4"]
    assert found["precision"] == ["0.8", "0.7216 to 0.8784", "0.9"]  # 1.96 sqrt(0.8 0.2 / 100) = 0.0784
    assert found["recall"][:2] == ["0", "0 to 0"]


COMMANDS = [
    [],
    ["--preset", "cifar10", "--seed", "3", "--no_random_flip", "--gradient_accumulation_steps", "2"],
    ["--dataset_name", "alice/cats", "--resolution", "48x64", "--class_conditional", "--label_column", "a b"],
    ["--dataset_name", "alice/cats", "--max_train_steps", "70", "--value_range", "-1", "3", "--validation_split", "x"],
    ["--preset", "annotated", "--num_epochs", "5", "--use_ema", "--mixed_precision", "bf16"],
]


@pytest.mark.parametrize("flags", COMMANDS)
def test_the_command_of_the_card_gives_the_options_of_the_run(flags):
    config, _ = parse_command_line(flags)
    command = command_of(json.loads(config.to_json()))
    assert all(len(line) <= 92 for line in command.splitlines())
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["ddpm-hf", "train"]
    again, _ = parse_command_line(words[2:])
    assert again == config


def test_the_command_of_the_card_tells_no_paths(run):
    options = {"preset": "auto", "train_data_dir": "/home/me/cats", "pretrained_model_name_or_path": "/home/me/base"}
    words = "ddpm-hf train --preset auto --train_data_dir PICTURES \\ --pretrained_model_name_or_path BASE"
    assert command_of(options).split() == words.split()
    base = {"pretrained_model_name_or_path": "bob/b", "base": {"hub_id": "bob/b"}}
    assert command_of({"preset": "auto", **base}).endswith(" --pretrained_model_name_or_path bob/b")
    assert command_of({"preset": "mine"}) is None


def test_the_card_links_to_the_demo_and_to_the_project(run, monkeypatch):
    about = email.message.Message()
    about["Project-URL"] = "Repository, https://github.com/alice/project"
    monkeypatch.setattr("importlib.metadata.metadata", lambda name: about)
    (run / ".pushed-to.json").write_text(json.dumps({"model": "bob/digits", "space": "bob/try", "x": 1}))
    lines = render_card(run).splitlines()
    assert (
        "[Try it in the browser](https://huggingface.co/spaces/bob/try) · [Code](https://github.com/alice/project) · "
        "[Train one in Colab](https://colab.research.google.com/github/alice/project/blob/main/examples/ddpm_colab.ipynb)"
    ) in lines
    assert any('from_pretrained("bob/digits")' in line for line in lines)
    (run / ".pushed-to.json").write_text(json.dumps({"space": "hf_secret/[x](y)"}))
    assert "Try it" not in render_card(run)


@pytest.mark.parametrize(
    ("options", "license", "words"),
    [
        (
            {"dataset_name": "nielsr/CelebA-faces", "celeba_crop": True, "random_flip": True},
            "other",
            ("for non-commercial research only", "the 140-pixel centre crop", "mirrored left to right"),
        ),
        ({"dataset_name": "alice/cats"}, "unknown", ("Licence of the data: unknown", "datasets/alice/cats")),
        ({"train_data_dir": "/home/alice/cats"}, "unknown", ("a folder of pictures, `cats`", "unknown")),
        ({"image_fit": "pad"}, "apache-2.0", ("centred on black, 8x8",)),
    ],
)
def test_data_and_its_licence(tmp_path, options, license, words):
    card = render_card(make_run(tmp_path / "run", **options))
    assert ModelCard(card).data.license == license
    assert [w for w in words if w not in card] == []
    assert "/home" not in card


def test_a_pipeline_alone_has_a_card(tmp_path, run):
    for path in ("config.json", "run.json", "metrics.jsonl", "loss.png", "denoising.png", "denoising.webp"):
        (run / path).unlink()
    for path in (run / "samples").iterdir():
        path.unlink()
    card = render_card(run)
    assert "not recorded" in card
    assert ModelCard(card).data.datasets is None
    assert pictures_in(card, run) == []
    with pytest.raises(ValueError, match="holds no trained pipeline"):
        render_card(tmp_path)


def test_edits_by_hand_stay(run):
    write_card(run)
    card = edited((run / "README.md").read_text())
    (run / "README.md").write_text(card.replace("| seed | 0 |", "| seed | my lucky one |"))
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    write_card(run)
    card = (run / "README.md").read_text()
    data = ModelCard(card).data
    assert (data.co2_eq_emissions, data.tags[0], data.tags[-1]) == (3, "ddpm", "mine")
    assert "## My section\n\nWith my words." in card
    assert "## How I trained it\n\nOn a rainy day." in card
    assert "## Limits" not in card
    assert "lucky" not in card  # it stood between the marks
    assert "| fid | 12.35 |" in card
    write_card(run)
    assert (run / "README.md").read_text() == card


def test_a_licence_by_hand_is_better_than_none(tmp_path):
    fresh = render_card(make_run(tmp_path / "run", dataset_name="alice/cats"))
    assert (
        ModelCard(merge_cards(fresh, fresh.replace("license: unknown", "license: cc0-1.0"))).data.license == "cc0-1.0"
    )
    celeba = fresh.replace("license: unknown", "license: other")
    assert ModelCard(merge_cards(celeba, fresh.replace("unknown", "cc0-1.0"))).data.license == "other"


def test_a_card_without_marks_keeps_its_text(run):
    fresh = render_card(run)
    card = merge_cards(fresh, "# All mine\n")
    assert card.endswith("---\n# All mine\n")
    assert ModelCard(card).data.library_name == "diffusers"
    generated = "---\nlibrary_name: diffusers\n---\nThis model card has been automatically generated.\n"
    assert merge_cards(fresh, generated) == fresh
    with pytest.raises(ValueError, match="is no YAML"):
        merge_cards(fresh, "---\na: [\n---\n")


def test_pictures_of_elsewhere_are_not_shown(run):
    (run.parent / "secret.png").write_bytes(b"")
    card = "![](loss.png) ![](../secret.png) ![](missing.png) ![](https://x.org/a.png) ![x](loss.png) ![](config.json)"
    assert pictures_in(card, run) == ["loss.png"]


def test_a_longer_run_does_not_show_what_older_weights_scored(train):
    options = {"lr_scheduler": "constant_with_warmup"}
    folder = train(max_train_steps=2, **options)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    train(max_train_steps=2, **options)
    assert "| fid |" in (folder / "README.md").read_text()
    train(max_train_steps=4, **options)
    card = (folder / "README.md").read_text()
    assert "| fid |" not in card
    assert "model-index" not in card
    assert "samples/step-000004.png" in card
    assert (folder / "earlier-evaluation.json").exists()


# ---- Files that are broken or written by others ----------------------------------------------------------------------

EVIL = (
    "<script>alert(1)</script> <!-- ddpm_hf:end --> ` | [x](javascript:alert(1)) ![](https://x.org/a.png)\n# title\n"
    '---\n```\n"); import os; os.mkdir("it ran"); ("{{ 7 * 7 }} {% raw %} \u202e \ud800'
)


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def spoil_every_text(run):
    for name in ("train_data_dir", "preset", "lr_scheduler", "optimizer"):
        change(run / "config.json", **{name: EVIL})
    change(run / "run.json", hardware=EVIL, versions={EVIL: EVIL})
    change(run / "unet" / "config.json", class_names=[EVIL, "b"])
    entry = {**RECORD, "value": 1.5, "dataset": EVIL, "split": EVIL, "note": EVIL, "scheduler": EVIL, "extractor": EVIL}
    (run / "evaluation.json").write_text(json.dumps({EVIL: entry}))
    return run.rename(run.parent / EVIL.replace("/", "").replace("\ud800", ""))


def test_text_of_files_is_no_markup_and_no_code(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = spoil_every_text(run)
    card = render_card(run)
    before = ModelCard(card)
    for words in ("<script", "](javascript:", "![](https:", "\n# title", "\u202e", "49"):
        assert words not in re.sub(r"```python\n.*?\n```", "", before.text, flags=re.DOTALL), words
    assert len(re.findall("<!-- ddpm_hf:begin", card)) == len(re.findall("<!-- ddpm_hf:end -->", card)) == 7
    assert before.data.eval_results[0].metric_value == 1.5
    for row in re.findall(r"^\|.*", before.text, flags=re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) == row.count(" | ") + 2 and row.endswith("|")
    assert merge_cards(card, card) == card
    for snippet in re.findall(r"```python\n(.*?)\n```", card, flags=re.DOTALL):
        (name,) = [node.args[0].value for node in ast.walk(ast.parse(snippet)) if is_load(node)]
        assert name == f"user/{run.name}"
        keywords = [
            keyword for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call) for keyword in node.keywords
        ]
        assert [ast.literal_eval(each.value) for each in keywords if each.arg == "class_labels"] == [[EVIL, "b"]]


def is_load(node):
    return isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained"


OF_ANOTHER_TYPE = ["", "{", "[]", '"text"', "5", "null", "[" * 100_000]


@pytest.mark.parametrize("content", OF_ANOTHER_TYPE)
@pytest.mark.parametrize("name", ["config.json", "run.json", "evaluation.json", "scheduler/scheduler_config.json"])
def test_broken_side_files_are_said_and_left_out(run, name, content, capsys):
    (run / name).write_text(content)
    assert "# digits" in render_card(run)
    said = capsys.readouterr().out
    assert str(run / name) in said
    assert "The card does without it." in said


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("config.json", {"hub_model_id": 5}, "`hub_model_id` is 5; expected a text or null. It is left out."),
        ("config.json", {"hub_model_id": 'x"); f("'}, "Repo id must use alphanumeric"),
        ("config.json", {"hub_model_id": "hf_secret"}, "hf_***: this looks like a token"),
        ("config.json", {"train_data_dir": ["a"]}, '`train_data_dir` is ["a"]; expected a text or null'),
        ("config.json", {"resolution": "big"}, '`resolution` is "big"; expected a number of pixels, or HEIGHTxWIDTH'),
        ("config.json", {"image_fit": 3}, "`image_fit` is 3; expected one of crop, pad"),
        ("config.json", {"ddpm_num_inference_steps": 2.5}, "`ddpm_num_inference_steps` is 2.5"),
        ("run.json", {"parameters": "many"}, '`parameters` is "many"; expected a whole number'),
        ("run.json", {"versions": "2"}, '`versions` is "2"; expected keys and values'),
        ("run.json", {"images_per_step": None}, "`images_per_step` is null"),
        ("evaluation.json", {"fid": 3}, "`fid` holds 3; expected keys and values; the card leaves `fid` out."),
        ("evaluation.json", {"fid": {}}, "`fid` has no `value`; expected a number"),
        ("evaluation.json", {"fid": {"value": "low"}}, '`value` is "low"; expected a number'),
        ("evaluation.json", {"fid": {"value": 1, "dataset": 7}}, "`dataset` is 7; expected a text or null"),
        ("evaluation.json", {"prdc": {"precision": "x", "recall": 0.25}}, ""),
    ],
)
def test_values_of_another_type_are_said_and_left_out(run, name, values, said, capsys):
    (run / "evaluation.json").write_text(json.dumps({"bpd": EVALUATION["bpd"]}))
    change(run / name, **values)
    card = render_card(run)
    assert "| bpd | 3.5 |" in card
    assert "fid" not in card
    assert "secret" not in card
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    assert "secret" not in printed


@pytest.mark.parametrize(
    "line",
    [{"step": "x"}, {"step": 6, "loss": "low"}, {"step": 6, "images_per_second": None}, [6], {"step": 6, "loss": []}],
)
def test_broken_lines_of_the_metrics_are_left_out(run, line):
    with open(run / "metrics.jsonl", "a") as file:
        file.write("\n" + json.dumps(line) + "\n")
    assert "Trained for " in render_card(run)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample_size": None}, "`sample_size` is null; expected a whole number or a list. Save the pipeline again"),
        ({"sample_size": [8]}, r"`sample_size` is \[8\]; expected one or two sides"),
        ({"sample_size": ["a", 8]}, "expected one or two sides"),
        ({"in_channels": "1"}, '`in_channels` is "1"; expected a whole number'),
        ({"class_names": "cat"}, '`class_names` is "cat"; expected a list of texts'),
        ({"class_names": [1]}, "expected a list of texts"),
    ],
)
def test_a_network_that_does_not_say_what_it_draws(run, values, message):
    change(run / "unet" / "config.json", **values)
    with pytest.raises(ValueError, match=message) as error:
        render_card(run)
    assert str(run / "unet" / "config.json") in str(error.value) and "\n" not in str(error.value)


def test_a_pipeline_with_its_files_at_the_root(run):
    (run / "unet" / "config.json").rename(run / "config.json")
    with pytest.raises(ValueError, match=r"has the U-Net's files at its root and no unet/.*: ddpm-hf convert "):
        render_card(run)
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match=r"unet.config\.json is missing"):
        render_card(run)
    (run / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model_index\.json is broken"):
        render_card(run)


@pytest.mark.parametrize(
    "old",
    ["---\ntags: {a: 1}\n---\n# Mine\n", "---\ntags: [{a: 1}, 3]\nlicense: [x]\n---\n# Mine\n", "---\n---\n# Mine\n"],
)
def test_odd_metadata_of_an_older_card(run, old):
    (run / "README.md").write_text(old)
    write_card(run)
    assert (run / "README.md").read_text().endswith("# Mine\n")
    (run / "README.md").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"README\.md is no text of UTF-8"):
        write_card(run)
