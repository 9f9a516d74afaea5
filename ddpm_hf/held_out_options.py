"""Which options about images that are held out fit together."""

from typing import Any

PRDC = ("precision", "recall", "density", "coverage")  # measured together


def check_held_out(options: Any):
    """Check the options about images that are held out.

    Args:
        options ([`TrainingConfig`]): All options.

    Raises:
        ValueError: If they do not fit together, or leave nothing to train on or to hold out.
    """
    split, fraction = options.validation_split, options.validation_fraction
    if split is not None and fraction is not None:
        raise ValueError("--validation_split and --validation_fraction both hold images out; pass one of them.")
    if fraction in (0, 1):
        raise ValueError(
            f"--validation_fraction {fraction}: expected more than 0 and less than 1, such as 0.1, so that there are "
            "images to train on and images held out."
        )
    for name in ("validation_split", "validation_fraction"):
        if options.streaming and getattr(options, name) is not None:
            raise ValueError(f"--{name} keeps the images held out on the disk, and --streaming leaves none there.")
    if split is not None and not (options.dataset_name or options.train_data_dir):
        raise ValueError(f"--validation_split {split}: the embedded digits have no splits; pass --validation_fraction.")
    if split is not None and (same := _overlap(split, options.dataset_split)):
        raise ValueError(
            f"--validation_split {split}: the images of {same} are trained on (--dataset_split "
            f"{options.dataset_split}); name another split, or hold out a part of it with --validation_fraction."
        )
    holds_out = split is not None or fraction is not None
    if options.validation_steps is not None and not holds_out:
        raise ValueError("--validation_steps needs images held out; pass --validation_fraction or --validation_split.")
    if options.keep_best == "loss" and not holds_out:
        raise ValueError(
            "--keep_best loss needs images held out; pass --validation_fraction or --validation_split, or keep the "
            "best by one of --eval_metrics."
        )
    metric = "prdc" if options.keep_best in PRDC else options.keep_best
    measured = [each.strip() for each in options.eval_metrics.split(",")] if options.eval_steps else []
    if metric not in ("none", "loss", *measured):
        raise ValueError(f"--keep_best {options.keep_best} needs --eval_steps, and {metric} among --eval_metrics.")


def _overlap(split: str, other: str) -> str:
    """Return a split that two texts such as train+test both name, as a whole or in part; else an empty text.

    Of two slices, such as train[:90%] and train[90%:], nobody knows here.
    """
    for one in split.split("+"):
        for two in other.split("+"):
            sliced = "[" in one and "[" in two
            if one == two or (one.split("[")[0] == two.split("[")[0] and not sliced):
                return one
    return ""
