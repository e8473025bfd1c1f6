"""An executor without a model whose passes wait for the test."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from heard import SECONDS

from genai_runtime.executor.rows import Row, RowOutput
from genai_runtime.testing import ScriptedExecutor


class GatedExecutor(ScriptedExecutor):
    """Waits before each pass until it is let go on; may fail."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.go = threading.Event()
        self.go.set()
        self.fail_on: int | None = None

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        assert self.go.wait(SECONDS)
        if self.fail_on is not None and any(self.fail_on in row.tokens for row in rows):
            raise RuntimeError("the kernel gave up")
        return super().forward(rows)
