"""A model's folder as the user has it -> its files by role, with digests.

Keys must not depend on what a user calls a file, so every file gets a role: `model.onnx` and
`model.encodings` whatever their names are, external data under the location that the ONNX file
gives it, `tokens.npy` and `calibration.<ext>` where the spec names them; configuration and
tokenizer files keep their names, which are the same everywhere. Ingest sees a folder of roles.

A folder may be flat, as exporters leave it, or hold the ONNX file deeper (`base/onnx/`), with
config.json and the tokenizer at its top. Nothing here imports onnx: which data files belong to the
model is read from the file's bytes, since a build that finds everything cached must stay quick.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from genai_core.canonical import digest_json
from genai_core.errors import BadEncodings, BadInput, BadModel, InvalidSpec
from genai_core.files.foreign import read_json_object, refuse_pointer
from genai_core.files.home import expanded
from genai_core.files.paths import inside, links_may_reach, refuse_unreadable_name
from genai_core.files.unchanged import Stamp
from genai_core.kinds.build import BuildSpec
from genai_core.names import TOKEN_MAP_ROLE, Digest
from genai_core.sources.encoding_bits import weight_bits

__all__ = [
    "MODEL_ROLE",
    "Digests",
    "SourceFacts",
    "SourceFile",
    "calibration_role",
    "files_at",
    "inspect_source",
    "part_facts",
    "source_folder",
    "tokens_role",
]

MODEL_ROLE = "model.onnx"
ENCODINGS_ROLE = "model.encodings"
CONFIG_ROLE = "config.json"
TOKENS_ROLE = "tokens.npy"
TOKENS_TEXT_ROLE = "tokens.txt"

ASSETS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that go into the container as they are, where they stand beside the model or above it."""

# One external_data entry of a TensorProto: key (field 1) "location", value (field 2).
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f]|[\x80-\xff][\x00-\x7f])")
_MANY = 5
_TOKEN_MAPS = (".json", ".safetensors")


class Digests(Protocol):
    """Knows the digests of files: a `FileCache`, or what a bucket says about its objects."""

    def digest(self, path: Path) -> Digest:
        """Return a file's SHA-256."""
        ...


@dataclass(frozen=True)
class SourceFile:
    """One file of the source."""

    path: Path
    sha256: Digest
    size: int


@dataclass(frozen=True)
class SourceFacts:
    """What a model's folder holds.

    Attributes:
        root: The folder, absolute.
        files: Role -> file.
        config: config.json as it stands; empty where there is none.
        weight_bits: Most common bit width of quantized weights, None without encodings.
    """

    root: Path
    files: Mapping[str, SourceFile]
    config: Mapping[str, Any] = field(default_factory=dict)
    weight_bits: int | None = None

    @property
    def digest(self) -> str:
        """`sha256:` and the digest of roles and contents: what `spec.model.digest` pins."""
        roles = {role: file.sha256 for role, file in self.files.items()}
        return f"sha256:{digest_json({'schema': 'genai.source/1', 'files': roles})}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def source_folder(spec: BuildSpec, base_dir: Path) -> Path:
    """The local folder that a spec's model lies in.

    Args:
        spec: Its `model.source` is a folder, or the ONNX file itself.
        base_dir: What a relative source counts from: the folder of the YAML file.

    Raises:
        InvalidSpec: The source is an address, not a folder.
        BadModel: There is no such folder.
    """
    text = spec.model.source.removeprefix("file://")
    if "://" in text:
        raise InvalidSpec(
            f"a build on this machine reads models from a folder, not from {text}",
            where="spec.model.source",
            remedy="download the model and name its folder",
        )
    path = (base_dir / expanded(text)).absolute()
    if not path.exists():
        raise BadModel(
            "there is no such folder", where=str(path), remedy="correct spec.model.source"
        )
    return path.parent if path.is_file() else path


