"""The files of a model as a builder is given them -> the source of a GenAIBuild."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from genai_core.errors import BadModel, InvalidSpec

__all__ = ["ModelFiles", "find_model"]

_CONFIG = "config.json"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies.

    Attributes:
        source: The folder with config.json and the tokenizer.
        onnx: The graph, below it; None: the only one in it.
        name: Of the build, as Kubernetes takes it.
    """

    source: Path
    onnx: str | None
    name: str

    def inside(self, path: Path, setting: str) -> str:
        """A file's path below the source.

        Raises:
            InvalidSpec: It lies elsewhere.
        """
        full = path if path.is_absolute() or not (self.source / path).exists() else (
            self.source / path
        )  # fmt: skip
        near = os.path.relpath(full.absolute(), self.source)
        if near.split(os.sep)[0] == os.pardir:
            raise InvalidSpec(
                "it is not in the model's folder",
                where=f"{setting} {path}",
                remedy=f"put it into {self.source}",
            )
        return Path(near).as_posix()


def find_model(
    model_path: str | os.PathLike[str],
    *,
    config_path: str | os.PathLike[str] | None,
    tokenizer_path: str | os.PathLike[str] | None,
) -> ModelFiles:
    """Look at the folders that a builder is given.

    The vendor's first step leaves the graph in `OUT/base/onnx`, config.json and the tokenizer in
    `OUT`: then `OUT` is the source.

    Args:
        model_path: A folder, or an ONNX file.
        config_path: config.json or its folder; None: the model's folder.
        tokenizer_path: A tokenizer's file or folder; None: where config.json lies.

    Raises:
        BadModel: There is no such file or folder.
        InvalidSpec: The folders do not lie in one another.
    """
    model = _there(model_path)
    folder = model if model.is_dir() else model.parent
    config = _folder(config_path) or folder
    tokenizer = _folder(tokenizer_path) or config
    if tokenizer != config:
        raise InvalidSpec(
            f"config.json lies elsewhere, in {config}",
            where=f"tokenizer_path {tokenizer_path}",
            remedy="put both into one folder",
        )
    if not folder.is_relative_to(config):
        raise InvalidSpec(
            f"the model {folder} is not below it",
            where=f"config_path {config}",
            remedy=f"put config.json and the tokenizer into {folder}, or a folder above it",
        )
    onnx = model if model.is_file() else _only_graph(folder) if folder != config else None
    return ModelFiles(
        source=config,
        onnx=None if onnx is None else onnx.relative_to(config).as_posix(),
        name=_name_of(config),
    )


def _there(path: str | os.PathLike[str]) -> Path:
    found = Path(path).expanduser().absolute()
    if not (found.is_dir() or (found.suffix == ".onnx" and found.is_file())):
        what = "it is no ONNX file" if found.exists() else "there is no such file or folder"
        raise BadModel(what, where=str(path), remedy="name the folder of a model")
    return found


def _folder(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise BadModel("there is no such file or folder", where=str(path))
    return found if found.is_dir() else found.parent


def _only_graph(folder: Path) -> Path:
    graphs = sorted(folder.glob("*.onnx"))
    if len(graphs) != 1:
        names = ", ".join(path.name for path in graphs) or "none"
        raise BadModel(
            f"expected one ONNX file, found {names}", where=str(folder), remedy="name the file"
        )
    return graphs[0]


def _name_of(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9.-]+", "-", folder.name.lower()).strip("-.")
    return name[:63].rstrip("-.") or "model"
