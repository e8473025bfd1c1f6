"""No file of a stranger ends in a traceback: it is read, or refused in one line with exit code 2.

The runs are the same every time. `make test-long` tries forty times as many files.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import yaml

from genai_core.errors import BadInput, DriftError
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.documents.reading import read_build_text
from genai_core.operations import IngestConfig
from genai_core.sources.encoding_bits import weight_bits
from genai_core.sources.source_files import inspect_source
from genai_runtime.evaluate import read_pieces
from genai_runtime.generate import stop_tokens
from genai_runtime.tokenizer import TextTokenizer
from genai_stages.aimet.read import read_encodings
from genai_stages.architectures.detect import detect
from genai_stages.ingest.model_files import check_tokens, own_entries, read_beside
from genai_stages.ingest.source.source_model import (
    SourceModel,
    constant_of,
    read_config,
    read_source,
)
from genai_stages.operations import ingest
from genai_stages.stage import Context
from genai_stages.testing_mutations import changed_bytes, changed_json, changed_onnx, changed_value

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
MODELS = FIXTURES / "architectures"
EXAMPLE = ROOT / "examples" / "tiny-llama"
SLOWEST = 20.0
"""Seconds that one file keeps a processor busy, which other work on the machine does not change."""
LONG = 40

Read = Callable[[Random, Path], None]


def encodings(random: Random, folder: Path) -> None:
    """An encodings file of every version beside a model."""
    form = {"enc_type": "PER_TENSOR", "bw": 16, "dtype": "INT", "is_sym": False, "scale": [0.1]}
    lpbq = {"enc_type": "LPBQ", "bw": 8, "compressed_bw": 4, "scale": [0.1] * 2, "block_size": 2}
    old = {"bitwidth": 8, "dtype": "int", "is_symmetric": "True", "scale": 0.1, "offset": -128}
    block = {"output_dtype": "int4", "axis": 1, "block_size": 2}
    meta = {"x": [[1, 2], [3, 4]], "x_scale": [0.1, 0.2], "axis": 0, "x_zero_point": [0, 0]}
    files: list[dict[str, Any]] = [
        {
            "version": "1.0.0",
            "activation_encodings": [{"name": "logits", "offset": [-5], **form}],
            "param_encodings": [
                {"name": "a", "dtype": "INT", "is_sym": True, "offset": [-8] * 2,
                 "per_block_int_scale": [1, 2, 3, 4], **lpbq},
                {"name": "b", **form, "enc_type": "PER_CHANNEL", "scale": [0.1] * 80,
                 "offset": [-128] * 80},
            ],
        },
        {"version": "0.6.1", "activation_encodings": {"logits": [old]},
         "param_encodings": {"w": [old] * 3}},
        {"version": "2.1.0", "encodings": [
            {"name": "logits", "output_dtype": "uint16", "y_scale": 0.1, "y_zero_point": 5},
            {"name": "w", "y_scale": meta, **block},
            {"name": "v", "per_block_int_scale": [[1, 2], [3, 4]],
             "per_channel_float_scale": [0.1, 0.2], **block},
        ]},
    ]  # fmt: skip
    path = folder / "model.encodings"
    path.write_bytes(changed_json(random, random.choice(files)))
    weight_bits(path)
    read_encodings(path)
    read_beside(folder)


@functools.cache
def _llama() -> SourceModel:
    return read_source(MODELS / "llama" / "model.onnx", {})


def fitted_encodings(random: Random, folder: Path) -> None:
    """Scales for a model's own tensors, held against its graph."""
    source = _llama()
    names = [*source.model.graph.initializers, *(n.outputs[0].name for n in source.model.graph)]
    entries = [
        {"name": random.choice(names), "output_dtype": "int8", "axis": random.choice((0, 1, -1)),
         "y_scale": [0.1] * random.choice((1, 32, 64))}
        for _ in range(3)
    ]  # fmt: skip
    value = changed_value(random, {"version": "2.0.0", "encodings": entries})
    (folder / "model.encodings").write_text(json.dumps(value), encoding="utf-8")
    found = read_beside(folder)
    assert found is not None
    own_entries(found, source)


def config(random: Random, folder: Path) -> None:
    """config.json, as planning and ingest read it."""
    model = random.choice(sorted(MODELS.glob("*/model.onnx"))).parent
    shutil.copyfile(model / "model.onnx", folder / "model.onnx")
    content = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_bytes(changed_json(random, content))
    spec = BuildSpec.model_validate({"model": {"source": str(folder)}, "targets": ["cpu"]})
    inspect_source(spec, folder, FileCache(None))
    detect(read_config(folder), None)
    stop_tokens(folder)


def graph(random: Random, folder: Path) -> None:
    """An ONNX file up to where it is taken apart."""
    model = random.choice([MODELS / name for name in ("llama", "qwen2", "dynamo-llama", "phi3")])
    path = folder / "model.onnx"
    path.write_bytes(changed_onnx(random, (model / "model.onnx").read_bytes()))
    spec = BuildSpec.model_validate({"model": {"source": str(folder)}, "targets": ["cpu"]})
    inspect_source(spec, folder, FileCache(None))
    source = read_source(path, {})
    for name, value in list(source.model.graph.initializers.items())[:40]:
        assert value.const_value is not None
        constant = constant_of(path, name, value.const_value)
        if constant.size < 1 << 22:
            constant.array()


