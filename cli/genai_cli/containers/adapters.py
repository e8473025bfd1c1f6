"""Adapters of a container that stands: added, left out, listed.

A changed container is written beside its place and then renamed; the given one is only read. The
work on tensors is a worker's (`genai-stage adapter`), since this program knows no graphs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from genai_cli.containers.choice import the_container, trial_of
from genai_cli.display.output import emit, say, table, tell
from genai_cli.display.render import busy
from genai_cli.display.words import counted, duration, size
from genai_cli.engine.local_source import bring_folder
from genai_cli.engine.work_folders import cache_folder, known_digests
from genai_cli.settings import ProgramSettings
from genai_cli.store.core_lookup import find_core
from genai_core.canonical import digest_file
from genai_core.container.adapter_addition import AdditionAnswer, AdditionRequest
from genai_core.container.adapters import INDEX_FILE, AdapterIndex, read_index
from genai_core.container.genie_adapters import (
    genie_bytes,
    genie_folder,
    genie_names,
    with_adapters,
)
from genai_core.container.manifest import (
    GENIE_FILE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    Manifest,
    ManifestFile,
    Report,
    outside_identity,
)
from genai_core.container.outside import report_bytes, vouch_for
from genai_core.errors import BadInput, GenAIError, InvalidSpec, NoSpace, from_dict
from genai_core.files.foreign import read_json_object
from genai_core.files.home import expanded
from genai_core.files.paths import inside, links_may_reach
from genai_core.files.regular import NotRegular, open_regular
from genai_core.kinds.lora import BASE, AdapterName
from genai_core.sources.adapter_files import inspect_adapter
from genai_core.sources.source_files import SourceFile
from genai_core.store.delivery import refuse_foreign, swap_in
from genai_runtime.container import container
from genai_runtime.container.container import Container

__all__ = ["add", "remove", "show"]

_NAME: TypeAdapter[str] = TypeAdapter(AdapterName)
_NO_SPACE = {28, 122}
_CHUNK = 4 << 20
_TENSORS = ".safetensors"
_SUFFIXES = re.compile(r"\.(zip|tar|tar\.gz|tgz|safetensors)$")
_WORKER = (sys.executable, "-P", "-m", "genai_stages", "adapter")


def add(
    path: Path, source: str, output: Path, *, name: str | None, store: str | None,
    settings: ProgramSettings,
) -> int:  # fmt: skip
    """Write a new revision with one adapter more; returns 0.

    Raises:
        BadInput: The container cannot carry it, its name is taken, or the output is in the way.
        BadAdapter: It is broken, or of another model.
    """
    began = time.monotonic()
    opened = _opened(path)
    opened.check_takes_adapters()
    # Who typed the address has named its server.
    folder = bring_folder(source, cache_folder(), where="SOURCE", named=[source]) or expanded(
        source.removeprefix("file://")
    )
    chosen = _name_of(name, source)
    opened.adapters().check_free(chosen)
    weights = folder.name if folder.suffix == _TENSORS else None
    files = inspect_adapter(
        folder.parent if weights else folder, known_digests(), where="SOURCE", weights=weights
    ).files
    with _draft(opened, output) as draft, busy(f"importing {chosen}"):
        facts = _imported(draft, chosen, files, opened.manifest, store=store, settings=settings)
    seconds = time.monotonic() - began
    _tell(output, facts, seconds=seconds, settings=settings)
    if not settings.json:
        linears = counted(facts["linears"], "linear")
        say(f"  {chosen}: rank {facts['rank']}, {linears}")
        for text in facts.get("warnings", []):
            tell(f"warning: {text}")
        say(f"  try  {trial_of(output)} --adapter {chosen}")
    return 0


def remove(path: Path, name: str, output: Path, *, settings: ProgramSettings) -> int:
    """Write a new revision with one adapter less; returns 0.

    Raises:
        BadInput: There is none of that name, a use case wears it, it has binaries of its own, or
            the output is in the way.
    """
    began = time.monotonic()
    opened = _opened(path)
    index = opened.adapters()
    index.check_changeable(str(path))
    rest = index.without_adapter(name)
    with _draft(opened, output) as draft:
        own, folder = index.adapters[name].file, genie_folder(name)
        (draft / own).unlink()
        shutil.rmtree(draft / folder, ignore_errors=True)
        files = {
            file: entry
            for file, entry in opened.manifest.files.items()
            if file.startswith("adapters/") and file != own and not file.startswith(f"{folder}/")
        }
        files.pop(INDEX_FILE)
        if rest.adapters:
            (draft / INDEX_FILE).write_bytes(rest.to_bytes())
            files[INDEX_FILE] = ManifestFile(
                sha256=digest_file(draft / INDEX_FILE), size=(draft / INDEX_FILE).stat().st_size
            )
        else:
            shutil.rmtree(draft / "adapters")
        manifest = _with_genie(opened, draft, rest).with_adapter_files(files)
        (draft / MANIFEST_FILE).write_bytes(manifest.to_bytes())
        _forget(draft, opened, name)
    facts = {"revision": manifest.revision(), "base": manifest.base or manifest.revision()}
    _tell(output, facts, seconds=time.monotonic() - began, settings=settings)
    return 0


def _with_genie(opened: Container, draft: Path, index: AdapterIndex) -> Manifest:
    """The manifest with Genie's configuration, which lists the adapters of an htp container."""
    manifest, inputs = opened.manifest, opened.metadata.adapter_inputs
    path = draft / GENIE_FILE
    if GENIE_FILE not in manifest.files or inputs is None:
        return manifest
    config = with_adapters(read_json_object(path), genie_names(index), alpha=inputs.alpha)
    path.write_bytes(genie_bytes(config))
    entry = ManifestFile(sha256=digest_file(path), size=path.stat().st_size)
    return manifest.model_copy(update={"files": {**manifest.files, GENIE_FILE: entry}})


