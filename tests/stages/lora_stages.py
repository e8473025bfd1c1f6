"""A small random model with two adapters, through the stages of a Snapdragon build."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from adapter_files import write_peft
from htp_stages import CHIP, GRAPH, SPLITS, beside_weights, example_assets, fresh
from numpy.typing import NDArray

from genai_core.names import Gaps
from genai_core.operations import (
    ArclConfig,
    CompileHtpConfig,
    ConvertHtpConfig,
    LoraGraphConfig,
    LoraImportConfig,
    LoraRangesConfig,
    TransformConfig,
    UseCaseConfig,
    WornConfig,
)
from genai_runtime.htp.vendor import qnn
from genai_stages.graph.core_graph import read_core
from genai_stages.graph.linear_sites import linear_sites
from genai_stages.operations import (
    arcl,
    compile_htp,
    convert_htp,
    lora_graph,
    lora_import,
    lora_ranges,
    transform,
)
from genai_stages.quantize.segments import SegmentedModel
from genai_stages.testing import keep_expanded, random_core_model

SMALL, LARGE = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
PEFT_ALPHA = 2
RANKS = {"small": 3, "large": 6}
CASE = UseCaseConfig(
    name="both",
    adapters=(WornConfig(name="small", alpha="0.5"), WornConfig(name="large", alpha="0.25")),
)
Stored = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]

needs_qnn = [
    pytest.mark.qnn,
    pytest.mark.skipif(
        bool(qnn.why_unavailable()),
        reason=f"NO ADAPTER WAS RUN ON A SNAPDRAGON GRAPH: {qnn.why_unavailable()}",
    ),
]


def merged(core: Path, to: Path, adapters: Sequence[tuple[Stored, float]]) -> Path:
    """A copy of the core graph with B A added to its weights: what no code of ours computes."""
    shutil.copytree(core, to)
    model, _ = read_core(to)
    for stored, factor in adapters:
        for module, (a, b) in stored.items():
            tensor = model.graph.initializers[f"{module}.weight"].const_value
            assert isinstance(tensor, ir.ExternalTensor)
            shape = tuple(tensor.shape.numpy())
            weight = np.memmap(
                tensor.path, np.float32, "r+", offset=tensor.offset or 0, shape=shape
            )
            weight += np.float32(factor) * (b @ a)
            weight.flush()
    return to


class Stages:
    """Folders of every stage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.core = root / "core"
        random_core_model(self.core, vocab=2048, hidden=32, intermediate=48)
        keep_expanded(self.core)
        random = np.random.default_rng(0)
        self.text = self.folder("calibration")
        np.save(self.text / "tokens.npy", random.integers(0, 2048, (8, 32)))
        self.tokens = random.integers(0, 2048, 20)
        self.source = example_assets(self.folder("source"))
        self.stored: dict[str, Stored] = {}
        self.imported: dict[str, Path] = {}
        for seed, (name, last) in enumerate((("small", SMALL), ("large", LARGE))):
            peft = root / f"peft_{name}"
            sites = {
                s.weight.removesuffix(".weight"): s for s in linear_sites(read_core(self.core)[0])
            }
            modules = {
                module: (site.outputs, site.inputs)
                for module, site in sites.items()
                if module.rpartition(".")[2] in last
            }
            self.stored[name] = write_peft(
                peft, modules, rank=RANKS[name], seed=seed, lora_alpha=PEFT_ALPHA
            )
            self.imported[name] = self.folder(f"import_{name}")
            inputs = {"adapter": peft, "core": self.core}
            lora_import.run(inputs, LoraImportConfig(), self.imported[name], fresh(root))
        self.adapters = {f"adapter_{i}": path for i, path in enumerate(self.imported.values())}
        self.graph = self.folder("lora_graph")
        lora_graph.run(
            {"core": self.core, **self.adapters},
            LoraGraphConfig(together=((0, 1),)),
            self.graph,
            fresh(root),
        )

    def folder(self, name: str) -> Path:
        made = self.root / name
        made.mkdir()
        return made

    def scale(self, name: str) -> float:
        """PEFT's lora_alpha / r."""
        return PEFT_ALPHA / RANKS[name]

    def reference(self, **alphas: float) -> NDArray[np.float32]:
        """Logits of the float model with adapters merged into its weights."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        worn = [(self.stored[name], alpha * self.scale(name)) for name, alpha in alphas.items()]
        made = merged(self.core, folder / "core", worn)
        (found,) = SegmentedModel(made, folder / "float").logits([self.tokens])
        return found

    def static(self) -> Path:
        """arcl of the graph with its weights beside it."""
        static = beside_weights(self.core, self.root / "static")
        inputs = {"model": self.core, "adapters": self.graph}
        arcl.run(inputs, ArclConfig(graph=GRAPH), static, fresh(self.root))
        return static

    def compiled(self) -> dict[str, Path]:
        """All splits, converted and compiled."""
        static = self.static()
        self.ranges = self.folder("lora_ranges")
        lora_ranges.run(
            {"core": self.core, "adapters": self.graph, "calibration": self.text, **self.adapters},
            LoraRangesConfig(together=(((0, "0.5"), (1, "0.25")),)),
            self.ranges,
            fresh(self.root),
        )
        found = {}
        for split in SPLITS:
            part = beside_weights(self.core, self.root / f"transform_{split.index}")
            config = TransformConfig(graph=GRAPH, split=split)
            transform.run({"model": static}, config, part, fresh(self.root))
            converted = self.folder(f"convert_{split.index}")
            convert_htp.run(
                {
                    "model": part, "core": self.core, "calibration": self.text,
                    "adapters": self.graph, "ranges": self.ranges,
                },
                ConvertHtpConfig(graph=GRAPH, split=split, gaps=Gaps.CALIBRATE),
                converted,
                fresh(self.root),
            )  # fmt: skip
            compiled = self.folder(f"compile_{split.index}")
            compile_htp.run(
                {"ar8_cl32": converted},
                CompileHtpConfig(chip=CHIP, split=split, graphs=(GRAPH,), emulation=True),
                compiled,
                fresh(self.root),
            )
            found[f"part_{split.index}"] = compiled
        return found


def decibels(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    noise = np.square(wanted.astype(np.float64) - got).mean()
    return float(10 * np.log10(np.square(wanted.astype(np.float64)).mean() / noise))
