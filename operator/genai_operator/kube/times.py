"""Times as the apiserver writes them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["parse_time"]


def parse_time(text: str) -> datetime:
    """A time as the apiserver writes it."""
    return datetime.fromisoformat(text)


def rfc3339(time: datetime) -> str:
    """As the apiserver writes times."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
