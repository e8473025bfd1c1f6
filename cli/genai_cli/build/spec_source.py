"""The build that a command line means: a file, a model's folder, and options on top of either."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from genai_cli.build.spec_flags import SpecFlags
from genai_core.errors import BadModel, InvalidSpec
from genai_core.kinds.base import API_VERSION
from genai_core.kinds.build import GenAIBuild
from genai_core.kinds.documents.problems import show_path
from genai_core.kinds.documents.reading import (
    is_local,
    read_build,
    read_build_text,
    read_model,
    with_local_source,
)
from genai_core.kinds.documents.yaml_documents import load_documents
from genai_core.sources.lora_config import lora_of_config

__all__ = ["as_yaml", "build_of"]

_LISTS = {"targets", "graphs.autoRegression", "graphs.contextLengths"}
_OPTIONS = "options"
_OPTION = {
    "targets": "--target",
    "graphs.autoRegression": "--ar",
    "graphs.contextLengths": "--cl",
    "splits.count": "--splits",
    "quantization.gaps": "--gaps",
    "quantization.cpuPrecision": "--precision",
    "model.onnx": "--onnx",
    "model.encodings": "--encodings",
}
_FILES = {"model.onnx", "model.encodings"}
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")
"""How `s3://models/x` begins once it was read as a path."""


def build_of(flags: SpecFlags) -> GenAIBuild:
    """The build, its source absolute.

    Raises:
        InvalidSpec: Names the file's line and field, or the option.
        BadModel: The model's folder does not exist.
    """
    if (flags.file is None) == (flags.model is None):
        raise InvalidSpec(
            "give a file with -f or a model's folder, not both"
            if flags.file
            else "there is nothing to build",
            where="genai",
            remedy="e.g. genai build -f build.yaml, or genai build MODEL_DIR --target cpu",
        )
    return _with_lora(_changed(flags))


def _with_lora(build: GenAIBuild) -> GenAIBuild:
    """The build with what the vendor's lora_config.yaml means written out.

    Raises:
        InvalidSpec: The file is broken, or does not lie in a folder.
    """
    lora, source = build.spec.lora, build.spec.model.source
    if lora is None or lora.config is None:
        return build
    if not is_local(source):
        raise InvalidSpec(
            f"it lies in {source}, and is read from a model's folder alone",
            where="spec.lora.config",
            remedy="write adapters and useCases into the spec",
        )
    root = Path(source.removeprefix("file://"))
    given = lora_of_config(root if root.is_dir() else root.parent, lora.config)
    spec = build.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    kept = {name: value for name, value in spec["lora"].items() if name != "config"}
    spec["lora"] = {**kept, **given}
    changed = read_model(type(build.spec), spec, where="spec.lora.config")
    return build.model_copy(update={"spec": changed})


def _changed(flags: SpecFlags) -> GenAIBuild:
    build = _of_file(flags) if flags.file is not None else _of_folder(flags)
    changes = _changes(flags, build.spec.model.source)
    if not changes:
        return build
    spec = build.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    for path, value in changes:
        _put(spec, path, value)
    try:
        changed = read_model(type(build.spec), spec, where="spec")
    except InvalidSpec as error:
        raise _with_option(error) from error
    return build.model_copy(update={"spec": changed})


def as_yaml(build: GenAIBuild, *, folder: Path) -> str:
    """The YAML that means this build when it lies in `folder`, without fields at their defaults."""
    import yaml

    spec = build.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    source = spec["model"]["source"]
    if is_local(source):
        spec["model"]["source"] = _shown(Path(source), folder)
    for adapter in spec.get("lora", {}).get("adapters", ()):
        if is_local(adapter["source"]):
            adapter["source"] = _shown(Path(adapter["source"]), folder)
    document = {
        "apiVersion": API_VERSION,
        "kind": "GenAIBuild",
        "metadata": {"name": build.metadata.name},
        "spec": spec,
    }
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return text


def _shown(path: Path, folder: Path) -> str:
    near = os.path.relpath(path, folder)
    return str(path) if near.startswith(os.path.join("..", "..")) else os.path.join(".", near)


def _of_file(flags: SpecFlags) -> GenAIBuild:
    if flags.file != "-":
        return read_build(Path(str(flags.file)), name=flags.name)
    return read_build_text(
        sys.stdin.buffer.read(), where="standard input", folder=Path.cwd(), name=flags.name
    )


def _of_folder(flags: SpecFlags) -> GenAIBuild:
    folder = flags.model
    assert folder is not None
    if not (folder.is_dir() or (folder.suffix == ".onnx" and folder.is_file())):
        what = "it is a file" if folder.exists() else "there is no such folder"
        remedy = "name the folder of a model"
        if folder.suffix in {".yaml", ".yml"}:
            remedy = f"write -f {shlex.quote(str(folder))}"
        if _ADDRESS.match(str(folder)):
            what = "it is an address, and only a folder is taken here"
            remedy = "write it into a file as spec.model.source, and build that with -f"
        raise BadModel(what, where=str(folder), remedy=remedy)
    if not flags.target and not any(f.startswith("targets=") for f in flags.fields or ()):
        raise InvalidSpec("no target is given", where="--target", remedy="add e.g. --target cpu")
    document = {
        "apiVersion": API_VERSION,
        "kind": "GenAIBuild",
        "metadata": {"name": flags.name or _name_of(folder)},
        "spec": {"model": {"source": str(folder)}, "targets": flags.target or ["cpu"]},
    }
    build = read_model(GenAIBuild, document)
    return with_local_source(build, Path.cwd())


def _name_of(folder: Path) -> str:
    """A name that Kubernetes takes, from the folder's."""
    name = re.sub(r"[^a-z0-9.-]+", "-", folder.resolve().name.removesuffix(".onnx").lower()).strip(
        "-."
    )
    return name or "model"


