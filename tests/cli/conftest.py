"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from genai_cli.testing import Program


@pytest.fixture
def genai(tmp_path: Path) -> Program:
    """`genai`, run in `tmp_path`."""
    return Program(tmp_path)
