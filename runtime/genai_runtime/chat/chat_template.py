"""Conversations as a model was taught to read them: its chat template.

A template is a program that comes with the model. It is rendered by jinja2's immutable sandbox in a
process of its own that has no environment, five seconds and 512 MB (`fork_processes`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genai_core.container.manifest import CHAT_TEMPLATE_FILE
from genai_core.errors import BadInput, BadModel, NotRunnableHere
from genai_core.files.foreign import boundary, decoded, read_json_object, refuse_pointer
from genai_core.files.regular import read_regular
from genai_runtime.container.container import Container
from genai_runtime.fork_processes import ForkedProcesses

__all__ = ["ChatTemplate", "Message"]

_CONFIG_FILE = "tokenizer_config.json"
_LARGEST_FILE = 1 << 20
_CPU_SECONDS = 5
_SECONDS = 20
"""Of the clock; the limit of CPU time comes first on a machine at rest."""
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")

Message = Mapping[str, Any]
"""`role` (system, user, assistant, tool) and `content`; `tool_calls` and the like where it has."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it may name.

    Attributes:
        source: Text of the template.
        special: `bos_token` and so on -> text.
        file: Where it came from, for messages.
        processes: They render it.
    """

    source: str
    special: Mapping[str, str]
    file: str = CHAT_TEMPLATE_FILE
    processes: ForkedProcesses = field(
        default_factory=lambda: ForkedProcesses("genai_runtime.chat.chat_child"),
        compare=False,
        repr=False,
    )

    @classmethod
    def of_container(cls, container: Container) -> ChatTemplate | None:
        """The container's template, None where it has none.

        It lies in chat_template.jinja, or in tokenizer_config.json as older exports have it.

        Raises:
            BadModel: A file cannot be read.
        """
        config: dict[str, Any] = {}
        if container.holds(_CONFIG_FILE):
            config = read_json_object(container.folder / _CONFIG_FILE)
        special = {name: text for name in _SPECIAL if (text := _token(config.get(name)))}
        if container.holds(CHAT_TEMPLATE_FILE):
            return cls(_text(container.folder / CHAT_TEMPLATE_FILE), special)
        template = _chosen(config.get("chat_template"))
        return cls(template, special, _CONFIG_FILE) if template else None

    @property
    def lists_images(self) -> bool:
        """Whether it takes parts of messages, and writes the places of pictures itself."""
        return "image" in self.source and "type" in self.source

    def render(self, messages: Sequence[Message], /, **variables: object) -> str:
        """The conversation as text that ends where the assistant is to speak.

        Args:
            messages: From the first to the last, which is the user's.
            variables: Further ones that the template reads, e.g. `enable_thinking`.

        Raises:
            BadInput: The template refuses the conversation, in its own words.
            BadModel: The template is broken, or takes too much time or memory.
        """
        given = {
            **self.special,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": True,
            **variables,
        }
        request = {"template": self.source, "variables": given, "seconds": _CPU_SECONDS}
        began = time.monotonic()
        answer = self.processes.ask(request, seconds=_SECONDS)
        if answer is None and time.monotonic() - began < _SECONDS:
            raise self._broken("the process that renders it ended")
        if answer is None:
            raise self._broken(f"it is not done after {_SECONDS} s")
        if "missing" in answer:
            raise NotRunnableHere(
                "chat templates need it, and it is not installed",
                where=str(answer["missing"]),
                remedy="pip install 'genai-operator[all]'",
            )
        if "ended" in answer:
            raise self._broken("it takes more time than a template may")
        if "refused" in answer:
            raise BadInput(f"the model's chat template says: {answer['refused']}", where=self.file)
        if "broken" in answer:
            raise self._broken(answer["broken"])
        return str(answer["text"])

    def _broken(self, why: str) -> BadModel:
        return BadModel(
            f"the chat template cannot be rendered: {why}",
            where=self.file,
            remedy="use --prompt, or mend the template and build again",
        )


def _text(path: Path) -> str:
    refuse_pointer(path)
    with boundary(path.name, remedy="restore the model's own template"):
        return decoded(read_regular(path, _LARGEST_FILE))


def _token(value: object) -> str:
    """A special token: text, or an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _chosen(value: object) -> str:
    """The template of tokenizer_config.json: text, or the default of several."""
    if isinstance(value, list):
        named = {
            item.get("name"): item.get("template") for item in value if isinstance(item, Mapping)
        }
        value = named.get("default")
    return value if isinstance(value, str) else ""
