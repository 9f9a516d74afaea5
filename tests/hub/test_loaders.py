"""A saved or pushed pipeline loads in other processes, with and without the package, by every loader.

The other processes talk to a Hub on the loopback interface. A process that stands for a user without `ddpm_hf` cannot
import it. All processes draw the same pictures as the pipeline that was pushed, to the last bit.
"""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from loopback_hub import LoopbackHub

TOKEN = "hf_of_alice"

# Each process starts with this. `draw` saves the pictures that a pipeline draws, under a name.
PREAMBLE = """
import sys, warnings
from pathlib import Path
{block}
import numpy as np, torch
torch.set_num_threads(1)
from diffusers import DDIMScheduler, DiffusionPipeline
here = Path({here!r})

def draw(pipeline, name):
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(3, generator=torch.Generator().manual_seed(0), output_type="np").images
    np.save(here / f"{{name}}.npy", images)
"""
WITH_PACKAGE = "from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel"
WITHOUT_PACKAGE = "sys.modules['ddpm_hf'] = None  # an import of it fails"


def run(here, code, package=True, **environment):
    preamble = PREAMBLE.format(here=str(here), block=WITH_PACKAGE if package else WITHOUT_PACKAGE)
    process = subprocess.run(
        [sys.executable, "-c", preamble + textwrap.dedent(code)],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("HF_")}, **environment},
        capture_output=True,
        text=True,
        cwd=here,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def assert_equal_pictures(here, first, *names):
    for name in names:
        np.testing.assert_array_equal(np.load(here / f"{name}.npy"), np.load(here / f"{first}.npy"), err_msg=name)


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub({TOKEN: "alice"}) as hub:
        yield hub


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory):
    """Push a pipeline. Return a folder with its pictures and its saved folder."""
    here = tmp_path_factory.mktemp("published")
    code = """
    unet = DDPMUNetModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        zero_init=False,
    )
    pipeline = DDPMPipelineCustom(unet.eval(), DDPMLinearScheduler(num_train_timesteps=10))
    draw(pipeline, "pushed")
    pipeline.save_pretrained(here / "saved")
    pipeline.push_to_hub("alice/digits")
    pipeline.push_to_hub("alice/secret", private=True)
    pipeline.push_to_hub("alice/digits", variant="fp16")
    half = DDPMPipelineCustom.from_pretrained(here / "saved", torch_dtype=torch.float16)
    half.save_pretrained(here / "half", variant="fp16")
    draw(half, "half")
    """
    run(here, code, **hub.environment(here / "cache-of-alice", TOKEN))
    return here


def first_commit(hub):
    return next(sha for sha, files in hub.repositories["alice/digits"].commits if files)


@pytest.mark.slow
def test_the_package_needs_no_trust(hub, published):
    """Load directories, ids, revisions, private ids, variants, types, parts and overrides without remote code."""
    code = f"""
    load = DDPMPipelineCustom.from_pretrained
    pipeline = load("alice/digits")
    assert type(pipeline) is DDPMPipelineCustom and type(pipeline.unet) is DDPMUNetModel
    assert type(pipeline.scheduler) is DDPMLinearScheduler
    draw(pipeline, "id")
    draw(load(here / "saved"), "directory")
    draw(load("alice/digits", revision={first_commit(hub)!r}), "revision")
    try:
        load("alice/secret")  # before it is in the cache, which asks for no token
    except OSError as error:
        print("refused:", error)
    draw(load("alice/secret", token={TOKEN!r}), "private")

    half = load("alice/digits", variant="fp16", torch_dtype=torch.float16)
    assert half.unet.dtype == torch.float16
    draw(half, "half id")
    draw(load(here / "half", variant="fp16", torch_dtype=torch.float16), "half directory")

    unet = DDPMUNetModel.from_pretrained("alice/digits", subfolder="unet")
    scheduler = DDPMLinearScheduler.from_pretrained("alice/digits", subfolder="scheduler")
    draw(DDPMPipelineCustom(unet, scheduler), "parts")
    draw(load("alice/digits", unet=unet, scheduler=scheduler), "overrides")
    ddim = load("alice/digits", scheduler=DDIMScheduler.from_config(scheduler.config))
    assert type(ddim.scheduler) is DDIMScheduler

    pipeline.save_pretrained(here / "saved by the package")
    draw(load(here / "saved by the package"), "saved again")
    """
    environment = hub.environment(published / "cache-with-package")
    printed = run(published, code, DIFFUSERS_DISABLE_REMOTE_CODE="1", **environment)
    assert "refused:" in printed
    names = ("id", "directory", "revision", "private", "parts", "overrides", "saved again")
    assert_equal_pictures(published, "pushed", *names)
    assert_equal_pictures(published, "half", "half id", "half directory")

    offline = """draw(DDPMPipelineCustom.from_pretrained("alice/digits"), "offline")"""
    run(published, offline, HF_HUB_OFFLINE="1", **environment)
    assert_equal_pictures(published, "pushed", "offline")


@pytest.mark.slow
def test_strangers_need_diffusers_only(hub, published):
    """Load where `ddpm_hf` cannot be imported, save, and load again with and without the package.

    A private repository needs a user who is logged in: diffusers fetches code without `token=`.
    """
    code = """
    def load(*args, **kwargs):
        return DiffusionPipeline.from_pretrained(*args, trust_remote_code=True, **kwargs)

    pipeline = load("alice/digits")
    assert type(pipeline).__module__.startswith("diffusers_modules")
    draw(pipeline, "stranger's id")
    draw(load(here / "saved"), "stranger's directory")
    draw(load("alice/secret"), "stranger's private")
    draw(load("alice/digits", variant="fp16", torch_dtype=torch.float16), "stranger's half")

    pipeline.save_pretrained(here / "saved by a stranger")
    draw(load(here / "saved by a stranger"), "stranger's own")
    """
    run(published, code, package=False, **hub.environment(published / "cache-of-stranger", TOKEN))
    names = ("id", "directory", "private", "own")
    assert_equal_pictures(published, "pushed", *(f"stranger's {name}" for name in names))
    assert_equal_pictures(published, "half", "stranger's half")

    back = """draw(DDPMPipelineCustom.from_pretrained(here / "saved by a stranger"), "back")"""
    run(published, back, DIFFUSERS_DISABLE_REMOTE_CODE="1")
    assert_equal_pictures(published, "pushed", "back")

    folders = ("saved", "saved by a stranger")
    files = [sorted(f.relative_to(published / name) for f in (published / name).rglob("*.*")) for name in folders]
    assert files[0] == files[1]
    for file in files[0]:
        contents = [(published / folder / file).read_bytes() for folder in folders]
        assert contents[0] == contents[1], file
        assert str(published).encode() not in contents[1]
