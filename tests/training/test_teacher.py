"""Students: what a teacher teaches, against stock DDIM, and runs that distill."""

import json
import re

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from runs import equal, weights

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.cli import main
from ddpm_hf.config import TrainingConfig
from ddpm_hf.hub import card_training as card
from ddpm_hf.training.model import how_to_draw
from ddpm_hf.training.objective import denoising_loss, timestep_weights
from ddpm_hf.training.teacher import Teacher


def config_of(**options):
    defaults = {"pretrained_model_name_or_path": "teacher", "base": {"scheduler": {}}, "mixed_precision": "no"}
    defaults |= {"distill_steps": 4, "distill_teacher_steps": 2, "prediction_type": "v_prediction"}
    return TrainingConfig(preset="distill", **{**defaults, **options})


def network(**keys):
    """A network whose last layer is not zero, so that its predictions say something."""
    levels = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "layers_per_block": 1}
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
    return DDPMUNetModel(**shape, **levels, zero_init=False, add_attention=False, **keys).eval()


@pytest.mark.parametrize("predicted", ["epsilon", "sample", "v_prediction"])
def test_a_step_of_the_student_ends_where_stock_ddim_ends_in_several(predicted):
    unet, config = network(), config_of()
    scheduler = DDPMLinearScheduler(prediction_type="v_prediction")
    config.base = {"scheduler": {"prediction_type": predicted}}
    x_0, eps = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    t = torch.tensor([999, 749, 499, 249])
    taught = Teacher(unet, scheduler, config, torch.device("cpu")).teach(x_0, t, eps)

    options = {"timestep_spacing": "trailing", "clip_sample": False, "prediction_type": predicted}
    stock, student = DDIMScheduler(beta_end=0.02, **options), how_to_draw(config, scheduler)[0]
    stock.set_timesteps(8)  # two steps of the teacher for one of the four of the student
    student.set_timesteps(4)
    assert stock.timesteps[::2].tolist() == student.timesteps.tolist() == t.tolist()
    for i in range(4):
        x_t = scheduler.add_noise(x_0[i : i + 1], eps[i : i + 1], t[i])
        x = x_t
        for step in stock.timesteps[2 * i : 2 * i + 2]:
            with torch.no_grad():
                x = stock.step(unet(x, step).sample, step, x).prev_sample
        v = scheduler.get_velocity(*(each[i : i + 1] for each in taught), t[i])
        ours = student.step(v, t[i], x_t).prev_sample
        torch.testing.assert_close(ours, x, rtol=0, atol=2e-4)


def test_image_and_noise_taught_make_the_same_x_t():
    scheduler = DDPMLinearScheduler(prediction_type="v_prediction")
    x_0, eps, t = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([999, 499, 249])
    taught = Teacher(network(), scheduler, config_of(), torch.device("cpu")).teach(x_0, t, eps)
    x_t, again = (scheduler.add_noise(*pair, t) for pair in ((x_0, eps), taught))
    torch.testing.assert_close(again, x_t, rtol=0, atol=1e-5)


