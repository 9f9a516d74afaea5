"""The parts of a training run.

In: the options, and batches of images.
Out: the folder of the run: a pipeline with averaged weights, checkpoints, samples and numbers.
`ddpm_hf/train.py` is the loop. `objective` is the loss, `state` is what a run learns, and `run_folder` writes it.
"""
