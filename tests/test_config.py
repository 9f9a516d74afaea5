"""The options of a run: presets, flags, and what is said about bad ones."""

import dataclasses
import json

import pytest
import torch
from runs import equal, make_run

from ddpm_hf import DDPMUNetModel
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.config import TrainingConfig
from ddpm_hf.precision import choose_mixed_precision
from ddpm_hf.presets import PRESETS
from ddpm_hf.training.launcher import check_launcher

# The flags of diffusers' train_unconditional.py that make sense here.
STOCK_FLAGS = {
    "dataset_name", "dataset_config_name", "model_config_name_or_path", "train_data_dir", "output_dir", "num_epochs",
    "overwrite_output_dir", "cache_dir", "resolution", "random_flip", "train_batch_size", "eval_batch_size",
    "save_images_epochs", "save_model_epochs", "gradient_accumulation_steps", "learning_rate", "lr_scheduler",
    "lr_warmup_steps", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "use_ema", "ema_inv_gamma",
    "ema_power", "ema_max_decay", "mixed_precision", "prediction_type", "ddpm_num_steps", "ddpm_num_inference_steps",
    "ddpm_beta_schedule",
}  # fmt: skip


ALONE = [name for name in PRESETS if name != "distill"]  # which needs a teacher


@pytest.mark.parametrize("preset", ALONE)
def test_presets_make_models(preset):
    config, _ = parse_command_line(["--preset", preset])
    with torch.device("meta"):
        DDPMUNetModel(sample_size=config.resolution, **config.model)
    assert config.output_dir == ("ddpm-digits" if preset == "auto" else f"ddpm-{preset}")


def test_flags_override_the_preset():
    config, dry_run = parse_command_line(
        ["--preset", "cifar10", "--learning_rate", "1e-3", "--no_use_ema", "--dry_run"]
    )
    assert (config.learning_rate, config.use_ema, config.train_batch_size) == (1e-3, False, 128)
    assert dry_run
    assert parse_command_line(["--preset", "annotated", "--use_ema"])[0].use_ema
    assert parse_command_line(["--preset", "celeba-64", "--train_data_dir", "x"])[0].dataset_name is None


def test_annotated_preset_is_the_tutorials():
    config, _ = parse_command_line(["--preset", "annotated"])
    assert (config.resolution, config.train_batch_size, config.learning_rate, config.optimizer) == (
        32,
        64,
        2e-5,
        "adam",
    )
    assert (config.variance_type, config.clip_sample, config.use_ema, config.max_grad_norm) == (
        "fixed_large",
        False,
        False,
        0,
    )
    assert config.ddpm_num_steps == 1000


def test_steps_and_epochs():
    config, _ = parse_command_line(["--num_epochs", "3", "--save_images_epochs", "2"])
    config.count_steps(steps_per_epoch=10.5)
    assert (config.max_train_steps, config.save_images_steps) == (32, 21)
    config, _ = parse_command_line(["--max_train_steps", "7", "--num_epochs", "3"])
    config.count_steps(steps_per_epoch=10.5)
    assert config.max_train_steps == 7


@pytest.mark.parametrize(
    ("text", "resolution", "size"), [("64", 64, (64, 64)), ("64x64", 64, (64, 64)), ("4x8", "4x8", (4, 8))]
)
def test_sizes(text, resolution, size):
    config, _ = parse_command_line(["--resolution", text])
    assert (config.resolution, config.size) == (resolution, size)