def test_a_student_that_equals_its_teacher_has_no_loss_if_the_steps_are_the_same():
    unet, scheduler = network(), DDPMLinearScheduler(prediction_type="v_prediction")
    config = config_of(distill_teacher_steps=1)
    config.base = {"scheduler": {"prediction_type": "v_prediction"}}
    x_0, eps, t = torch.rand(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.tensor([999, 749, 499, 249])
    x_0, eps = Teacher(unet, scheduler, config, torch.device("cpu")).teach(x_0, t, eps)
    assert denoising_loss(unet, scheduler, x_0, t, eps).max() < 1e-9


def test_guidance_of_the_teacher_is_that_of_the_pipeline():
    unet = network(num_class_embeds=3, class_names=("a", "b"))
    config = config_of(distill_teacher_steps=1, class_conditional=True, distill_guidance_scale=3.0)
    scheduler = DDPMLinearScheduler(prediction_type="v_prediction")
    config.base = {"scheduler": {"prediction_type": "v_prediction"}}
    teacher = Teacher(unet, scheduler, config, torch.device("cpu"))
    x_t, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([999, 999]), torch.tensor([1, 0])
    pipeline = DDPMPipelineCustom(unet, scheduler)
    pipeline._images_at_once = 2
    with torch.no_grad():
        v = pipeline._network(labels.tolist(), 3.0)(x_t, t)
    ours = teacher._predict_x_0(x_t, t, labels)
    torch.testing.assert_close(ours, scheduler.predict_x_0(v, t, x_t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8])
def test_a_student_is_trained_at_the_timesteps_that_it_draws_with(steps):
    config = config_of(distill_steps=steps)
    scheduler = DDPMLinearScheduler(prediction_type="v_prediction")
    student = how_to_draw(config, scheduler)[0]
    student.set_timesteps(steps)
    trained = timestep_weights(scheduler, config).nonzero().flatten()
    assert trained.tolist() == sorted(student.timesteps.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained_model_name_or_path": None, "base": {}}, "--distill_steps 4 needs a teacher"),
        ({"distill_steps": 600}, "--distill_steps 600 times --distill_teacher_steps 2: .* pass at most 500"),
        ({"prediction_type": "epsilon"}, "--prediction_type epsilon: .* pass v_prediction"),
        ({"timestep_sampling": "lognormal"}, "--timestep_sampling lognormal: .* leave it out"),
        ({"loss_weighting": "min_snr"}, "--loss_weighting min_snr: .* leave it out"),
        ({"class_conditional": True, "guidance_scale": 2.0}, "pass --distill_guidance_scale"),
        ({"guidance_interval": [0.5, 1]}, r"--guidance_interval \[0.5, 1\]: .* pass --distill_guidance_scale"),
        ({"augment": True}, "--augment True: .* leave it out"),
        ({"eval_steps": 5}, "--eval_metrics bpd needs a model of all timesteps"),
        ({"distill_guidance_scale": 2.0}, "--distill_guidance_scale 2.0 is for a class-conditional teacher"),
        ({"distill_steps": 61}, "--distill_steps 61: DDIMScheduler cannot space so many steps"),
        ({"distill_steps": None, "distill_guidance_scale": 2.0}, "pass --distill_steps, too"),
        ({"distill_steps": None}, "--distill_teacher_steps 2 is for a student; pass --distill_steps, too"),
        ({"variance_type": "learned_range"}, "--variance_type learned_range: a student takes steps without noise"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        config_of(**options)


@pytest.fixture
def distill(small, train, tmp_path):
    """Run `ddpm-hf distill` on a class-conditional teacher of noise; return a function of the student's flags."""
    teacher = train("teacher", "--class_conditional")
    kept = ("max_train_steps", "train_batch_size", "cache_dir", "eval_batch_size", "logging_steps", "mixed_precision")

    def run(name, *flags, **options):
        given = dict(zip(*[iter(small(name, **options))] * 2))
        flags = [*flags, "--output_dir", given["--output_dir"]]
        flags += [text for key in (*kept, *options) for text in (f"--{key}", given[f"--{key}"])]
        main(["distill", str(teacher), "--steps", "2", *flags])
        return tmp_path / name

    run.teacher = teacher
    return run


def test_a_distilled_folder_draws_everywhere(distill, capsys):
    student = distill("student", "--distill_guidance_scale", "3")
    index = json.loads((student / "model_index.json").read_text())
    assert index["_num_inference_steps"] == 2 and index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["_distilled"] == {"steps": 2, "guidance_scale": 3.0}
    ours = DDPMPipelineCustom.from_pretrained(student)
    stock = DiffusionPipeline.from_pretrained(student, trust_remote_code=True)
    for pipeline in (ours, stock):
        pipeline.set_progress_bar_config(disable=True)
    a, b = (p(2, torch.Generator().manual_seed(0), output_type="pt").images for p in (ours, stock))
    assert torch.equal(a, b) and ours.scheduler.timesteps.tolist() == [999, 499]
    assert (
        "draw in 2 denoising steps, each one call of the network with the guidance 3 in it"
        in (student / "README.md").read_text()
    )
    refused = {
        ("evaluate", "--metrics", "bpd"): "needs a model of all timesteps",
        ("sample", "--scheduler", "unipc"): "--scheduler unipc: .* is a student, and draws with DDIM; leave it out",
        ("sample", "--num_inference_steps", "8"): "--num_inference_steps 8: .* is a student of 2 steps; leave it out",
        ("distill",): "it is a student of few steps, and knows no other timesteps; take its teacher",
    }
    for (command, *flags), message in refused.items():
        with pytest.raises(SystemExit) as stop:
            main([command, str(student), *flags])
        assert re.search(message, f"{stop.value.code} {capsys.readouterr().err}")
    for options, message in {
        ("num_inference_steps", 8): "`num_inference_steps=8`: the model is a student of 2 steps",
        ("guidance_scale", 2.0): "`guidance_scale=2.0`: the model is a student, and has the guidance of its teacher",
    }.items():
        with pytest.raises(ValueError, match=message):
            ours(**dict([options]))
    command = card.command_of(json.loads((student / "config.json").read_text()))
    for flag in ("--preset distill", "--distill_steps 2", "--distill_guidance_scale 3.0", "--class_conditional"):
        assert flag in command.replace("\\\n    ", "")


def test_a_distillation_resumes_exactly(distill, monkeypatch, capsys):
    options = {"lr_scheduler": "constant", "checkpointing_steps": 2}
    whole = distill("whole", max_train_steps=4, **options)
    distill("parts", max_train_steps=2, **options)
    parts = distill("parts", max_train_steps=4, **options)
    assert equal(whole, parts)
    other = distill("guided", "--distill_guidance_scale", "2", max_train_steps=4, **options)
    assert any((weights(other)[name] != weight).any() for name, weight in weights(whole).items())

    unet = DDPMUNetModel.from_pretrained(distill.teacher, subfolder="unet")
    unet.conv_out.bias.data += 0.5
    unet.save_pretrained(distill.teacher / "unet")
    with pytest.raises(SystemExit, match=r"is of a student of other weights than .* has now"):
        distill("parts", max_train_steps=6, **options)


@pytest.mark.slow
def test_flags_that_contradict_the_teacher(distill, capsys):
    for flags, message in {
        ("--ddpm_num_steps", "500"): "--ddpm_num_steps 500: a student has the noise of its teacher",
        ("--ddpm_num_inference_steps", "9"): "a student of 2 steps draws with 2",
        ("--distill_steps", "8"): "--distill_steps is what RUN_OR_REPO and --steps say",
    }.items():
        with pytest.raises(SystemExit) as stop:
            distill("other", *flags)
        assert message in f"{stop.value.code} {capsys.readouterr().err}"


@pytest.mark.slow
def test_a_teacher_with_betas_that_ddim_does_not_know_and_augmented_pictures(train, small, tmp_path, capsys):
    teacher = train("teacher", "--augment", ddpm_beta_schedule="sigmoid")
    flags = dict(zip(*[iter(small("student"))] * 2))
    kept = ("--max_train_steps", "--train_batch_size", "--cache_dir", "--eval_batch_size", "--output_dir")
    flags = [text for name in kept for text in (name, flags[name])]
    main(["distill", f"{teacher}/", "--steps", "1", *flags])
    student = DDPMPipelineCustom.from_pretrained(tmp_path / "student").scheduler
    betas = DDPMLinearScheduler(beta_schedule="sigmoid").betas
    torch.testing.assert_close(student.betas, betas, rtol=0, atol=1e-7)
    main(["distill", str(teacher), "--steps", "1", *flags])  # the same run, by another spelling
    assert "is trained: 4 steps" in capsys.readouterr().out


def test_the_teacher_is_named_before_the_flags(capsys):
    """Otherwise the value of a flag would be taken for it."""
    with pytest.raises(SystemExit):
        main(["distill", "--train_data_dir", "pictures", "user/repo"])
    assert "RUN_OR_REPO comes first, before the flags" in capsys.readouterr().err


def test_pictures_of_a_teacher_that_is_no_run_have_to_be_named(tmp_path):
    DDPMPipelineCustom(network(), DDPMLinearScheduler()).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="does not tell which pictures it was trained on"):
        main(["distill", str(tmp_path / "model")])