def show(path: Path, *, settings: ProgramSettings) -> int:
    """Print the adapters and use cases; returns 0.

    Raises:
        BadInput: The folder is no container.
    """
    folder = the_container(path)
    index = read_index(folder) if INDEX_FILE in container.manifest_of(folder).files else None
    index = index or AdapterIndex()
    if settings.json:
        emit({"path": str(folder), **index.model_dump(mode="json", exclude={"schema_version"})})
        return 0
    if not index.adapters:
        say(f"{folder} carries no adapters")
        return 0
    table(
        ("adapter", "rank", "linears", "size", "sha256"),
        [
            (name, str(e.rank), str(e.linears), size((folder / e.file).stat().st_size),
             e.sha256[:12])
            for name, e in index.adapters.items()
        ],
        right=("rank", "linears", "size"),
    )  # fmt: skip
    for case, worn in index.use_cases.items():
        say(f"{case}: " + " + ".join(f"{one.alpha:g} {one.name}" for one in worn.adapters))
    return 0


def _opened(path: Path) -> Container:
    with busy("reading the container"):
        opened = container.load(the_container(path), digest_of=known_digests().digest)
        opened.verify_outside()
    return opened


def _name_of(name: str | None, source: str) -> str:
    """A name that requests can use.

    Raises:
        InvalidSpec: The one that was given, or the folder's, is none.
    """
    last = source.partition("?")[0].rstrip("/").rpartition("/")[2]
    chosen = name if name is not None else _SUFFIXES.sub("", last)
    try:
        if chosen != BASE:
            return _NAME.validate_python(chosen)
        why = f"{BASE} means the model without adapters"
    except ValidationError:
        why = f"{chosen!r} is no name: small letters, digits, dashes and dots are"
    raise InvalidSpec(why, where="--name", remedy="give one with --name")


def _forget(draft: Path, opened: Container, name: str) -> None:
    """Take what was measured and recorded of an adapter out of the report and the golden prompts.

    A report that cannot be read stays as it is.
    """
    recorded = opened.golden()
    if recorded is not None and name in recorded.worn:
        rest = {one: answers for one, answers in recorded.worn.items() if one != name}
        (draft / GOLDEN_FILE).write_bytes(recorded.with_worn(rest).to_bytes())
    path = draft / REPORT_FILE
    with suppress(OSError, ValueError):
        report = Report.model_validate_json(path.read_bytes())
        stages = {**report.stages}
        stages.pop(f"lora_import/{name}", None)
        package = {**stages.get("package", {})}
        if "useCases" in package:
            package["useCases"] = {k: v for k, v in package["useCases"].items() if k != name}
            stages["package"] = package
        path.write_bytes(report_bytes(report.model_copy(update={"stages": stages})))


