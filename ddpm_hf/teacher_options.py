"""The options that `ddpm-hf distill` takes over from the run of the teacher."""

import dataclasses
from pathlib import Path
from typing import Any

from ddpm_hf.config import TrainingConfig
from ddpm_hf.run_files import OPTIONS, is_run
from ddpm_hf.training.resuming import saved_options

NAMES_PICTURES = ("--train_data_dir", "--dataset_name", "--config")


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
    folder, options = Path(teacher), {}
    if is_run(folder) and (folder / OPTIONS).exists():
        saved, defaults = saved_options(folder), dataclasses.asdict(TrainingConfig())
        of_data = [field.name for field in dataclasses.fields(TrainingConfig) if field.metadata["group"] == "Data"]
        options = {name: saved[name] for name in of_data if name in saved and saved[name] != defaults[name]}
        options["seed"] = saved.get("seed", 0)  # the same pictures are held out
    elif not any(flag.split("=")[0] in NAMES_PICTURES for flag in flags):
        raise ValueError(
            f"{teacher} does not tell which pictures it was trained on; name them with --train_data_dir or "
            "--dataset_name."
        )
    output_dir = f"{folder.name}-{steps}-step{'s' * (steps != 1)}"
    given = {"preset": "distill", "pretrained_model_name_or_path": teacher, "distill_steps": steps}
    return {**options, **given, "output_dir": output_dir}
