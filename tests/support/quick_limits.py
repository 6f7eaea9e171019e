"""Runs measure the device's limits in a moment, and ranks wait less long for each other, where this
is imported first.

How fast the device is at best is not what such runs are about. Its own tests measure it as runs do.
"""

from cgbench.floor import device_limits
from cgbench.parallel import ranks

device_limits.SECONDS_A_KERNEL = 0.0
device_limits.READ_BYTES = {**device_limits.READ_BYTES, "cpu": (1 << 20, 1 << 18)}
device_limits.MATRICES = {**device_limits.MATRICES, "cpu": ((128, 128, 128),)}
# A rank that waits in vain is told of in a minute. torch is slow to trace, and not as slow as that.
ranks.COLLECTIVE_TIMEOUT_S = 60