def inspect_source(
    spec: BuildSpec,
    base_dir: Path,
    cache: Digests,
    *,
    links_within: Path | None = None,
    token_map: str | None = None,
) -> SourceFacts:
    """Find a model's files and their digests.

    Args:
        spec: Says where the model is and which files it names.
        base_dir: What a relative source counts from.
        cache: Spares hashing files again that have not changed.
        links_within: Folder that links must not leave; None = see `links_may_reach`.
        token_map: Of an EAGLE head, the file that the spec names.

    Raises:
        BadInput: A file that is missing, unreadable or ambiguous; where it is ambiguous, the
            message names every candidate.
    """
    root = source_folder(spec, base_dir)
    named = spec.model.onnx
    source = Path(spec.model.source)
    if named is None and source.suffix == ".onnx" and root.name != source.name:
        named = source.name
    refuse_unreadable_name(root)
    try:
        onnx = _model_file(root, named)
        stamps = {onnx: Stamp.of(onnx)}
        paths = _find_files(spec, root, onnx)
        if token_map is not None:
            paths |= _token_map(root, token_map)
        stamps |= {path: Stamp.of(path) for path in paths.values() if path != onnx}
        files = files_at(root, dict(sorted(paths.items())), cache, links_within=links_within)
    except OSError as error:
        raise BadModel(
            f"it cannot be read: {error.strerror or error}",
            where=str(error.filename or root),
            remedy="check the file and its permissions",
        ) from error
    config = (
        read_json_object(files[CONFIG_ROLE].path, where=str(files[CONFIG_ROLE].path))
        if CONFIG_ROLE in files
        else {}
    )
    encodings = files.get(ENCODINGS_ROLE)
    facts = SourceFacts(root, files, config, weight_bits(encodings.path) if encodings else None)
    _refuse_changed(stamps)
    if spec.model.digest not in {None, facts.digest}:
        raise BadModel(
            f"its content is {facts.digest}, not the {spec.model.digest} that the spec pins",
            where=str(root),
            remedy="correct spec.model.digest, or restore the model that it stands for",
        )
    return facts


def files_at(
    root: Path, paths: Mapping[str, Path], cache: Digests, *, links_within: Path | None = None
) -> dict[str, SourceFile]:
    """The files of a source, of whatever kind, with their digests.

    Args:
        root: The source's folder.
        paths: Role -> file.
        cache: Spares hashing files again that have not changed.
        links_within: Folder that links must not leave; None = see `links_may_reach`.

    Raises:
        BadInput: A link leaves the folder, a name cannot be written, or Git LFS left a pointer.
        OSError: One cannot be read.
    """
    for path in paths.values():
        refuse_unreadable_name(path)
        inside(path, links_within or links_may_reach(root), str(path))
        refuse_pointer(path, where=str(path), remedy=f"run `git lfs pull` in {root}")
    return {
        role: SourceFile(path, cache.digest(path), path.stat().st_size)
        for role, path in paths.items()
    }


def tokens_role(name: str) -> str:
    """What the file that fidelity scores is called among roles: token ids, or else text."""
    return TOKENS_ROLE if Path(name).suffix.lower() == ".npy" else TOKENS_TEXT_ROLE


def part_facts(
    root: Path,
    find: Callable[[], Mapping[str, Path]],
    cache: Digests,
    *,
    where: str,
    pin: str | None,
    kind: type[BadInput] = BadModel,
) -> SourceFacts:
    """What the folder of a part, which is no model of its own, holds.

    Args:
        root: The folder.
        find: Role -> file.
        cache: Spares hashing a file again that has not changed.
        where: Field that names the folder.
        pin: `sha256:...` that its content must have; None = any.
        kind: Of the errors.

    Raises:
        BadInput: Of `kind`: a file cannot be read, or the content is not what is pinned.
    """
    try:
        facts = SourceFacts(root, files_at(root, find(), cache))
    except OSError as error:
        raise kind(
            f"it cannot be read: {error.strerror or error}",
            where=str(error.filename or root),
            remedy="check the file and its permissions",
        ) from error
    if pin not in {None, facts.digest}:
        raise kind(
            f"its content is {facts.digest}, not the {pin} that {where} pins",
            where=str(root),
            remedy="correct the digest, or restore what it stands for",
        )
    return facts


def calibration_role(name: str) -> str:
    """What a calibration file is called among roles; one without a suffix is text."""
    return f"calibration{Path(name).suffix.lower() or '.txt'}"


def _refuse_changed(stamps: Mapping[Path, Stamp]) -> None:
    """What was read of a file must be of the bytes that were hashed."""
    for path, stamp in stamps.items():
        try:
            same = Stamp.of(path) == stamp
        except OSError:
            same = False
        if not same:
            raise BadModel(
                "it changed while the model was read",
                where=str(path),
                remedy="run the same command again",
            )


def _model_file(root: Path, name: str | None) -> Path:
    onnx = _one(root, name, suffix=".onnx", field_name="spec.model.onnx")
    if onnx is None:
        raise BadModel(
            "it holds no .onnx file", where=str(root), remedy="name the folder of an ONNX model"
        )
    return onnx