def test_help_names_every_flag_of_train_unconditional(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_command_line(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert [flag for flag in STOCK_FLAGS if f"--{flag} " not in text and f"--{flag}," not in text] == []


def test_model_config_from_a_file(tmp_path):
    DDPMUNetModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=["DownBlock2D"] * 2,
        up_block_types=["UpBlock2D"] * 2,
    ).save_config(tmp_path)
    config, _ = parse_command_line(["--model_config_name_or_path", str(tmp_path)])
    assert config.model["block_out_channels"] == [32, 64]
    (tmp_path / "run.json").write_text(config.to_json())
    assert json.loads((tmp_path / "run.json").read_text())["model"]["block_out_channels"] == [32, 64]


def test_the_token_is_in_nothing_made_of_the_options():
    config, _ = parse_command_line(["--push_to_hub", "--hub_model_id", "a/b", "--hub_token", "hf_secret"])
    assert config.hub_token == "hf_secret"
    assert "hf_secret" not in f"{config} {config.to_json()} {dataclasses.asdict(config)}"
    assert config.differences(json.loads(parse_command_line([])[0].to_json())) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset mnist-maxi", "invalid choice: 'mnist-maxi' (choose from 'mnist-mini'"),
        ("--learnin_rate 1", "--learnin_rate 1 (did you mean --learning_rate?)"),
        ("--learning_rate fast", "--learning_rate: invalid float value: 'fast'"),
        ("--learning_rate -1", "--learning_rate -1.0: expected at least 0"),
        ("--adam_beta1 1", "--adam_beta1 1.0: expected 0 to 0.999999"),
        ("--train_batch_size 0", "--train_batch_size 0: expected at least 1"),
        (
            "--ddpm_num_steps 200 --ddpm_num_inference_steps 500",
            "--ddpm_num_inference_steps 500: expected at most --ddpm_num_steps, 200",
        ),
        ("--resolution 30", "--resolution 30: the U-Net halves its input 2 times, so the resolution has to be"),
        ("--resolution 30x41", "height and width have to be multiples of 4, such as 28x40 or 32x44"),
        ("--resolution 64x", "--resolution 64x: expected a number of pixels, such as 64, or HEIGHTxWIDTH"),
        ("--resolution 0x64", "--resolution 0x64: expected a number of pixels"),
        ("--dataset_name a --train_data_dir b", "pass one of them"),
        ("--guidance_interval 0.5 2", "--guidance_interval 0.5 2: expected two numbers from 0 to 1, the lower one"),
        ("--guidance_interval 0.5 1", "--guidance_interval 0.5 1 is a part of the guidance, and there is none; pass"),
        ("--guidance_interval 0.5 1 --guidance_scale 1", "pass --guidance_scale, such as 2"),
        ("--scheduler euler", "--scheduler: invalid choice: 'euler'"),
        ("--scheduler dpmsolver++ --variance_type learned_range", "--variance_type learned_range learns one; save the"),
        ("--model_config_name_or_path /no/such/file", "--model_config_name_or_path /no/such/file"),
    ],
)  # fmt: skip
def test_bad_flags_are_answered_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_command_line(flags.split())
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"preset": "mnist-maxi"}, "--preset mnist-maxi: expected one of mnist-mini, "),
        ({"lr_scheduler": "cosin"}, "--lr_scheduler cosin: expected one of linear, cosine, "),
        ({"learning_rate": "1e-3"}, "--learning_rate 1e-3: expected a number"),
        ({"learning_rate": float("nan")}, "--learning_rate nan: expected a number"),
        ({"train_batch_size": 1.5}, "--train_batch_size 1.5: expected a whole number"),
        ({"use_ema": 1}, "--use_ema 1: expected true or false"),
    ],
)
def test_values_are_checked_in_python_too(option, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**option)


# ---- Files of options -----------------------------------------------------------------------------------------------


def configure(*arguments):
    return parse_command_line([str(argument) for argument in arguments])[0]


@pytest.fixture
def options(tmp_path):
    """Write a file of options and return the flags that name it."""

    def write(text, name="options.yaml"):
        (tmp_path / name).write_text(text)
        return "--config", tmp_path / name

    return write


def test_a_file_lies_between_the_preset_and_the_flags(options):
    flags = options("preset: cifar10\nlearning_rate: 1e-3\nuse_ema: false\ntrain_batch_size: 32\nmixed_precision: no\n")
    config = configure(*flags, "--train_batch_size", 16)
    assert config.mixed_precision == "no"  # YAML reads it as false
    assert (config.preset, config.resolution, config.dataset_name) == ("cifar10", 32, "uoft-cs/cifar10")
    assert (config.learning_rate, config.use_ema, config.train_batch_size) == (1e-3, False, 16)


