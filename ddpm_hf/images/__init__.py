"""From pictures to batches.

In: the options of the group "Data", which name a folder, a data set or nothing (the embedded digits).
Out: batches x_0 `(B, C, H, W)` float32 in [-1, 1] with their labels, each a function of the seed and its number.
The way: `sources` -> `survey` -> `decoding` -> `cache` or `streaming` -> `batches`.
"""
