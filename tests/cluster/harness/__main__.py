"""`python -m harness up|down [--nodes N] [--image TARGET ...]`: the cluster by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cluster import Cluster

DEFAULT = Path("/tmp/genai-cluster")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="harness")
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--folder", type=Path, default=DEFAULT)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--image", action="append", default=[], help="target of the Dockerfile")
    arguments = parser.parse_args()
    if (arguments.folder / "cluster.json").exists():
        Cluster.attach(arguments.folder).down()
    if arguments.command == "down":
        return
    cluster = Cluster(arguments.folder)
    cluster.up(arguments.nodes, tuple(arguments.image))
    print(f"export KUBECONFIG={cluster.admin}")


if __name__ == "__main__":
    main()
