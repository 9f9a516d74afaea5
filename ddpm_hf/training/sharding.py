"""Models that FSDP shards over the processes: whole tensors from shards, and shards from whole tensors."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor, distribute_tensor

from ddpm_hf.unet_ddpm import DDPMUNetModel


def check_sharding(accelerator: Accelerator):
    """Raise a ValueError if accelerate would shard the model in a way that checkpoints do not support."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"the accelerate configuration asks for {kind.value}: choose FSDP (`accelerate launch --use_fsdp "
            "--fsdp_version 2`) to shard the model, or multi-GPU (`--multi_gpu`)."
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("the accelerate configuration asks for version 1 of FSDP; pass --fsdp_version 2.")


def prepare(accelerator: Accelerator, unet: DDPMUNetModel, optimizer: torch.optim.Optimizer) -> torch.nn.Module:
    """Move a model and its optimizer to this process's device, and shard them if accelerate is configured to.

    Returns:
        `torch.nn.Module`: The wrapped model. The optimizer is changed in place.
    """
    if is_sharding(accelerator):
        for parameter in unet.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP takes no other memory layout
        plugin = accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:  # then every kind of block has to be there
            kinds = {type(module).__name__ for module in unet.modules()}
            plugin.transformer_cls_names_to_wrap = [kind for kind in unet._no_split_modules if kind in kinds]
    return accelerator.prepare(unet, optimizer)[0]


def is_sharding(accelerator: Accelerator) -> bool:
    """Return whether models will be sharded over the processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether each process holds only a shard of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor. If it is sharded, it is gathered, and all processes have to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_whole(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Copy a whole tensor, which all processes have, into a target that may be sharded. Return the target."""
    return target.copy_(like(source.to(target.device), target))


def like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor, which all processes have, sharded as the target is."""
    if isinstance(target, DTensor):
        return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
    return tensor
