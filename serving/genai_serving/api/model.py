"""The served model: names, tokens, templates, the defaults of its generation_config.json."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_core.files.foreign import read_json_object
from genai_runtime.chat.chat_template import ChatTemplate
from genai_runtime.sampling import Sampling
from genai_runtime.steadiness import Steadiness
from genai_runtime.tokenizer import TextTokenizer
from genai_serving.adapters.served import ServedAdapters
from genai_serving.api.schemas import SamplingFields

MOST_CHARACTERS = 64
"""Of a token, on average over a whole context; text has four, and long runs of blanks 16."""
_SEED_MASK = (1 << 63) - 1
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class ServedModel:
    """See the module's docstring.

    Attributes:
        name: What requests call it.
        revision: Of its container.
        context_length: Tokens of prompt and answer.
        tokenizer: None = requests give and get token ids.
        template: None = no chat.
        stop_tokens: End tokens.
        steadiness: What holds to the bit here.
        defaults: Sampling where a request says nothing.
        created: Seconds since 1970.
        emulated: It runs in the vendor's emulator.
        adapters: Names that requests may use beside its own.
        speculation: How tokens are guessed, as /v1/models tells it; None = they are not.
        exact: Numbers do not depend on neighbours, to the bit, where `steadiness` holds.
        prefix_cache: Beginnings of prompts are kept and used again.
    """

    name: str
    revision: str
    context_length: int
    tokenizer: TextTokenizer | None
    template: ChatTemplate | None
    stop_tokens: frozenset[int]
    steadiness: Steadiness
    created: int
    emulated: bool = False
    adapters: ServedAdapters = field(default_factory=ServedAdapters)
    speculation: Mapping[str, Any] | None = None
    prefix_cache: bool = False
    exact: bool = True
    defaults: Mapping[str, float] = field(default_factory=lambda: dict(_DEFAULTS))

    def sampling(self, body: SamplingFields, index: int) -> Sampling:
        """Of the choice `index` of a request.

        Raises:
            BadInput: A key of logit_bias is no token id.
        """
        bias: dict[int, float] = {}
        for key, value in (body.logit_bias or {}).items():
            if not key.isdecimal() or len(key) > 9:
                raise BadInput(f"{key!r} is no token id", where="logit_bias")
            bias[int(key)] = value
        chosen = {
            name: default if getattr(body, name) is None else getattr(body, name)
            for name, default in self.defaults.items()
        }
        seed = secrets.randbits(63) if body.seed is None else (body.seed + index) & _SEED_MASK
        return Sampling(
            temperature=chosen["temperature"],
            top_p=chosen["top_p"],
            top_k=max(0, int(chosen["top_k"])),
            repetition_penalty=chosen["repetition_penalty"],
            min_p=body.min_p,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=bias,
            seed=seed,
        )

    def text_tokens(self, text: str, *, special: bool) -> NDArray[np.int64]:
        """Token ids of a text.

        Raises:
            BadInput: As `tokenizer_for`.
        """
        return self.tokenizer_for(text).encode(text, special=special)

    def tokenizer_for(self, text: str) -> TextTokenizer:
        """What cuts a text.

        Raises:
            BadInput: The model has no tokenizer, or no context of this length holds the text.
        """
        most = MOST_CHARACTERS * self.context_length
        if len(text) > most:
            raise BadInput(
                f"the text has {len(text)} characters; {most} are read for a context of "
                f"{self.context_length} tokens",
                where="prompt",
            )
        return self._tokenizer()

    def chat_text(
        self,
        messages: list[dict[str, Any]],
        variables: Mapping[str, Any],
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """A conversation as text. Takes a tenth of a second: the template is a program.

        Raises:
            BadInput: The model has no template, or the template refuses.
        """
        if self.template is None:
            raise BadInput(
                "the model has no chat template",
                where="messages",
                remedy="use /v1/completions",
            )
        reserved = {"messages", "tools", "add_generation_prompt"} & set(variables)
        if reserved:
            raise BadInput(f"{min(reserved)} is not to be set here", where="chat_template_kwargs")
        return self.template.render(messages, **variables, **({"tools": tools} if tools else {}))

    def text(self, tokens: list[int]) -> str:
        """Text of token ids.

        Raises:
            BadInput: The model has no tokenizer.
        """
        return self._tokenizer().decode(tokens)

    def token(self, text: str) -> int | None:
        """The token of this very text; None = there is none."""
        return None if self.tokenizer is None else self.tokenizer.token(text)

    def token_text(self, token: int) -> str:
        """Text of one token, special ones by name; `token:7` without a tokenizer."""
        return f"token:{token}" if self.tokenizer is None else self.tokenizer.piece(token)

    def shows(self, token: int) -> bool:
        """Whether a token has text: special ones have none."""
        return self.tokenizer is not None and bool(self.tokenizer.decode([token]))

    def _tokenizer(self) -> TextTokenizer:
        if self.tokenizer is None:
            raise BadInput(
                "the model has no tokenizer",
                where="prompt",
                remedy="give token ids to /v1/completions",
            )
        return self.tokenizer


def sampling_defaults(folder: Path) -> dict[str, float]:
    """What generation_config.json says of sampling, else OpenAI's defaults.

    Raises:
        BadModel: The file is no JSON object, or a value is no number.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return dict(_DEFAULTS)
    config = read_json_object(path)
    found = dict(_DEFAULTS)
    for name in _DEFAULTS:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadModel("must be a number", where=f"{path.name}: {name}")
        found[name] = value
    Sampling(**{**found, "top_k": int(found["top_k"])})  # type: ignore[arg-type]
    return found
