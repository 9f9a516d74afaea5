"""How much guidance? Right classes and distance to real digits, for a class-conditional model of the embedded digits.

    accelerate launch train_ddpm.py --class_conditional --output_dir ddpm-digits
    python benchmarks/guidance.py ddpm-digits

A classifier that was trained on real digits tells the classes of the drawn ones. The distance is that of
benchmarks/schedulers.py. Prints a table in Markdown.
"""

import argparse

import torch
from digit_classifier import TRAINING_DIGITS, train_classifier
from tqdm.auto import tqdm

from ddpm_hf import DDPMPipelineCustom
from ddpm_hf.evaluation.distances import frechet_distance


def main():
    parser = argparse.ArgumentParser(description="Compare strengths of guidance on a model of the embedded digits.")
    parser.add_argument("model", help="folder or Hub id of a class-conditional pipeline of the digits, 28 pixels")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.5, 2, 3, 5])
    parser.add_argument("--num_images", type=int, default=500, help="digits to draw for each row, in equal parts")
    parser.add_argument("--num_inference_steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=100)
    arguments = parser.parse_args()

    features, classes, digits = train_classifier()
    real = features(digits[TRAINING_DIGITS:])
    pipeline = DDPMPipelineCustom.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    wanted = torch.arange(arguments.num_images) % 10
    print("| guidance | of the wanted class | distance |\n| --- | --- | --- |")
    for scale in arguments.scales:
        batches = []
        for labels in tqdm(wanted.split(arguments.batch_size), desc=f"Guidance {scale:g}", leave=False):
            batches.append(
                pipeline(
                    class_labels=labels,
                    guidance_scale=scale,
                    num_inference_steps=arguments.num_inference_steps,
                    generator=torch.Generator().manual_seed(len(batches)),
                    output_type="pt",
                ).images
            )
        drawn = torch.cat(batches) * 2 - 1  # (N, 1, 28, 28)
        share = (classes(drawn) == wanted).float().mean()
        print(f"| {scale:g} | {share:.1%} | {frechet_distance(features(drawn), real):.1f} |", flush=True)


if __name__ == "__main__":
    main()