def _changes(flags: SpecFlags, source: str) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for dotted, given in flags.changes().items():
        if dotted in _FILES:
            found.append((tuple(dotted.split(".")), _inside(given, source, _OPTION[dotted])))
            continue
        values = [part.strip() for text in _as_list(given) for part in text.split(",")]
        plain = (
            values if dotted == "targets" else [_value(text, _OPTION[dotted]) for text in values]
        )
        found.append((tuple(dotted.split(".")), plain if dotted in _LISTS else plain[0]))
    for text in flags.fields or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidSpec(
                f"{text!r} is not FIELD=VALUE", where="--set", remedy="e.g. golden.maxTokens=8"
            )
        path = _field_path(name.removeprefix("spec."))
        read = _value(value, f"--set {name}")
        if _OPTIONS in path[:-1] and not isinstance(read, str):
            read = value  # the vendor's options are text, whatever they look like
        found.append((path, read))
    return found


def _inside(name: str, source: str, option: str) -> str:
    """A file of the model as the spec names it: relative to the source.

    The shell completes paths from where the user stands, so such a path is understood too.

    Raises:
        InvalidSpec: The file lies elsewhere.
    """
    if not is_local(source):
        return name
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    if (folder / name).is_file() and not Path(name).is_absolute():
        return name
    if not Path(name).is_file():
        return name  # reading the model says what is there
    near = os.path.relpath(Path(name).absolute(), folder)
    if near.startswith(os.pardir):
        raise InvalidSpec(
            "it is not in the model's folder",
            where=f"{option} {name}",
            remedy=f"put it into {folder}",
        )
    return near


def _field_path(name: str) -> tuple[str, ...]:
    """`compilation.options.graphs.O`: below options, the rest is one name."""
    head, dot, tail = name.partition(f".{_OPTIONS}.")
    return (*head.split("."), _OPTIONS, tail) if dot else tuple(name.split("."))


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _value(text: str, where: str) -> Any:
    """A value as YAML reads it: 8 is a number, [a, b] a list."""
    documents = load_documents(text, name=where)
    return documents[0].value if documents else None


def _put(spec: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    here: Any = spec
    for depth, part in enumerate(path[:-1], 1):
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            raise InvalidSpec(
                "it has no fields", where=f"--set {show_path(path[:depth])}", remedy="see its value"
            )
    here[path[-1]] = value


def _with_option(error: InvalidSpec) -> InvalidSpec:
    """Name the option beside the field that it stands for."""
    for dotted, option in _OPTION.items():
        if error.where.startswith(f"spec.{dotted}"):
            return InvalidSpec(
                error.message, where=f"{option} ({error.where})", remedy=error.remedy
            )
    return error
