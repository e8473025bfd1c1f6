"""A build on a cluster, and its containers back on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from genai_cli.cluster.connection import Access
from genai_cli.cluster.pull import pull_container
from genai_cli.cluster.remote.remote_build import build_remotely
from genai_cli.cluster.stores import StoreOptions
from genai_cli.settings import read_settings
from genai_core.errors import GenAIError
from genai_core.kinds.build import GenAIBuild
from genai_core.store.delivery import folder_name

__all__ = ["build_and_pull"]


def build_and_pull(build: GenAIBuild, folder: Path, *, namespace: str | None) -> dict[str, Path]:
    """Target -> container's folder, below `folder`.

    Raises:
        GenAIError: The build failed, or the cluster or its store cannot be reached.
    """
    access = Access(namespace=namespace)
    settings = read_settings(os.environ)
    options = StoreOptions(None, None)
    name = build.metadata.name
    code = build_remotely(build, access, settings, options=options, detach=False, force=False)
    if code:
        raise GenAIError(
            f"the build ended with exit code {code}", where=name, remedy=f"see genai status {name}"
        )
    paths = {}
    for target in build.spec.targets:
        paths[target] = folder / folder_name(target)
        pull_container(
            access, settings, name=name, target=target, output=paths[target], options=options
        )
    return paths
