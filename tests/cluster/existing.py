"""A cluster that is there already: kind, k3d, a real one. It is used as it is.

GENAI_TEST_KUBECONFIG     a kubeconfig with an administrator's rights
GENAI_TEST_STAGES_IMAGE   the image of the stages by digest, where that cluster's nodes find it
GENAI_TEST_S3             endpoint of an S3 server that pods and this machine reach alike
GENAI_TEST_S3_KEYS        access:secret of somebody who may make buckets there
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.cluster import Cluster

VARIABLES = (
    "GENAI_TEST_KUBECONFIG",
    "GENAI_TEST_STAGES_IMAGE",
    "GENAI_TEST_S3",
    "GENAI_TEST_S3_KEYS",
)


class ExistingCluster(Cluster):
    """Has no nodes and no processes that tests could kill."""

    def __init__(self) -> None:
        super().__init__(Path(os.environ["GENAI_TEST_KUBECONFIG"]).parent)
        self.admin = Path(os.environ["GENAI_TEST_KUBECONFIG"])

    @property
    def s3_endpoint(self) -> str:
        """See the module's docstring."""
        return os.environ["GENAI_TEST_S3"]

    @property
    def s3_keys(self) -> tuple[str, str]:
        """See the module's docstring."""
        access, _, secret = os.environ["GENAI_TEST_S3_KEYS"].partition(":")
        return access, secret


def wanted() -> bool:
    """Whether the tests are to run in an existing cluster."""
    return "GENAI_TEST_KUBECONFIG" in os.environ


def lacking() -> list[str]:
    """Variables that are not set and must be."""
    return [f"the variable {name}" for name in VARIABLES if not os.environ.get(name)]
