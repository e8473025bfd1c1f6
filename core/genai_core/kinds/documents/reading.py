"""From a YAML file, or an object of the apiserver, to a kind; or to what must be mended in it.

All problems of a document are found at once: the error is the first of them, the others are its
notes (`error.__notes__`), one line each. Fields are read as an apiserver would: camelCase only, no
turning of text into numbers, a field without a value counts as left out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from genai_core.errors import InvalidSpec
from genai_core.files.home import expanded
from genai_core.kinds.artifact_store import ArtifactStore
from genai_core.kinds.base import API_VERSION, KindObject
from genai_core.kinds.build import GenAIBuild, ModelSource
from genai_core.kinds.child_model import Child
from genai_core.kinds.deployment import GenAIDeployment
from genai_core.kinds.documents.problems import Problem, nearest, problems, show_path
from genai_core.kinds.documents.yaml_documents import Document, load_documents
from genai_core.kinds.lora import AdapterSource
from genai_core.kinds.speculation import SpeculationPart
from genai_core.kinds.target import GenAITarget
from genai_core.kinds.vision_part import Vision
from genai_core.wire import GROUP

__all__ = [
    "KINDS",
    "is_local",
    "read_build",
    "read_build_text",
    "read_model",
    "read_object",
    "read_objects",
    "read_served",
    "with_local_source",
]

KINDS: dict[str, type[KindObject]] = {
    kind.__name__: kind for kind in (GenAIBuild, GenAITarget, ArtifactStore, GenAIDeployment)
}

_Model = TypeVar("_Model", bound=BaseModel)
_S = TypeVar("_S", ModelSource, AdapterSource, Child, SpeculationPart, Vision)


def read_build(path: Path, *, name: str | None = None) -> GenAIBuild:
    """Read the GenAIBuild of a file; other objects in it are left alone.

    A relative source is made absolute: it is relative to the file's folder.

    Args:
        path: A YAML file.
        name: Which build, where the file holds several.

    Raises:
        InvalidSpec: Names file, line and field.
    """
    return read_build_text(_bytes_of(path), where=str(path), folder=path.parent, name=name)


def read_build_text(
    text: bytes, *, where: str, folder: Path, name: str | None = None
) -> GenAIBuild:
    """Read the GenAIBuild of a YAML text; see `read_build`.

    Args:
        text: UTF-8.
        where: What messages call the text.
        folder: What a relative source counts from.
        name: Which build, where the text holds several.

    Raises:
        InvalidSpec: Names line and field.
    """
    found = [item for item in _objects(text, where) if isinstance(item, GenAIBuild)]
    builds = [item for item in found if name is None or item.metadata.name == name]
    if not found:
        raise InvalidSpec("it holds no GenAIBuild", where=where, remedy="name another file")
    if len(builds) != 1:
        names = ", ".join(item.metadata.name for item in found)
        raise InvalidSpec(
            f"it holds the builds {names}", where=where, remedy="choose one with --name"
        )
    return with_local_source(builds[0], folder)


def with_local_source(build: GenAIBuild, folder: Path) -> GenAIBuild:
    """The same build with relative folders of its sources made absolute."""

    def placed(source: _S) -> _S:
        if not is_local(source.source):
            return source
        try:
            real = (folder / expanded(source.source)).resolve()
        except (OSError, RuntimeError) as error:
            raise InvalidSpec(
                "its links lead in a circle", where=source.source, remedy="name another folder"
            ) from error
        return source.model_copy(update={"source": str(real)})

    spec = build.spec.model_copy(update={"model": placed(build.spec.model)})
    if spec.lora is not None:
        adapters = [placed(adapter) for adapter in spec.lora.adapters]
        spec = spec.model_copy(update={"lora": spec.lora.model_copy(update={"adapters": adapters})})
    if spec.children:
        children = [placed(child) for child in spec.children]
        spec = spec.model_copy(update={"children": children})
    if spec.speculation:
        parts = [placed(part) for part in spec.speculation]
        spec = spec.model_copy(update={"speculation": parts})
    if spec.vision is not None:
        spec = spec.model_copy(update={"vision": placed(spec.vision)})
    return build.model_copy(update={"spec": spec})


def is_local(source: str) -> bool:
    """Tell whether a source is a folder of this machine rather than an address."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is None


def read_objects(path: Path) -> list[KindObject]:
    """Read every object of our kinds in a file, in order; those of other groups are left out.

    Raises:
        InvalidSpec: The file cannot be read, is not YAML, or one of our objects is wrong.
    """
    return _objects(_bytes_of(path), str(path))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidSpec(reason, where=str(path), remedy="name a YAML file") from error