@pytest.mark.parametrize("preset", ALONE)
def test_the_options_of_a_run_repeat_it(options, preset):
    config = configure("--preset", preset, "--output_dir", "x", "--snr_gamma", "3", "--optimizer", "adam")
    assert configure(*options(config.to_json(), "config.json")) == config


def test_the_options_of_a_run_do_not_repeat_its_command(options):
    """Repeated, they would throw the run away again, or push another run to its repository."""
    flags = (
        "--overwrite_output_dir",
        "--resume_from_checkpoint",
        "step-000010",
        "--push_to_hub",
        "--hub_model_id",
        "a/b",
    )
    file = options(configure(*flags, "--output_dir", "x").to_json(), "config.json")
    config = configure(*file)
    assert (config.overwrite_output_dir, config.resume_from_checkpoint) == (False, "latest")
    assert (config.output_dir, config.hub_model_id) == ("x", "a/b")
    assert configure(*file, "--output_dir", "y", "--hub_model_id", "a/c").hub_model_id == "a/c"
    assert not configure(*file, "--output_dir", "y", "--no_push_to_hub").push_to_hub
    with pytest.raises(SystemExit):
        configure(*file, "--output_dir", "y")


def test_what_depends_on_the_images_is_not_repeated(options):
    """The classes of a class-conditional run are those of the new images."""
    config = configure("--class_conditional")
    config.model |= {"class_names": ["a", "b"], "num_class_embeds": 3}
    assert configure(*options(config.to_json(), "config.json")).model == PRESETS["mnist-mini"]["model"]


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("train_data_dir: pictures", "--preset mnist", {"dataset_name": None, "output_dir": "ddpm-pictures"}),
        ("dataset_name: a\ndataset_split: b", "--train_data_dir c", {"train_data_dir": "c", "dataset_split": "train"}),
        ("dataset_name: a\ndataset_split: test", "--dataset_split all", {"dataset_name": "a", "dataset_split": "all"}),
        ("num_epochs: 3", "", {"num_epochs": 3, "max_train_steps": None}),
        ("max_train_steps: 7", "--num_epochs 3", {"num_epochs": 3, "max_train_steps": None}),
        ("max_train_steps: 7\nnum_epochs: 3", "", {"num_epochs": 3, "max_train_steps": 7}),
        ("save_images_epochs: 1", "--save_images_steps 5", {"save_images_epochs": None, "save_images_steps": 5}),
        ("overwrite_output_dir: true", "--no_overwrite_output_dir", {"overwrite_output_dir": False}),
        ("overwrite_output_dir: false", "", {"overwrite_output_dir": False}),
        ("model_config_name_or_path: null", "", {"model": PRESETS["mnist-mini"]["model"]}),
        ("mixed_precision: 'no'\ncache_dir: null", "", {"mixed_precision": "no", "cache_dir": None}),
    ],
)  # fmt: skip
def test_what_a_layer_names_displaces_what_lies_below(options, text, flags, expected):
    config = dataclasses.asdict(configure(*options(text), *flags.split()))
    assert {name: config[name] for name in expected} == expected


