"""The GPU of a launch: the arithmetic that it may use.

Source: https://pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
"""

import torch


def require_float32() -> None:
    """Makes cuDNN compute GRUs in IEEE float32, as matrix products do, for the life of this process.

    PyTorch lets cuDNN round their inputs to TF32's 10-bit mantissas unless told otherwise, and only theirs: variants
    that write a GRU out as products would compute something else under the same label. The older of PyTorch's two
    switches, as setting both makes it refuse to read either.
    """
    torch.backends.cudnn.allow_tf32 = False
