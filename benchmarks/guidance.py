"""How much guidance? Right classes and distance to real pictures, for a class-conditional model.

    python benchmarks/guidance.py quality/digits-ours-10-0/run

The judge is that of benchmarks/quality.py. Prints a table in Markdown.
"""

import argparse
from pathlib import Path

import torch
from judge import Judge
from picture_sets import PARTS, load_set
from tqdm.auto import tqdm

from ddpm_hf.sampling import open_model
from ddpm_hf.schedulers import SCHEDULERS


def main():
    parser = argparse.ArgumentParser(description="Compare strengths of guidance.")
    parser.add_argument("model", help="folder or Hub id of a class-conditional pipeline trained on the set")
    parser.add_argument("--set", choices=PARTS, default="digits")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.25, 1.5, 2, 3])
    parser.add_argument("--interval", type=float, nargs=2, metavar=("START", "END"), help="the part with guidance")
    parser.add_argument("--num_images", type=int, default=2000, help="pictures to draw for each row, of all classes")
    parser.add_argument("--num_inference_steps", type=int, help="default: those of the model")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="in place of the saved one")
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--work_dir", type=Path, default=Path("quality"), help="where drawn sets are kept")
    arguments = parser.parse_args()

    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    _, for_judge, reference = load_set(arguments.set, arguments.work_dir)
    judge = Judge(for_judge, reference, arguments.set)
    pipeline = open_model(arguments.model, None, arguments.scheduler, None, arguments.num_inference_steps)
    pipeline.set_progress_bar_config(disable=True)
    names = pipeline.unet.config.class_names
    wanted = torch.arange(arguments.num_images) % len(names)
    print("| guidance | of the wanted class | distance | recall |\n| --- | --- | --- | --- |")
    for scale in arguments.scales:
        batches = []
        for numbers in tqdm(wanted.split(arguments.batch_size), desc=f"Guidance {scale:g}", leave=False):
            batches.append(
                pipeline(
                    class_labels=[names[i] for i in numbers],
                    guidance_scale=scale,
                    guidance_interval=arguments.interval if arguments.interval and scale != 1 else (0, 1),
                    num_inference_steps=arguments.num_inference_steps,
                    generator=torch.Generator().manual_seed(len(batches)),
                    output_type="pt",
                ).images
            )
        drawn = torch.cat(batches) * 2 - 1  # (N, C, H, W)
        share, numbers = (judge.classes(drawn) == wanted).float().mean(), judge.measure(drawn)
        print(f"| {scale:g} | {share:.1%} | {numbers['frechet']:.3g} | {numbers['recall']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
