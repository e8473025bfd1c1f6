"""Messages of a conversation, and the tools that an answer may call."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from genai_serving.api.body import Body

__all__ = ["ChatMessage", "ImagePart", "NamedTool", "TextPart", "Tool", "ToolCall"]

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """Where a picture is: `data:image/png;base64,...`."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Taken and of no effect: the encoder reads every picture in one way."""


class ImagePart(Body):
    """A picture in a user's message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class FunctionCall(Body):
    """What was called."""

    name: str
    arguments: str
    """JSON."""


class ToolCall(Body):
    """A call of an earlier answer, as it was told."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None

    def plain(self) -> dict[str, Any]:
        """For the template: arguments are an object, as most templates want them."""
        arguments: Any = self.function.arguments
        try:
            read = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, dict):
            arguments = read
        called = {"name": self.function.name, "arguments": arguments}
        return {"type": self.type, "function": called} | ({"id": self.id} if self.id else {})


class ChatMessage(Body):
    """A message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=256)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=256)] | None = None
    """Of the assistant."""
    tool_call_id: str | None = None
    """Of a tool's message: the call that it answers."""
    reasoning_content: str | None = None
    """Thoughts of an earlier answer; a template may show them."""
    # Answers have them, and clients send answers back.
    refusal: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content: Field required")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls: only of the assistant")
        if self.images and self.role != "user":
            raise ValueError("content: image_url is of a user's message")
        return self

    @property
    def text(self) -> str:
        """Content as text, without pictures."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content if isinstance(part, TextPart))
        return self.content or ""

    @property
    def images(self) -> list[tuple[int, str]]:
        """Number of the part and address of each picture."""
        parts = self.content if isinstance(self.content, list) else []
        return [
            (number, part.image_url.url)
            for number, part in enumerate(parts)
            if isinstance(part, ImagePart)
        ]

    def _written(self, image_token: str) -> str:
        """Content as text with a line for each picture, unless the text names their places."""
        text = self.text
        if not self.images or image_token in text:
            return text
        assert isinstance(self.content, list)
        lines: list[str] = []
        within = False
        for part in self.content:
            if isinstance(part, ImagePart):
                lines.append(image_token)
            elif within:
                lines[-1] += part.text
            else:
                lines.append(part.text)
            within = isinstance(part, TextPart)
        return "\n".join(lines)

    def _listed(self) -> list[dict[str, str]]:
        """Content for a template that writes places of pictures itself."""
        assert isinstance(self.content, list)
        return [
            {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
            for part in self.content
        ]

    def plain(self, image_token: str = "", *, listed: bool = False) -> dict[str, Any]:
        """For the template.

        Args:
            image_token: Stands for a picture in text.
            listed: Content that has pictures stays a list of parts.
        """
        content = self._listed() if listed and self.images else self._written(image_token)
        told: dict[str, Any] = {"role": self.role, "content": content}
        if self.tool_calls:
            told["tool_calls"] = [call.plain() for call in self.tool_calls]
        for name in ("name", "tool_call_id", "reasoning_content"):
            if getattr(self, name):
                told[name] = getattr(self, name)
        return told


class Function(Body):
    """What a tool does."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON Schema of an object."""
    strict: bool | None = None
    """Arguments are kept to the schema where a call is asked for; else the model writes them."""


class Tool(Body):
    """A tool that an answer may call."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """For the template."""
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class NamedFunction(Body):
    """The one."""

    name: ToolName


class NamedTool(Body):
    """The tool that is to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction
