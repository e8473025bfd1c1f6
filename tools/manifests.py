"""Renders deploy/kustomize/base/operator.yaml from the chart with helm (`make manifests`).

    python tools/manifests.py            # write it
    python tools/manifests.py --check    # exit 1 where it differs, byte for byte

Helm is the one on PATH, or the tests' own, built from its Go module.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from delivery import BASE, CHART, ROOT, stamped

NAMESPACE = "genai-system"
KUBE_VERSION = "1.29.0"
_NAMESPACE = f"""---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""


def helm() -> str:
    """A helm program; builds one where there is none, which takes a minute or two."""
    if found := shutil.which("helm"):
        return found
    sys.path.insert(0, str(ROOT / "tests" / "cluster"))
    from harness import programs

    return str(programs.module("helm"))


def render(program: str) -> str:
    """The chart with its defaults, without what only helm reads."""
    text = subprocess.run(
        [
            program, "template", "genai-operator", str(CHART), "--namespace", NAMESPACE,
            "--kube-version", KUBE_VERSION, "--skip-tests",
        ],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    text = re.sub(r"^ *helm\.sh/chart: .*\n", "", text, flags=re.MULTILINE)
    text = text.replace(
        "app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kustomize"
    )
    return stamped(_NAMESPACE + text)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    wanted = render(helm())
    path: Path = BASE
    if path.exists() and path.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{'differs' if check else 'written'}: {path.relative_to(ROOT)}")
    if check:
        print("run: make manifests", file=sys.stderr)
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
