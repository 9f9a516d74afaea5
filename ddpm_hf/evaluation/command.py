"""`ddpm-hf evaluate`: measure a saved model, and write the numbers and pictures down."""

import os
from dataclasses import replace
from pathlib import Path

from ddpm_hf.evaluation.image_sets import PictureFolder, Seen
from ddpm_hf.evaluation.measure import check_measurable, flat, measure
from ddpm_hf.evaluation.measurement import Measurement
from ddpm_hf.evaluation.nearest import nearest_picture
from ddpm_hf.evaluation.parts_of_run import open_part
from ddpm_hf.files import read_json, write_json, write_json_lines
from ddpm_hf.forms import misfit
from ddpm_hf.pictures import is_ours, save_marked
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.processes import this_process
from ddpm_hf.run_files import EVALUATION, NEAREST, PROGRESSIVE, is_run
from ddpm_hf.sample_folder import clear_samples
from ddpm_hf.sampling import check_steps, draw_with, fingerprint, open_model

# What the numbers mean, and where better ones lie.
MEANINGS = {
    "bpd": "bits per dimension; lower is better",
    "rate": "bits per dimension of all steps but the last",
    "distortion": "bits per dimension of the last step",
    "rmse": "error before the last step, on the scale 0 to 255",
    "fid": "distance of Gaussians, 0 and more; lower is better",
    "kid": "distance by a kernel, about 0 and more; lower is better; +- over subsets",
    "precision": "share of samples that lie among real images, 0 to 1",
    "recall": "share of real images that lie among samples, 0 to 1",
    "density": "real neighbourhoods around a sample; 1 as among real images",
    "coverage": "share of real images with a sample nearby, 0 to 1",
}


def evaluate(
    source: str,
    wanted: Measurement,
    reference: dict,
    scheduler: str | None = None,
    checkpoint: str | None = None,
    revision: str | None = None,
    save_samples: Path | None = None,
    output: Path | None = None,
    held_out: bool = False,
):
    """Measure a saved model, print the numbers, and add them to the earlier numbers of the same model.

    Args:
        source, checkpoint, scheduler, revision: See [`~ddpm_hf.sampling.open_model`].
        wanted ([`Measurement`]): What to measure.
        reference (`dict`): Options of [`TrainingConfig`] that name the images to compare with. The default is the
            images that the run trained on, or the embedded digits.
        save_samples (`Path`, *optional*): Folder to keep the samples in. By default they are deleted.
        output (`Path`, *optional*): JSON file for the numbers. The default is evaluation.json in the folder of the
            run, or in the current folder. nearest.png, and progressive.jsonl for an exact bpd, are written beside it.
            The names of these files end in that of the checkpoint, if one is named.
        held_out (`bool`): Whether to compare with the images that the run held out. nearest.png still shows those that
            it trained on.

    Raises:
        ValueError: If an option does not fit the model or the images.
        OSError: If a file cannot be read or written.
    """
    state = this_process()
    # The card shows evaluation.json, whose numbers are those of the model itself.
    names = [EVALUATION, NEAREST, PROGRESSIVE]
    if checkpoint and not output:
        names = [f"{Path(name).stem}-{Path(checkpoint).name}{Path(name).suffix}" for name in names]
    output = output or (Path(source) if Path(source).is_dir() else Path()) / names[0]
    nearest, progressive_file = (output.with_name(name) for name in names[1:])
    earlier = _earlier_results(output, nearest)
    pipeline = open_model(source, checkpoint, None, revision)
    own = pipeline.scheduler
    draw_with(pipeline, source, scheduler, wanted.num_inference_steps)
    wanted = _possible(wanted, pipeline)
    steps = wanted.num_inference_steps or pipeline.default_num_inference_steps
    if wanted.of_samples:
        check_steps(pipeline.scheduler, steps, wanted.guidance_interval)
    with state.main_process_first():
        images, trained_on, record = open_part(pipeline, Path(source), reference, held_out)
    check_measurable(wanted, images)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output} cannot be written; name another file with --output.")
    # A command that was interrupted finds its samples again. A command with other settings has another folder.
    kind = type(pipeline.scheduler).__name__
    model = fingerprint(pipeline.unet, pipeline.scheduler)
    interval = "" if wanted.guidance_interval == (0, 1) else "-{}-{}".format(*wanted.guidance_interval)
    drawn = f"{model}-{kind}-{steps}-{wanted.seed}-{wanted.guidance_scale}{interval}-{wanted.mixed_precision}"
    samples = save_samples or output.parent / f"{output.stem}-samples-{drawn}"
    results = measure(pipeline, images, wanted, samples, record, compare_real=True, scheduler=own)
    if state.is_main_process:
        print(table(results))  # first, since a full disk keeps nothing
        progressive = results.get("bpd", {}).pop("progressive", [])
        write_json(output, {**_of_the_same_model(earlier, results), **results})
        if progressive:
            write_json_lines(progressive_file, progressive)
        if wanted.of_samples:
            shown = PictureFolder(samples, min(8, wanted.num_images), images.form)
            picture = nearest_picture(shown, Seen(trained_on), k=8)
            save_marked(images.form.captioned(picture), nearest)
        print(f"All numbers, with all that they depend on, are in {output}.")
        if not save_samples:
            clear_samples(samples)
    state.wait_for_everyone()


