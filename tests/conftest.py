"""Settings shared by all tests."""

import os

# Read by the math libraries when they load: more threads than idle cores stall tiny models.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may depend on the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
