"""Draw pictures with the exported model beside this file: python draw.py [COUNT] [SEED].

It needs onnxruntime and NumPy alone. The equations are those of DDPM (arXiv 2006.11239) and DDIM (arXiv 2010.02502).
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def draw(network, about: dict, x_t: np.ndarray, labels: np.ndarray | None, z: np.ndarray | None) -> np.ndarray:
    """Return images in [0, 1] `(N, C, H, W)`, drawn with an open model.

    Args:
        network (`onnxruntime.InferenceSession`): The model.
        about (`dict`): The contents of sampler.json.
        x_t (`numpy.ndarray`, `(N, C, H, W)`, float32): The noise to begin with.
        labels (`numpy.ndarray`, `(N,)`, int64, *optional*): Numbers of classes, for a class-conditional model.
        z (`numpy.ndarray`, `(steps, N, C, H, W)`, float32, *optional*): The noise of each step, if it adds some.
    """
    of_class = {} if labels is None else {"class_labels": labels}
    if about["loop"]:
        return network.run(None, {"sample": x_t, **of_class, **({} if z is None else {"noise": z})})[0]
    for i, t in enumerate(about["steps"]["timesteps"]):
        row = {name: np.float32(column[i]) for name, column in about["steps"].items()}
        (prediction,) = network.run(None, {"sample": x_t, "timestep": np.full(len(x_t), t), **of_class})
        output, v = np.split(prediction, [x_t.shape[1]], axis=1)
        x_0 = row["x_0_from_sample"] * x_t + row["x_0_from_output"] * output
        if about["clip"]:
            x_0 = x_0.clip(-about["clip"], about["clip"])
        x_t = row["next_from_x_0"] * x_0 + row["next_from_sample"] * x_t + row["next_from_output"] * output
        if z is not None and "std" in row:
            x_t += row["std"] * z[i]
        elif z is not None and t > 0:
            low, high = row["log_variance_low"], row["log_variance_high"]
            x_t += np.exp((low + (v + 1) / 2 * (high - low)) / 2) * z[i]
    return (x_t / 2 + 0.5).clip(0, 1)


def main(count: int = 16, seed: int = 0):
    """Draw a row of pictures into samples.pgm, or of colour pictures into samples.ppm."""
    folder, rng = Path(__file__).parent, np.random.default_rng(seed)
    about = json.loads((folder / "sampler.json").read_text(encoding="utf-8"))
    shape, steps = (count, *about["sample_shape"]), len(about["steps"]["timesteps"])
    labels = rng.integers(about["classes"], size=count) if about["classes"] else None
    z = rng.standard_normal((steps, *shape), np.float32) if about["noisy"] else None
    network = onnxruntime.InferenceSession(folder / "model.onnx")
    images = draw(network, about, rng.standard_normal(shape, np.float32), labels, z)
    row = np.hstack((images.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8))  # (H, N W, C)
    kind, suffix = (5, "pgm") if row.shape[2] == 1 else (6, "ppm")
    file = folder / f"samples.{suffix}"
    file.write_bytes(f"P{kind} {row.shape[1]} {row.shape[0]} 255\n".encode() + row.tobytes())
    print(file)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
