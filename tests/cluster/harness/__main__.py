"""`python -m harness up|down|check [--nodes N] [--image TARGET ...]`: the cluster by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness import programs
from harness.cluster import Cluster

DEFAULT = Path("/tmp/genai-cluster")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="harness")
    parser.add_argument("command", choices=("up", "down", "check"))
    parser.add_argument("--folder", type=Path, default=DEFAULT)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--image", action="append", default=[], help="target of the Dockerfile")
    arguments = parser.parse_args()
    if arguments.command == "check":
        lacking = programs.missing()
        sys.exit(f"no cluster of its own here: it lacks {', '.join(lacking)}" if lacking else 0)
    if (arguments.folder / "cluster.json").exists():
        Cluster.attach(arguments.folder).down()
    if arguments.command == "down":
        return
    if lacking := programs.missing():
        sys.exit(_refusal(lacking))
    cluster = Cluster(arguments.folder)
    cluster.up(arguments.nodes, tuple(arguments.image))
    print(f"export KUBECONFIG={cluster.admin}")


def _refusal(lacking: list[str]) -> str:
    """What is missing, and what brings it."""
    remedy = "run it as root" if lacking == ["root"] else "run tools/cluster_packages.sh as root"
    return f"error: no cluster can be made here: it lacks {', '.join(lacking)}; {remedy}"


if __name__ == "__main__":
    main()
