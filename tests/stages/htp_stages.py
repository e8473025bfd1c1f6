"""What every small Snapdragon build of the tests is made of: one graph in two splits."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from genai_core.operations import ChipConfig, GraphConfig, SplitConfig
from genai_stages.stage import Context

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
GRAPH = GraphConfig(ar=8, cl=32)
CHIP = ChipConfig(soc_model=69, dsp_arch=79)
SPLITS = (
    SplitConfig(index=1, count=2, first=0, last=1, embedding=True, lm_head=False),
    SplitConfig(index=2, count=2, first=1, last=2, embedding=False, lm_head=True),
)


def fresh(parent: Path) -> Context:
    """What the runner gives every task: an empty private folder."""
    return Context(scratch=Path(tempfile.mkdtemp(dir=parent)), threads=1)


def beside_weights(core: Path, to: Path) -> Path:
    """A task's output folder with the core graph's weights, as the runner lays them out."""
    shutil.copytree(core, to)
    (to / "model.onnx").unlink()
    return to


def example_assets(to: Path) -> Path:
    """The files that a container takes from a model's source."""
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        shutil.copy(EXAMPLE / name, to / name)
    return to
