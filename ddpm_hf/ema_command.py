"""`ddpm-hf ema`: make averages of other lengths from the snapshots of a run, and find the best one."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ddpm_hf.checkpoint import save_pipeline
from ddpm_hf.evaluation.command import evaluate
from ddpm_hf.evaluation.measurement import Measurement
from ddpm_hf.files import holds_files, read_json, read_json_lines, write_json, write_json_lines
from ddpm_hf.hub.card import write_card
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.posthoc_ema import Snapshots
from ddpm_hf.power_averages import Fit
from ddpm_hf.run_files import (
    ABOUT_AVERAGE,
    EVALUATION,
    FACTS,
    METRICS,
    METRICS_FORM,
    NEAREST,
    OPTIONS,
    PROGRESSIVE,
    UNFINISHED_AVERAGES,
)
from ddpm_hf.training.resuming import saved_options

MUCH = 0.05  # an error of the profile that is worth a note


def make_averages(
    run: Path, stds: list[float], output_dir: Path, choose: Measurement | None = None, cache_dir: str | None = None
):
    """Save averages of a run as pipelines, and print a table of them.

    One average is saved in the output folder itself. Several are saved in folders in it, and with `choose` the best one
    in the output folder, too.

    Args:
        run (`Path`): The folder of a run with snapshots.
        stds (`list[float]`): The lengths: relative standard deviations of the profiles.
        output_dir (`Path`): An empty folder, one to make, or one that an interrupted call left.
        choose ([`Measurement`], *optional*): What to choose the best one by, one metric where less is better.
        cache_dir (`str`, *optional*): Where the decoded images of the measurement are kept.

    Raises:
        ValueError: If the folder is no run with snapshots, they do not give a length, or the output folder holds files.
        OSError: If files cannot be read or written.
    """
    _check_target(output_dir, run, stds)
    snapshots = Snapshots.of_run(run)
    fits = [snapshots.fit(std) for std in stds]
    options, pipeline = saved_options(run), load_pipeline(run)
    if choose and "bpd" in choose.metrics and pipeline.config.get("distilled"):
        raise ValueError("--choose bpd needs a model of all timesteps, and a student knows few; choose by fid.")
    folders = {fit: output_dir if len(fits) == 1 else output_dir / f"{output_dir.name}-std-{fit.std:g}" for fit in fits}
    numbers: dict[Fit | None, dict] = {}  # None: of the run's own average
    if choose:  # first, so that what cannot be measured is found before anything is saved
        with TemporaryDirectory() as elsewhere:
            numbers[None] = _measure(run, Path(elsewhere, EVALUATION), choose, cache_dir, options)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / UNFINISHED_AVERAGES, _what_is_made(run, stds))
    for fit, folder in folders.items():
        pipeline.unet.load_state_dict(snapshots.average(fit))
        _save(pipeline, folder, snapshots, fit, options)
    best = None
    if choose:
        for fit, folder in folders.items():
            numbers[fit] = _measure(folder, folder / EVALUATION, choose, cache_dir, options)
            write_card(folder)  # it shows the number
        best = min(folders, key=lambda fit: numbers[fit]["value"])
        if folders[best] != output_dir:
            _save(load_pipeline(folders[best]), output_dir, snapshots, best, options)
            for name in (EVALUATION, NEAREST, PROGRESSIVE):
                if (folders[best] / name).exists():
                    shutil.copy(folders[best] / name, output_dir / name)
            write_card(output_dir)
    (output_dir / UNFINISHED_AVERAGES).unlink()
    print(_table(snapshots, folders, numbers, best, choose.metrics[0] if choose else ""))
    if len(fits) == 1 or choose:
        print(f"{output_dir} holds {'that average' if len(fits) == 1 else 'the best one'}.")


def _what_is_made(run: Path, stds: list[float]) -> dict[str, Any]:
    """Return what a folder of averages holds, for the file that says that it is not finished."""
    return {"run": str(run.resolve()), "std": stds}


def _check_target(folder: Path, run: Path, stds: list[float]):
    """Raise a ValueError if a folder holds files, unless the same command was interrupted there."""
    if not holds_files(folder):
        return
    marker = folder / UNFINISHED_AVERAGES
    if not marker.exists() or read_json(marker, {}, "Name an empty folder.") != _what_is_made(run, stds):
        raise ValueError(f"--output_dir {folder} holds files; name an empty folder.")


def _save(pipeline: DDPMPipelineCustom, folder: Path, snapshots: Snapshots, fit: Fit, options: dict[str, Any]):
    """Save an average with its card, and with what the run tells about the training and the pictures.

    So the folder can be measured and pushed as that of the run can. It is pushed to another repository by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (EVALUATION, NEAREST, PROGRESSIVE):  # of an interrupted command, perhaps of another step
        (folder / name).unlink(missing_ok=True)
    about = {"run": snapshots.run.resolve().name, "step": snapshots.step, "std": fit.std, "error": fit.error}
    write_json(folder / ABOUT_AVERAGE, about | {"snapshots": len(snapshots.folders)})
    write_json(folder / OPTIONS, {**options, "output_dir": str(folder), "push_to_hub": False, "hub_model_id": None})
    if (snapshots.run / FACTS).exists():
        shutil.copy(snapshots.run / FACTS, folder / FACTS)
    lines = [line for line in read_json_lines(snapshots.run / METRICS, METRICS_FORM) if line["step"] <= snapshots.step]
    # The held-out losses are those of the run's own average.
    write_json_lines(
        folder / METRICS, [{key: n for key, n in line.items() if not key.startswith("val_")} for line in lines]
    )
    save_pipeline(pipeline, folder)
    write_card(folder)


