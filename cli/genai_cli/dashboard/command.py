"""What `genai dashboard` does."""

from __future__ import annotations

import sys

from genai_cli.cluster.connection import Access, connect
from genai_cli.dashboard.server import DashboardServer
from genai_cli.dashboard.snapshot import Snapshots
from genai_core.errors import BadInput

__all__ = ["serve_dashboard"]


def serve_dashboard(access: Access, *, everywhere: bool, port: int) -> int:
    """Serve the page until Ctrl-C; returns the exit code.

    Raises:
        BadInput: The port is taken.
        NoCluster: There is no kubeconfig.
    """
    cluster = connect(access)
    namespace = "" if everywhere else cluster.namespace
    try:
        server = DashboardServer(Snapshots(cluster), namespace=namespace, port=port)
    except OSError as error:
        raise BadInput(
            f"it cannot be listened on: {error.strerror or error}",
            where=f"--port {port}",
            remedy="choose another, or 0 for any that is free",
        ) from error
    sys.stdout.write(f"context {cluster.name}: open {server.address}\n")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0
