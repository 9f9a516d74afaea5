"""What train_ddpm.py tells the person at the terminal."""

import torch

from ddpm_hf.config import TrainingConfig
from ddpm_hf.training.best import KeptBest
from ddpm_hf.unet_ddpm import DDPMUNetModel


def describe(
    config: TrainingConfig, unet: DDPMUNetModel, images: int | None, images_per_step: int, held_out: int = 0
) -> str:
    """Describe the sizes of the run in one line."""
    steps, seen = config.total_steps, config.total_steps * images_per_step
    data, length = (f"{images:,}", f"{seen / images:.1f} epochs") if images else ("streamed", f"{seen:,} images")
    apart = f" ({held_out:,} more are held out)" if held_out else ""
    start = (
        f" Its configuration is that of {config.model_config_name_or_path}, without the weights: it starts at random."
        if config.model_config_name_or_path
        else ""
    )
    return (
        f"Preset {config.preset}: a U-Net with {unet.num_parameters() / 1e6:.2f} M parameters, {data} images{apart}, "
        f"{steps:,} steps of {images_per_step} images ({length}), mixed precision {config.mixed_precision}, "
        f"{torch.get_num_threads()} CPU threads.{start}"
    )


def farewell(config: TrainingConfig, steps: int, step: int, seconds: float) -> str:
    """Say where everything is, and how to go on."""
    again = f"DDPMPipelineCustom.from_pretrained('{config.output_dir}')(batch_size=16).images"
    once = {"--overwrite_output_dir": config.overwrite_output_dir}
    once["--resume_from_checkpoint"] = config.resume_from_checkpoint != "latest"
    without = "".join(f" without {flag}" for flag, is_given in once.items() if is_given)
    early = (
        ""
        if step == config.total_steps
        else f"Stopped at step {step:,} of {config.total_steps:,}; the same command{without} goes on. "
    )
    best = KeptBest(config).describe()
    return (
        f"{early}Trained {steps:,} steps in {seconds / 60:.1f} minutes. The model, samples/, loss.png, metrics.jsonl "
        f'are in {config.output_dir}{best}; draw more with: python -c "from ddpm_hf import DDPMPipelineCustom; '
        f"[image.save(f'{{i}}.png') for i, image in enumerate({again})]\""
    )
