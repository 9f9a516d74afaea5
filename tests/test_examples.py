"""The scripts of docs/examples.md, run as they stand there, but with tiny trainings and a loopback Hub."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import LoopbackHub
from PIL import Image

ROOT = Path(__file__).parent.parent
TOKEN = "hf_OfAliceWhoMayWrite"
# All commands in one process, since importing takes longer than they do.
DRIVER = """
import json, sys
from accelerate.state import AcceleratorState
from ddpm_hf.cli import main
from ddpm_hf.training import validation
validation.PAIRS = 20
for argv in json.load(sys.stdin):
    main(argv)
    AcceleratorState._reset_state(reset_partial_state=True)
"""


TINY = "--train_batch_size 4 --lr_warmup_steps 0 --ddpm_num_inference_steps 3 --eval_batch_size 3 --mixed_precision no"
TINY += " --checkpointing_steps 100 --save_images_steps 100 --save_model_steps 100"  # else they come twenty times


def commands(cache_dir: Path) -> list[list[str]]:
    """Return the arguments of each `ddpm-hf` of the page, in which `train` takes seconds."""
    blocks = re.findall(r"(?:^    .+\n)+", (ROOT / "docs" / "examples.md").read_text(), re.MULTILINE)
    assert len(blocks) == 3
    lines = [shlex.split(line, comments=True) for line in "".join(blocks).replace("\\\n", "").splitlines()]
    assert [line for line in lines if line[0] != "ddpm-hf"] == [["hf", "auth", "login"]]  # TOKEN is in the environment
    for line in lines:
        if line[1] == "train":
            length = ["--max_train_minutes", "0.01"] if "--max_train_minutes" in line else ["--max_train_steps", "4"]
            line += [*length, *TINY.split(), "--cache_dir", str(cache_dir)]
            line += ["--validation_steps", "100"] * ("--validation_fraction" in line)  # else twelve times
    return [line[1:] for line in lines if line[0] == "ddpm-hf"]


def draw_noise(folder: Path, count: int):
    """Save grey pictures of noise, each lighter than the one before."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(5 * i, 5 * i + 100, size=(28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.mark.slow
def test_the_scripts(tmp_path, cache_dir):
    draw_noise(tmp_path / "pictures", 20)
    for letter in "DMP":
        draw_noise(tmp_path / "letters" / letter, 4)
    with LoopbackHub({TOKEN: "user"}) as hub:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = {**clean, **hub.environment(tmp_path / "hub", TOKEN), "PYTHONPATH": str(ROOT)}
        given = json.dumps(commands(cache_dir))
        subprocess.run(
            [sys.executable, "-c", DRIVER], input=given, text=True, cwd=tmp_path, env=environment, check=True
        )

    # The shared model draws what the one in the folder draws.
    grids = {path.stem: np.asarray(Image.open(path)) for path in tmp_path.glob("*.png")}
    assert np.array_equal(grids["samples"], grids["from_the_hub"])
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 100
    assert (tmp_path / "ddpm-pictures" / "best" / "best.json").exists()
    # The two rows that have the same noise differ by the guidance.
    assert not np.array_equal(grids["no_guidance"], grids["guidance"])
    # The fine-tuned model has the base's network and its own classes.
    digits, letters = (
        json.loads((tmp_path / name / "unet" / "config.json").read_text()) for name in ("ddpm-digits", "ddpm-letters")
    )
    assert (digits["class_names"], letters["class_names"]) == (list("0123456789"), list("DMP"))
    assert letters["block_out_channels"] == digits["block_out_channels"]
    assert json.loads((tmp_path / "ddpm-letters" / "config.json").read_text())["pretrained_model_name_or_path"] == (
        "ddpm-digits"
    )
