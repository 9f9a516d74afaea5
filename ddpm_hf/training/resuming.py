"""Where a run begins: at step 0, at a checkpoint, or not at all, because the folder holds something else."""

import math
from dataclasses import dataclass
from pathlib import Path

from ddpm_hf.checkpoint import ADVICE, find_checkpoint, load_state
from ddpm_hf.config import TrainingConfig, check_saved_options
from ddpm_hf.files import read_json
from ddpm_hf.run_files import (
    CHECKPOINTS,
    FACTS,
    INDEX,
    METRICS,
    OPTIONS,
    SAMPLES,
    STATE,
    is_pipeline,
    is_run,
    list_samples,
)
from ddpm_hf.training.best import KeptBest

SHOWN = 5  # names of files in an error


@dataclass
class Start:
    """Where a run begins.

    Args:
        checkpoint (`Path`, *optional*): The checkpoint that it goes on from; None for a new run.
        saved (`dict`, *optional*): The state in that checkpoint.
        notes (`tuple[str, ...]`): Notes for the user.
        is_over (`bool`): Whether nothing is left to be trained, drawn or saved.
        same_source (`bool`): Whether the options name the same pictures; else their pixels have to be compared.
    """

    checkpoint: Path | None = None
    saved: dict | None = None
    notes: tuple[str, ...] = ()
    is_over: bool = False
    same_source: bool = True

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.saved["step"] if self.saved else 0


def check_folder(config: TrainingConfig):
    """Raise a ValueError if the output folder holds the training images, or files that no run wrote."""
    folder = config.folder
    _refuse_data_inside(folder, config)
    KeptBest(config).check()
    if not is_run(folder):
        _refuse_other_files(folder)


def saved_options(folder: Path) -> dict:
    """Return the options of the run in a folder.

    Raises:
        ValueError: If they cannot be read; the message names the file.
    """
    advice = "Name another --output_dir."
    options = read_json(folder / OPTIONS, {}, advice)
    check_saved_options(options, folder / OPTIONS, advice)
    return options


def find_start(config: TrainingConfig, images_per_step: int) -> Start:
    """Find out where a run begins. Its images need not be read for that.

    Args:
        config ([`TrainingConfig`]): The options.
        images_per_step (`int`): Images in an optimizer step.

    Raises:
        ValueError: If the folder holds a model that would be lost, or a run with other options, or if no checkpoint is
            whole.
    """
    folder = config.folder
    is_ours = is_run(folder)
    if config.overwrite_output_dir:
        return Start(notes=_note_on_the_model(folder))
    checkpoint, problems = find_checkpoint(folder / CHECKPOINTS, config.resume_from_checkpoint)
    if checkpoint:
        return _go_on(checkpoint, problems, config, images_per_step)
    has_model, had_checkpoints = (folder / INDEX).exists(), _had_checkpoints(folder)
    has_results = has_model or list_samples(folder / SAMPLES) or _is_filled(folder / METRICS)
    if had_checkpoints or (has_results and had_checkpoints is None):
        what = "a trained model" if has_model else "what a run left"
        raise ValueError(
            f"--output_dir {folder} holds {what} and no checkpoint to go on from; name another folder. "
            "(--overwrite_output_dir would throw it away.)"
        )
    if has_model:
        _refuse_other_options(folder / OPTIONS, saved_options(folder), config)
    return Start(notes=(f"{folder} holds a run that ended before its first checkpoint; it begins again.",) * is_ours)


def check_pictures(start: Start, count: int | None, fingerprint: str | None):
    """Raise a ValueError if a run would go on with other pictures than before.

    Args:
        start ([`Start`]): Where the run begins.
        count (`int`, *optional*): How many images there are; None for a stream.
        fingerprint (`str`, *optional*): The hash of their pixels and labels; None for a stream.
    """
    saved = start.saved
    if not saved or (saved["images"], saved.get("pictures") or fingerprint) == (count, fingerprint):
        return
    raise ValueError(
        f"{start.checkpoint} is of a run with other pictures: {saved['images']} images then, {count} now"
        f"{', and not with the same pixels or labels' if saved['images'] == count else ''}. Bring back the pictures of "
        "that run, or name another --output_dir."
    )