def ingested(random: Random, folder: Path) -> None:
    """All of ingest, of a changed graph or a changed config.json."""
    model = MODELS / random.choice(("llama", "qwen2", "gemma2", "phi3"))
    (folder / "source").mkdir()
    (folder / "out").mkdir()
    data = (model / "model.onnx").read_bytes()
    content = (model / "config.json").read_bytes()
    if random.random() < 0.6:
        data = changed_onnx(random, data)
    else:
        content = changed_json(random, json.loads(content))
    (folder / "source" / "model.onnx").write_bytes(data)
    (folder / "source" / "config.json").write_bytes(content)
    context = Context(scratch=folder / "scratch")
    ingest.run({"source": folder / "source"}, IngestConfig(), folder / "out", context)


def tokenizer(random: Random, folder: Path) -> None:
    """tokenizer.json, whose library is written in another language and panics."""
    content = json.loads((EXAMPLE / "model" / "tokenizer.json").read_text())
    model = content["model"]
    model["vocab"] = dict(list(model["vocab"].items())[:300])
    model["merges"] = model["merges"][:20]
    path = folder / "tokenizer.json"
    if random.random() < 0.2:
        rule = random.choice(("(a+)+$", "(", "(?<=a+)b", "\\p{Nope}", "a{99999}{99999}"))
        content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": rule},
                                    "behavior": "Isolated", "invert": False}  # fmt: skip
        path.write_text(json.dumps(content))
    else:
        path.write_bytes(changed_json(random, content))
    if random.random() < 0.25:  # a process for each
        check_tokens(folder, 300)
    found = TextTokenizer(path)
    found.decode(found.encode("def f(x): " + "a" * 40 + "!").tolist())


def arrays(random: Random, folder: Path) -> None:
    """A .npy or .npz of token ids."""
    stream = io.BytesIO()
    tokens = np.arange(40).reshape(2, 20)
    (np.savez if random.random() < 0.2 else np.save)(stream, tokens)
    data = changed_bytes(random, stream.getvalue()[:200]) + stream.getvalue()[200:]
    (folder / "tokens.npy").write_bytes(data)
    check_tokens(folder, 64)
    read_pieces(folder / "tokens.npy")


def spec(random: Random, folder: Path) -> None:
    """A build's YAML."""
    value = yaml.safe_load((EXAMPLE / "build.yaml").read_text())
    value["spec"]["transformation"] = {"additionalStartPoints": [{"tensor": "(a+)+b"}]}
    value["spec"]["run"] = {"resources": {"limits": {"memory": "8Gi"}}, "nodeSelector": {"a": "b"}}
    if random.random() < 0.5:
        data = changed_json(random, value)
    else:
        data = changed_bytes(random, yaml.safe_dump(value).encode())
        odd = (
            b"&a [*a]\n",
            b"!!python/object:x {}\n",
            b"\t",
            b"<<: *a\n",
            b"%TAG ! x:\n",
            b"- " * 99,
        )
        at = random.randrange(len(data) + 1)
        data = data[:at] + random.choice(odd) + data[at:]
    read_build_text(data, where="build.yaml", folder=folder)


FILES: dict[Read, int] = {
    encodings: 300,
    fitted_encodings: 60,
    config: 200,
    graph: 80,
    ingested: 16,
    tokenizer: 120,
    arrays: 200,
    spec: 150,
}


def attack(read: Read, folder: Path, *, seed: int, count: int) -> None:
    """Read so many changed files; what goes wrong names the one."""
    wrong: list[str] = []
    for number in range(count):
        where = folder / "file"
        where.mkdir()
        began = time.process_time()
        try:
            read(Random(f"{seed}-{number}"), where)
        except BadInput as error:
            if error.exit_code != 2 or "\n" in str(error) or not error.where:
                wrong.append(f"{number}: {error}")
        except DriftError:
            pass  # a graph that is whole and computes something else than it seems to
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            frame = error.__traceback__
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            at = "" if frame is None else f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
            wrong.append(f"{number}: {type(error).__name__} at {at}: {str(error)[:200]}")
        seconds = time.process_time() - began
        if seconds > SLOWEST:
            wrong.append(f"{number}: {seconds:.0f} s")
        shutil.rmtree(where)
    assert not wrong, f"{len(wrong)} of {count} files of seed {seed}:\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("read", FILES, ids=lambda read: read.__name__)
@pytest.mark.filterwarnings("ignore")
def test_reader_refuses_in_one_line_when_a_file_is_broken(read: Read, tmp_path: Path) -> None:
    attack(read, tmp_path, seed=1, count=FILES[read])


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("read", FILES, ids=lambda read: read.__name__)
@pytest.mark.filterwarnings("ignore")
def test_reader_refuses_in_one_line_when_many_files_are_broken(
    read: Read, seed: int, tmp_path: Path
) -> None:
    attack(read, tmp_path, seed=seed, count=LONG * FILES[read])
