"""Where a builder comes from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from genai_builder.gen_ai_api.builders.gen_ai_builder import (
    GenAIBuilder,
    GenAIBuilderCPU,
    GenAIBuilderHTP,
)
from genai_builder.model_files import find_model
from genai_core.errors import InvalidSpec
from genai_core.files.foreign import read_json_object

__all__ = ["GenAIBuilderFactory", "SupportedLLMs"]


class SupportedLLMs(StrEnum):
    """Architectures, as config.json's `model_type` has them, built and compared in tests."""

    BAICHUAN = "baichuan"
    GEMMA2 = "gemma2"
    GEMMA3 = "gemma3_text"
    LLAMA = "llama"
    MISTRAL = "mistral"
    PHI3 = "phi3"
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"


class GenAIBuilderFactory:
    """Makes builders."""

    @staticmethod
    def create(
        pretrained_model_path: str | os.PathLike[str],
        backend_type: Any = "HTP",
        *,
        cache_root: str | os.PathLike[str] | None = None,
        tokenizer_path: str | os.PathLike[str] | None = None,
        config_path: str | os.PathLike[str] | None = None,
        config_dict: Mapping[str, Any] | None = None,
    ) -> GenAIBuilder:
        """A builder of the backend.

        Args:
            pretrained_model_path: A model's folder, or its ONNX file.
            backend_type: "HTP" or "CPU".
            cache_root: The store; None: GENAI_STORE, else the user's cache. May be `s3://...`.
            tokenizer_path: Where the tokenizer lies; None: with config.json.
            config_path: config.json or its folder; None: the model's folder.
            config_dict: Refused: what is built follows from files alone.

        Raises:
            BadModel: There is no such file or folder.
            InvalidSpec: No such backend, config_dict is given, or folders that do not fit.
        """
        if config_dict is not None:
            raise InvalidSpec(
                "not supported: a key names the content of files",
                where="config_dict",
                remedy="write it into config.json",
            )
        backend = str(getattr(backend_type, "value", backend_type)).rpartition(".")[2].upper()
        kinds: dict[str, type[GenAIBuilder]] = {"HTP": GenAIBuilderHTP, "CPU": GenAIBuilderCPU}
        if backend not in kinds:
            raise InvalidSpec(
                f"no backend {backend_type!r}", where="backend_type", remedy="HTP or CPU"
            )
        model = find_model(
            pretrained_model_path, config_path=config_path, tokenizer_path=tokenizer_path
        )
        config = model.source / "config.json"
        kind = read_json_object(config).get("model_type") if config.is_file() else None
        if kind is not None and kind not in set(SupportedLLMs):
            warnings.warn(
                f"{config}: model_type {kind!r} is none of {', '.join(SupportedLLMs)}: it is built "
                "by the rules of all models",
                stacklevel=2,
            )
        return kinds[backend](model, cache_root=cache_root)
