"""Which family a model belongs to, by its config.json."""

from __future__ import annotations

from genai_core.errors import BadModel
from genai_stages.architectures import (
    baichuan,
    gemma2,
    gemma3,
    llama,
    mistral,
    phi3,
    qwen2,
    qwen3,
)
from genai_stages.architectures.family import Config, Family, listed_windows

FAMILIES = tuple(
    module.FAMILY for module in (baichuan, gemma2, gemma3, llama, mistral, phi3, qwen2, qwen3)
)
GENERIC = Family(name="generic", model_types=(), architectures=(), windows=listed_windows)
"""What is assumed of an architecture that no module describes."""

TESTED = {
    "CohereForCausalLM": "cohere",
    "GlmForCausalLM": "glm",
    "GPTNeoXForCausalLM": "gpt_neox",
    "GraniteForCausalLM": "granite",
    "Olmo2ForCausalLM": "olmo2",
    "PhiForCausalLM": "phi",
    "SmolLM3ForCausalLM": "smollm3",
    "StableLmForCausalLM": "stablelm",
}
"""Architecture -> model_type of families that the generic rules fit: tests compare their logits."""

UNKNOWN = "UnknownArchitecture"


def detect(config: Config, override: str | None = None) -> tuple[Family, str | None]:
    """The family of a config.json.

    Args:
        config: Its content; empty where there is none.
        override: The user's word, which counts more.

    Returns:
        The family, and a warning where the generic rules are taken for one that no test knows.

    Raises:
        BadModel: The override names no family.
    """
    if override is not None:
        for family in FAMILIES:
            if override.lower() == family.name or override in family.architectures:
                return family, None
        names = ", ".join(family.name for family in FAMILIES)
        raise BadModel(
            f"there are no rules for the architecture {override}",
            where="model.architecture",
            remedy=f"leave it out, or name one of {names}",
        )
    stated = config.get("architectures")
    listed = [str(name) for name in stated] if isinstance(stated, list) else []
    kind = str(config.get("model_type", ""))
    for family in FAMILIES:
        if any(name in family.architectures for name in listed):
            return family, None
    if not listed:
        for family in FAMILIES:
            if kind in family.model_types:
                return family, None
    if any(name in TESTED for name in listed) or (not listed and kind in TESTED.values()):
        return GENERIC, None
    shown = ", ".join(listed) or kind or "no architecture in config.json"
    return GENERIC, f"{UNKNOWN}: {shown} is not among the known ones; generic rules are used"
