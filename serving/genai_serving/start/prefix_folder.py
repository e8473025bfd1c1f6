"""Beginnings of prompts on disk, where a server is started with a folder for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable

from genai_core.errors import BadInput
from genai_runtime.container.container import Container
from genai_runtime.executor.executor import Executor
from genai_runtime.prefixes.prefix_files import PrefixFiles, ScopeText
from genai_serving.requests import Scope
from genai_serving.start.options import Options

__all__ = ["prefix_files_of", "scope_text"]

_OPTION = "--prefix-cache-dir"


def prefix_files_of(
    options: Options, container: Container, executor: Executor, *, scope_text: ScopeText
) -> PrefixFiles | None:
    """What outlives the server; None = nothing does.

    Args:
        options: Of the server.
        container: Whose keys and values they are.
        executor: That runs it.
        scope_text: See there.

    Raises:
        BadInput: The folder cannot be made, or nothing is kept at all.
    """
    if options.prefix_folder is None:
        return None
    if options.prefix_mib == 0:
        raise BadInput(
            "with --prefix-cache-mib 0 nothing is kept", where=_OPTION, remedy="leave one out"
        )
    return PrefixFiles(
        options.prefix_folder,
        executor,
        identity=container.manifest.base or container.revision,
        most_bytes=options.prefix_folder_mib << 20,
        scope_text=scope_text,
    )


def scope_text(scope: Hashable, content: Callable[[str], str | None]) -> str | None:
    """A request's scope in words of content, so that it means the same in every process.

    Args:
        scope: Of the request.
        content: The executor's name of an adapter -> digest of its file.

    Returns:
        None where an adapter's content is not known: nothing of it is written then.
    """
    assert isinstance(scope, Scope)
    adapters = [(content(use.name), use.alpha) for use in scope.adapters]
    if any(digest is None for digest, _ in adapters):
        return None
    return json.dumps({"adapters": adapters, "salt": scope.salt}, sort_keys=True)
