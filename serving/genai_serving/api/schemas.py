"""Bodies of requests: OpenAI's fields, and vLLM's beyond them that mean something here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from genai_serving.api.body import Body
from genai_serving.api.messages import ChatMessage, NamedTool, Tool

MAX_STOPS = 16
MAX_CHOICES = 16
MAX_LOGPROBS = 20

Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, strict=True)]
Tokens = Annotated[list[TokenId], Field(fail_fast=True)]
"""One error is told: a body of a million wrong ids would be a GiB of them."""


class StreamOptions(Body):
    """Of a streamed answer."""

    include_usage: bool = False
    """A last piece without choices tells the tokens."""


class JsonSchema(Body):
    """Of an answer, as OpenAI has it. It is kept to, whatever `strict` says."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = "answer"
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's way to ask for a form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema: goes with type json_schema, and with no other")
        return self


class StructuredOutputs(Body):
    """vLLM's way to ask for a form."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    """A JSON Schema."""
    regex: Annotated[str, Field(min_length=1, max_length=65536)] | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=16384)] | None = None
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> StructuredOutputs:
        if sum(value is not None for value in dict(self).values()) != 1:
            raise ValueError("give one of json, regex, choice and json_object")
        return self


class SamplingFields(Body):
    """What both kinds of request share."""

    model: str = ""
    """The served model's name; empty or left out = it."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, strict=True)] | None = None
    min_p: Unit = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.001, le=100)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0, strict=True)] = 0
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES, strict=True)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    disable_spec_decode: bool = False
    """Guess nothing for this answer; it is the same either way."""
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Cached beginnings of prompts are shared among requests of the same salt."""
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # Told to servers, and without effect on an answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    request_id: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None

    @property
    def stops(self) -> list[str]:
        """Stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @model_validator(mode="after")
    def _options_of_streams(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream")
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("structured_outputs: not beside response_format")
        return self


class CompletionBody(SamplingFields):
    """`/v1/completions`."""

    prompt: (
        str
        | Annotated[Tokens, Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=256)]
        | Annotated[
            list[Annotated[Tokens, Field(min_length=1)]],
            Field(min_length=1, max_length=256, fail_fast=True),
        ]
    )
    max_tokens: Annotated[int, Field(ge=0, strict=True)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS, strict=True)] | None = None
    echo: bool = False
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as tokens."""
        given: Any = self.prompt
        if isinstance(given, str) or isinstance(given[0], int):
            return [given]
        return list(given)

    @model_validator(mode="after")
    def _an_answer_of_nothing(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: must be at least 1, or 0 with echo")
        if self.echo and self.stream:
            raise ValueError("echo: not with stream")
        return self


class ChatBody(SamplingFields):
    """`/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS, strict=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """Left out: auto where there are tools."""
    parallel_tool_calls: bool | None = None
    """False: one call at most where a call is required."""

    @property
    def callable_tools(self) -> list[Tool]:
        """Those that the answer may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @model_validator(mode="after")
    def _top_of_nothing(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs: true")
        return self

    @model_validator(mode="after")
    def _tools_that_there_are(self) -> ChatBody:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools: two have the same name")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("tool_choice: there are no tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice: there is no tool {self.tool_choice.function.name}")
        formed = self.structured_outputs is not None or (
            self.response_format is not None and self.response_format.type != "text"
        )
        if formed and self.callable_tools:
            raise ValueError("tools: not beside a form of the answer, but with tool_choice none")
        return self


class TokenizeBody(Body):
    """`/tokenize`: a prompt or messages."""

    model: str = ""
    prompt: str | None = None
    messages: (
        Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)] | None
    ) = None
    add_special_tokens: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class DetokenizeBody(Body):
    """`/detokenize`."""

    model: str = ""
    tokens: Tokens
