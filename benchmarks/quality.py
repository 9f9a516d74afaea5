"""How good are the pictures after some minutes of training? This package beside others, by one judge.

    python benchmarks/quality.py --sets digits --systems ours diffusers --minutes 2.5 5 10 --seeds 0 1
    python benchmarks/quality.py --sets digits --models RUN --steps 100    # measure a model that is trained

A judge, the features of a classifier, is trained on pictures that no model sees. It compares samples with further
pictures. The distances are Frechet's (arXiv 1706.08500) and the kernel's (arXiv 1801.01401); precision and recall are
those of arXiv 1904.06991; a sample counts as recognised if the classifier gives it a class with a probability of 0.9.
Numbers of one set can be compared with each other, and with no other numbers.

A model of `--models` has to be trained on the first part of the set alone: the preset `mnist-mini` trains on all 10,000
digits, also on those of the judge.

The speed of each system is measured once and kept in speeds.json: do it on an idle machine, with `--speeds_only`. The
runs take the steps that fit into the minutes at that speed, whatever else the machine does then.

Each row is a line of results.jsonl in --work_dir, with the samples beside it, `(N, C, H, W)`, and a picture of some.
Rows that are there are not measured again. Prints a table in Markdown, with half the difference of the seeds, and draws
the curve of the distance over the minutes.
"""

import argparse
import itertools
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from judge import Judge
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from picture_sets import PARTS, Part, load_set
from PIL import Image
from systems import SYSTEMS, Draw, drawing_with
from tqdm.auto import tqdm

from ddpm_hf.files import read_json, read_json_lines, write_json, write_json_lines
from ddpm_hf.hardware import processor_name
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pictures import image_grid
from ddpm_hf.schedulers import SCHEDULERS

NUMBERS = ("frechet", "kernel", "precision", "recall", "recognised")
BATCH = 500
ROUNDS = 3
FORM = {"set": str, "system": str, "minutes": float, "steps": int, "seed": int, "num_images": int}


def main():
    parser = argparse.ArgumentParser(description="Measure the quality of samples, also after minutes of training.")
    parser.add_argument("--sets", nargs="+", choices=PARTS, default=["digits"])
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=[])
    parser.add_argument("--models", nargs="*", default=[], help="folders or Hub ids of trained models")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="to draw with; default: that of the system or model")
    parser.add_argument("--minutes", nargs="+", type=float, default=[5.0], help="of training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the training, and of the samples")
    parser.add_argument("--steps", nargs="+", type=int, default=[100], help="denoising steps")
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--speeds_only", action="store_true", help="measure only the steps that a minute has")
    parser.add_argument("--work_dir", type=Path, default=Path("quality"))
    arguments = parser.parse_args()
    if arguments.scheduler and any("pytorch" in name for name in arguments.systems):
        parser.error(f"--scheduler {arguments.scheduler}: denoising-diffusion-pytorch has its own; leave it out.")
    ruler = Ruler(arguments)
    for name in ruler.arguments.sets:
        ruler.measure_set(name)
    if not ruler.arguments.speeds_only:
        print(ruler.table())
        ruler.draw_curves()


