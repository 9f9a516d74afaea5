"""How much memory do a training step and sampling take at their peak?

    python benchmarks/memory.py --batch_size 16                         compared with diffusers at the same weights
    python benchmarks/memory.py --device cuda --batch_size 128
    python benchmarks/memory.py --check --device cuda                   the estimate of a training step, and the truth
    python benchmarks/memory.py --table                                 the estimate for each preset and size

The networks and functions of the comparison are those of benchmarks/speed.py. Each measurement has its own process. On
a CPU it is the peak of the resident memory, minus the resident memory before the model was made. On a GPU it is the
peak of the allocated memory. Prints tables in Markdown.
"""

import argparse
import os
import resource
import subprocess
import sys

import torch
from speed import Runner, Side, describe_machine, precisions

from ddpm_hf import DDPMUNetModel
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.config import TrainingConfig
from ddpm_hf.hardware import keep_freed_memory
from ddpm_hf.model_sizes import SIZES, batch_of, network_of
from ddpm_hf.presets import PRESETS
from ddpm_hf.training.ema import MovingAverage
from ddpm_hf.training.memory import peak_memory
from ddpm_hf.training.step_cost import Step

CHECKS = (
    "--preset mnist --resolution 32 --train_batch_size 64",
    "--preset cifar10 --resolution 32 --train_batch_size 16",
    "--preset cifar10 --resolution 32 --train_batch_size 16 --gradient_checkpointing",
    "--preset cifar10 --resolution 64 --train_batch_size 16",
    "--preset cifar10 --resolution 64 --train_batch_size 16 --gradient_checkpointing",
)
PIXELS = (64, 128, 256)
CARDS = (8, 16, 24, 80)  # GB


def main():
    parser = argparse.ArgumentParser(description="Measure the peak memory, or estimate it.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--check", action="store_true", help="measure what the training estimates")
    parser.add_argument("--table", action="store_true", help="estimate for each preset and size, on a GPU")
    parser.add_argument("--mixed_precision", default="bf16", help="of --check and --table")
    # What a process measures for another.
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--one_check", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.one:
        library, precision, step = arguments.one
        print(peak_of(Side(library, precision), step, arguments.batch_size, arguments.size, device))
    elif arguments.one_check is not None:
        print(peak_of_training(options_of(CHECKS[arguments.one_check], arguments.mixed_precision), device))
    elif arguments.check:
        check(device, arguments.mixed_precision)
    elif arguments.table:
        table(arguments.mixed_precision)
    else:
        compare(arguments, device)


# ---- The comparison with diffusers -----------------------------------------------------------------------------------


def compare(arguments: argparse.Namespace, device: torch.device):
    print(f"{describe_machine(device)}, batch {arguments.batch_size}, {arguments.size} pixels\n")
    print("| step | precision | MB here | MB diffusers |\n| --- | --- | --- | --- |")
    for step in ("training", "sampling"):
        for precision in (name for name in precisions(device) if name != "tf32"):
            peaks = [measure("--one", library, precision, step) for library in ("ddpm_hf", "diffusers")]
            print(f"| {step} | {precision} | {peaks[0]:,.0f} | {peaks[1]:,.0f} |", flush=True)


def measure(*what: str | int) -> float:
    """Return the peak in megabytes, measured in a new process."""
    command = [sys.executable, __file__, *sys.argv[1:], *map(str, what)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of(side: Side, step: str, batch_size: int, size: int, device: torch.device) -> float:
    """Return the peak in megabytes, measured in this process."""
    keep_freed_memory()
    before = resident()
    runner = Runner(side, DDPMUNetModel(sample_size=size), batch_size, size, device)
    for _ in range(2):
        runner.train() if step == "training" else runner.sample()
    return peak_since(before, device)


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_since(before: int, device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return (resident() - before) * 1024 / 1e6


# ---- The estimate, and the truth -------------------------------------------------------------------------------------


def check(device: torch.device, mixed_precision: str):
    """Print a table of estimated and measured peaks."""
    print(f"{describe_machine(device)}, mixed precision {mixed_precision}\n")
    print("| options | MB estimated | MB measured |\n| --- | --- | --- |")
    for i, flags in enumerate(CHECKS):
        estimated = peak_memory(options_of(flags, mixed_precision), 3, device.type) / 1e6
        print(f"| `{flags}` | {estimated:,.0f} | {measure('--one_check', i):,.0f} |", flush=True)


def options_of(flags: str, mixed_precision: str) -> TrainingConfig:
    return parse_command_line([*flags.split(), "--mixed_precision", mixed_precision])[0]


def peak_of_training(config: TrainingConfig, device: torch.device) -> float:
    """Return the peak of two steps of training in megabytes, measured in this process.

    As in a run, glibc keeps freed memory, unless MALLOC_MMAP_THRESHOLD_ is set.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        keep_freed_memory()
    before = resident()
    step = Step(config, 3, device)
    average = MovingAverage(step.unet, config.ema_inv_gamma, config.ema_power, config.ema_max_decay)
    skip = torch.zeros((), device=device) if device.type == "cuda" else None
    for number in (1, 2):
        step.seconds_for(config.train_batch_size)
        average.update(number, skip)
    return peak_since(before, device)


# ---- The table of docs/memory.md -------------------------------------------------------------------------------------


def table(mixed_precision: str):
    """Print the peaks on a GPU without and with gradient checkpointing, and the images that cards take at once."""
    cards = " | ".join(f"in {card} GB" for card in CARDS)
    print(f"| network | pixels | batch | GB | GB, checkpointing | {cards} |\n|{' --- |' * (5 + len(CARDS))}")
    for name in [*(preset for preset in PRESETS if preset != "auto"), *SIZES]:
        for pixels in PIXELS:
            row = options_of_row(name, pixels, mixed_precision)
            peaks, counts = zip(*(peak_and_counts(row, checkpointing) for checkpointing in (False, True)))
            fits = " | ".join(" / ".join(str(count) if count else "-" for count in pair) for pair in zip(*counts))
            sizes = " | ".join(f"{peak / 1e9:.2g}" if peak < 1e10 else f"{peak / 1e9:.0f}" for peak in peaks)
            print(f"| `{name}` | {pixels} | {row.train_batch_size} | {sizes} | {fits} |", flush=True)


def options_of_row(name: str, pixels: int, mixed_precision: str) -> TrainingConfig:
    """Return the options of a preset, or of a size of `--preset auto`, at other pixels."""
    if name in PRESETS:
        return options_of(f"--preset {name} --resolution {pixels}", mixed_precision)
    config = options_of(f"--preset auto --resolution {pixels} --model_size {name}", mixed_precision)
    size = SIZES[name]
    config.model, config.optimizer = network_of(size, pixels, pixels), size.optimizer
    config.train_batch_size = batch_of(size, pixels, pixels, None)
    return config


def peak_and_counts(config: TrainingConfig, checkpointing: bool) -> tuple[int, list[int]]:
    """Return the peak, and the largest power of two of images that fits each card with a tenth to spare; 0 for none."""
    config.gradient_checkpointing, batch = checkpointing, config.train_batch_size
    peaks = {}
    for config.train_batch_size in (1024, batch):
        peaks[config.train_batch_size] = peak_memory(config, 3, "cuda")
    for_each = (peaks[1024] - peaks[batch]) / (1024 - batch)  # many images take much more than the moments
    fits = [max(0, int(batch + (card * 1e9 / 1.1 - peaks[batch]) / for_each)) for card in CARDS]
    return peaks[batch], [2 ** (count.bit_length() - 1) if count else 0 for count in fits]


if __name__ == "__main__":
    main()
