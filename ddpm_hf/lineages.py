"""How the two lineages of U-Nets differ, as keys of [`DDPMUNetModel`]. The defaults are those of the paper."""

from typing import Any

# The keys by which the annotated tutorial's network differs from the paper's.
ANNOTATED_LINEAGE: dict[str, Any] = {
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "upsample_type": "conv_transpose",
    "narrow_up_blocks": True,
    "attention_norm": False,
    "norm_out_num_groups": 8,
    "zero_init": False,
}
