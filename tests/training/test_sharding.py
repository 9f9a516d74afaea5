"""Which ways to share a model out are taken; the runs themselves are in test_processes.py."""

from types import SimpleNamespace

import pytest
from accelerate import DistributedType

from ddpm_hf.training.sharding import check_sharding


def accelerator(kind, is_fsdp2=False):
    return SimpleNamespace(distributed_type=kind, is_fsdp2=is_fsdp2)


def test_other_ways_than_fsdp2_are_refused():
    for kind, advice in ((DistributedType.FSDP, "--fsdp_version 2"), (DistributedType.DEEPSPEED, "--use_fsdp")):
        with pytest.raises(ValueError, match=advice):
            check_sharding(accelerator(kind))
    check_sharding(accelerator(DistributedType.FSDP, is_fsdp2=True))
    check_sharding(accelerator(DistributedType.MULTI_GPU))
