"""What speculation is asked for: vLLM's `--speculative-config`, or a method's name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from genai_core.errors import BadInput
from genai_runtime.sampling import Typical

METHODS = ("ngram", "suffix", "lookahead", "ssd", "draft_model", "eagle", "eagle3")
"""What this program has. `eagle` takes a head of either version, `eagle3` one of version 3."""
_WITH_MODEL = ("draft_model", "eagle", "eagle3")
CHAINED = ("ngram", "suffix")
"""Those that may stand beside others: they cost no pass, and have no branch."""

_DEFAULT_TOKENS = 4
_DEFAULT_FORECASTS = 2
"""Of ssd: each guess more adds a group of forecasts to every pass."""
_WHERE = "speculation"
_NO_MEANING = {
    "quantization": "the draft container is quantized by its own build",
    "kv_cache_dtype": "keys and values are float32 on the CPU",
    "draft_tensor_parallel_size": "a model runs in one process here",
    "revision": "name the draft by its container's folder",
    "max_model_len": "the draft's context is its container's",
    "parallel_drafting": "no such draft model is known here",
    "use_heterogeneous_vocab": "draft and target must have one tokenizer",
    "disable_padded_drafter_batch": "nothing is padded here",
    "num_speculative_tokens_per_batch_size": "the length follows measured costs; see adaptive",
}

_NAMES = {
    "acceptance-method": "acceptance_method",
    "typical_acceptance_sampler_posterior_threshold": "posterior_threshold",
    "typical_acceptance_sampler_posterior_alpha": "posterior_alpha",
}
"""Other spellings of keys -> ours."""

Count = Annotated[int, Field(ge=1, le=64, strict=True)]


class SpeculativeConfig(BaseModel):
    """See the module's docstring. Keys are vLLM's where vLLM has them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    method: str | None = None
    """One of METHODS; draft_model where `model` is given."""
    methods: Annotated[list[str], Field(min_length=1, max_length=4)] | None = None
    """Instead of `method`: several of CHAINED, in order."""
    num_speculative_tokens: Count | None = None
    """Guesses of a draft, with `adaptive` the most."""
    model: str | None = None
    """Container of a draft model or EAGLE head; left out = the one that the target's carries."""
    threads: Annotated[int, Field(ge=0, le=1024, strict=True)] | None = None
    """The draft model's; left out = the target's."""
    prompt_lookup_max: Count | None = None
    prompt_lookup_min: Count | None = None
    suffix_decoding_max_tree_depth: Count = 24
    suffix_decoding_max_cached_requests: Annotated[int, Field(ge=0, le=100_000)] = 10_000
    suffix_decoding_max_spec_factor: Annotated[float, Field(gt=0, le=64)] = 1.0
    suffix_decoding_min_token_prob: Annotated[float, Field(ge=0, le=1)] = 0.1
    window: Annotated[int, Field(ge=1, le=32, strict=True)] = 8
    """Lookahead: columns."""
    ngram: Annotated[int, Field(ge=2, le=16, strict=True)] = 5
    """Lookahead: tokens of an n-gram."""
    gcap: Annotated[int, Field(ge=1, le=64, strict=True)] = 8
    """Lookahead: n-grams kept for a first token."""
    adaptive: bool = True
    """Choose lengths by what was accepted and what passes take; 0 where plain is faster."""
    min_speculative_tokens: Annotated[int, Field(ge=0, le=64, strict=True)] = 0
    """With `adaptive`: never fewer."""
    acceptance_method: Literal["rejection_sampler", "typical_acceptance_sampler"] = (
        "rejection_sampler"
    )
    """typical_acceptance_sampler keeps likely guesses at a temperature: answers are others."""
    posterior_threshold: Annotated[float, Field(gt=0, le=1)] = 0.09
    posterior_alpha: Annotated[float, Field(gt=0, le=1)] = 0.3
    lossy: bool = False
    """Speculate also where bits depend on how tokens are cut into passes: answers may differ."""
    rejection_sample_method: Literal["standard"] = "standard"
    draft_sample_method: Literal["greedy"] = "greedy"

    @model_validator(mode="after")
    def _consistent(self) -> SpeculativeConfig:
        names = self.names
        for name in names:
            if name not in METHODS:
                raise ValueError(f"method: {name!r} is not there; there are {', '.join(METHODS)}")
        if len(set(names)) != len(names):
            raise ValueError("methods: each may stand there once")
        alone = [name for name in names if name not in CHAINED]
        if alone and len(names) > 1:
            raise ValueError(
                f"methods: {alone[0]} works alone; {' and '.join(CHAINED)} may stand together"
            )
        if self.model is not None and not set(_WITH_MODEL) & set(names):
            raise ValueError(f"model: {names[0]} takes no draft's container")
        if self.num_speculative_tokens is None and not {"suffix", "lookahead"} & set(names):
            raise ValueError("num_speculative_tokens: must be given with this method")
        least, most = self.lookup
        if least > most:
            raise ValueError(f"prompt_lookup_min: {least} is above prompt_lookup_max {most}")
        if "lookahead" in names and self.window * (self.ngram - 1) > 128:
            raise ValueError("window: window * (ngram - 1) must be at most 128")
        if self.min_speculative_tokens > self.most:
            raise ValueError(f"min_speculative_tokens: above the most, which is {self.most}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The methods, in order."""
        if self.methods is not None and self.method is not None:
            raise ValueError("methods: give either method or methods")
        if self.methods is not None:
            return tuple(self.methods)
        if self.method is not None:
            return (self.method,)
        if self.model is not None:
            return ("draft_model",)
        raise ValueError(f"method: must be given; there are {', '.join(METHODS)}")

    @property
    def typical(self) -> Typical | None:
        """How guesses are kept that were not drawn; None = never."""
        if self.acceptance_method == "rejection_sampler":
            return None
        return Typical(self.posterior_threshold, self.posterior_alpha)

    @property
    def most(self) -> int:
        """Guesses of a draft at most."""
        if self.num_speculative_tokens is not None:
            return self.num_speculative_tokens
        if "lookahead" in self.names:
            return self.ngram - 1
        return self.suffix_decoding_max_tree_depth

    @property
    def lookup(self) -> tuple[int, int]:
        """Least and most tokens that prompt lookup compares."""
        least, most = self.prompt_lookup_min, self.prompt_lookup_max
        if most is None:
            most = max(4, least or 0)
        return (min(2, most) if least is None else least), most


def parse_config(text: str, *, where: str = _WHERE) -> SpeculativeConfig:
    """A configuration from JSON.

    Args:
        text: A JSON object.
        where: The option or field, for messages.

    Raises:
        BadInput: It is no object, or a key is not known, has no meaning here, or has a wrong value.
    """
    return read_config(_object(text, where), where=where)


def read_config(content: dict[str, Any], *, where: str = _WHERE) -> SpeculativeConfig:
    """A configuration from its keys.

    Raises:
        BadInput: As `parse_config`.
    """
    for key, reason in _NO_MEANING.items():
        if content.get(key) not in (None, *((1,) if key == "draft_tensor_parallel_size" else ())):
            raise BadInput(f"has no meaning here: {reason}", where=f"{where}: {key}")
    known = {_NAMES.get(k, k): v for k, v in content.items() if k not in _NO_MEANING}
    try:
        return SpeculativeConfig.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise BadInput(
                "no such key",
                where=f"{where}: {place}",
                remedy=f"there are {', '.join(SpeculativeConfig.model_fields)}",
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        raise BadInput(message, where=f"{where}: {place}" if place else where) from None


def named_config(
    text: str, *, draft: str | None = None, tokens: int | None = None, where: str = _WHERE
) -> SpeculativeConfig:
    """A configuration from what a command line has: a method, several with commas, or JSON.

    Args:
        text: `ngram`, `ngram,suffix`, or a JSON object.
        draft: The draft model's container.
        tokens: Of a draft.
        where: The option, for messages.

    Raises:
        BadInput: As `parse_config`.
    """
    given: dict[str, Any] = {}
    if text.lstrip().startswith("{"):
        given |= _object(text, where)
    else:
        names = [name.strip() for name in text.split(",") if name.strip()]
        given |= {"method": names[0]} if len(names) == 1 else {"methods": names}
        if not {"suffix", "lookahead"} & set(names):
            given["num_speculative_tokens"] = (
                _DEFAULT_FORECASTS if names == ["ssd"] else _DEFAULT_TOKENS
            )
    if draft is not None:
        given["model"] = draft
    if tokens is not None:
        given["num_speculative_tokens"] = tokens
    return read_config(given, where=where)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"cannot be read as JSON: {error}",
            where=where,
            remedy='write e.g. {"method": "ngram", "num_speculative_tokens": 4}',
        ) from None
    if not isinstance(content, dict):
        raise BadInput("must be a JSON object", where=where)
    return content
