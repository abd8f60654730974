"""Without a GPU Triton's kernels run in its interpreter, which must be said before anything loads Triton."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
