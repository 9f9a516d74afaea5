"""Training data of other kinds than 8-bit pictures, grey or RGB: what each kind holds, and writing it."""

import numpy as np
import tifffile
from PIL import Image

COUNT, HEIGHT, WIDTH = 6, 8, 12


def write(folder, kind):
    """Write the files of a kind into a new folder. Return what they hold, `(COUNT, HEIGHT, WIDTH, C)`."""
    random, shape = np.random.default_rng(0), (COUNT, HEIGHT, WIDTH)
    folder.mkdir(parents=True)
    if kind == "RGBA":
        data, suffix = random.integers(0, 256, (*shape, 4), dtype=np.uint8), ".png"
    elif kind == "16-bit grey":
        data, suffix = random.integers(0, 65536, (*shape, 1), dtype=np.uint16), ".png"
        data[0, 0, 0] = 65535
    elif kind == "5-band float":
        data, suffix = random.random((*shape, 5), dtype=np.float32), ".tif"
    elif kind == "3-page 16-bit":
        data, suffix = random.integers(0, 65536, (*shape, 3), dtype=np.uint16), ".tiff"
    else:
        assert kind == "CT"
        data, suffix = random.integers(-1000, 3001, (*shape, 1), dtype=np.int16), ".npy"
    for i, array in enumerate(data):
        path = folder / f"{i}{suffix}"
        if kind == "3-page 16-bit":
            first, *others = (Image.fromarray(page) for page in np.moveaxis(array, 2, 0))
            first.save(path, save_all=True, append_images=others, compression="tiff_lzw")
        elif suffix == ".tif":
            tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
        elif suffix == ".npy":
            np.save(path, array[..., 0])
        else:
            Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)
    return data


FLAGS = {
    "RGBA": ["--image_mode", "RGBA"],
    "16-bit grey": ["--preserve_input_precision"],
    "5-band float": ["--preserve_input_precision"],
    "3-page 16-bit": ["--preserve_input_precision", "--image_mode", "bands"],
    "CT": ["--preserve_input_precision", "--value_range", "-1000", "3000"],
}
