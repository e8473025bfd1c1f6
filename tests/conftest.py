"""What all tests need of their process."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A shell starts background jobs with SIGINT ignored, and their children inherit that: the tests of
# Ctrl-C would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# In a pod (a CI's runner) stages would refuse this very machine, where the tests' servers are.
os.environ.pop("KUBERNETES_SERVICE_HOST", None)

# A busy machine draws and runs examples slowly; that is no fault of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
