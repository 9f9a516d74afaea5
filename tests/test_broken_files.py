"""Files that are broken or written by others are named in one line, and stop nothing that can do without them."""

import hashlib
import json
import shutil
import sys

import pytest
from runs import equal, make_run, metrics

from ddpm_hf import cli
from ddpm_hf.checkpoint import load_state, verify_checkpoint
from ddpm_hf.files import read_json, read_json_lines
from ddpm_hf.run_files import list_checkpoints

NO_OBJECTS = ["", "{", "[]", '"text"', "5", "null", "\x00\xff", "[" * 100_000]


@pytest.mark.parametrize("text", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_no_object_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"a\.json is broken.*expected.*Do this\.$"):
        read_json(path, {}, "Do this.")
    assert read_json_lines(path, {"step": int}) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "the file has no `step`; expected a whole number"),
        ({"step": "4"}, '`step` is "4"; expected a whole number'),
        ({"step": True}, "`step` is true; expected a whole number"),
        ({"step": 4.5}, r"`step` is 4\.5; expected a whole number"),
        ({"step": 4, "loss": "low"}, '`loss` is "low"; expected a number or null'),
        ({"step": 4, "loss": float("nan")}, "`loss` is NaN; expected a number or null"),
    ],
)
def test_another_form_is_named(tmp_path, value, message):
    path, form = tmp_path / "a.json", {"step": int, "loss": float | None}
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        read_json(path, form)
    good = [{"step": 4, "loss": 1, "more": []}, {"step": 5, "loss": None}]
    path.write_text("\n".join(map(json.dumps, [good[0], value, good[1]])) + '\n{"step"')
    assert read_json_lines(path, form) == good


def spoil_manifest(path):
    manifest = json.loads((path / "manifest.json").read_text())
    yield from ("", "[]", "{}", "null", '{"state.json": 5}')
    yield json.dumps({**manifest, "model.safetensors": 3})
    yield json.dumps({**manifest, "model.safetensors": {"bytes": "1", "sha256": 5}})
    yield json.dumps({name.replace("ema", "emb"): entry for name, entry in manifest.items()})
    yield json.dumps({name: entry for name, entry in manifest.items() if name != "ema.safetensors"})


def spoil_state(path):
    state = json.loads((path / "state.json").read_text())
    yield from ({}, {**state, "step": "4"}, {**state, "losses": 5}, {**state, "config": []})
    yield {**state, "config": {**state["config"], "learning_rate": "high"}}
    yield {**state, "config": {**state["config"], "seed": 1.5}}
    yield {**state, "config": {**state["config"], "prediction_type": "noise"}}
    yield {**state, "config": {**state["config"], "model": None}}


def test_checkpoints(train, tmp_path):
    whole = train("whole", checkpointing_steps=2)
    for name in ("step-final", "step-000004-copy", "step-1e9", "step-"):
        (whole / "checkpoints" / name).mkdir()
    (whole / "checkpoints" / "step-000009").write_text("no folder")
    assert [path.name for path in list_checkpoints(whole / "checkpoints")] == ["step-000002", "step-000004"]
    path = whole / "checkpoints" / "step-000004"
    verify_checkpoint(path)
    manifest, state = ((path / name).read_text() for name in ("manifest.json", "state.json"))
    for text in spoil_manifest(path):
        (path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"step-000004.(manifest.json|emb.safetensors)"):
            verify_checkpoint(path)
    again = train("again", checkpointing_steps=2, max_train_steps=2)
    shutil.copytree(path, again / "checkpoints" / path.name)  # it has the last of the spoilt manifests
    train("again", checkpointing_steps=2)
    assert equal(again, whole)

    (path / "manifest.json").write_text(manifest)
    for other in spoil_state(path):
        (path / "state.json").write_text(text := json.dumps(other))
        entry = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        (path / "manifest.json").write_text(json.dumps({**json.loads(manifest), "state.json": entry}))
        with pytest.raises(SystemExit, match=r"state.json is broken: .*; expected .*\. Take another checkpoint"):
            train("whole", max_train_steps=6)
        with pytest.raises(SystemExit, match=r"state.json is broken: .*; expected "):
            cli.main(["sample", str(whole), "--checkpoint", "latest", "--output", str(tmp_path / "a.png")])
    (path / "state.json").write_text(state)
    assert load_state(path)["step"] == 4


SIDE_FILES = ["config.json", "run.json", "metrics.jsonl", "evaluation.json", "evaluations.jsonl"]


@pytest.mark.parametrize("text", ["[1]\n\x00\xff\xfe", '{"step": "x", "loss": {}}'], ids=["lists", "objects"])
def test_broken_side_files_stop_no_run(train, tmp_path, text):
    options = {"lr_scheduler": "constant", "eval_steps": 2, "eval_num_images": 2}
    whole = train("whole", **options)
    folder = train("spoilt", max_train_steps=2, **options)
    for name in [*SIDE_FILES, "unreadable_images.jsonl"]:
        (folder / name).write_text(text, encoding="latin-1")
    train("spoilt", **options)
    assert equal(folder, whole)
    assert [line["step"] for line in metrics(folder)] == [3, 4]
    assert [json.loads(line)["step"] for line in (folder / "evaluations.jsonl").read_text().splitlines()] == [2, 4]


