"""The pictures that a run trained on, and those that it held out."""

from pathlib import Path

from ddpm_hf.config import options_for_evaluate
from ddpm_hf.evaluation.image_sets import ReferenceSet
from ddpm_hf.evaluation.reference import open_reference, run_options
from ddpm_hf.files import read_json
from ddpm_hf.forms import misfit
from ddpm_hf.images.held_out import part_images
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.run_files import ABOUT_BEST, FACTS, OPTIONS, is_run

FORM_OF_FRACTION = {"images": int, "of": int, "fingerprint": str, "seed": int}
ADVICE = "Name the pictures to compare with: --dataset or --train_data_dir."


def open_part(
    pipeline: DDPMPipelineCustom, source: Path, chosen: dict, held_out: bool
) -> tuple[ReferenceSet, ReferenceSet, dict]:
    """Open the pictures to compare with: those that the run trained on, those that it held out, or others.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model.
        source (`Path`): The folder of the run, or of its best pipeline; anything else is no run.
        chosen (`dict`): Options of [`TrainingConfig`] that the user chose.
        held_out (`bool`): Whether to compare with the pictures that were held out.

    Returns:
        `tuple`: The pictures to compare with; those to search for memorised ones, which are never held out; and the
            settings that the numbers depend on.

    Raises:
        ValueError: If nothing was held out, or it cannot be found again. See also [`open_reference`].
    """
    folder = source.parent if (source / ABOUT_BEST).is_file() and is_run(source.parent) else source
    options = run_options(folder)
    names_others = any(
        option.name in chosen and chosen[option.name] != options.get(option.name)
        for option in options_for_evaluate("source")
    )
    apart = {} if names_others or not options else _what_was_held_out(folder)
    if held_out and not apart:
        reason = "other pictures are named" if names_others else f"{source} is no run that held pictures out"
        raise ValueError(f"--held_out: {reason}.")
    images, record = open_reference(pipeline, options, chosen)
    if "split" in apart and held_out:
        others, record = open_reference(pipeline, options, {**chosen, "dataset_split": apart["split"]})
        return others, images, {**record, "part": "held out"}
    if "of" not in apart:
        return images, images, record
    if len(images) != apart["of"]:
        raise ValueError(
            f"the pictures of {folder} have changed: {apart['of']:,} then, {len(images):,} now, so nobody knows which "
            f"were held out. {ADVICE}"
        )
    trained_on, apart_from_it = part_images(images, apart["images"], apart["seed"], apart["fingerprint"])
    part = "held out" if held_out else "trained on"
    return apart_from_it if held_out else trained_on, trained_on, {**record, "part": part}


def _what_was_held_out(folder: Path) -> dict:
    """Return what run.json says about it, see [`~ddpm_hf.images.held_out.describe_held_out`]; else nothing."""
    options = read_json(folder / OPTIONS, {}) if (folder / OPTIONS).exists() else {}
    if options.get("validation_split") is not None:
        return {"split": options["validation_split"]}
    if options.get("validation_fraction") is None:
        return {}
    facts = read_json(folder / FACTS, {"held_out": dict}, ADVICE)["held_out"]
    if problem := misfit(facts, FORM_OF_FRACTION, "`held_out`"):
        raise ValueError(f"{folder / FACTS} is broken: {problem}. {ADVICE}")
    return facts
