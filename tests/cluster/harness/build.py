"""`python -m harness.build`: everything that the tests' clusters run, kept by content for later.

It needs the standard library alone, so that it may run while packages are installed.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from harness import images, programs

TESTED = ("coredns", "versitygw", "helm")
IMAGES = ("stages", "serving", "operator")
"""Both in the order in which tests need them; the rest is made while the first tests run."""


def main() -> None:
    """Compile every program and make every image."""
    if lacking := programs.missing():
        sys.exit(f"no cluster of its own here: it lacks {', '.join(lacking)}")
    with ThreadPoolExecutor() as pool:
        # Images wait for packages from the network; compiling waits for nothing.
        made = pool.submit(lambda: [images.pause(), *map(images.project, IMAGES)])
        programs.kube()
        for name in TESTED:
            programs.module(name)
        made.result()


if __name__ == "__main__":
    main()
