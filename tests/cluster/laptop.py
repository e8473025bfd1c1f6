"""What `genai build` makes of a spec on this machine: revisions that a cluster must give too."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TINY_MODEL = ROOT / "examples" / "tiny-llama" / "model"
SMALL_MODEL = ROOT / "tests" / "fixtures" / "architectures" / "llama"
FOLDERS = {"s3://models/tiny-llama": TINY_MODEL, "s3://models/small-llama": SMALL_MODEL}

TINY: dict[str, Any] = {
    "model": {"source": "s3://models/tiny-llama"},
    "targets": ["cpu"],
    "graphs": {"autoRegression": [1, 32], "contextLengths": [256]},
    "splits": {"count": 3},
    "golden": {"prompts": ["def __init__(self, ", "import os\nimport sys\n"], "maxTokens": 16},
}
SMALL: dict[str, Any] = {
    "model": {"source": "s3://models/small-llama"},
    "targets": ["cpu"],
    "graphs": {"autoRegression": [1, 32], "contextLengths": [128]},
    "splits": {"count": 2},
    "quantization": {"gaps": "Float", "cpuPrecision": "Float"},
}


class Laptop:
    """Builds each spec once, all into one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, dict[str, str]] = {}

    def revisions(self, spec: dict[str, Any]) -> dict[str, str]:
        """Target -> revision."""
        name = json.dumps(spec, sort_keys=True)
        if name not in self._known:
            self._known[name] = self._build(spec)
        return self._known[name]

    def _build(self, spec: dict[str, Any]) -> dict[str, str]:
        source = spec["model"]["source"]
        local = spec | {"model": spec["model"] | {"source": str(FOLDERS[source])}}
        document = {
            "apiVersion": "genai-operator.dev/v1alpha1",
            "kind": "GenAIBuild",
            "metadata": {"name": "laptop"},
            "spec": local,
        }
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            file = Path(folder, "build.yaml")
            file.write_text(yaml.safe_dump(document))
            ran = subprocess.run(
                [
                    str(ROOT / ".venv/bin/genai"), "build", "-f", str(file),
                    "--store", str(self.folder / "store"), "--output", f"{folder}/out", "--json",
                ],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        containers = json.loads(ran.stdout)["containers"]
        return {target: entry["revision"] for target, entry in containers.items()}