# ---- `ddpm-hf evaluate` and `sample` -------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path / "run")


def evaluate(folder, *flags):
    cli.main(["evaluate", str(folder), "--metrics", "bpd", "--num_images", "2", "--bpd_timesteps", "2", *flags])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "config.json",
            '{"preset": "mnist-mini", "output_dir": "a", "ddpm_num_steps": 10, "train_batch_size": "4"}',
            0,
        ),
        (
            "evaluation.json",
            "[]",
            "evaluation.json is broken: the file holds .*; expected keys and values. Move it away",
        ),
        ("evaluation.json", "{", "evaluation.json is broken .*expected JSON. Move it away"),
        ("evaluation.json", '{"fid": 3}', "evaluation.json does not hold numbers .*`fid` holds 3; expected keys and"),
        ("evaluation.json", '{"fid": {}}', "evaluation.json does not hold numbers .*no `model_fingerprint`"),
    ],
)
def test_evaluate_names_what_is_broken_before_it_measures(run, name, text, message):
    before = (run / name).write_text(text)
    with pytest.raises(
        SystemExit, match=message or 'config.json is broken: `train_batch_size` is "4"; expected a whole'
    ):
        evaluate(run)
    assert before == len((run / name).read_text())


def test_a_picture_of_others_is_not_overwritten(run, tmp_path):
    (tmp_path / "nearest.png").write_text("mine")
    with pytest.raises(SystemExit, match=r"nearest.png would be overwritten"):
        evaluate(run, "--output", "here.json")


def test_only_the_caller_chooses_where_the_cache_is(run, tmp_path):
    options = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**options, "cache_dir": str(tmp_path / "theirs")}))
    evaluate(run, "--cache_dir", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "ddpm_hf").exists()
    for name in ("config.json", "evaluation.json"):
        (run / name).unlink()
    (run / "config.json").write_text(json.dumps({"cache_dir": str(tmp_path / "theirs"), "train_data_dir": "/"}))
    evaluate(run, "--cache_dir", str(tmp_path / "mine"))
    assert not (tmp_path / "theirs").exists()


def sample(folder, *flags):
    cli.main(["sample", str(folder), "--num_inference_steps", "2", "--num_images", "3", "--output", "drawn", *flags])


def test_pictures_of_others_are_not_taken_for_samples(run, tmp_path):
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "000001.png").write_text("mine")
    with pytest.raises(SystemExit, match=r"drawn holds 000001.png, which was not drawn by this command"):
        sample(run)
    assert (tmp_path / "drawn" / "000001.png").read_text() == "mine"


def test_a_sample_that_was_cut_off_is_drawn_again(run, tmp_path):
    sample(run)
    picture = tmp_path / "drawn" / "000001.png"
    content = picture.read_bytes()
    for spoilt in (b"", content[: len(content) // 2], b"x" * len(content)):
        picture.write_bytes(spoilt)
        sample(run)
        assert picture.read_bytes() == content
    (tmp_path / "drawn" / "sampling.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"sampling.json is broken: .*expected keys and values. Name another folder"):
        sample(run)


# ---- Before the first step ------------------------------------------------------------------------------------------

EXTRACTORS = """
import torch
def two(images): return torch.stack([images.float().mean((1, 2, 3)), images.float().std((1, 2, 3))], 1)
def wide(images): return torch.rand(len(images), 2048)
def raising(images): raise KeyError("no such layer")
def nan(images): return two(images) * float("nan")
def flat(images): return two(images)[:, 0]
"""


@pytest.mark.parametrize(
    ("features", "number", "message"),
    [
        ("wide", 256, "--metrics fid: 256 samples and 10,000 reference images; with 2,048 features, at least 2,049"),
        ("raising", 256, "raising fails on uint8 images .*no such layer"),
        ("nan", 256, "nan returns .*expected finite floats"),
        ("flat", 256, r"flat returns .*expected a tensor"),
        ("two", 2, "--metrics fid: 2 samples"),
    ],
)
def test_what_cannot_be_measured_is_known_before_the_first_step(
    train, tmp_path, monkeypatch, features, number, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "extractors_of_mine.py").write_text(EXTRACTORS)
    options = {"eval_steps": 2, "eval_metrics": "bpd,fid", "eval_features": f"extractors_of_mine:{features}"}
    with pytest.raises(SystemExit, match=f"the run cannot be measured .*{message}"):
        train("bad", eval_num_images=number, **options)
    assert not (tmp_path / "bad").exists()
    sys.modules.pop("extractors_of_mine")