class Ruler:
    """The rows of a comparison, kept in a folder."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.folder = arguments, arguments.work_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "results.jsonl"
        self.rows = read_json_lines(self.file, FORM) if self.file.exists() else []

    def measure_set(self, name: str):
        """Measure the wanted rows of a set that are missing."""
        part, for_judge, reference = load_set(name, self.folder)
        speeds, wanted = self.speeds(name, part), self.arguments
        if wanted.speeds_only:
            return
        judge = Judge(for_judge, reference, name)
        about_real = {"set": name, "system": "real pictures", "minutes": 0.0, "steps": 0, "seed": 0}
        if not self.has(about_real):
            self.note(about_real, judge.of_real(part), len(part.pixels))
            print(f"The judge of {name} names {judge.accuracy:.1%} of the classes.", flush=True)
        for system, minutes, seed in itertools.product(wanted.systems, wanted.minutes, wanted.seeds):
            about = {"set": name, "system": self.drawn_by(system), "minutes": minutes, "seed": seed}
            if all(self.has({**about, "steps": steps, "num_images": wanted.num_images}) for steps in wanted.steps):
                continue
            steps = math.ceil(minutes * speeds[system])
            print(f"{system}: {steps:,} steps in {minutes:g} minutes.", flush=True)
            way = SYSTEMS[system](part, self.place(name, system, minutes, seed), seed)
            way.scheduler = wanted.scheduler
            self.measure(way.train(steps), {**about, "trained_steps": steps}, judge)
        for model, seed in itertools.product(wanted.models, wanted.seeds):
            draw = drawing_with(load_pipeline(model), wanted.scheduler)
            self.measure(draw, {"set": name, "system": self.drawn_by(model), "minutes": 0.0, "seed": seed}, judge)

    def drawn_by(self, system: str) -> str:
        """Return the name of a system in the rows, which tells the scheduler if it is not the saved one."""
        return f"{system}, {self.arguments.scheduler}" if self.arguments.scheduler else system

    def speeds(self, name: str, part: Part) -> dict[str, float]:
        """Return how many steps each system takes in a minute: the most of `ROUNDS` rounds on an idle machine."""
        file = self.folder / "speeds.json"
        known = read_json(file, {}) if file.exists() else {}
        speeds = known.setdefault(name, {})
        missing = {
            system: SYSTEMS[system](part, self.place(name, system, 0, 0), 0)
            for system in self.arguments.systems
            if system not in speeds
        }
        for system in [*missing] * ROUNDS:
            speeds[system] = max(speeds.get(system, 0), missing[system].steps_per_minute())
            print(f"{system}: {speeds[system]:.0f} steps in a minute.", flush=True)
        write_json(file, known)
        return speeds

    def place(self, name: str, system: str, minutes: float, seed: int) -> Path:
        """Return the folder of a run, which is made."""
        folder = self.folder / f"{name}-{system.replace(' ', '-').replace(',', '')}-{minutes:g}-{seed}"
        folder.mkdir(exist_ok=True)
        return folder

    def measure(self, draw: Draw, about: dict, judge: Judge):
        for steps in self.arguments.steps:
            row, batches = {**about, "steps": steps, "num_images": self.arguments.num_images}, []
            if self.has(row):
                continue
            began = time.perf_counter()
            for start in tqdm(range(0, self.arguments.num_images, BATCH), desc="Drawing", unit="batch", leave=False):
                generator = torch.Generator().manual_seed(about["seed"] * 10**6 + start)
                batches.append(draw(min(BATCH, self.arguments.num_images - start), steps, generator))
            seconds = time.perf_counter() - began
            x = torch.cat(batches)
            self.note({**row, "seconds": round(seconds, 1)}, judge.measure(x), len(x))
            grid = [_picture(each) for each in x[:40]]
            image_grid(grid, columns=20).save(self.folder / f"{len(self.rows):03d}.png")
            np.save(self.folder / f"{len(self.rows):03d}.npy", (x.clamp(-1, 1) * 127.5 + 127.5).round().byte().numpy())

    def has(self, about: dict) -> bool:
        return any(about.items() <= row.items() for row in self.rows)

    def note(self, about: dict, numbers: dict, count: int):
        self.rows.append({"num_images": count, **about, **numbers, "processor": processor_name()})
        write_json_lines(self.file, self.rows)
        print(about, {name: round(number, 3) for name, number in numbers.items()}, flush=True)

    def table(self) -> str:
        """Return the rows as a table; seeds are merged."""
        lines = [f"| set | trained by | minutes | steps | {' | '.join(NUMBERS)} |", "| --- " * (4 + len(NUMBERS)) + "|"]
        for key, rows in self._by_seed():
            columns = (_with_interval([row[number] for row in rows]) for number in NUMBERS)
            lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(columns)} |")
        return "\n".join(lines)

    def _by_seed(self) -> list[tuple[tuple, list[dict]]]:
        def key(row: dict) -> tuple:
            return row["set"], row["system"], row["minutes"], row["steps"]

        return [(name, list(rows)) for name, rows in itertools.groupby(sorted(self.rows, key=key), key)]

    def draw_curves(self):
        """Draw the Frechet distance over the minutes of training, and that of real pictures: a panel for each set."""
        sets = self.arguments.sets
        colours = {system: f"C{i}" for i, system in enumerate(sorted({row["system"] for row in self.rows}))}
        figure = Figure(figsize=(5 * len(sets) + 1, 4.8), dpi=80, layout="constrained")
        canvas, panels = FigureCanvasAgg(figure), figure.subplots(1, len(sets), squeeze=False)[0]
        for name, axes in zip(sets, panels):
            curves: dict[str, list[tuple[float, float]]] = {}
            for (of_set, system, minutes, _), rows in self._by_seed():
                if of_set == name and minutes:
                    curves.setdefault(system, []).append((minutes, statistics.mean(row["frechet"] for row in rows)))
                elif of_set == name and system == "real pictures":
                    axes.axhline(rows[0]["frechet"], color="black", linestyle=":", label=system)
            for system, points in curves.items():
                axes.plot(*zip(*sorted(points)), marker="o", label=system, color=colours[system])
            axes.set(xlabel="minutes of training", yscale="log", xscale="log", title=name)
            minutes = sorted({each for points in curves.values() for each, _ in points})
            axes.set_xticks(minutes, [f"{each:g}" for each in minutes])
            axes.set_xticks([], minor=True)
        panels[0].set_ylabel("Frechet distance")
        handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
        canvas.print_png(str(self.folder / "curves.png"))


def _with_interval(numbers: list[float]) -> str:
    """Return the mean and half the range of the seeds."""
    half = (max(numbers) - min(numbers)) / 2
    return f"{statistics.mean(numbers):.3g}" + (f" ± {half:.2g}" if len(numbers) > 1 else "")


def _picture(x: torch.Tensor) -> Image.Image:
    """Return a picture of a sample `(C, H, W)` in [-1, 1]."""
    levels = ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


if __name__ == "__main__":
    main()