def _possible(wanted: Measurement, pipeline: DDPMPipelineCustom) -> Measurement:
    """Return what can be measured: a student of few steps knows few timesteps, and has no bits per dimension.

    Raises:
        ValueError: If nothing else is wanted.
    """
    if not pipeline.config.get("distilled") or "bpd" not in wanted.metrics:
        return wanted
    if not wanted.of_samples:
        raise ValueError(
            "--metrics bpd needs a model of all timesteps, and a student knows few; name fid, kid or prdc."
        )
    if this_process().is_main_process:
        print("bpd is left out: it needs a model of all timesteps, and a student knows few.")
    return replace(wanted, metrics=wanted.of_samples)


def _earlier_results(path: Path, picture: Path) -> dict:
    """Return the numbers that the file holds; none if there is no file.

    Raises:
        ValueError: If this command did not write the file, or the picture.
    """
    advice = "Move it away, or name another file with --output."
    if path.exists():
        earlier = read_json(path, {}, advice)
        for metric, numbers in earlier.items():
            if problem := misfit(numbers, {"model_fingerprint": str}, f"`{metric}`"):
                raise ValueError(f"{path} does not hold numbers of `ddpm-hf evaluate`: {problem}. {advice}")
        return earlier
    if picture.exists() and not is_run(path.parent) and not is_ours(picture):
        raise ValueError(f"{picture} would be overwritten. {advice}")
    return {}


def _of_the_same_model(earlier: dict, results: dict) -> dict:
    """Return the earlier numbers that were measured on the same model as the results."""
    models = {numbers["model_fingerprint"] for numbers in results.values()}
    return {metric: numbers for metric, numbers in earlier.items() if {numbers["model_fingerprint"]} == models}


def table(results: dict[str, dict]) -> str:
    """Return the numbers of [`measure`] as a table of text, with what real images have, and notes below it."""
    of_real = flat({name: entry["of_real_images"] for name, entry in results.items() if "of_real_images" in entry})
    rows = [("", "value", "", "real images", "")]
    for name, value in flat(results).items():
        entry = results.get(name, {})
        error = entry.get("standard_error", entry.get("standard_deviation"))
        around = f"+- {error:.4f}" if error is not None else ""
        rows.append((name, f"{value:.4f}", around, f"{of_real[name]:.4f}" if name in of_real else "", MEANINGS[name]))
    lines = [
        f"{name:<10} {value:>10} {around:<10} {of_real:>12}   {meaning}"
        for name, value, around, of_real, meaning in rows
    ]
    sizes = {entry["of_real_images"]["images"] for entry in results.values() if "of_real_images" in entry}
    notes = [f"Real images: {size:,} of them, compared with {size:,} others." for size in sorted(sizes)]
    notes += sorted({numbers["note"] for numbers in results.values() if "note" in numbers})
    return "\n".join([line.rstrip() for line in lines] + notes)
