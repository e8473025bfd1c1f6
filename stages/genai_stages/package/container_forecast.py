"""What a container's model forecasts with (SSD)."""

from __future__ import annotations

from pathlib import Path

from genai_core.container.container_metadata import ForecastInfo
from genai_core.container.manifest import FORECAST_FILE
from genai_core.names import FORECAST_ROLE
from genai_stages.twin_folder import place

__all__ = ["SAID_FILE", "place_forecast"]

SAID_FILE = "forecast.json"
"""A `ForecastInfo`, beside the prefix."""


def place_forecast(source: Path, out: Path) -> ForecastInfo:
    """Put the prefix into a container's folder; what its metadata says of it.

    Args:
        source: As forecast_import wrote it.
        out: The container's folder.
    """
    info = ForecastInfo.model_validate_json((source / SAID_FILE).read_bytes())
    if info.prefix:
        place(source / FORECAST_ROLE, out / FORECAST_FILE)
    return info
