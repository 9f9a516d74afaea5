"""How much memory do a training step and sampling take at their peak, compared with diffusers at the same weights?

    python benchmarks/memory.py --batch_size 16
    python benchmarks/memory.py --device cuda --batch_size 128

The network, the weights and the functions are those of benchmarks/speed.py. Each number is measured in its own process.
On a CPU it is the peak of the resident memory, minus the resident memory before the model was made. On a GPU it is the
peak of the allocated memory. Prints a table in Markdown.
"""

import argparse
import resource
import subprocess
import sys

import torch
from speed import Runner, Side, describe_machine

from ddpm_hf import DDPMUNetModel
from ddpm_hf.hardware import keep_freed_memory

SIDES = [Side(library, precision) for precision in ("float32", "bf16") for library in ("ddpm_hf", "diffusers")]
STEPS = ("training", "sampling")


def main():
    parser = argparse.ArgumentParser(description="Compare the peak memory with diffusers at the same weights.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    # The side and the step that a process measures for another.
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.one:
        side, step = arguments.one
        print(peak_of(SIDES[side], STEPS[step], arguments.batch_size, arguments.size, device))
        return
    print(f"{describe_machine(device)}, batch {arguments.batch_size}, {arguments.size} pixels\n")
    print("| step | precision | MB here | MB diffusers |\n| --- | --- | --- | --- |")
    for step in range(len(STEPS)):
        for first in range(0, len(SIDES), 2):
            peaks = [measure(sys.argv[1:], side, step) for side in (first, first + 1)]
            print(f"| {STEPS[step]} | {SIDES[first]} | {peaks[0]:,.0f} | {peaks[1]:,.0f} |", flush=True)


def measure(flags: list[str], side: int, step: int) -> float:
    """Return the peak in megabytes, measured in a new process."""
    command = [sys.executable, __file__, *flags, "--one", str(side), str(step)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of(side: Side, step: str, batch_size: int, size: int, device: torch.device) -> float:
    """Return the peak in megabytes, measured in this process."""
    keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runner = Runner(side, DDPMUNetModel(sample_size=size), batch_size, size, device)
    for _ in range(2):
        runner.train() if step == "training" else runner.sample()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3


if __name__ == "__main__":
    main()
