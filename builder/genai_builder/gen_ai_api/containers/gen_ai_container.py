"""What a build makes: a folder with everything that inference needs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

from genai_builder.gen_ai_api.executors.gen_ai_executor import GenAIExecutable
from genai_builder.temporary import HeldFolder
from genai_cli.containers.choice import the_container
from genai_core.container.manifest import Manifest
from genai_core.errors import BadInput
from genai_runtime.container import container as containers

__all__ = ["GenAIContainer", "LLMContainer"]


class GenAIContainer:
    """A container's folder, each file compared with the manifest when it is opened."""

    def __init__(self, path: Path, *, folder: HeldFolder | None = None) -> None:
        self.path = path
        """The folder; gone with this object unless it was saved or loaded."""
        self._folder = folder
        self._opened = containers.load(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GenAIContainer:
        """A container that was saved, pulled, or built by `genai build`.

        Raises:
            BadInput: There is none, or several, or a file differs from the manifest.
        """
        return LLMContainer(the_container(Path(path).expanduser().absolute()))

    @property
    def metadata(self) -> Manifest:
        """The manifest: target, files with their digests, what it was built from."""
        return self._opened.manifest

    @property
    def revision(self) -> str:
        """`sha256:` and the digest of the manifest: equal content, equal revision."""
        return self._opened.revision

    def save(self, dest: str | os.PathLike[str], *, exist_ok: bool = False) -> Path:
        """Copy the container into a folder.

        Args:
            dest: The folder; it is made.
            exist_ok: A container may stand there already: it is replaced when the copy is whole.

        Returns:
            The folder.

        Raises:
            BadInput: Something stands there.
        """
        path = Path(dest).expanduser().absolute()
        if path.exists() and not exist_ok and (not path.is_dir() or any(path.iterdir())):
            raise BadInput("it exists", where=str(path), remedy="pass exist_ok=True")
        if path.exists() and any(path.iterdir()):
            containers.load(path)  # another folder of the user's is not ours to replace
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            shutil.copytree(self.path, draft / path.name)
            if path.exists():
                path.rename(draft / "before")
            (draft / path.name).rename(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return path

    def get_executor(self, device: Any = None, *, clean_up: bool = True) -> GenAIExecutable:
        """What runs the container on this machine: the CPU, or the emulator on its twin.

        Args:
            device: None; a device that is attached elsewhere cannot be driven from here.
            clean_up: Free the model when a `with` block ends.

        Raises:
            BadInput: A device is given.
        """
        if device is not None:
            raise BadInput(
                "containers run on this machine only",
                where="device",
                remedy="pass None; on a device, use the vendor's runtime with genie_config.json",
            )
        return GenAIExecutable(self._opened, holder=self, clean_up=clean_up)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.remove()


class LLMContainer(GenAIContainer):
    """The container of a language model."""
