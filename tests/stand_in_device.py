"""A device that no machine has: its tensors lie on the CPU, and it is as strict as a GPU of Apple or NVIDIA.

It computes what the CPU computes, so numbers can be compared bit for bit. Besides:

- a tensor of float64 or complex128 on it is an error, as on Apple's GPUs;
- an operation on tensors of two devices is an error;
- autocast computes convolutions, matrix products and attention in the lower precision;
- each time that the host has to wait for a result of the device is noted, with the function of this package that waits.

PyTorch has a place for one device of others, PrivateUse1, for the life of a process. So use this in a process of its
own, and open it before other modules are imported.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
PACKAGE = Path(__file__).parents[1]
TOO_WIDE = (torch.float64, torch.complex128)
TENSOR, SAVE_FILE = torch.tensor, safetensors.torch.save_file
aten = torch.ops.aten
# The shape or the value of the result depends on the data, so the host waits for it.
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten._unique2.default,
    aten.bincount.default,
}

# What autocast computes in the lower precision.
LOWER = ("conv2d", "conv_transpose2d.input", "linear", "matmul", "bmm", "baddbmm", "scaled_dot_product_attention")


class DeviceTensor(torch.Tensor):
    """A tensor on the device; `raw` is the one on the CPU that it stands for."""

    @staticmethod
    def __new__(cls, raw):
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, raw.shape, device=f"{NAME}:0", **layout)

    def __init__(self, raw):
        self.raw = raw

    def __tensor_flatten__(self):  # by this, libraries know that the data lies elsewhere
        return ["raw"], None

    @staticmethod
    def __tensor_unflatten__(tensors, context, size, stride):
        return DeviceTensor(tensors["raw"])

    @property
    def data(self):
        return DeviceTensor(self.raw)

    @data.setter
    def data(self, other):
        self.raw = other.raw

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("a tensor of the device is used outside of `stand_in()`")


class Generator(torch.Generator):
    """A generator for the device: that of the CPU, which draws the same numbers."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if on_device(device) else device)


class Backend:
    """What PyTorch asks the module of a device."""

    def is_initialized(self):
        return True

    def is_available(self):
        return True

    def current_device(self):
        return 0

    def device_count(self):
        return 1

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


def on_device(device) -> bool:
    return device is not None and torch.device(device).type == NAME


class StandIn(TorchDispatchMode):
    """Sends each operation to the CPU, and checks what a real device would check.

    Attributes:
        waits (`Counter`): How often each function of this package waited for the device.
        is_strict (`bool`): Whether tensors of float64 are an error.
    """

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.is_strict = True
        self.autocast = register_autocast()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, DeviceTensor)]
        target = kwargs.get("device")
        moves = function in (aten._to_copy.default, aten.copy_.default)
        if ours and not moves and any(x.ndim for x in tensors if not isinstance(x, DeviceTensor)):
            devices = ", ".join(f"{x.device} {tuple(x.shape)}" for x in tensors)
            raise RuntimeError(f"{function}: tensors of two devices: {devices}")
        to_host = (
            isinstance(args[1], DeviceTensor) and not isinstance(args[0], DeviceTensor)
            if function is aten.copy_.default
            else bool(ours) and target is not None and not on_device(target)
        )
        by_mask = function in (aten.index.Tensor, aten.index_put_.default) and any(
            x is not None and x.dtype is torch.bool for x in args[1]
        )
        if ours and (to_host or by_mask or function in WAITING):
            self.waits[caller()] += 1

        raw = {id(x.raw): x for x in ours}
        if target is not None and on_device(target):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        args, kwargs = tree_map(lambda x: x.raw if isinstance(x, DeviceTensor) else x, (args, kwargs))
        result = function(*args, **kwargs)
        if not (ours or (target is not None and on_device(target))) or to_host:
            return result

        def wrap(x):
            if not isinstance(x, torch.Tensor):
                return x
            if self.is_strict and x.dtype in TOO_WIDE:
                raise TypeError(f"{function}: a tensor of {x.dtype} on the device")
            return raw[id(x)] if id(x) in raw else DeviceTensor(x)

        return tree_map(wrap, result)


def caller() -> str:
    """Return the innermost function of this package that is being called, such as `training/state.py:load`."""
    frame = sys._getframe(1)
    while frame:
        path, is_function = Path(frame.f_code.co_filename), not frame.f_code.co_name.startswith("<")
        if is_function and any(path.is_relative_to(PACKAGE / part) for part in ("ddpm_hf", "pipelines")):
            return f"{path.relative_to(PACKAGE).as_posix().removeprefix('ddpm_hf/')}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def autocast_kernel(name: str):
    """Return the function that computes an operation under autocast on the device."""
    operator, _, overload = name.partition(".")
    function = getattr(getattr(aten, operator), overload or "default")
    here = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*args, **kwargs):
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(here):
            lower = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]
            return function(*lower, **kwargs)

    return kernel


def register_autocast() -> list[torch.library.Library]:
    """Register what autocast does on the device, for as long as the returned libraries are kept."""
    rest, kernels = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOWER:
        kernels.impl(name, autocast_kernel(name), "AutocastPrivateUse1")
    return [rest, kernels]


def save_file(tensors, *arguments, **options):
    """Save tensors of the device as safetensors does: it copies them to the host."""
    SAVE_FILE({name: tensor.cpu() for name, tensor in tensors.items()}, *arguments, **options)


def tensor(data, *, device=None, **options):
    """Make a tensor as PyTorch does, whose own function passes by all modes."""
    return TENSOR(data, **options).to(device or "cpu")


@contextmanager
def stand_in():
    """Open the device for this process, and yield the [`StandIn`]."""
    _setup_privateuseone_for_python_backend(NAME, Backend())
    torch.__future__.set_swap_module_params_on_conversion(True)  # a wrapper cannot take over the data of a parameter
    torch.Generator = Generator
    torch.tensor, safetensors.torch.save_file = tensor, save_file
    with torch.autograd.set_multithreading_enabled(False), StandIn() as mode:
        torch.ones(1, device=NAME, requires_grad=True).sum().backward()  # starts the threads of autograd
        mode.waits.clear()
        yield mode
