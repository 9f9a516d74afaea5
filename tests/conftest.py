import pytest
import torch

# The tests' networks are too small for threads to help, and on a busy machine threads wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
