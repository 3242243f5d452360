"""Loads and launches the kernel through CUDA's driver, in PyTorch's context and on its current stream.

Source: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

import ctypes
from ctypes import byref, c_char_p, c_int, c_void_p
from functools import cache
from typing import Any

import torch

from chatbot.persistent.engine import Task
from chatbot.persistent.plan import Card, Plan

LIBRARY, FUNCTION = "libcuda.so.1", b"reply"
# CUdevice_attribute
MULTIPROCESSORS, MAJOR, MINOR, COOPERATIVE, SHARED_OPT_IN = 16, 75, 76, 95, 97
DYNAMIC_SHARED = 8  # CUfunction_attribute: the most that a launch may ask for
NAME_SIZE = 256


class DriverError(Exception):
    """The driver refuses; the message is its own."""


@cache
def library() -> Any:
    """The driver itself. Raises DriverError."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DriverError(f"no CUDA driver: {error}") from None


def card() -> Card:
    """The GPU of PyTorch's current context. Raises DriverError."""
    torch.cuda.synchronize()  # makes its context that of this thread
    device, name = c_int(), ctypes.create_string_buffer(NAME_SIZE)
    _do("cuCtxGetDevice", byref(device))
    _do("cuDeviceGetName", name, NAME_SIZE, device)
    found = Card(
        name.value.decode(errors="replace"),
        (_attribute(device, MAJOR), _attribute(device, MINOR)),
        _attribute(device, MULTIPROCESSORS),
        _attribute(device, SHARED_OPT_IN),
    )
    if not _attribute(device, COOPERATIVE):
        raise DriverError(f"{found.name} can't launch all blocks of a kernel at once (cooperative launch)")
    return found


class Kernel:
    """The loaded kernel: ``kernel(task, plan)`` starts it and does not wait.

    Raises:
        DriverError: it can't be loaded, or not all of its blocks can run at once.
    """

    def __init__(self, cubin: bytes, plan: Plan) -> None:
        self._module, self._function = c_void_p(), c_void_p()
        _do("cuModuleLoadData", byref(self._module), c_char_p(cubin))
        _do("cuModuleGetFunction", byref(self._function), self._module, FUNCTION)
        _do("cuFuncSetAttribute", self._function, DYNAMIC_SHARED, plan.shared_bytes)
        resident, occupancy = c_int(), "cuOccupancyMaxActiveBlocksPerMultiprocessor"
        _do(occupancy, byref(resident), self._function, plan.threads, ctypes.c_size_t(plan.shared_bytes))
        if resident.value < 1:
            asked = f"{plan.threads} threads with {plan.shared_bytes} bytes of shared memory"
            raise DriverError(f"no multiprocessor can run {asked}")

    def __call__(self, task: Task, plan: Plan) -> None:
        arguments = (c_void_p * 1)(ctypes.addressof(task))  # copied by the launch
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        grid, block = (plan.blocks, 1, 1), (plan.threads, 1, 1)
        _do("cuLaunchCooperativeKernel", self._function, *grid, *block, plan.shared_bytes, stream, arguments)


def _attribute(device: c_int, number: int) -> int:
    value = c_int()
    _do("cuDeviceGetAttribute", byref(value), number, device)
    return value.value


def _do(name: str, *arguments: Any) -> None:
    code = getattr(library(), name)(*arguments)
    if code:
        text = c_char_p()
        library().cuGetErrorString(code, byref(text))
        raise DriverError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")
