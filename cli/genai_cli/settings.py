"""What the environment says, read once when the program starts and passed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genai_core.wire import Variable

DEFAULT_OUTPUT = Path("containers")
"""Where containers land without --output: `containers/<build>/<target>/`."""


@dataclass
class ProgramSettings:
    """Of one run of the program.

    Attributes:
        store: Where artifacts live unless --store says otherwise: a folder or `s3://...`.
        debug: Show tracebacks.
        json: Standard output belongs to one JSON object; set by a command's --json.
        in_options: A build was typed, not written: errors name options instead of fields.
    """

    store: str
    debug: bool = False
    json: bool = False
    in_options: bool = False


def read_settings(environment: Mapping[str, str]) -> ProgramSettings:
    """Settings from environment variables: GENAI_STORE, GENAI_DEBUG, XDG_CACHE_HOME, HOME."""
    cache = environment.get("XDG_CACHE_HOME", "")
    if not Path(cache).is_absolute():  # the XDG specification: a relative path is ignored
        home = environment.get("HOME") or "~"  # written out, or refused, by whoever opens it
        cache = f"{home}/.cache"
    return ProgramSettings(
        store=environment.get(Variable.STORE) or f"{cache}/genai-operator/store",
        debug=environment.get("GENAI_DEBUG", "") not in {"", "0"},
    )
