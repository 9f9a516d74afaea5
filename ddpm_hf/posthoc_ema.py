"""Averages of other lengths, made from the snapshots of a run: the weights. The arithmetic is in `power_averages`."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from ddpm_hf.checkpoint import POWER_AVERAGES
from ddpm_hf.files import read_json
from ddpm_hf.manifest import MANIFEST, check_files
from ddpm_hf.power_averages import LONGEST, SHORTEST, Fit, fit_profile
from ddpm_hf.run_files import INDEX, SNAPSHOTS, is_run, list_checkpoints, step_of
from ddpm_hf.weights import StateDict

MOST_ERROR = 0.25  # of the profile; what is made with more is no average of the length that it is called by


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of a run that are whole.

    Args:
        run (`Path`): The folder of the run.
        folders (`list[Path]`): One for each step, the oldest first.
    """

    run: Path
    folders: list[Path]

    @classmethod
    def of_run(cls, run: Path) -> "Snapshots":
        """Find the snapshots of a run. Broken ones are named and left out.

        Raises:
            ValueError: If the folder is no run, or there are no snapshots or no pipeline yet.
        """
        if not is_run(run):
            raise ValueError(f"{run}: expected the folder of a run; its snapshots are in it, and not on the Hub.")
        folders, problems = [], []
        for folder in list_checkpoints(run / SNAPSHOTS):
            try:
                entries = read_json(folder / MANIFEST, {})
                check_files(folder, entries, [f"{name}.safetensors" for name in POWER_AVERAGES.values()])
                folders.append(folder)
            except (ValueError, OSError) as error:
                problems.append(f"Snapshot {folder.name} is broken and left out: {error}.")
        print("".join(f"{problem}\n" for problem in problems), end="")
        if not folders:
            kept = "no whole snapshots" if problems else "no snapshots"
            raise ValueError(f"{run} holds {kept} to make averages from; train with --posthoc_ema, which keeps them.")
        if not (run / INDEX).exists():
            raise ValueError(f"{run} holds snapshots and no model yet; the command of the run goes on to save it.")
        return cls(run, folders)

    @property
    def step(self) -> int:
        """The optimizer step of the newest one, which the averages are of."""
        return step_of(self.folders[-1])

    def fit(self, std: float) -> Fit:
        """Find out how the snapshots give an average of a length.

        Raises:
            ValueError: If they give none: the length cannot be, or the error of the fit is too large.
        """
        if not SHORTEST <= std < LONGEST:
            raise ValueError(
                f"--std {std:g}: expected at least {SHORTEST} and below {LONGEST:.4f}, where all steps count alike."
            )
        kept = [(of_average, step_of(folder)) for folder in self.folders for of_average in POWER_AVERAGES]
        fit = fit_profile(std, kept, self.step)
        if fit.error > MOST_ERROR:
            raise ValueError(
                f"--std {std:g}: the snapshots at {len(self.folders)} steps of {self.run} give this length with an "
                f"error of {fit.error:.0%} of its profile; expected at most {MOST_ERROR:.0%}. Name a length nearer to "
                f"{' or '.join(map(str, POWER_AVERAGES))}, or train with a higher --posthoc_ema, which keeps more."
            )
        return fit

    def average(self, fit: Fit) -> StateDict:
        """Return the weights of an average, in float32. They are added up in float64, since some count negatively."""
        total: StateDict = {}
        files = [folder / f"{name}.safetensors" for folder in self.folders for name in POWER_AVERAGES.values()]
        for file, weight in zip(files, fit.weights):
            for key, value in load_file(file).items():
                total.setdefault(key, torch.zeros_like(value, dtype=torch.float64)).add_(value, alpha=weight)
        return {key: value.float() for key, value in total.items()}
