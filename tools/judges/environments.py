"""Virtual environments of the judges, made where there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".build" / "judges"
REQUIREMENTS = {
    "lm-eval": ("lm-eval[api]==0.4.13", "transformers"),
    "comply": ("llm-comply==0.5.0",),
    "aimet": ("aimet-onnx==2.42.0",),
}


def environment(judge: str) -> Path:
    """The Python of a judge's environment, with exactly the packages named above."""
    folder = FOLDER / judge
    python, ready = folder / "bin" / "python", folder / ".ready"
    wanted = "\n".join(REQUIREMENTS[judge])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"makes {folder.relative_to(ROOT)}: {wanted}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[judge]]
        subprocess.run(install, check=True)
        ready.write_text(wanted)
    return python
