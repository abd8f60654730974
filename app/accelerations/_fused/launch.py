"""How kernels are launched."""

from __future__ import annotations

import torch
from torch import Tensor

ABLE = (9, 0)
"""The oldest compute capability that starts a kernel early."""


def early(x: Tensor) -> dict[str, bool]:
    """Options for a kernel with a constant ``EARLY``: its programs start while the kernel before is still
    ending, and wait for it where the kernel says so (CUDA's "programmatic dependent launch").
    """
    able = x.is_cuda and torch.cuda.get_device_capability(x.device) >= ABLE
    return {"EARLY": able, "launch_pdl": able}
