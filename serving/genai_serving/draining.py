"""How a server leaves a load balancer without a failed request.

Whoever sends requests hears late that a server is going: endpoints take a second or two to reach
every node. So for a while after SIGTERM it still answers, says that it is not ready, and closes
each connection behind its answer, so that clients open the next one elsewhere. Then it stops
listening and finishes what runs.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

import uvicorn

__all__ = ["DrainingServer"]


class DrainingServer(uvicorn.Server):
    """A server that goes on for `delay` seconds after SIGTERM.

    Args:
        config: Of uvicorn.
        delay: Seconds; 0 = it stops listening at once.
    """

    def __init__(self, config: uvicorn.Config, *, delay: float = 0.0) -> None:
        super().__init__(config)
        self._delay = delay
        self._since: float | None = None

    @property
    def draining(self) -> bool:
        """Whether it was told to end."""
        return self._since is not None or self.should_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first SIGTERM begins the delay, any other one ends it."""
        if sig == signal.SIGTERM and self._delay > 0 and not self.draining:
            self._since = time.monotonic()
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is to stop now."""
        if self._since is not None and time.monotonic() - self._since >= self._delay:
            self.should_exit = True
        return await super().on_tick(counter)
