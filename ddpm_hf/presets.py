"""The presets: defaults of the options for known data sets."""

from ddpm_hf.unet_ddpm import ANNOTATED_LINEAGE


def _unet(widths, attention, layers=2, **keys) -> dict:
    """Configuration of a U-Net from its widths and the levels that attend, counted from the finest."""
    down = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(widths))]
    up = ["AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(len(widths)))]
    return dict(
        block_out_channels=list(widths), down_block_types=down, up_block_types=up, layers_per_block=layers, **keys
    )


_MINI = _unet((16, 32, 48), attention=(), layers=1, norm_num_groups=8, narrow_up_blocks=True)
_MNIST = _unet((64, 128, 128), attention=(2,))
_CIFAR10 = _unet((128, 256, 256, 256), attention=(1,), dropout=0.1)  # appendix B of the paper
_CELEBA = _unet((128, 128, 256, 256, 512), attention=(2,))
_ANNOTATED = _unet((64, 128, 256, 1024), attention=(3,), dropout=0.1, **ANNOTATED_LINEAGE)

_CELEBA_FACES = "nielsr/CelebA-faces"

# fmt: off
_PRESET_NAMES = (             "mnist-mini", "mnist",        "celeba-64",   "cifar10",         "annotated")
_PRESETS = {
    "dataset_name":             (None,      "ylecun/mnist", _CELEBA_FACES, "uoft-cs/cifar10", _CELEBA_FACES),
    "resolution":               (28,        32,             64,            32,                32),
    "image_fit":                ("crop",    "pad",          "crop",        "crop",            "crop"),
    "celeba_crop":              (False,     False,          True,          False,             False),
    "random_flip":              (False,     False,          True,          True,              False),
    "model":                    (_MINI,     _MNIST,         _CELEBA,       _CIFAR10,          _ANNOTATED),
    "prediction_type":          ("v_prediction", "epsilon",   "epsilon",     "epsilon",         "epsilon"),
    "timestep_sampling":        ("lognormal", "uniform",      "uniform",     "uniform",         "uniform"),
    "variance_type":            ("fixed_small", "fixed_small", "fixed_small", "fixed_large",  "fixed_large"),
    "clip_sample":              (True,      True,           True,          True,              False),
    "train_batch_size":         (64,        128,            64,            128,               64),
    "max_train_steps":          (2200,      20_000,         500_000,       800_000,           None),
    "num_epochs":               (100,       100,            100,           100,               1000),
    "optimizer":                ("adamw",   "adam",         "adam",        "adam",            "adam"),
    "learning_rate":            (8e-3,      5e-4,           1e-4,          2e-4,              2e-5),
    "adam_beta2":               (0.99,      0.999,          0.999,         0.999,             0.999),
    "lr_scheduler":             ("linear",  "cosine",       "constant_with_warmup", "constant_with_warmup", "constant"),
    "lr_warmup_steps":          (100,       500,            5000,          5000,              0),
    "max_grad_norm":            (1.0,       1.0,            1.0,           1.0,               0.0),
    "use_ema":                  (True,      True,           True,          True,              False),
    "ema_max_decay":            (0.995,     0.9999,         0.9999,        0.9999,            0.9999),
    "save_images_steps":        (500,       1000,           5000,          5000,              1000),
    "save_model_steps":         (1000,      5000,           10_000,        10_000,            10_000),
    "checkpointing_steps":      (500,       1000,           5000,          5000,              5000),
    "eval_batch_size":          (64,        64,             16,            64,                16),
    "ddpm_num_inference_steps": (100,       1000,           1000,          1000,              1000),
}
# fmt: on
PRESETS = {name: {key: row[i] for key, row in _PRESETS.items()} for i, name in enumerate(_PRESET_NAMES)}
