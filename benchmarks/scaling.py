"""How many images a second does train_ddpm.py train on, with 1, 2, ... processes?

    python benchmarks/scaling.py
    python benchmarks/scaling.py --processes 1 2 4 8 -- --preset cifar10

Flags after `--` go to train_ddpm.py. Each row is the median over one run. On a CPU, one process uses all cores already,
so two processes show the cost of exchanging gradients. Prints a table in Markdown.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ddpm_hf.files import read_json_lines

TRAINING = Path(__file__).parent.parent / "train_ddpm.py"


def main():
    parser = argparse.ArgumentParser(description="Time train_ddpm.py in several processes.")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each run")
    parser.add_argument("flags", nargs="*", help="for train_ddpm.py")
    arguments = parser.parse_args()
    print("| processes | images/s | times as many |\n| --- | --- | --- |")
    first = None
    for processes in arguments.processes:
        rate = images_per_second(processes, arguments.steps, arguments.flags)
        first = first or rate
        print(f"| {processes} | {rate:.0f} | {rate / first:.2f} |", flush=True)


def images_per_second(processes: int, steps: int, flags: list[str]) -> float:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    launcher += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        timed = ["--max_train_steps", str(steps), "--save_images_steps", str(steps), "--logging_steps", "10"]
        short = ["--ddpm_num_inference_steps", "2", "--output_dir", folder, "--overwrite_output_dir"]
        subprocess.run([*launcher, str(TRAINING), *flags, *timed, *short], check=True, capture_output=True)
        lines = read_json_lines(Path(folder, "metrics.jsonl"), {"step": int})
    return statistics.median(line["images_per_second"] for line in lines[1:])  # the first ten steps warm up


if __name__ == "__main__":
    main()
