"""How well do snapshots give averages of other lengths? And which length is best for a run?

    python benchmarks/averages.py --picture docs/averages.png
    python benchmarks/averages.py --run ddpm-mnist-mini

The picture shows profiles and the errors of their fits. For a run with snapshots and pictures that it held out, a table
in Markdown has the held-out loss of each length, with the same pictures, timesteps and noise for all.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom
from ddpm_hf.config import TrainingConfig
from ddpm_hf.evaluation.parts_of_run import open_part
from ddpm_hf.posthoc_ema import Snapshots
from ddpm_hf.power_averages import LONGEST, STDS, fit_profile, gamma_of
from ddpm_hf.training.resuming import saved_options
from ddpm_hf.training.validation import HeldOutLoss

COUNTS = (8, 16, 32, 64)
SHOWN = (0.03, 0.05, 0.1, 0.2)  # lengths whose profiles are drawn


def main():
    parser = argparse.ArgumentParser(description="Averages of other lengths: their fits, and their held-out losses.")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--run", type=Path, help="folder of a run with snapshots and pictures that it held out")
    parser.add_argument("--stds", type=float, nargs="+", default=[0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25])
    parser.add_argument("--cache_dir", help="where decoded images are kept")
    arguments = parser.parse_args()
    if arguments.picture:
        draw(arguments.picture)
    if arguments.run:
        measure(arguments.run, arguments.stds, arguments.cache_dir)


def kept(count: int) -> list[tuple[float, int]]:
    return [(std, step) for step in range(1, count + 1) for std in STDS]


def profile(std: float, time: float, tau: np.ndarray) -> np.ndarray:
    gamma = gamma_of(std)
    return np.where(tau <= time, (gamma + 1) * (np.minimum(tau, time) / time) ** gamma / time, 0)


def draw(path: Path):
    figure = Figure(figsize=(10, 3.6), dpi=100, layout="constrained")
    profiles, errors = figure.subplots(1, 2)
    tau = np.linspace(0, 1, 1001)
    for std in SHOWN:
        fit = fit_profile(std, kept(8), 8)
        made = sum(weight * profile(of, step / 8, tau) for weight, (of, step) in zip(fit.weights, kept(8)))
        (line,) = profiles.plot(tau, profile(std, 1, tau), label=f"length {std:g}")
        profiles.plot(tau, made, linestyle=":", color=line.get_color())
    profiles.set(xlabel="share of the run", ylabel="weight", title="Profiles; dotted: from snapshots at 8 steps")
    profiles.legend()
    stds = np.geomspace(0.01, LONGEST - 0.002, 150)
    for count in COUNTS:
        shares = [max(fit_profile(std, kept(count), count).error, 1e-4) for std in stds]
        errors.plot(stds, shares, label=f"{count} steps")
    errors.axhline(0.05, color="grey", linewidth=0.8, linestyle="--")
    errors.set(xscale="log", yscale="log", ylim=(2e-4, 1), xlabel="length", title="Error of the profile")
    errors.set_xticks([0.01, 0.02, 0.05, 0.1, 0.2], labels=["0.01", "0.02", "0.05", "0.1", "0.2"])
    errors.legend(title="snapshots at")
    FigureCanvasAgg(figure).print_png(str(path))
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the size


def measure(run: Path, stds: list[float], cache_dir: str | None):
    snapshots, pipeline = Snapshots.of_run(run), DDPMPipelineCustom.from_pretrained(run)
    config = TrainingConfig(**saved_options(run))
    pictures = open_part(pipeline, run, {"cache_dir": cache_dir} if cache_dir else {}, held_out=True)[0]
    loss = HeldOutLoss(pictures, config, DDPMLinearScheduler.from_config(pipeline.scheduler.config))
    print("| length | error of the profile | held-out loss |\n| --- | --- | --- |")
    print(f"| the run's own | | {loss.measure(pipeline.unet)['val_loss']:.4f} |", flush=True)
    for std in stds:
        fit = snapshots.fit(std)
        pipeline.unet.load_state_dict(snapshots.average(fit))
        print(f"| {std:g} | {fit.error:.1%} | {loss.measure(pipeline.unet)['val_loss']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
