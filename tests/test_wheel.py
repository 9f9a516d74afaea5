"""The package as it is installed: from a wheel, away from the clone, by the notebook's cell; and editable."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

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
page = TEMPLATE.with_name("static_page")
assert (page / "index.html").exists() and (page / "runtime" / "LICENSE").exists()
unet = ddpm_hf.DDPMUNetModel(
    sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
)
pipeline = ddpm_hf.DDPMPipelineCustom(unet, ddpm_hf.DDPMLinearScheduler(num_train_timesteps=3))
pipeline.save_pretrained("pipeline")
pipeline = ddpm_hf.DDPMPipelineCustom.from_pretrained("pipeline")
print(len(pipeline(batch_size=2).images), "images,", len(DemoModel(pipeline).denoise(seed=0, steps=3)), "frames")
"""
EDITABLE = """
import site
site.addsitedir({site!r})
from ddpm_hf.pipelines import ddpm_img2img, ddpm_interpolation, ddpm_progressive, ddpm_inpainting
print(ddpm_img2img.__file__)
"""


PYTHON = [sys.executable, "-S"]  # without `site`, the interpreter does not see where this clone is installed


def run(command, folder, site, **environment):
    seen = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    environment = {**os.environ, "PYTHONPATH": seen, **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_package_imports_and_samples(tmp_path):
    # A copy, since both builds write into the folder of the source.
    clone, dist, site = (tmp_path / name for name in ("clone", "dist", "site"))
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info"))
    pip = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    # Without a choice, `build` makes the sdist from the clone, and the wheel from the sdist.
    run([*PYTHON, "-m", "build", "--no-isolation", "--outdir", dist, clone], tmp_path, site)
    run([*PYTHON, "-c", f"import os\n{cell_with('pip_install')}"], dist, site, **pip)
    assert run([*PYTHON, "-c", SCRIPT.format(site=str(site))], tmp_path, site) == "2 images, 4 frames\n"

    shutil.rmtree(site)
    run([*PYTHON, "-m", "pip", "install", "--no-build-isolation", "--editable", clone], tmp_path, site, **pip)
    imported = run([*PYTHON, "-c", EDITABLE.format(site=str(site))], tmp_path, site)
    assert Path(imported.strip()) == clone / "pipelines" / "ddpm_img2img.py"
