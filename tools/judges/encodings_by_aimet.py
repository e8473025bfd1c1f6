"""Record which scales, zero points and axes AIMET itself gives each tensor of the fixtures.

tests/stages/test_aimet_judge.py holds ours against the record.

    make judge-aimet
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from genai_stages.testing import assemble_step1
from judges.environments import ROOT, environment

EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
FIXTURES = ROOT / "tests" / "fixtures"
RECORD = FIXTURES / "encodings" / "judged-by-aimet.json.gz"


def cases(scratch: Path) -> list[tuple[str, str, str]]:
    """Name, model and encodings of each: every fixture in every version that is there."""
    folder = FIXTURES / "encodings"
    packed = scratch / "w4a16-0.6.1.encodings"
    packed.write_bytes(gzip.decompress((folder / f"{packed.name}.gz").read_bytes()))
    newest = scratch / "w4a16-2.1.0.encodings"
    text = (folder / "w4a16-2.0.0.encodings").read_text()
    newest.write_text(json.dumps(json.loads(text) | {"version": "2.1.0"}))
    model = str(EXAMPLE / "model.onnx")
    files = [EXAMPLE / "model.encodings", *sorted(folder.glob("*.encodings")), packed, newest]
    made = [(file.name, model, str(file)) for file in files]
    for form in ("left-pad", "right-pad"):
        for width in ("w4a16", "w8a16"):
            source = scratch / f"{form}-{width}"
            assemble_step1(FIXTURES / "step1" / form, EXAMPLE, source, encodings=width)
            made.append((source.name, str(source / "model.onnx"), str(source / "model.encodings")))
    return made


def main() -> int:
    """Write the record."""
    python = environment("aimet")
    with tempfile.TemporaryDirectory() as given:
        scratch = Path(given)
        asked, answers = scratch / "cases.json", scratch / "answers.json"
        asked.write_text(json.dumps(cases(scratch)))
        script = Path(__file__).with_name("asked_by_aimet.py")
        subprocess.run([python, script, asked, answers], check=True)
        told = json.loads(answers.read_text())
    for name, tensors in told.items():
        print(f"{name:24} {len(tensors)} tensors, "
              f"{sum(bool(of[3]) for of in tensors.values())} with an axis")  # fmt: skip
    RECORD.write_bytes(gzip.compress(json.dumps(told, indent=0).encode(), mtime=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
