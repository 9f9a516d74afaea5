"""The options that `ddpm-hf distill` takes over from the run of the teacher."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from ddpm_hf.config import TrainingConfig
from ddpm_hf.run_files import BEST, OPTIONS, is_run
from ddpm_hf.training.resuming import saved_options

NAMES_PICTURES = ("--train_data_dir", "--dataset_name", "--config")
NOT_TAKEN = ("augment", "augment_probability")  # a student learns from the pictures of its teacher, which have none


def options_of_student(teacher: str, steps: int, flags: list[str]) -> dict[str, Any]:
    """Return the options of a student, as far as its command does not say them.

    The pictures, and how they are read, are those of the teacher's run.

    Args:
        teacher (`str`): The folder of a run or of a pipeline, or a Hub id.
        steps (`int`): Denoising steps of the student.
        flags (`list[str]`): The other arguments of the command.

    Raises:
        ValueError: If the run cannot be read, or the teacher is no run and no flag names pictures.
    """
    options: dict[str, Any] = {}
    folder = Path(teacher)
    if folder.exists():
        teacher, folder = os.path.normpath(teacher), folder.resolve()
    run = folder.parent if folder.name == BEST else folder
    if is_run(run) and (run / OPTIONS).exists():
        saved, defaults = saved_options(run), dataclasses.asdict(TrainingConfig())
        of_data = [field.name for field in dataclasses.fields(TrainingConfig) if field.metadata["group"] == "Data"]
        taken = [name for name in of_data if name in saved and name not in NOT_TAKEN]
        options = {name: saved[name] for name in taken if saved[name] != defaults[name]}
        options["seed"] = saved.get("seed", 0)  # the same pictures are held out
    elif not any(flag.split("=")[0] in NAMES_PICTURES for flag in flags):
        raise ValueError(
            f"{teacher} does not tell which pictures it was trained on; name them with --train_data_dir or "
            "--dataset_name."
        )
    for name in ("--pretrained_model_name_or_path", "--distill_steps"):
        if any(flag.split("=")[0] == name for flag in flags):
            raise ValueError(f"{name} is what RUN_OR_REPO and --steps say; leave it out.")
    output_dir = f"{run.name}-{steps}-step{'s' * (steps != 1)}"
    given = {"preset": "distill", "pretrained_model_name_or_path": teacher, "distill_steps": steps}
    return {**options, **given, "output_dir": output_dir}
