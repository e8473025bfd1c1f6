"""Every error a user can meet, and the exit code that it ends with.

    GenAIError               1   neither the user's input nor an interruption
    ├── BadInput             2   a retry cannot cure it; names file, node or field, and a remedy
    │   ├── InvalidSpec          the YAML: a field, a value, a combination
    │   ├── BadModel             the ONNX, its data, config.json or tokenizer
    │   │   ├── UnsupportedOperator   an operator or pattern no stage can carry over
    │   │   └── SourceNotFound        its address leads nowhere: no such bucket, folder or file
    │   │       └── SourceChanging    objects changed while they were read
    │   ├── BadEncodings         the quantization encodings
    │   ├── BadAdapter           a LoRA adapter: its files, its kind, or where it belongs
    │   ├── OverBudget           no permitted precision keeps the loss within the budget
    │   ├── UnknownTarget        a chip or backend that is not known here
    │   ├── NotRunnableHere      a container that this machine cannot execute
    │   ├── GoldenMismatch       a container that answers otherwise than when it was built
    │   ├── NoSpace              the disk or bucket is full
    │   └── StoreUnreadable      credentials, permissions, or a folder that is no store
    ├── StoreUnavailable     1   the store does not answer now; trying again may help
    ├── CorruptBlob          1   bytes without their digest; the entry is a miss and is rebuilt
    ├── DriftError           1   a stage's own check: its output departs from its input
    ├── ToolchainMismatch    1   genai-stage differs from what the plan was made for
    ├── ToolFailed           1   a vendor tool ended badly (signal, time limit, its own message)
    └── Interrupted        130   stopped by the user; the same command goes on where it stopped

`code` is the reason that stands in a GenAIBuild's condition (CamelCase); it never changes once
published.
"""

from __future__ import annotations

from typing import ClassVar

from genai_core.redaction import hidden_queries, plain


class GenAIError(Exception):
    """Base of all expected errors. Queries of addresses are never shown: they may be secrets.

    Args:
        message: One sentence, without a trailing period: what is wrong.
        where: The file, node, field or object concerned, as the user knows it.
        remedy: What to do about it, as an imperative.
    """

    code: ClassVar[str] = "Failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = hidden_queries(message)
        self.where = hidden_queries(where)
        self.remedy = hidden_queries(remedy)

    def __str__(self) -> str:
        """One line: `where: message; remedy`."""
        text = f"{self.where}: {self.message}" if self.where else self.message
        if self.remedy:
            text = f"{text}; {self.remedy}"
        return plain(" ".join(text.split()))

    def __reduce__(self) -> tuple[object, ...]:
        """Keep where and remedy when an error crosses a process boundary."""
        return (_rebuild, (type(self), self.message, self.where, self.remedy))

    def as_dict(self) -> dict[str, str]:
        """The form written to reports and termination messages."""
        return {
            "code": self.code,
            "message": self.message,
            "where": self.where,
            "remedy": self.remedy,
        }


def _rebuild(kind: type[GenAIError], message: str, where: str, remedy: str) -> GenAIError:
    return kind(message, where=where, remedy=remedy)


class BadInput(GenAIError):
    """The user must change something; the same input fails again."""

    code = "BadInput"
    exit_code = 2


class InvalidSpec(BadInput):
    """A field of the YAML, its value, or a combination of fields."""

    code = "InvalidSpec"


class BadModel(BadInput):
    """The model's files: ONNX, external data, config.json, tokenizer."""

    code = "BadModel"


class UnsupportedOperator(BadModel):
    """An operator or pattern that no stage can carry over."""

    code = "UnsupportedOperator"


class SourceNotFound(BadModel):
    """There is nothing at the model's address; it may yet come."""

    code = "SourceNotFound"


class SourceChanging(SourceNotFound):
    """Nothing whole is at the model's address while somebody writes there; it may yet come."""

    code = "SourceChanging"


class BadEncodings(BadInput):
    """The quantization encodings."""

    code = "BadEncodings"


class BadAdapter(BadInput):
    """A LoRA adapter."""

    code = "BadAdapter"


class OverBudget(BadInput):
    """The loss of what was built rises by more than the budget allows."""

    code = "OverBudget"


class UnknownTarget(BadInput):
    """A chip or backend that is not known."""

    code = "UnknownTarget"


class NotRunnableHere(BadInput):
    """A container that cannot be executed on this machine."""

    code = "NotRunnableHere"


class GoldenMismatch(BadInput):
    """A container that answers its recorded prompts otherwise than when it was built."""

    code = "GoldenMismatch"


class NoSpace(BadInput):
    """No room for what has to be written."""

    code = "NoSpace"


class StoreUnreadable(BadInput):
    """A store that denies access or is not one."""

    code = "StoreUnreadable"


class StoreUnavailable(GenAIError):
    """The store does not answer now."""

    code = "StoreNotReady"


class CorruptBlob(GenAIError):
    """Bytes in a store that do not have the digest they are filed under."""

    code = "CorruptBlob"


class DriftError(GenAIError):
    """A stage's output departs numerically from its input."""

    code = "Drift"


class ToolchainMismatch(GenAIError):
    """The libraries at hand are not those that the task was planned for."""

    code = "ToolchainMismatch"


class ToolFailed(GenAIError):
    """A vendor tool ended badly."""

    code = "ToolFailed"


class DeadlineExceeded(GenAIError):
    """A task ran for longer than the user allows."""

    code = "DeadlineExceeded"


class OutOfMemory(GenAIError):
    """A task needed more memory than there is, or than its pod was given."""

    code = "OOMKilled"


class Interrupted(GenAIError):
    """Stopped by the user."""

    code = "Interrupted"
    exit_code = 130


def _tree(root: type[GenAIError]) -> dict[str, type[GenAIError]]:
    # A subclass without a code of its own is told apart inside one process only.
    found = {root.code: root} if "code" in vars(root) else {}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def codes() -> frozenset[str]:
    """Each `code` that an error may end with."""
    return frozenset(_tree(GenAIError))


def from_dict(data: dict[str, str]) -> GenAIError:
    """Rebuild the error that another process reported with `as_dict`."""
    kind = _tree(GenAIError).get(data.get("code", ""), GenAIError)
    return kind(
        data.get("message", "failed without a message"),
        where=data.get("where", ""),
        remedy=data.get("remedy", ""),
    )
