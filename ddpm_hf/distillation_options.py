"""Which options fit the training of a student, `--distill_steps`."""

from typing import Any

from ddpm_hf.schedulers import ends_below_zero

TEACHER_STEPS = 4  # that one step of a student replaces, by default
TAUGHT_GUIDANCE_SCALE = 1.2  # of a class-conditional teacher; docs/few_steps.md has the measurements


def check_distillation(options: Any):
    """Check the options of a distillation, and decide those that follow: the guidance, and how samples are drawn.

    Args:
        options ([`TrainingConfig`]): All options.

    Raises:
        ValueError: If they do not fit together; the message names the flag.
    """
    steps = options.distill_steps
    if steps is None:
        if options.distill_guidance_scale is not None:
            raise ValueError("--distill_guidance_scale is for a student; pass --distill_steps, too.")
        if options.distill_teacher_steps != TEACHER_STEPS:
            raise ValueError(
                f"--distill_teacher_steps {options.distill_teacher_steps} is for a student; pass --distill_steps, too."
            )
        return
    if not options.pretrained_model_name_or_path:
        raise ValueError(f"--distill_steps {steps} needs a teacher; name it with --pretrained_model_name_or_path.")
    most = options.ddpm_num_steps // options.distill_teacher_steps
    if steps > most:
        raise ValueError(
            f"--distill_steps {steps} times --distill_teacher_steps {options.distill_teacher_steps}: the teacher has "
            f"{options.ddpm_num_steps} steps; pass at most {most}."
        )
    if options.scheduler != "ddpm":
        raise ValueError(f"--scheduler {options.scheduler}: a student draws with DDIM; leave it out.")
    for name in ("guidance_scale", "guidance_interval"):
        if (given := getattr(options, name)) is not None:
            raise ValueError(
                f"--{name} {given}: a student has the guidance of its teacher in it; pass --distill_guidance_scale."
            )
    if options.distill_guidance_scale not in (None, 1) and not options.class_conditional:
        raise ValueError(
            f"--distill_guidance_scale {options.distill_guidance_scale} is for a class-conditional teacher; pass "
            "--class_conditional, too."
        )
    if options.prediction_type == "epsilon":
        raise ValueError(
            "--prediction_type epsilon: at the first of few steps the noise hardly tells what the picture is; pass "
            "v_prediction, also for a teacher that predicts the noise."
        )
    if options.variance_type == "learned_range":
        raise ValueError(
            f"--variance_type {options.variance_type}: a student takes steps without noise, which have no variance; "
            "take a teacher of a fixed variance."
        )
    refused = {
        "timestep_sampling": ("uniform", "a student is trained at the timesteps of its own steps"),
        "loss_weighting": ("simple", "the errors of a student's v are not weighted"),
        "augment": (False, "a student learns from the pictures of its teacher, which are not augmented"),
    }
    for name, (value, why) in refused.items():
        if (given := getattr(options, name)) != value:
            raise ValueError(f"--{name} {given}: {why}; leave it out, or take --preset distill.")
    measured = [metric.strip() for metric in options.eval_metrics.split(",")]
    if options.eval_steps and "bpd" in measured:
        raise ValueError(
            "--eval_metrics bpd needs a model of all timesteps; a student knows few. Name fid, kid or prdc."
        )
    if ends_below_zero(options.ddpm_num_steps, steps):
        raise ValueError(f"--distill_steps {steps}: DDIMScheduler cannot space so many steps; pass one less.")
    options.ddpm_num_inference_steps = steps
    if options.distill_guidance_scale is None:
        options.distill_guidance_scale = TAUGHT_GUIDANCE_SCALE if options.class_conditional else 1.0
    options.clip_sample = False  # see `how_to_draw`