def _go_on(checkpoint: Path, problems: list[str], config: TrainingConfig, images_per_step: int) -> Start:
    saved = load_state(checkpoint)
    same_step = saved["images_per_step"] == images_per_step
    check_saved_options(saved["config"], checkpoint / STATE, ADVICE)
    # Pictures may have moved. Their pixels are compared once they are read.
    hint = "" if same_step else _hint_at_the_split(saved, config, images_per_step)
    _refuse_other_options(checkpoint, saved["config"], config, bool(saved.get("pictures")), same_step, hint)
    if saved["step"] > config.total_steps and not _is_finished(config.folder):
        raise ValueError(
            f"--max_train_steps {config.total_steps}: {checkpoint} has taken {saved['step']} steps already; pass at "
            "least that number, or name another --output_dir."
        )
    notes = [*problems]
    if saved["step"] < config.total_steps:
        saved["micro_batches"] = _micro_batches_so_far(checkpoint, saved, config)
        notes.append(f"Going on from {checkpoint}.")
        notes += [f"{change} changes the numbers by rounding only." for change in config.roundings(saved["config"])]
        notes += [
            f"{change}: the images come in the same order, with other noise, flips and crops from here on."
            for change in config.splits(saved["config"])
        ]
        if not same_step:
            notes.append(f"A step now takes {images_per_step} images, not {saved['images_per_step']} as before.")
    is_over = saved["step"] >= config.total_steps and _is_finished(config.folder)
    same_source = not config.differences(saved["config"], same_step=same_step)
    return Start(checkpoint, saved, tuple(notes), is_over, same_source)


def _hint_at_the_split(saved: dict, config: TrainingConfig, images_per_step: int) -> str:
    """Say which accumulation would make up for micro-batches of another size, if one does."""
    images_at_once = images_per_step // config.gradient_accumulation_steps  # on all processes
    parts, rest = divmod(saved["images_per_step"], images_at_once)
    if rest or not config.splits(saved["config"]):
        return ""
    return f"With --gradient_accumulation_steps {parts}, a step takes {saved['images_per_step']} images as before. "


def _micro_batches_so_far(checkpoint: Path, saved: dict, config: TrainingConfig) -> int:
    """Return how many micro-batches of the size now hold the images that the run has taken, so that none is left out.

    Raises:
        ValueError: If these images are no whole number of them.
    """
    images = saved["micro_batches"] * saved["config"].get("train_batch_size", config.train_batch_size)
    if images % config.train_batch_size:
        raise ValueError(
            f"--train_batch_size {config.train_batch_size}: {checkpoint} has taken {images:,} images, which are no "
            f"whole number of such micro-batches; pass {math.gcd(images, config.train_batch_size)} and more "
            "--gradient_accumulation_steps."
        )
    return images // config.train_batch_size


def _refuse_other_options(
    where: Path,
    options: dict,
    config: TrainingConfig,
    same_pictures: bool = False,
    same_step: bool = False,
    hint: str = "",
):
    if others := config.differences(options, same_pictures, same_step):
        raise ValueError(
            f"{where} is of a run with other options: {'; '.join(others)}. {hint}Repeat the options of that run, or "
            "name another --output_dir. (--overwrite_output_dir would throw that run away.)"
        )


def _refuse_data_inside(folder: Path, config: TrainingConfig):
    for flag in ("train_data_dir", "dataset_name", "pretrained_model_name_or_path"):
        source = getattr(config, flag)
        if source and Path(source).exists() and Path(source).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"--{flag} {source} lies in --output_dir {folder}, where runs write and delete files; name another "
                "output folder."
            )


def _refuse_other_files(folder: Path):
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; expected a folder.")
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if names and not is_pipeline(folder):
        more = ", ..." if len(names) > SHOWN else ""
        raise ValueError(
            f"--output_dir {folder} holds files that no run of train_ddpm.py wrote: {', '.join(names[:SHOWN])}{more}; "
            "expected an earlier run, an empty folder, or none. Name another folder."
        )


def _note_on_the_model(folder: Path) -> tuple[str, ...]:
    if not (folder / INDEX).exists():
        return ()
    return (f"--overwrite_output_dir: the model in {folder} stays until the first of the new run is saved.",)


def _had_checkpoints(folder: Path) -> bool | None:
    """Return whether the run of a folder ever had a checkpoint; None if that is unknown.

    If it never had one, starting again loses nothing.
    """
    try:
        return read_json(folder / FACTS, {"has_checkpoints": bool})["has_checkpoints"]
    except ValueError:
        return None


def _is_finished(folder: Path) -> bool:
    """Return whether a run at its last step has saved its last pipeline, too. Older versions saved it first."""
    try:
        return read_json(folder / FACTS, {}).get("finished", True) and (folder / INDEX).exists()
    except ValueError:
        return False


def _is_filled(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
