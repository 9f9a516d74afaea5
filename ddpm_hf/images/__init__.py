"""From pictures to batches.

In: the options of the group "Data", which name a folder, a data set or neither (then the embedded digits are taken).
Out: batches x_0 `(B, C, H, W)` float32 in [-1, 1] and their labels, each a function of the seed and its number.
On the way: `sources` -> `survey` -> `decoding` -> `cache` or `streaming` -> `batches`.
"""
