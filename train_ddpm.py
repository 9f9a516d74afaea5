"""Train a denoising diffusion probabilistic model: Algorithm 1 of Ho et al. 2020 (arXiv 2006.11239).

accelerate launch train_ddpm.py                                      handwritten digits, in minutes
accelerate launch train_ddpm.py --train_data_dir pictures            your own folder
accelerate launch train_ddpm.py --preset cifar10 --dry_run           see the options, and stop

The loop is in ddpm_hf/train.py. `ddpm-hf train` is the same without a launcher, for one process.
"""

from ddpm_hf.cli import start_training
from ddpm_hf.ending import ending_at_once

if __name__ == "__main__":
    with ending_at_once():
        start_training()
