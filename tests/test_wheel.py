"""A built wheel, installed away from the clone by the notebook's cell."""

import os
import subprocess
import sys
import sysconfig

import pytest
from save_notebook import ROOT, cell_with

SCRIPT = """
import ddpm_hf
from ddpm_hf.images.sources import EMBEDDED_DIGITS
assert ddpm_hf.__file__.startswith({site!r}), ddpm_hf.__file__
assert EMBEDDED_DIGITS.exists() and EMBEDDED_DIGITS.with_name("NOTICE").exists()
from ddpm_hf.demo.model import DemoModel, DDPMInpaintingPipeline
assert DDPMInpaintingPipeline.__module__ == "ddpm_hf.pipelines.ddpm_inpainting"
from ddpm_hf.pipelines import ddpm_img2img, ddpm_interpolation, ddpm_progressive
from ddpm_hf.hub.card import TEMPLATE
assert TEMPLATE.exists()
unet = ddpm_hf.DDPMUNetModel(
    sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
)
pipeline = ddpm_hf.DDPMPipelineCustom(unet, ddpm_hf.DDPMLinearScheduler(num_train_timesteps=3))
pipeline.save_pretrained("pipeline")
pipeline = ddpm_hf.DDPMPipelineCustom.from_pretrained("pipeline")
print(len(pipeline(batch_size=2).images), "images,", len(DemoModel(pipeline).denoise(seed=0, steps=3)), "frames")
"""


@pytest.mark.slow
def test_wheel_imports_and_samples(tmp_path):
    python = [sys.executable, "-m"]
    subprocess.run([*python, "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT], check=True)
    # Without `site`, the interpreter does not see where this clone is installed. pip sees only the wheel.
    site = tmp_path / "site"
    seen = {"PYTHONPATH": os.pathsep.join([str(site), sysconfig.get_path("purelib")])}
    pip = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    cell = f"import os\n{cell_with('pip_install')}"
    command = [sys.executable, "-S", "-c", cell]
    subprocess.run(command, cwd=tmp_path / "dist", env={**os.environ, **seen, **pip}, check=True)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(site=str(site))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "2 images, 4 frames\n"
