"""train_ddpm.py under FSDP on CPUs; accelerate itself offers FSDP on accelerators only. Start two processes of it."""

import os
import sys
from pathlib import Path

from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState

ROOT = Path(__file__).parent.parent
# What `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP` sets.
LAUNCHED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
}


def treat_cpus_as_accelerators():
    """Let accelerate's state say FSDP, where it stops at several processes on CPUs."""
    init = AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        is_first = not self.initialized
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if is_first:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = patched


if __name__ == "__main__":
    os.environ.update(LAUNCHED)
    treat_cpus_as_accelerators()
    sys.path.insert(0, str(ROOT))
    import train_ddpm

    train_ddpm.start_training()