def _find_files(spec: BuildSpec, root: Path, onnx: Path) -> dict[str, Path]:
    near = list(dict.fromkeys((onnx.parent, root)))
    paths = {MODEL_ROLE: onnx}
    for location in data_locations(onnx):
        paths[location] = data_file(onnx, location)
    for name in (CONFIG_ROLE, *ASSETS):
        found = next((f / name for f in near if stands(f / name)), None)
        if found is not None:
            paths.setdefault(name, found)
    encodings = _one(
        root,
        spec.model.encodings,
        suffix=".encodings",
        field_name="spec.model.encodings",
        first=onnx.parent,
    )
    if encodings is not None:
        paths[ENCODINGS_ROLE] = encodings
    quantization = spec.quantization
    if quantization.fidelity.tokens:
        paths[tokens_role(quantization.fidelity.tokens)] = _named(
            root, quantization.fidelity.tokens, "spec.quantization.fidelity.tokens"
        )
    if quantization.calibration:
        path = _named(root, quantization.calibration, "spec.quantization.calibration")
        role = calibration_role(quantization.calibration)
        if role in paths:
            raise BadModel(
                f"its external data is called {role}, which stands for another file",
                where=str(onnx),
                remedy="export the model again with another name for its data",
            )
        paths[role] = path
    return paths


def _token_map(root: Path, name: str) -> dict[str, Path]:
    field = "spec.speculation[0].draftTokenMap"
    path = _named(root, name, field)
    if path.suffix not in _TOKEN_MAPS:
        raise BadInput(
            f"{name} is neither a .json nor a .safetensors file",
            where=field,
            remedy="name an array of token ids, or the head's own d2t",
        )
    return {f"{TOKEN_MAP_ROLE}{path.suffix}": path}


def _one(
    root: Path, name: str | None, *, suffix: str, field_name: str, first: Path | None = None
) -> Path | None:
    """The file that is named, or the only one with that suffix; the nearest folder counts."""
    if name is not None:
        return _named(root, name, field_name)
    for candidates in (
        _with_suffix((first or root).iterdir(), suffix),
        _with_suffix(root.iterdir(), suffix),
        _with_suffix(root.rglob(f"*{suffix}"), suffix),
    ):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            shown = ", ".join(str(p.relative_to(root)) for p in candidates[:_MANY])
            more = len(candidates) - _MANY
            kind = BadEncodings if suffix == ".encodings" else BadModel
            raise kind(
                f"it holds {len(candidates)} {suffix} files: {shown}"
                + (f" and {more} more" if more > 0 else ""),
                where=str(root),
                remedy=f"name one of them in {field_name}",
            )
    return None


def _with_suffix(paths: Iterable[Path], suffix: str) -> list[Path]:
    named = [path for path in paths if path.name.endswith(suffix)]
    return sorted(path for path in named if not path.is_dir() and stands(path))


def stands(path: Path) -> bool:
    """Whether a file stands there.

    Raises:
        BadModel: Something else does in its place, which would be left out without a word: a link
            that leads nowhere (a file that was moved, or not fetched), a folder, a FIFO.
    """
    if path.is_file():
        return True
    if path.is_symlink():
        what, remedy = "it is a link that leads nowhere", "restore what it leads to, or remove it"
    elif path.exists():
        what, remedy = "it is no ordinary file", "put the model's own there, or remove it"
    else:
        return False
    raise BadModel(what, where=str(path), remedy=remedy)


def _named(root: Path, name: str, field_name: str) -> Path:
    path = root / name
    if not path.is_file():
        raise BadInput(
            f"there is no file {path}", where=field_name, remedy=f"name a file below {root}"
        )
    return path


def data_locations(onnx: Path) -> list[str]:
    """Locations of external data, in order, each once."""
    if onnx.stat().st_size == 0:
        raise BadModel("it is empty", where=str(onnx), remedy="export the model again")
    with onnx.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return list(dict.fromkeys(_locations(data, onnx)))


def _locations(data: mmap.mmap, onnx: Path) -> Iterator[str]:
    for match in _LOCATION.finditer(data):
        # A varint of one or two bytes: no path is longer than 16383 bytes.
        length = match[1][0] & 0x7F
        if len(match[1]) == 2:
            length |= match[1][1] << 7
        raw = data[match.end() : match.end() + length]
        try:
            location = raw.decode()
        except UnicodeDecodeError:
            continue
        path = PurePosixPath(location)
        if not location or path.is_absolute() or ".." in path.parts or "\\" in location:
            raise BadModel(
                f"external data at {location!r} lies outside the model's folder",
                where=str(onnx),
                remedy="export the model again with its data beside it",
            )
        yield str(path)


def data_file(onnx: Path, location: str) -> Path:
    if location in {MODEL_ROLE, ENCODINGS_ROLE, CONFIG_ROLE, TOKENS_ROLE, TOKENS_TEXT_ROLE}:
        raise BadModel(
            f"its external data is called {location}, which stands for another file",
            where=str(onnx),
            remedy="export the model again with another name for its data",
        )
    path = onnx.parent / location
    if not path.is_file():
        raise BadModel(
            f"its external data {location} is missing",
            where=str(onnx),
            remedy=f"put {path.name} into {path.parent}",
        )
    return path
