"""One thread for the tests, however they are started: with two, some kernels add up in another order each time."""

import os

# Before torch is imported. Tests that compare bit for bit, within a process or with another one, need the same number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