def test_the_network_of_a_file(options, tmp_path):
    flags = options(
        "model:\n  block_out_channels: [32]\n  down_block_types: [DownBlock2D]\n  up_block_types: [UpBlock2D]"
    )
    assert configure(*flags).model["block_out_channels"] == [32]
    DDPMUNetModel(block_out_channels=(64,), down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"]).save_config(
        tmp_path / "model"
    )
    assert configure(*flags, "--model_config_name_or_path", tmp_path / "model").model["block_out_channels"] == [64]
    assert configure(*options(f"model_config_name_or_path: {tmp_path / 'model'}")).model["block_out_channels"] == [64]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("learnin_rate: 1", "", "there is no option `learnin_rate`; did you mean learning_rate?"),
        ("learning_rate: fast", "", '`learning_rate` is "fast"; expected a number'),
        ("learning_rate: -1", "", "--learning_rate -1: expected at least 0"),
        ("mixed_precision: yes", "", "`mixed_precision` is true; expected one of auto, no"),
        ("preset: mnist-maxi", "", "--preset mnist-maxi: expected one of mnist-mini, "),
        ("preset: mnist", "--preset cifar10", "--preset cifar10 contradicts --config "),
        ("overwrite_output_dir: true", "", "says `overwrite_output_dir: True`, which is meant for one command"),
        ("model: {block_out_channel: [32]}", "", "unknown keys block_out_channel"),
        ("- a list", "", "expected options, such as"),
        ("a: b: c", "", "expected YAML; mapping values are not allowed"),
        ("hub_model_id: a/hf_secret", "", "this looks like a token"),
    ],
)
def test_bad_files_are_answered_in_one_line(options, text, flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        configure(*options(text), *flags.split())
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_help_shows_the_defaults_of_the_preset(options, capsys):
    for flags in (["--preset", "cifar10", "--help"], [*options("preset: cifar10"), "--help"]):
        with pytest.raises(SystemExit):
            configure(*flags)
        text = " ".join(capsys.readouterr().out.split())
        assert "Highest learning rate. Default: 0.0002." in text
        assert "Default: uoft-cs/cifar10." in text


# ---- What other scripts and the launcher ask for --------------------------------------------------------------------

# The commands of diffusers' pages on unconditional training, after `accelerate launch train_unconditional.py`.
STOCK_COMMANDS = [
    "--dataset_name=huggan/flowers-102-categories --output_dir=flowers --mixed_precision=fp16 --push_to_hub",
    """--dataset_name=huggan/flowers-102-categories --resolution=64 --center_crop --random_flip
       --output_dir=ddpm-ema-flowers-64 --train_batch_size=16 --num_epochs=100 --gradient_accumulation_steps=1 --use_ema
       --learning_rate=1e-4 --lr_warmup_steps=500 --mixed_precision=no --push_to_hub""",
    """--dataset_name=huggan/pokemon --resolution=64 --center_crop --random_flip --output_dir=ddpm-ema-pokemon-64
       --train_batch_size=16 --num_epochs=100 --gradient_accumulation_steps=1 --use_ema --learning_rate=1e-4
       --lr_warmup_steps=500 --mixed_precision=no --push_to_hub""",
    """--dataset_name=huggan/pokemon --resolution=64 --center_crop --random_flip --output_dir=ddpm-ema-pokemon-64
       --train_batch_size=16 --num_epochs=100 --gradient_accumulation_steps=1 --use_ema --learning_rate=1e-4
       --lr_warmup_steps=500 --mixed_precision=fp16 --logger=wandb""",
    "--train_data_dir=pictures --resolution=64 --dataloader_num_workers=4 --local_rank=0 --ddpm_num_steps=1000",
    "--dataset_name=a/b --enable_xformers_memory_efficient_attention --checkpointing_steps=500 --logging_dir=logs",
]


@pytest.mark.parametrize("command", STOCK_COMMANDS)
def test_commands_of_diffusers_are_taken(command):
    parse_command_line(command.split())


@pytest.mark.parametrize("flag", ["--dataloader_num_workers 4", "--local_rank 0", "--local-rank=1"])
def test_flags_without_effect_are_named(flag, capsys):
    parse_command_line(flag.split())
    assert "changes nothing: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr 1", "(use --learning_rate)"),
        ("--xyzzy 1", "unrecognized arguments: --xyzzy 1; --help"),
    ],
)
def test_flags_of_other_scripts(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse_command_line(flags.split())
    error = capsys.readouterr().err
    assert message in error
    assert "did you mean" not in error


@pytest.mark.parametrize(
    ("environment", "flags", "precision", "accumulation", "notes"),
    [
        ({}, "", None, 1, []),
        ({"MIXED_PRECISION": "no"}, "--mixed_precision fp16", "fp16", 1, []),
        ({"MIXED_PRECISION": "bf16"}, "", "bf16", 1, []),
        ({"MIXED_PRECISION": "FP16"}, "", "fp16", 1, []),
        ({"MIXED_PRECISION": "bf16"}, "--mixed_precision no", "no", 1, ["--mixed_precision no is used; acc"]),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, "", None, 4, []),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, "--gradient_accumulation_steps 4", None, 4, []),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, "--gradient_accumulation_steps 2", None, 2, ["--gradient_acc"]),
        ({"GRADIENT_ACCUMULATION_STEPS": "many"}, "", None, None, "GRADIENT_ACCUMULATION_STEPS many: expected a whole"),
        ({"GRADIENT_ACCUMULATION_STEPS": "0"}, "", None, None, "--gradient_accumulation_steps 0: expected at least 1"),
        ({"MIXED_PRECISION": "fp8"}, "--mixed_precision no", "no", 1, ["--mixed_precision no is used; accelerate was"]),
        ({"DOWNCAST_BF16": "false"}, "", None, 1, []),
        ({"DOWNCAST_BF16": "true"}, "", None, None, "ACCELERATE_DOWNCAST_BF16 is true, which is for TPUs; unset it"),
        ({"MIXED_PRECISION": "fp8"}, "", None, None, "accelerate asks for mixed precision fp8; expected no, bf16 or"),
        ({"DYNAMO_BACKEND": "INDUCTOR"}, "", None, None, "accelerate asks for the dynamo backend inductor; choose"),
    ],
)  # fmt: skip
def test_the_launcher_is_obeyed(environment, flags, precision, accumulation, notes, monkeypatch, capsys):
    for name in ("MIXED_PRECISION", "GRADIENT_ACCUMULATION_STEPS", "DYNAMO_BACKEND", "DOWNCAST_BF16"):
        monkeypatch.delenv(f"ACCELERATE_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)

    def read():
        config, _ = parse_command_line(flags.split())
        return config, check_launcher(config), choose_mixed_precision(config.mixed_precision)

    if isinstance(notes, str):
        with pytest.raises((SystemExit, ValueError)) as stop:
            read()
        assert notes in f"{stop.value} {capsys.readouterr().err}"
        return
    config, said, chosen = read()
    assert precision in (None, chosen)
    assert config.gradient_accumulation_steps == accumulation
    assert len(said) == len(notes) and all(line.startswith(note) for line, note in zip(said, notes))


def test_accumulation_by_the_launcher_equals_the_flag(train, monkeypatch):
    flag = train("flag", gradient_accumulation_steps=2)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    assert equal(train("launcher"), flag)
    assert equal(train("both", gradient_accumulation_steps=1), train("one", gradient_accumulation_steps=1))


def test_a_configuration_comes_without_weights_and_says_so(train, capsys):
    assert "without the weights: it starts at random" in (train(), capsys.readouterr().out)[1]


def test_the_folder_of_a_pipeline_stands_for_its_network(tmp_path):
    folder = make_run(tmp_path / "run")
    expected = parse_command_line(["--model_config_name_or_path", str(folder / "unet")])[0].model
    assert parse_command_line(["--model_config_name_or_path", str(folder)])[0].model == expected


@pytest.mark.parametrize("text", ['{"step": 1}', '{"block_out_channels": 5}', "[]", "{"])
def test_a_file_that_is_no_configuration_of_a_network(tmp_path, text, capsys):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SystemExit):
        parse_command_line(["--model_config_name_or_path", str(tmp_path / "a.json")])
    assert "--model_config_name_or_path" in capsys.readouterr().err


def test_a_token_is_no_folder(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--output_dir", f"hf_{'a1' * 17}"])
    assert "looks like a token" in (error := capsys.readouterr().err) and "a1a1" not in error
