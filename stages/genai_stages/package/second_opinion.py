"""Genie, the vendor's own runtime, continues the first golden prompt with the container's twin.

Our executor and Genie share no code: where both write the same tokens, masks, cache layout, graph
names and configuration are as the device's runtime expects them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genai_core.container.manifest import EMULATION_FOLDER
from genai_core.errors import GenAIError
from genai_runtime.golden import Golden
from genai_runtime.htp.vendor import genie
from genai_stages.input_folders import read_json

TOKENS = 4
"""How many are compared: a pass takes some 100 ms a split in the emulator."""


def ask_genie(
    folder: Path,
    config: Path,
    recorded: Golden,
    *,
    worn: str | None = None,
    twin: str | None = None,
) -> tuple[dict[str, Any], str]:
    """Let Genie continue the first prompt and compare.

    Args:
        folder: The container.
        config: Its genie_config.json.
        recorded: Its golden prompts.
        worn: An adapter or use case that is worn.
        twin: The folder of its own twin; None = the base's, which takes adapters.

    Returns:
        What was seen, for the report, and a warning, empty where all is well.
    """
    prompt = (recorded.prompts if worn is None else recorded.worn[worn])[0]
    dressed = "" if worn is None else f" with {worn}"
    values: dict[str, Any] = dict(read_json(config))
    if prompt.prompt_tokens[0] != values["dialog"]["context"]["bos-token"]:
        # Genie puts the beginning token in front by itself: it would read another prompt.
        return {}, ""
    try:
        answer = genie.query(
            folder,
            genie.emulated(values, twin or EMULATION_FOLDER),
            tokens=prompt.prompt_tokens[1:],
            max_tokens=TOKENS,
            adapter=None if twin else worn,
        )
    except GenAIError as error:
        return {}, f"Genie could not run the twin{dressed}: {error.message}"
    pairs = list(zip(prompt.tokens, answer.tokens, prompt.margins, strict=False))[:TOKENS]
    # Behind a choice that was nearly a tie the two may go separate ways.
    for at, (ours, theirs, margin) in enumerate(pairs):
        if ours != theirs:
            found = {"genieTokens": at}
            if margin <= recorded.tolerance:
                return found, ""
            return found, (f"Genie writes token {theirs} where our executor writes {ours}{dressed}")
    return {"genieTokens": len(pairs)}, ""
