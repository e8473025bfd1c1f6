"""Writes every generated file from the code, or checks that none differs.

    python tools/generate.py           # write
    python tools/generate.py --check   # exit 1 and name what differs

Generated files are never edited by hand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import delivery
import observing
import yaml
from reference import page

from genai_core.kinds.definitions.crd import crd
from genai_core.kinds.definitions.defined_kinds import KINDS
from genai_core.reasons import Reason

ROOT = Path(__file__).parents[1]
HEADER = "# Generated from core/genai_core/kinds by `make generate`; never edit.\n"


class _Plain(yaml.SafeDumper):
    """YAML without anchors: people and kubectl diff read it."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _dump(value: object) -> str:
    return yaml.dump(value, Dumper=_Plain, sort_keys=False, width=100)


def crds() -> dict[Path, str]:
    """One file for each kind."""
    return {ROOT / "crds" / f"{kind.plural}.yaml": HEADER + _dump(crd(kind)) for kind in KINDS}


def pages() -> dict[Path, str]:
    """The reference pages."""
    example = (ROOT / "examples" / "tiny-llama" / "build.yaml").read_text(encoding="utf-8")
    build = next(kind for kind in KINDS if kind.kind == "GenAIBuild")
    return {
        ROOT / "docs" / "build-yaml.md": page(build, example),
        ROOT / "docs" / "reasons.md": reasons_page(),
    }


def reasons_page() -> str:
    """The reference page of conditions' reasons."""
    rows = "".join(
        f"| {reason} | {reason.of} | {reason.means} | {reason.todo} |\n" for reason in Reason
    )
    return (
        "# Reasons of conditions\n\n"
        "Made of core/genai_core/reasons.py by `make generate`; never edited.\n\n"
        "The condition Ready of each object has one of these, or the code of an error that its\n"
        "user can mend (InvalidSpec, BadModel, BadEncodings, DeadlineExceeded ...); the message\n"
        "beside it names the field, the file or the object. What each state looks like is told in\n"
        "[health.md](health.md).\n\n"
        "| reason | of | what is so | what to do |\n|---|---|---|---|\n" + rows
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    differing = []
    for path, text in {**crds(), **pages(), **delivery.files(_dump), **observing.files()}.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        differing.append(path.relative_to(ROOT))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in differing:
        print(f"{'differs' if check else 'written'}: {path}")
    if check and differing:
        print("run: make generate", file=sys.stderr)
        return 1
    if not delivery.base_is_current():
        print(f"differs: {delivery.BASE.relative_to(ROOT)}: the chart changed", file=sys.stderr)
        print("run: make manifests", file=sys.stderr)
        return 1 if check else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