def _measure(
    model: Path, output: Path, choose: Measurement, cache_dir: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Measure a model that knows the pictures of the run, and return the numbers.

    Bits per dimension are those of the pictures held out, if the run held some out. FID compares with the pictures
    trained on, as is usual; mostly there are too few others.
    """
    (metric,) = choose.metrics
    apart = options.get("validation_split") is not None or options.get("validation_fraction") is not None
    reference = {} if cache_dir is None else {"cache_dir": cache_dir}
    print(f"Measuring {model}.", flush=True)
    evaluate(str(model), choose, reference, output=output, held_out=apart and metric == "bpd")
    return read_json(output, {metric: dict})[metric]


def _table(
    snapshots: Snapshots, folders: dict[Fit, Path], numbers: dict[Fit | None, dict], best: Fit | None, metric: str
) -> str:
    """Return a row of text for each average, and notes below."""
    rows = [("length", "error", "folder", metric)]
    for fit, folder in folders.items():
        number = _in_words(numbers[fit]) if numbers else ""
        mark = "   the best length" if fit == best else ""
        rows.append((f"{fit.std:g}", f"{fit.error:.1%}", str(folder), f"{number}{mark}"))
    if numbers:
        rows.append(("the run's own", "", str(snapshots.run), _in_words(numbers[None])))
    width = max(len(place) for _, _, place, _ in rows)
    lines = [f"{length:<13} {error:>7}   {place:<{width}}   {number}".rstrip() for length, error, place, number in rows]
    lines.append(
        f"Averages at step {snapshots.step:,}, from snapshots at {len(snapshots.folders)} steps. The error is that of "
        "the profile."
    )
    if inexact := [f"{fit.std:g}" for fit in folders if fit.error > MUCH]:
        lines.append(
            f"The snapshots give {', '.join(inexact)} only roughly; a higher --posthoc_ema keeps more of them."
        )
    return "\n".join(lines)


def _in_words(numbers: dict[str, Any]) -> str:
    error = f" +- {numbers['standard_error']:.4f}" if "standard_error" in numbers else ""
    return f"{numbers['value']:.4f}{error}"
