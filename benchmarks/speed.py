"""How fast are a training step and a sampling step, compared with diffusers at the same weights?

    python benchmarks/speed.py                                                            this machine's CPU
    python benchmarks/speed.py --device cuda --batch_sizes 1 16 128 512 --compile         a GPU

The network is the paper's for CIFAR-10 (35.7 M parameters), at 32 and at 64 pixels: as a `DDPMUNetModel`, and as
diffusers' `UNet2DModel` with the same weights. Both run in one process by turns, after a warm-up. A training step is
forward, loss, backward, clipping, optimizer and moving average, as in train_ddpm.py and as in diffusers' own
train_unconditional.py. A sampling step is one step of the whole pipeline. First, both must predict the same. A
precision that the machine only emulates is left out. `--compile` adds compiled networks, and on a GPU those that CUDA
graphs run; that takes minutes for each of them. Prints a table in Markdown; `--output` writes all times as JSON.
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.convert import to_unet2d
from ddpm_hf.hardware import compile_network, keep_freed_memory, processor_name
from ddpm_hf.precision import autocast, computes_in_bf16
from ddpm_hf.training.ema import MovingAverage
from ddpm_hf.training.objective import denoising_loss
from ddpm_hf.training.optimizer import make_optimizer

# Largest difference of the predictions, relative to the largest prediction.
TOLERANCES = {"float32": 1e-5, "default": 1e-2, "tf32": 1e-2, "bf16": 2e-2}
SAMPLING_STEPS = 5  # in one call of a pipeline


@dataclass(frozen=True)
class Side:
    """One of the two sides of a comparison."""

    library: str  # "ddpm_hf" or "diffusers"
    precision: str  # "float32", "bf16" (autocast); on GPUs also "tf32", and "default": TF32 in convolutions only
    channels_last: bool = False  # for diffusers; our network chooses by itself
    compiled: bool = False
    graphs: bool = False  # compiled, and run by CUDA graphs

    def __str__(self):
        extras = [name for name in ("channels_last", "compiled", "graphs") if getattr(self, name)]
        return " ".join([self.precision, *extras])


class Runner:
    """The model of one side, and the functions to time."""

    def __init__(self, side: Side, unet: DDPMUNetModel, batch_size: int, size: int, device: torch.device):
        self.side, self.device, self.step = side, device, 0
        self.own = side.library == "ddpm_hf"
        self.unet = (DDPMUNetModel.from_config(unet.config) if self.own else to_unet2d(unet)).to(device)
        if self.own:
            self.unet.load_state_dict(unet.state_dict())
        elif side.channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if side.graphs:
            self.unet.compile(mode="reduce-overhead", dynamic=False)
        elif side.compiled:
            compile_network(self.unet, device) if self.own else self.unet.compile(dynamic=False)
        self.x_0 = torch.rand(batch_size, 3, size, size, device=device) * 2 - 1
        self.eps = torch.randn_like(self.x_0)
        self.t = torch.randint(0, 1000, (batch_size,), device=device)
        if self.own:
            config = parse_command_line(["--preset", "cifar10"])[0]
            self.scheduler, self.optimizer = DDPMLinearScheduler(), make_optimizer(self.unet, config, device)
            self.ema = MovingAverage(self.unet, 1.0, 0.75, 0.9999)
            self.pipeline = DDPMPipelineCustom(self.unet, self.scheduler)
        else:
            self.scheduler, self.optimizer = DDPMScheduler(), torch.optim.AdamW(self.unet.parameters(), lr=1e-4)
            self.ema = EMAModel(self.unet.parameters(), decay=0.9999, use_ema_warmup=True)
            self.ema.to(device)
            self.pipeline = DDPMPipeline(self.unet, self.scheduler)
        self.pipeline.set_progress_bar_config(disable=True)

    def precision(self):
        """Return the context that the side computes in."""
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.side.precision == "tf32"
            torch.backends.cudnn.allow_tf32 = self.side.precision in ("tf32", "default")
        return autocast(self.device, "bf16" if self.side.precision == "bf16" else "no")

    @torch.no_grad()
    def predict(self, x_t: torch.Tensor) -> torch.Tensor:
        with self.precision():
            return self.unet.eval()(x_t, 500).sample.float()

    def train(self):
        self.step += 1
        self.unet.train()
        with self.precision():
            if self.own:
                loss = denoising_loss(self.unet, self.scheduler, self.x_0, self.t, self.eps).mean()
            else:
                x_t = self.scheduler.add_noise(self.x_0, self.eps, self.t)
                loss = F.mse_loss(self.unet(x_t, self.t).sample.float(), self.eps)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        skip = (~norm.isfinite()).float() if self.own and self.device.type == "cuda" else None
        if skip is not None:
            self.optimizer.found_inf = skip
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.step, skip) if self.own else self.ema.step(self.unet.parameters())

    def sample(self):
        self.unet.eval()
        with self.precision():
            self.pipeline(batch_size=len(self.x_0), num_inference_steps=SAMPLING_STEPS, output_type="np")


def main():
    parser = argparse.ArgumentParser(description="Compare the speed with diffusers at the same weights.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="pixels a side")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[4])
    parser.add_argument("--rounds", type=int, default=10, help="how often each function is timed")
    parser.add_argument("--compile", action="store_true", help="also measure compiled networks and CUDA graphs")
    parser.add_argument("--output", type=Path, help="JSON file for all times")
    arguments = parser.parse_args()
    keep_freed_memory()
    device = torch.device(arguments.device)

    print(describe_machine(device))
    peaks = {name: measure_peaks(name, device) for name in ("float32", "bf16") if name in precisions(device)}
    for name, peak in peaks.items():
        print(f"Peak in {name}: " + ", ".join(f"{kind} {flops / 1e9:,.0f} GFLOP/s" for kind, flops in peak.items()))
    print("\n| step | pixels | batch | here | diffusers | ms here | ms diffusers | times as fast | of the peak |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    pairs, rows = comparisons(device, arguments.compile), []
    count = len(arguments.sizes) * len(arguments.batch_sizes) * len(pairs) * 2
    with tqdm(total=count, desc="Rows", disable=None) as bar:
        for size in arguments.sizes:
            unet = DDPMUNetModel(sample_size=size, zero_init=False)
            for batch_size in arguments.batch_sizes:
                flops = forward_flops(unet, batch_size, size)
                for ours, theirs in pairs:
                    for row in compare(unet, ours, theirs, batch_size, size, device, arguments.rounds):
                        peak = max(peaks["bf16" if ours.precision == "bf16" else "float32"].values())
                        row["flops"] = flops * (3 if row["step"] == "training" else 1)  # backward is twice forward
                        row["share_of_peak"] = row["flops"] / row["here"]["median"] / peak
                        rows.append(row)
                        bar.write(line(row))
                        bar.update()
    if arguments.output:
        facts = {"machine": describe_machine(device), "peaks": peaks, "rows": rows}
        arguments.output.write_text(json.dumps(facts, indent=1) + "\n")


def precisions(device: torch.device) -> list[str]:
    """Return the precisions that a device computes in, rather than emulate them."""
    if device.type == "cuda":
        return ["float32", "tf32", "bf16"]
    return ["float32", "bf16"] if computes_in_bf16(device) else ["float32"]


def comparisons(device: torch.device, compiled: bool) -> list[tuple[Side, Side]]:
    """Return the pairs to compare: equal precisions, then our best against their default and against their best."""
    fastest, on_gpu = precisions(device)[-1], device.type == "cuda"
    ours, theirs = Side("ddpm_hf", fastest), Side("diffusers", fastest, channels_last=True)
    default = Side("diffusers", "default" if on_gpu else "float32")
    pairs = [(Side("ddpm_hf", name), Side("diffusers", name)) for name in precisions(device)]
    pairs += [(ours, theirs)] + [(ours, default)] * (fastest != default.precision)
    if compiled:
        ours, theirs = replace(ours, compiled=True), replace(theirs, compiled=True)
        pairs += [(ours, default), (ours, theirs)]
        pairs += [(replace(ours, graphs=True), replace(theirs, graphs=True))] * on_gpu
    return pairs


def compare(unet, ours: Side, theirs: Side, batch_size: int, size: int, device: torch.device, rounds: int):
    """Check that both sides predict the same, then time both by turns. Yield a row for each kind of step."""
    runners = {"here": Runner(ours, unet, batch_size, size, device)}
    runners["diffusers"] = Runner(theirs, unet, batch_size, size, device)
    x_t = torch.randn(batch_size, 3, size, size, device=device)
    here, there = (runner.predict(x_t) for runner in runners.values())
    difference = ((here - there).abs().max() / there.abs().max()).item()
    tolerance = max(TOLERANCES[side.precision] for side in (ours, theirs))
    if difference > tolerance:
        raise SystemExit(f"{ours} here and {theirs} in diffusers differ by {difference:.1e}, over {tolerance}.")

    for kind, parts in (("training", 1), ("sampling", SAMPLING_STEPS)):
        times = {name: [] for name in runners}
        for i in tqdm(range(rounds + 2), desc=f"{kind} {size} px", leave=False):
            for name, runner in runners.items():
                started = time.perf_counter()
                runner.train() if kind == "training" else runner.sample()
                synchronize(device)
                if i >= 2:  # the first rounds warm up, and compile
                    times[name].append((time.perf_counter() - started) / parts)
        row = {"step": kind, "pixels": size, "batch": batch_size, "sides": (str(ours), str(theirs))}
        row["largest_difference"] = difference
        for name, seconds in times.items():
            low, median, high = statistics.quantiles(seconds, n=4)
            row[name] = {"median": median, "quartiles": (low, high), "seconds": seconds}
        yield row


def forward_flops(unet: DDPMUNetModel, batch_size: int, size: int) -> int:
    """Return the operations of diffusers' network in one forward pass, from the shapes alone."""
    with FlopCounterMode(display=False) as counter:
        to_unet2d(unet).to("meta")(torch.empty(batch_size, 3, size, size, device="meta"), 500)
    return counter.get_total_flops()


