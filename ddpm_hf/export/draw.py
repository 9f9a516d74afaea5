"""Draw pictures with the exported model beside this file: `python draw.py COUNT SEED` (both may be left out).

It needs onnxruntime and NumPy alone. The equations are those of DDPM (arXiv 2006.11239) and DDIM (arXiv 2010.02502).
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def draw(network, about: dict, x_t: np.ndarray, labels: np.ndarray | None, z: Iterable | None) -> np.ndarray:
    """Return images in [0, 1] `(N, C, H, W)`, drawn with an open model.

    Args:
        network (`onnxruntime.InferenceSession`): The model.
        about (`dict`): The contents of sampler.json.
        x_t (`numpy.ndarray`, `(N, C, H, W)`, float32): The noise to begin with.
        labels (`numpy.ndarray`, `(N,)`, int64, *optional*): Numbers of classes, for a class-conditional model.
        z (iterable of `numpy.ndarray`, `(N, C, H, W)`, float32, *optional*): The noise of each step, if it adds some.
    """
    of_class = {} if labels is None else {"class_labels": labels}
    if about["loop"]:
        return network.run(None, {"sample": x_t, **of_class, **({} if z is None else {"noise": np.stack([*z])})})[0]
    noises = iter(() if z is None else z)
    for i, t in enumerate(about["steps"]["timesteps"]):
        row = {name: np.float32(column[i]) for name, column in about["steps"].items()}
        (prediction,) = network.run(None, {"sample": x_t, "timestep": np.full(len(x_t), t), **of_class})
        output, v = np.split(prediction, [x_t.shape[1]], axis=1)
        x_0 = row["x_0_from_sample"] * x_t + row["x_0_from_output"] * output
        if about["clip"]:
            x_0 = x_0.clip(-about["clip"], about["clip"])
        x_t = row["next_from_x_0"] * x_0 + row["next_from_sample"] * x_t + row["next_from_output"] * output
        if about["noisy"]:
            low, high = row.get("log_variance_low"), row.get("log_variance_high")
            std = row["std"] if low is None else (t > 0) * np.exp((low + (v + 1) / 2 * (high - low)) / 2)
            x_t += std * next(noises)
    return (x_t / 2 + 0.5).clip(0, 1)


def main(count: int = 16, seed: int = 0):
    """Draw a row of pictures: samples.pgm, or samples.ppm in colour. Other samples become arrays: samples.npy."""
    import onnxruntime

    folder, rng = Path(__file__).parent, np.random.default_rng(seed)
    about = json.loads((folder / "sampler.json").read_text(encoding="utf-8"))
    shape, steps, labels = (count, *about["sample_shape"]), len(about["steps"]["timesteps"]), None
    if about["classes"]:
        often = np.array(about["class_frequencies"] or [1] * about["classes"])
        labels = rng.choice(about["classes"], count, p=often / often.sum())
    x_T = rng.standard_normal(shape, np.float32)
    z = (rng.standard_normal(shape, np.float32) for _ in range(steps)) if about["noisy"] else None
    network = onnxruntime.InferenceSession(folder / "model.onnx")
    images = draw(network, about, x_T, labels, z).transpose(0, 2, 3, 1)  # (N, H, W, C)
    suffix = {1: "pgm", 3: "ppm"}.get(images.shape[3], "npy")
    if suffix == "npy" or about["pixel_format"]:
        file = folder / "samples.npy"
        np.save(file, images)
    else:
        file, row = folder / f"samples.{suffix}", np.hstack((images * 255).round().astype(np.uint8))  # (H, N W, C)
        kind = 5 if suffix == "pgm" else 6
        file.write_bytes(f"P{kind} {row.shape[1]} {row.shape[0]} 255\n".encode() + row.tobytes())
    print(file)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
