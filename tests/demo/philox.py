"""The noise of the page that draws in the browser: Philox 4x32-10 (Salmon et al. 2011), and Box and Muller's."""

import numpy as np

START, LABEL, LATER = 0, 1, 2  # uses of random numbers: x_T, the class, and noise that is added later


def philox(counter, key):
    """Return four random numbers of 32 bits for a counter of four and a key of two; each may be an array."""
    c0, c1, c2, c3 = (np.uint64(word) for word in counter)
    for round in range(10):
        k0, k1 = ((key[i] + round * weyl) % 2**32 for i, weyl in enumerate((0x9E3779B9, 0xBB67AE85)))
        product_0, product_1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        low, upper = np.uint64(2**32 - 1), np.uint64(32)
        c0, c1 = (product_1 >> upper) ^ c1 ^ np.uint64(k0), product_1 & low
        c2, c3 = (product_0 >> upper) ^ c3 ^ np.uint64(k1), product_0 & low
    return c0, c1, c2, c3


def noise(seed, picture, use, shape):
    """Return what `noiseOf` of random.js returns, as float32."""
    count = int(np.prod(shape))
    words = philox((np.arange(-(-count // 4)), use, picture, 0), (seed, 0))
    a, b, c, d = ((word + 0.5) / 2**32 for word in words)
    pairs = [np.sqrt(-2 * np.log(u)) * wave(2 * np.pi * v) for u, v in ((a, b), (c, d)) for wave in (np.cos, np.sin)]
    return np.stack(pairs, axis=1).flatten()[:count].reshape(shape).astype(np.float32)


def label(seed, picture, weights):
    """Return what `labelOf` of random.js returns: the number of a class, drawn as often as the weights say."""
    share = (float(philox((0, LABEL, picture, 0), (seed, 0))[0]) + 0.5) / 2**32
    return int(np.searchsorted(np.cumsum(weights) / np.sum(weights), share, side="right"))