def line(row: dict) -> str:
    """Return a row of the table in Markdown."""

    def shown(side):
        low, high = (1000 * seconds for seconds in row[side]["quartiles"])
        return f"{1000 * row[side]['median']:.0f} ({low:.0f}-{high:.0f})"

    ratio = row["diffusers"]["median"] / row["here"]["median"]
    ours, theirs = row["sides"]
    return (
        f"| {row['step']} | {row['pixels']} | {row['batch']} | {ours} | {theirs} | {shown('here')} | "
        f"{shown('diffusers')} | {ratio:.2f} | {row['share_of_peak']:.0%} |"
    )


def measure_peaks(precision: str, device: torch.device) -> dict[str, float]:
    """Return the FLOP/s of a large matrix product and of a wide convolution."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=dtype)
    x = torch.randn(n // 256, 256, 32, 32, device=device, dtype=dtype)
    w = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    functions = {
        "matrix product": (lambda: a @ a, 2 * n**3),
        "convolution": (lambda: F.conv2d(x, w, padding=1), 2 * x.numel() * 256 * 9),
    }
    peaks = {}
    for name, (function, flops) in functions.items():
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            function()
            synchronize(device)
            seconds.append(time.perf_counter() - started)
        peaks[name] = flops / min(seconds)
    return peaks


def synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def describe_machine(device: torch.device) -> str:
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {versions}"
    return (
        f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads, {versions}"
    )


if __name__ == "__main__":
    main()