@contextmanager
def _draft(opened: Container, output: Path) -> Iterator[Path]:
    """A copy of a container beside its place, which takes the place when the block ends well.

    Raises:
        BadInput: The place holds something else, or lies in the container itself.
        NoSpace: There is no room.
    """
    path, given = output.absolute(), opened.folder.resolve()
    if path.resolve() == given or given in path.resolve().parents:
        raise BadInput(
            "it is the container that is read, which stays as it is",
            where=f"--output {output}",
            remedy="name another folder",
        )
    refuse_foreign(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        _copy(opened, draft)
        yield draft
        vouch_for(draft)
        swap_in(draft, path)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpace(
                "there is no room for it", where=str(output), remedy="free some room"
            ) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(opened: Container, draft: Path) -> None:
    """Copy what belongs to a container; strangers' files are left behind.

    Raises:
        BadInput: One of its files leads out of it, or is no file: what no manifest vouches for (a
            report, recorded answers) may be a link to any file of the user's.
    """
    root = links_may_reach(opened.folder)
    for source in sorted(opened.folder.rglob("*")):
        name = source.relative_to(opened.folder).as_posix()
        if source.is_dir() or not (name in opened.manifest.files or outside_identity(name)):
            continue
        dest = draft / name
        dest.parent.mkdir(parents=True, exist_ok=True)
        inside(source, root, str(source), of="container")
        try:
            with open_regular(source) as stream, dest.open("wb") as target:
                shutil.copyfileobj(stream, target, _CHUNK)
        except NotRegular as error:
            raise BadInput(
                str(error.strerror), where=str(source), remedy="fetch the container again"
            ) from error


def _imported(
    draft: Path, name: str, files: Mapping[str, SourceFile], manifest: Manifest, *,
    store: str | None, settings: ProgramSettings,
) -> dict[str, Any]:  # fmt: skip
    """Have a worker add the adapter; with the core graph where names alone do not tell."""
    aside = draft.with_name(f"{draft.name}.work")
    roles = aside / "adapter"
    roles.mkdir(parents=True)
    request = AdditionRequest(container=str(draft), adapter=str(roles), name=name)
    try:
        for role, file in files.items():
            (roles / role).symlink_to(file.path.absolute())
        said = _asked(request, aside)
        if said.nameless:
            core = find_core(manifest, aside / "core", settings, store)
            if core is None:
                raise _nameless(said, store or settings.store)
            said = _asked(request.model_copy(update={"core": str(core)}), aside)
        if said.error is not None:
            raise from_dict(said.error)
        return said.facts
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _asked(request: AdditionRequest, folder: Path) -> AdditionAnswer:
    question, answer = folder / "request.json", folder / "answer.json"
    question.write_text(request.model_dump_json(), encoding="utf-8")
    ran = subprocess.run(  # noqa: S603 - our own program
        [*_WORKER, question, "--result", answer], capture_output=True, text=True, check=False
    )
    if ran.returncode or not answer.is_file():
        last = ran.stderr.strip().rpartition("\n")[2][:200]
        raise GenAIError(f"its worker ended with status {ran.returncode}: {last}", where="adapter")
    return AdditionAnswer.model_validate_json(answer.read_bytes())


def _nameless(said: AdditionAnswer, store: str) -> GenAIError:
    """The refusal of an adapter that the container's names do not place, with the way out."""
    assert said.error is not None
    error = from_dict(said.error)
    error.remedy = (
        "use an adapter of this model; or, where its names alone do not tell, name the store that "
        f"the container was built in with --store ({store} has nothing of it)"
    )
    return error


def _tell(
    output: Path, facts: dict[str, Any], *, seconds: float, settings: ProgramSettings
) -> None:
    if settings.json:
        emit({"path": str(output), "seconds": round(seconds, 2), **facts})
        return
    say(f"{output} in {duration(seconds)}")
    say(f"  revision  {facts['revision']}")
    say(f"  base      {facts['base']}")
