"""What a user does with a run, in a process that is as strict as Windows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from snippet_files import tiny_unet

from ddpm_hf import DDPMUNetModel
from ddpm_hf.images.stored import IN_LOCAL_ZIP
from ddpm_hf.terminal import as_argument

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the process is made strict by what Linux has")
TESTS = Path(__file__).parent
HARNESS = """
import os, shutil, signal, sys
from pathlib import Path
from like_windows import be_like_windows
folder = Path(sys.argv[1])
for name in ("one", "two", "full/open"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("text")
be_like_windows(folder)
opened = open(folder / "full" / "open", "rb")
mistakes = {
    "signal": lambda: signal.SIGUSR1,
    "cores": lambda: os.sched_getaffinity(0),
    "open folder": lambda: os.open(folder, os.O_RDONLY),
    "sync": lambda: os.fsync(opened),
    "link": lambda: (folder / "link").symlink_to("one"),
    "rename": lambda: (folder / "one").rename(folder / "two"),
    "replace": lambda: os.replace(folder / "one", folder / "full" / "open"),
    "delete": lambda: (folder / "full" / "open").unlink(),
    "delete folder": lambda: shutil.rmtree(folder / "full"),
    "move folder": lambda: os.rename(folder / "full", folder / "empty"),
    "colon": lambda: (folder / "a:b").write_text(""),
    "reserved": lambda: (folder / "nul.txt").write_text(""),
    "period": lambda: (folder / "a.").mkdir(),
    "long": lambda: (folder / ("n" * 250)).write_text(""),
    "encoding": lambda: (folder / "one").write_text("日本"),
    "print": lambda: print("日本"),
}
for name, mistake in mistakes.items():
    try:
        mistake()
    except (AttributeError, OSError, UnicodeEncodeError):
        continue
    print("no error:", name)
(folder / "ä").write_bytes("ä".encode())
os.replace(folder / "one", folder / "two")
opened.close()
shutil.rmtree(folder / "full")
print((folder / "ä").read_text() == "Ã¤", len(mistakes))
"""


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="cp1252", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_the_process_is_as_strict_as_windows(tmp_path):
    assert run("-c", HARNESS, tmp_path) == ["True 16"]


@pytest.mark.slow
def test_a_run_on_windows(tmp_path):
    folder, classes = tmp_path / "Übung 1", ["Äpfel", "日本"]
    tiny_unet(DDPMUNetModel).save_config(folder / "model")
    (folder / "features.py").write_text("def means(images):\n    return images.flatten(1)[:, :4].double()\n")
    for name in classes:
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{i} {name}.png")

    *printed, found = run(TESTS / "windows_driver.py", folder)
    found, printed = json.loads(found), "\n".join(printed)
    checkpoints = [found[name] for name in ("new", "resumed", "overwritten")]
    assert checkpoints == [["step-000004"], ["step-000008"], ["step-000002"]]
    assert "Could not" not in printed
    assert r"\u65e5\u672c" in printed  # the output has no code for them
    assert {"bpd", "fid"} <= set(found["metrics"])
    assert found["same"]
    assert found["classes"] == classes
    assert len(found["ours"]) == 6 and not any(found["ours"].values())  # the same bytes as on other systems
    error, is_left = found["refused"]
    assert "--dataset_split other" in error and not is_left
    error, is_left = found["too deep"]
    assert "files with names of 80 characters cannot be made there" in error and not is_left
    left = set(found["left"])
    assert {"README.md", "best/best.json", "evaluation.json", "space/ddpm_hf/pipelines/ddpm_img2img.py"} <= left
    assert not [name for name in left if ".unfinished" in name or ".replaced" in name or name.endswith(".lock")]


def test_paths_of_windows(monkeypatch):
    """They begin with a drive, and cmd.exe knows no single quotes."""
    member, archive = IN_LOCAL_ZIP.fullmatch(r"zip://a/b.png::C:\my pictures\one.zip").groups()
    assert (member, archive) == ("a/b.png", r"C:\my pictures\one.zip")
    assert not IN_LOCAL_ZIP.fullmatch("zip://a/b.png::https://example.org/one.zip")
    assert as_argument(Path("-run")) == "./-run"  # else it would be a flag
    path = Path(r"C:\my run")
    assert as_argument(path) == r"'C:\my run'"
    monkeypatch.setattr("ddpm_hf.terminal.os.name", "nt")
    assert as_argument(path) == r'"C:\my run"'
