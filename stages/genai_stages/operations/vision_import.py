"""An encoder of pictures -> the `vision/` folder of its model's container.

Inputs: `vision`, an ONNX file (pixels float [1, 3, height, width] -> embeddings [1, tokens, hidden
size]) with its data, preprocessor_config.json or config.json; `core`, the core graph with its
facts; `assets`, the model's tokenizer.json and config.json. Output: the encoder as it is, its data,
and `vision.json` (`genai_core.container.vision_info.VisionInfo`).

The encoder is run on a grey picture: what it yields is held against the model's hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from genai_core.container.vision_info import VISION_INFO_FILE, Preprocessing, VisionInfo
from genai_core.errors import BadModel
from genai_core.facts import ModelFacts
from genai_core.files.foreign import read_json_object
from genai_core.names import VISION, VISION_ROLE
from genai_core.operations import VisionImportConfig
from genai_core.sources.vision_files import PREPROCESSOR_ROLES
from genai_runtime.tokenizer import TextTokenizer
from genai_runtime.vision.encoder import VisionEncoder
from genai_stages.graph.core_graph import read_core
from genai_stages.input_folders import find_file
from genai_stages.stage import Context, Inputs, StageResult
from genai_stages.twin_folder import place
from genai_stages.vision.encoder_file import EncoderForm, read_encoder
from genai_stages.vision.preprocessor import read_preprocessing
from genai_stages.vision.text_model import refuse_text_model

__all__ = ["run"]

_WHERE = "spec.vision.source"
_INFO = Path(VISION_INFO_FILE).name
_PLACEHOLDER = 0
"""Stands for a picture among ids where the tokenizer has no token for it; any would do."""


def run(inputs: Inputs, config: VisionImportConfig, out: Path, context: Context) -> StageResult:
    """Hold the encoder against the model, and write what the container needs.

    Raises:
        BadModel: The encoder or its preprocessing is broken, of another model, or of a kind that
            is not supported.
    """
    source = inputs[VISION]
    model, facts = read_core(inputs["core"])
    assets = {"assets": inputs["assets"]} if "assets" in inputs else {}
    stated = find_file(assets, "config.json")
    refuse_text_model(
        model, facts, {} if stated is None else read_json_object(stated, where="config.json")
    )
    form = read_encoder(source / VISION_ROLE)
    how = read_preprocessing(source, _size(form, source, dynamic=config.dynamic))
    token, known = _image_token(config.image_token, assets, facts)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and name not in PREPROCESSOR_ROLES:
            place(path, out / name)
    info = VisionInfo(
        image_token=config.image_token,
        image_token_id=token,
        in_vocabulary=known,
        input=form.input,
        output=form.output,
        tokens=None,
        hidden_size=facts.hidden_size,
        preprocessing=how,
    )
    counts, widest = _tried(info, out, threads=context.threads)
    info = info.model_copy(update={"tokens": None if config.dynamic else counts[0]})
    (out / _INFO).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
    warnings = () if known else (_cut_at(config.image_token, token),)
    said: dict[str, Any] = {"tokens": info.tokens or counts, "inVocabulary": known}
    return StageResult(facts=said, notes={"widest": round(widest, 4)}, warnings=warnings)


def _size(form: EncoderForm, source: Path, *, dynamic: bool) -> tuple[int, int] | None:
    if dynamic and form.size is not None:
        raise BadModel(
            f"tokensPerImage is Dynamic, and the encoder takes {form.size[0]} x {form.size[1]} "
            "pixels alone",
            where="spec.vision.tokensPerImage",
            remedy="write Fixed, or export the encoder with free axes for height and width",
        )
    if not dynamic and form.size is None:
        raise BadModel(
            "tokensPerImage is Fixed, and the encoder takes pixels of any height and width",
            where="spec.vision.tokensPerImage",
            remedy="write Dynamic, or export the encoder for one size",
        )
    return form.size


def _image_token(text: str, assets: Inputs, facts: ModelFacts) -> tuple[int, bool]:
    """The id that stands for a picture, and whether the tokenizer has it."""
    path = find_file(assets, "tokenizer.json")
    found = None if path is None else TextTokenizer(path).token(text)
    if found is not None and found >= facts.vocab_size:
        raise BadModel(
            f"token {text} is {found}, and the model's embedding table has {facts.vocab_size} rows",
            where="spec.vision.imageToken",
            remedy="take the tokenizer and the model from one export",
        )
    return (_PLACEHOLDER, False) if found is None else (found, True)


def _cut_at(text: str, token: int) -> str:
    return (
        f"the tokenizer has no token {text}: prompts are cut at this text, and token {token} "
        "stands for a picture among token ids"
    )


def _tried(info: VisionInfo, folder: Path, *, threads: int) -> tuple[list[int], float]:
    """Tokens of grey pictures, one of each size that is tried, and their largest value."""
    encoder = VisionEncoder(folder, info, threads=threads, where=_WHERE)
    counts, widest = [], 0.0
    for size in _sizes(info.preprocessing):
        embeddings = encoder.run(np.zeros((1, 3, *size), np.float32))
        counts.append(len(embeddings))
        widest = max(widest, float(np.abs(embeddings).max()))
    if info.preprocessing.size is None and len(set(counts)) == 1:
        raise BadModel(
            f"tokensPerImage is Dynamic, and the encoder yields {counts[0]} embeddings for every "
            "size",
            where="spec.vision.tokensPerImage",
            remedy="write Fixed, or export the encoder for pictures of any size",
        )
    return counts, widest


def _sizes(how: Preprocessing) -> list[tuple[int, int]]:
    if how.size is not None:
        return [how.size]
    assert how.multiple is not None
    small = 4 * how.multiple
    return [(small, small), (small, 2 * small)]
