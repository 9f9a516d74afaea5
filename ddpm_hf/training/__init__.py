"""What a run is made of, from the first step to the last.

In: the options, and batches of images.
Out: the run's folder: a pipeline with averaged weights, checkpoints, samples and numbers.
`train_ddpm.py` is the loop. `objective` is the loss; `state` is what a checkpoint holds; `run_folder` writes it.
"""