def _objects(text: bytes, where: str) -> list[KindObject]:
    found: list[KindObject] = []
    documents = load_documents(text, name=where)
    if not documents:
        raise InvalidSpec("it is empty", where=where, remedy="name a file with a GenAIBuild")
    for document in _flattened(documents):
        model = _kind_of(document, where)
        if model is not None:
            found.append(_validated(model, document, name=where))
    return found


def read_object(value: Mapping[str, Any]) -> KindObject:
    """Read an object as the apiserver sends it.

    Raises:
        InvalidSpec: Names the field.
    """
    document = Document(dict(value))
    model = _kind_of(document, "")
    if model is None:
        raise InvalidSpec("it is none of our kinds", where="kind", remedy=f"use {', '.join(KINDS)}")
    return _validated(model, document)


def read_model(model: type[_Model], value: Mapping[str, Any], *, where: str = "") -> _Model:
    """Read plain values into one of the models that the kinds are made of.

    Args:
        model: E.g. BuildSpec.
        value: camelCase names.
        where: Path of the value, put before each field that is named, e.g. `spec`.

    Raises:
        InvalidSpec: Names the field.
    """
    return _validated(model, Document(dict(value)), prefix=where)


def read_served(model: type[_Model], value: Mapping[str, Any], *, where: str = "") -> _Model:
    """The same for what an apiserver serves, which a newer version's schema may have added to.

    The apiserver itself refuses or prunes what its schema does not know: a field that only we do
    not know is a newer version's, and no fault of the object's.

    Raises:
        InvalidSpec: Names the field.
    """
    known = copy.deepcopy(dict(value))
    try:
        model.model_validate(known)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            if problem["type"] == "extra_forbidden":
                _drop(known, problem["loc"])
    return read_model(model, known, where=where)


def _drop(value: Any, path: tuple[int | str, ...]) -> None:
    for step in path[:-1]:
        value = value[step]
    value.pop(path[-1])


def _flattened(documents: Sequence[Document]) -> list[Document]:
    """Take the items of `kind: List` (what `kubectl get -o yaml` prints) as documents."""
    found: list[Document] = []
    for document in documents:
        value = document.value
        if isinstance(value, dict) and value.get("kind") == "List" and "items" in value:
            items = value["items"] if isinstance(value["items"], list) else []
            for index, item in enumerate(items):
                lines = {
                    at[2:]: line
                    for at, line in document.lines.items()
                    if at[:2] == ("items", index)
                }
                found.append(Document(item, lines))
        else:
            found.append(document)
    return found


def _kind_of(document: Document, name: str) -> type[KindObject] | None:
    """The model of a document; None where it belongs to somebody else."""
    value = document.value
    if not isinstance(value, dict):
        raise _error(Problem((), "expected a mapping with apiVersion and kind"), document, name)
    kind, version = value.get("kind"), value.get("apiVersion")
    ours = isinstance(version, str) and version.split("/")[0] == GROUP
    if isinstance(kind, str) and kind in KINDS:
        if version == API_VERSION:
            return KINDS[kind]
        if version is None:
            problem = Problem(("apiVersion",), "is missing", f"add apiVersion: {API_VERSION}")
        elif ours or nearest(str(version), [API_VERSION]):
            problem = Problem(
                ("apiVersion",), f"{version} is not known", f"this version reads {API_VERSION}"
            )
        else:
            return None
        raise _error(problem, document, name)
    near = nearest(kind, KINDS) if isinstance(kind, str) else None
    if not ours and (near is None or version is not None):
        if kind is None and version is None:
            problem = Problem((), "it has no apiVersion and kind", f"add {API_VERSION}, GenAIBuild")
            raise _error(problem, document, name)
        return None
    message = "is missing" if kind is None else f"{kind} is not known"
    remedy = f"did you mean {near}?" if near else f"use {', '.join(KINDS)}"
    raise _error(Problem(("kind",), message, remedy), document, name)


def _validated(
    model: type[_Model], document: Document, *, name: str = "", prefix: str = ""
) -> _Model:
    value = _without_nulls(document.value)
    try:
        return model.model_validate(value, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        found = problems(error, model, value)
    found.sort(key=lambda problem: document.line(problem.path))
    errors = [_error(problem, document, name, prefix=prefix) for problem in found]
    for other in errors[1:]:
        errors[0].add_note(str(other))
    raise errors[0]


def _error(problem: Problem, document: Document, name: str, *, prefix: str = "") -> InvalidSpec:
    place = f"{name}:{document.line(problem.path)}" if name else ""
    field = ".".join(part for part in (prefix, show_path(problem.path)) if part)
    where = ": ".join(part for part in (place, field) if part)
    return InvalidSpec(problem.message, where=where, remedy=problem.remedy)


def _without_nulls(value: Any) -> Any:
    """Leave out fields without a value, as an apiserver does."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
