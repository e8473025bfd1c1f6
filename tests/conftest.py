"""What all tests need of their process."""

from __future__ import annotations

import os
import signal

# A shell starts background jobs with SIGINT ignored, and their children inherit that: the tests of
# Ctrl-C would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# In a pod (a CI's runner) stages would refuse this very machine, where the tests' servers are.
os.environ.pop("KUBERNETES_SERVICE_HOST", None)
