"""The vendor's lora_config.yaml -> `spec.lora` as it would be written by hand.

Two files go by that name. AIMET's exporter writes `use_case: [{name, model_name, lora_weights,
quant_overrides, output_path}]` (the importer's form; `weights` is read too): an adapter each, by
the names of the model's LoRA inputs. The builder's has `adapter: [{name, adapter_lora_config}]`,
`use-case: [{name, adapter_names, adapter_alphas, model_name, quant_overrides}]` and
`attach_point_onnx_mapping`, torch module -> ONNX node.

Adapters of the second form are PEFT folders (an `adapter_lora_config` that is a file with
`adapter_model.safetensors` beside it), or stand in the graph of a use case that has no other
adapter. A mapping is compared with what the import does by itself, which goes by the same names: a
node elsewhere than its module is refused, never taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genai_core.errors import InvalidSpec
from genai_core.files.foreign import read_json_object
from genai_core.files.paths import inside, links_may_reach
from genai_core.kinds.documents.yaml_documents import load_documents
from genai_core.sources.adapter_files import ADAPTER_ROLES

__all__ = ["lora_of_config", "lora_of_content"]

_FOREIGN = re.compile(r"[^a-z0-9.-]+")
_MOST = 64
_KNOWN_CASE = {"name", "model_name", "lora_weights", "weights", "quant_overrides", "output_path"}
_KNOWN_USE = {
    "name", "adapter_names", "adapter_alphas", "model_name", "quant_overrides",
    "quant_updatable_tensors",
}  # fmt: skip
_OPERATION = re.compile(r"\.(?:MatMul|Gemm|Conv|Linear|base_layer)(?:_\d+)?$")


def lora_of_config(root: Path, name: str) -> dict[str, Any]:
    """What a file means, as fields of `spec.lora`.

    Args:
        root: Folder of the model's source.
        name: The file, below it.

    Raises:
        InvalidSpec: It is not there, of neither form, or names what is not there; with the field.
    """
    path = root / name
    where = f"spec.lora.config: {path}"
    inside(path, links_may_reach(root), str(path))
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InvalidSpec(
            f"it cannot be read: {error.strerror}",
            where=where,
            remedy="name a file below the model's source",
        ) from error
    documents = load_documents(text.decode(errors="replace"), name=str(path))
    return lora_of_content(documents[0].value if documents else None, root, path, where=where)


def lora_of_content(content: Any, root: Path, path: Path, *, where: str) -> dict[str, Any]:
    """What the content of a file means, as fields of `spec.lora`.

    Args:
        content: As YAML reads it.
        root: Folder of the model's source.
        path: The file; relative paths count from its folder.
        where: For messages.

    Raises:
        InvalidSpec: It is of neither form, or names what is not there; with the field.
    """
    if isinstance(content, dict) and "use_case" in content:
        return _importer_form(root, path, content, where)
    if isinstance(content, dict) and ("use-case" in content or "adapter" in content):
        return _builder_form(root, path, content, where)
    raise InvalidSpec(
        "it has neither use_case, as AIMET writes it, nor adapter and use-case",
        where=where,
        remedy="name the vendor's lora_config.yaml, or write adapters into the spec",
    )


def _importer_form(
    root: Path, path: Path, content: Mapping[str, Any], where: str
) -> dict[str, Any]:
    adapters = []
    graphs: dict[str, None] = {}
    for number, case in enumerate(_objects(content, "use_case", where)):
        place = f"{where}: use_case[{number}]"
        _refuse_unknown(case, _KNOWN_CASE, place)
        if case.get("model_name") is not None:
            graphs[_below(root, path, case["model_name"], f"{place}.model_name")] = None
        if len(graphs) > 1:
            raise InvalidSpec(
                f"use cases name different graphs: {', '.join(graphs)}",
                where=f"{place}.model_name",
                remedy="export one model whose LoRA weights are inputs; a graph for each use case "
                "is not read",
            )
        weights = case.get("lora_weights", case.get("weights"))
        files = {"weights": _below(root, path, weights, f"{place}.lora_weights")}
        if case.get("quant_overrides") is not None:
            files["encodings"] = _below(
                root, path, case["quant_overrides"], f"{place}.quant_overrides"
            )
        adapters.append({"name": _name(case, place), "source": str(root), **files})
    return {"createGraph": False, "adapters": adapters}


def _builder_form(root: Path, path: Path, content: Mapping[str, Any], where: str) -> dict[str, Any]:
    _refuse_unknown(content, {"adapter", "use-case", "attach_point_onnx_mapping"}, where)
    folders: dict[str, Path] = {}
    for number, adapter in enumerate(_objects(content, "adapter", where)):
        place = f"{where}: adapter[{number}]"
        _refuse_unknown(adapter, {"name", "adapter_lora_config"}, place)
        folder = _peft_folder(path, adapter.get("adapter_lora_config"), place)
        if folder is not None:
            folders[_text(adapter, "name", place)] = folder
    graphs: dict[str, dict[str, str]] = {}
    cases: list[dict[str, Any]] = []
    used: dict[str, None] = {}
    for number, case in enumerate(_objects(content, "use-case", where)):
        place = f"{where}: use-case[{number}]"
        _refuse_unknown(case, _KNOWN_USE, place)
        names, alphas = _worn(case, place)
        if len(names) == 1 and names[0] not in folders and case.get("model_name") is not None:
            file = _below(root, path, case["model_name"], f"{place}.model_name")
            graphs[names[0]] = {"source": str(root), "graph": file}
        for name in names:
            if name not in folders and name not in graphs:
                raise InvalidSpec(
                    f"the adapter {name} has no weights: none of its adapter_lora_config is a file "
                    f"beside {ADAPTER_ROLES[1]}",
                    where=f"{place}.adapter_names",
                    remedy="name the adapter_config.json of its PEFT folder there, or put a use "
                    "case of it alone before, with the graph that its weights stand in",
                )
        used |= dict.fromkeys(names)
        if names == [_text(case, "name", place)] and alphas == ["1.0"]:
            continue  # the adapter itself
        worn = [{"name": _plain(n), "alpha": a} for n, a in zip(names, alphas, strict=True)]
        cases.append({"name": _name(case, place), "adapters": worn})
    _check_mapping(path, content.get("attach_point_onnx_mapping"), where)
    adapters = [
        {"name": _plain(name), **(graphs.get(name) or {"source": str(folders[name])})}
        for name in used
    ]
    return {"adapters": adapters, "useCases": cases}


def _worn(case: Mapping[str, Any], place: str) -> tuple[list[str], list[str]]:
    """Names and alphas of a use case."""
    names, alphas = case.get("adapter_names"), case.get("adapter_alphas")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InvalidSpec(
            "it is no list of names", where=f"{place}.adapter_names", remedy="list its adapters"
        )
    given = [1.0] * len(names) if alphas is None else alphas
    numbers = isinstance(given, list) and all(
        isinstance(alpha, int | float) and not isinstance(alpha, bool) for alpha in given
    )
    if not numbers or len(given) != len(names):
        raise InvalidSpec(
            f"it has {len(names)} adapters and {len(given) if numbers else 'no list of'} alphas",
            where=f"{place}.adapter_alphas",
            remedy="give a number for each of adapter_names",
        )
    return list(names), [f"{float(alpha):.8f}".rstrip("0").ljust(3, "0") if float(alpha) % 1 else
                         f"{float(alpha):.1f}" for alpha in given]  # fmt: skip


def _peft_folder(path: Path, given: Any, place: str) -> Path | None:
    """The PEFT folder that one of an adapter's configs lies in; None where none does."""
    for name in given if isinstance(given, list) else [given]:
        if not isinstance(name, str):
            continue  # an object says ranks and modules, which the weights say themselves
        config = (path.parent / name).absolute()
        if not config.is_file():
            raise InvalidSpec(
                f"there is no file {config}",
                where=f"{place}.adapter_lora_config",
                remedy="correct the path; relative ones count from the lora_config.yaml",
            )
        if (config.parent / ADAPTER_ROLES[1]).is_file():
            return config.parent
    return None


