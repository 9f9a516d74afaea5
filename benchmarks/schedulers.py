"""Which scheduler in how many steps? Time and distance to real digits, for a model of the embedded digits.

    python benchmarks/schedulers.py ddpm-mnist-mini --num_images 500

The distance is Frechet's (Heusel et al. 2017, arXiv 1706.08500) between features of drawn and of real digits. The
features are the last hidden layer of a small classifier, which is trained here first on other digits. So the numbers
compare the rows of one table and nothing else. Prints a table in Markdown.
"""

import argparse
import time

import diffusers
import torch
from digit_classifier import TRAINING_DIGITS, train_classifier

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom
from ddpm_hf.evaluation.distances import frechet_distance

ROWS = [
    ("DDPMLinearScheduler", (1000, 250, 100, 50, 20)),
    ("DDIMScheduler", (50, 20, 10)),
    ("DPMSolverMultistepScheduler", (50, 20, 10)),
    ("UniPCMultistepScheduler", (20, 10)),
    ("EulerDiscreteScheduler", (50, 20)),
    ("EulerAncestralDiscreteScheduler", (50, 20)),
    ("HeunDiscreteScheduler", (20, 10)),
    ("PNDMScheduler", (50, 20)),
]


def main():
    parser = argparse.ArgumentParser(description="Compare schedulers on a model of the embedded digits.")
    parser.add_argument("model", help="folder or Hub id of a pipeline trained on the digits, 28 pixels")
    parser.add_argument("--num_images", type=int, default=500, help="digits to draw for each row")
    parser.add_argument("--batch_size", type=int, default=100)
    arguments = parser.parse_args()

    features, _, digits = train_classifier()
    real = [features(part) for part in digits[TRAINING_DIGITS:].split((len(digits) - TRAINING_DIGITS) // 2)]
    pipeline = DDPMPipelineCustom.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(leave=False)
    config = pipeline.scheduler.config

    print("| scheduler | steps | seconds an image | distance |\n| --- | --- | --- | --- |")
    print(f"| (real digits) | | | {frechet_distance(*real):.0f} |")
    for name, all_steps in ROWS:
        kind = DDPMLinearScheduler if name == "DDPMLinearScheduler" else getattr(diffusers, name)
        for steps in all_steps:
            pipeline.scheduler = kind.from_config(config)
            started = time.perf_counter()
            drawn = draw(pipeline, steps, arguments.num_images, arguments.batch_size)
            seconds = (time.perf_counter() - started) / len(drawn)
            print(
                f"| `{name}` | {steps} | {seconds:.3f} | {frechet_distance(features(drawn), real[0]):.0f} |", flush=True
            )


def draw(pipeline: DDPMPipelineCustom, steps: int, count: int, batch_size: int) -> torch.Tensor:
    batches = []
    for start in range(0, count, batch_size):
        generator = torch.Generator().manual_seed(start)
        batches.append(pipeline(min(batch_size, count - start), generator, steps, output_type="pt").images)
    return torch.cat(batches) * 2 - 1  # (N, 1, 28, 28)


if __name__ == "__main__":
    main()
