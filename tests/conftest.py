"""What all tests need of their process."""

from __future__ import annotations

import signal

# A shell starts background jobs with SIGINT ignored, and their children inherit that: the tests of
# Ctrl-C would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
