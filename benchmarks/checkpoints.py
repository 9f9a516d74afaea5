"""How much time does a run lose by saving checkpoints, written beside the training or before it goes on?

    python benchmarks/checkpoints.py
    python benchmarks/checkpoints.py --batch_size 128 --steps 200 --every 50

The network is the paper's for CIFAR-10 (35.7 M parameters); a checkpoint is 571 MB of weights, average and moments. The
same steps are taken without checkpoints, with checkpoints that a thread writes, and with checkpoints that are waited
for, by turns. Prints a table in Markdown: the seconds, and the share of them that saving cost.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ddpm_hf.command_line import parse_command_line
from ddpm_hf.hardware import keep_freed_memory
from ddpm_hf.training.checkpoint_writer import CheckpointWriter
from ddpm_hf.training.step_cost import Step

WAYS = ("none", "beside", "waited for")


def main():
    parser = argparse.ArgumentParser(description="Measure what saving checkpoints costs.")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--every", type=int, default=8, help="steps between two checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    config = parse_command_line(["--preset", "cifar10"])[0]
    config.mixed_precision = "bf16" if device.type == "cuda" else "no"
    step = Step(config, 3, device)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tqdm(total=arguments.rounds * len(WAYS), desc="Runs") as bar:
        for _ in range(arguments.rounds):
            for way in WAYS:
                seconds[way].append(timed(step, way, arguments))
                bar.update()
    print("| checkpoints | seconds | share of the time |\n| --- | --- | --- |")
    none = statistics.median(seconds["none"])
    for way, times in seconds.items():
        median = statistics.median(times)
        print(f"| {way} | {median:.1f} ({min(times):.1f}-{max(times):.1f}) | {1 - none / median:.1%} |")


def timed(step: Step, way: str, arguments) -> float:
    """Take the steps, and return their time. The last checkpoint is finished within it."""
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), 1, lambda: None)
        began = time.perf_counter()
        for number in range(1, arguments.steps + 1):
            step.seconds_for(arguments.batch_size)
            if way != "none" and number % arguments.every == 0:
                writer.write(number, tensors_of(step), {"step": number})
                if way == "waited for":
                    writer.wait()
        writer.wait()
        return time.perf_counter() - began


def tensors_of(step: Step) -> dict[str, dict[str, torch.Tensor]]:
    """Return as many tensors as a checkpoint holds. The average has the size of the weights."""
    weights = {name: tensor.detach() for name, tensor in step.unet.state_dict().items()}
    moments = step.optimizer.state_dict()["state"].items()
    optimizer = {f"{i}.{name}": value for i, named in moments for name, value in named.items()}
    return {"model": weights, "ema": weights, "optimizer": optimizer}


if __name__ == "__main__":
    main()