def _check_mapping(path: Path, given: Any, where: str) -> None:
    """Refuse a mapping that sends a module elsewhere than its name says."""
    if given is None:
        return
    place = f"{where}: attach_point_onnx_mapping"
    if not isinstance(given, str) or not (path.parent / given).is_file():
        raise InvalidSpec(
            f"there is no file {given}", where=place, remedy="name a JSON file: module -> node"
        )
    mapping = read_json_object(path.parent / given, kind=InvalidSpec, remedy="export it again")
    for module, nodes in mapping.items():
        for node in nodes if isinstance(nodes, list) else [nodes]:
            said = _module_of(str(node))
            if said != module and not (said.endswith(f".{module}") or module.endswith(f".{said}")):
                raise InvalidSpec(
                    f"it sends the module {module} to the node {node}, which is not called so",
                    where=f"{place}: {path.parent / given}",
                    remedy="correct the node; a model whose export lost the names of its modules "
                    "is told by their places, without a mapping",
                )


def _module_of(node: str) -> str:
    """The module that a node's name says: `/model/layers.0/mlp/up_proj/MatMul`."""
    text, before = node.strip("/").replace("/", "."), ""
    while before != text:
        before, text = text, _OPERATION.sub("", text)
    return text


def _objects(content: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    objects = content.get(name)
    if (
        not isinstance(objects, list)
        or not objects
        or not all(isinstance(x, dict) for x in objects)
    ):
        raise InvalidSpec(
            "it is no list of entries", where=f"{where}: {name}", remedy="export the file again"
        )
    if len(objects) > _MOST:
        raise InvalidSpec(
            f"it has {len(objects)} entries, and {_MOST} are read", where=f"{where}: {name}"
        )
    return objects


def _refuse_unknown(given: Mapping[str, Any], known: set[str], place: str) -> None:
    for name in given:
        if name not in known:
            raise InvalidSpec(
                f"it has the field {name}, which is not known here",
                where=place,
                remedy=f"leave it out; known are {', '.join(sorted(known))}",
            )


def _text(given: Mapping[str, Any], field: str, place: str) -> str:
    value = given.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidSpec("it is no text", where=f"{place}.{field}", remedy="write a name")
    return value


def _name(given: Mapping[str, Any], place: str) -> str:
    return _plain(_text(given, "name", place))


def _plain(name: str) -> str:
    """A name that requests can use: `elementary+long` is called `elementary-long`."""
    return _FOREIGN.sub("-", name.lower()).strip("-.")


def _below(root: Path, path: Path, given: Any, place: str) -> str:
    """A file of the model's source, relative to it."""
    if not isinstance(given, str):
        raise InvalidSpec("it is no path", where=place, remedy="name a file")
    file = (path.parent / given).absolute()
    if not file.is_file():
        raise InvalidSpec(f"there is no file {file}", where=place, remedy="correct the path")
    if not file.is_relative_to(root):
        raise InvalidSpec(
            f"{file} lies outside the model's source", where=place, remedy="put it below"
        )
    return file.relative_to(root).as_posix()
