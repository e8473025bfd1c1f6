"""What requests may name when a server starts: the base, adapters, use cases."""

from __future__ import annotations

from collections.abc import Sequence

from genai_core.container.adapters import AdapterIndex
from genai_core.errors import BadInput
from genai_runtime.container.container import Container
from genai_serving.start.options import Options

__all__ = ["name_of", "refuse_adapters", "served_adapters"]


def name_of(opened: Container) -> str:
    """The build's name, as `genai build` lays containers out: `<output>/<build>/<target>`."""
    folder = opened.folder.resolve()
    return folder.parent.name if folder.name == opened.manifest.target.name else folder.name


def served_adapters(opened: Container, name: str, chosen: Sequence[str] = ()) -> AdapterIndex:
    """The adapters and use cases of a container that are served.

    Args:
        opened: The container.
        name: What the base is called.
        chosen: Adapters; none = all. Use cases go with the adapters that they are made of.

    Raises:
        BadInput: One of them has the base's name, or one that was chosen is not there.
    """
    index = opened.adapters()
    if chosen:
        for wanted in chosen:
            if wanted not in index.adapters:
                index.worn(wanted)  # names those that are there
                raise BadInput("is a use case, and adapters are chosen", where=f"adapter {wanted}")
        index = index.model_copy(
            update={
                "adapters": {key: index.adapters[key] for key in chosen},
                "use_cases": {
                    key: entry
                    for key, entry in index.use_cases.items()
                    if all(worn.name in chosen for worn in entry.adapters)
                },
            }
        )
    if name in {*index.adapters, *index.use_cases}:
        raise BadInput(
            f"an adapter of the container is called {name} too",
            where="--model-name",
            remedy="serve the base under another name",
        )
    return index


def refuse_adapters(options: Options) -> None:
    """Refuse options that want some.

    Raises:
        BadInput: There is one.
    """
    for given, option in ((options.adapters, "--adapter"), (options.admin, "--admin-port")):
        if given:
            raise BadInput(
                "no pass holds an adapter with --max-adapter-rank 0",
                where=option,
                remedy="raise it, or leave it out",
            )
