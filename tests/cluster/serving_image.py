"""The server's image where pods find it."""

from __future__ import annotations

import os

import existing
import pytest
from harness import images
from harness.cluster import Cluster

IMAGE = "localhost/genai-serving:test"


def pinned(cluster: Cluster) -> str:
    """Its name by digest, once every node has it."""
    if given := os.environ.get("GENAI_TEST_SERVING_IMAGE"):
        return given
    if existing.wanted():
        pytest.skip("NOTHING WAS SERVED: GENAI_TEST_SERVING_IMAGE does not name an image")
    archive = images.project("serving")
    for node in cluster.nodes:
        if IMAGE not in node.images():
            node.load(archive)
    return [node.pin(IMAGE) for node in cluster.nodes][-1]
