"""The key of a task: what must be equal for a result to be used again.

A key holds content and nothing else: no paths of machines, no names of builds, no clocks, no
order. The paths inside an input are roles within the task ("model.onnx" of its input "graph"), not
places on a disk.
"""

from __future__ import annotations

from collections.abc import Mapping

from genai_core.canonical import digest_json, is_digest
from genai_core.names import Digest, Key

__all__ = ["short_key", "task_key", "toolchain_id"]

_SCHEMA = "genai.task/1"


def task_key(
    operation: str,
    code_version: int | str,
    *,
    toolchain_id: Digest,
    config: Mapping[str, object],
    inputs: Mapping[str, Mapping[str, Digest]],
) -> Key:
    """Return the key of one task.

    Args:
        operation: Name of the operation, e.g. `convert`.
        code_version: The operation's code version from the table of operations.
        toolchain_id: See `toolchain_id`.
        config: Everything that changes the output, defaults filled in, as JSON values
            (`model.model_dump(mode="json")`).
        inputs: Name of the input -> {relative path: digest}. The digest is an output's semantic
            digest where it has one (`Record.identities`), so that an unchanged meaning stops the
            rebuild there.

    Raises:
        ValueError: A digest is not 64 hex characters, or the config has no canonical form.
    """
    for name, files in inputs.items():
        for path, digest in files.items():
            if not is_digest(digest):
                raise ValueError(f"input {name}, file {path}: {digest!r} is not a SHA-256")
    return Key(
        digest_json(
            {
                "schema": _SCHEMA,
                "operation": operation,
                "codeVersion": str(code_version),
                "toolchain": toolchain_id,
                "config": config,
                "inputs": inputs,
            }
        )
    )


def toolchain_id(versions: Mapping[str, str]) -> Digest:
    """Return the identity of the libraries that an operation computes with.

    Args:
        versions: Distribution or platform fact -> version, e.g. `{"onnx-ir": "0.1.12"}`; spelling
            of names counts, order does not.
    """
    return digest_json({"schema": "genai.toolchain/1", "versions": versions})


def short_key(key: Key) -> str:
    """Return the first 32 hex characters: how folders and Jobs are named."""
    return key[:32]
