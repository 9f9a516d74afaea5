"""Train a denoising diffusion probabilistic model: Algorithm 1 of Ho et al. 2020 (arXiv 2006.11239).

accelerate launch train_ddpm.py                                      handwritten digits, in minutes
accelerate launch train_ddpm.py --train_data_dir pictures            your own folder
accelerate launch train_ddpm.py --preset cifar10 --dry_run           see the options, and stop

The loop is in ddpm_hf/train.py. `ddpm-hf train` is the same without a launcher, for one process.
"""

import signal
import sys

from ddpm_hf.cli import start_training

if __name__ == "__main__":
    try:
        start_training()
    except KeyboardInterrupt:  # before the first step, or for the second time
        sys.exit(128 + signal.SIGINT)
