"""The presets: options for known data sets, where they differ from the defaults of `TrainingConfig`."""

from collections.abc import Sequence
from typing import Any

from ddpm_hf.lineages import ANNOTATED_LINEAGE
from ddpm_hf.schedulers import SCHEDULERS


def unet(*widths: int, attention: Sequence[int] = (), layers: int = 2, **keys: Any) -> dict[str, Any]:
    """Return the configuration of a U-Net.

    Args:
        widths: Channels of each level, from the finest to the coarsest.
        attention: The levels that attend, counted from the finest, 0.
        layers: Residual blocks in a level.
        keys: Other arguments of [`DDPMUNetModel`].
    """
    down = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(widths))]
    up = ["AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(len(widths)))]
    return dict(
        block_out_channels=list(widths), down_block_types=down, up_block_types=up, layers_per_block=layers, **keys
    )


PRESETS: dict[str, dict[str, Any]] = {
    # Handwritten digits, in ten minutes on two cores.
    "mnist-mini": dict(
        resolution=28,
        class_conditional=True,
        model=unet(16, 32, 48, layers=1, norm_num_groups=8),
        prediction_type="v_prediction",
        timestep_sampling="lognormal",
        lognormal_mean=-0.3,
        lognormal_std=1.3,
        train_batch_size=32,
        max_train_steps=2600,
        optimizer="muon",
        learning_rate=8e-3,
        adam_beta2=0.99,
        lr_scheduler="linear",
        lr_warmup_steps=100,
        ema_max_decay=0.997,
        eval_batch_size=64,
        ddpm_num_inference_steps=100,
    ),
    # All of MNIST, on a GPU.
    "mnist": dict(
        dataset_name="ylecun/mnist",
        resolution=32,
        image_fit="pad",
        model=unet(64, 128, 128, attention=(2,)),
        train_batch_size=128,
        max_train_steps=20_000,
        optimizer="adam",
        learning_rate=5e-4,
        save_images_steps=1000,
        save_model_steps=5000,
        checkpointing_steps=1000,
        eval_batch_size=64,
    ),
    # Faces, on a GPU.
    "celeba-64": dict(
        dataset_name="nielsr/CelebA-faces",
        resolution=64,
        celeba_crop=True,
        random_flip=True,
        model=unet(128, 128, 256, 256, 512, attention=(2,)),
        max_train_steps=500_000,
        optimizer="adam",
        lr_scheduler="constant_with_warmup",
        lr_warmup_steps=5000,
        save_images_steps=5000,
        save_model_steps=10_000,
        checkpointing_steps=5000,
    ),
    # Appendix B of the paper.
    "cifar10": dict(
        dataset_name="uoft-cs/cifar10",
        resolution=32,
        random_flip=True,
        model=unet(128, 256, 256, 256, attention=(1,), dropout=0.1),
        variance_type="fixed_large",
        train_batch_size=128,
        max_train_steps=800_000,
        optimizer="adam",
        learning_rate=2e-4,
        lr_scheduler="constant_with_warmup",
        lr_warmup_steps=5000,
        save_images_steps=5000,
        save_model_steps=10_000,
        checkpointing_steps=5000,
        eval_batch_size=64,
    ),
    # The annotated tutorial's network and settings.
    "annotated": dict(
        dataset_name="nielsr/CelebA-faces",
        resolution=32,
        model=unet(64, 128, 256, 1024, attention=(3,), dropout=0.1, **ANNOTATED_LINEAGE),
        variance_type="fixed_large",
        clip_sample=False,
        num_epochs=1000,
        optimizer="adam",
        learning_rate=2e-5,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        max_grad_norm=0.0,
        use_ema=False,
        save_images_steps=1000,
        save_model_steps=10_000,
        checkpointing_steps=5000,
    ),
    # A student of a trained model, for --distill_steps; `ddpm-hf distill` takes it.
    "distill": dict(
        prediction_type="v_prediction",
        max_train_minutes=10.0,
        train_batch_size=32,
        optimizer="muon",
        learning_rate=2e-3,
        adam_beta2=0.99,
        lr_scheduler="linear",
        lr_warmup_steps=50,
        ema_max_decay=0.99,
        distill_steps=4,
        eval_batch_size=64,
    ),
    # Any pictures. What is not here is chosen for the run: see model_sizes.py.
    "auto": dict(
        resolution=64,
        prediction_type="v_prediction",
        timestep_sampling="lognormal",
        lognormal_mean=-0.3,
        lognormal_std=1.3,
        lr_scheduler="linear",
        ddpm_num_inference_steps=100,
    ),
}

# What is chosen for a run with the preset auto, unless its command says it. A run that goes on keeps all of it.
FITTED = frozenset({
    "model", "model_size", "max_train_steps", "max_train_minutes", "train_batch_size", "gradient_accumulation_steps",
    "optimizer", "learning_rate", "lr_scheduler", "lr_warmup_steps", "adam_beta2", "ema_max_decay", "prediction_type",
    "timestep_sampling", "lognormal_mean", "lognormal_std", "resolution", "save_images_steps", "save_model_steps",
    "checkpointing_steps", "validation_steps", "ddpm_num_inference_steps", "eval_batch_size",
})  # fmt: skip


def preset_for(preset: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return what a preset says for these options.

    Labels belong to its own pictures, and to no others or no base. Its denoising steps belong to its scheduler.
    """
    named = ("train_data_dir", "dataset_name", "pretrained_model_name_or_path")
    others = any(options.get(name) not in (None, preset.get(name)) for name in named)
    preset = {name: value for name, value in preset.items() if not (others and name == "class_conditional")}
    scheduler = str(options.get("scheduler", "ddpm"))
    if scheduler == "ddpm" or scheduler not in SCHEDULERS:
        return preset
    return {**preset, "ddpm_num_inference_steps": SCHEDULERS[scheduler].steps}
