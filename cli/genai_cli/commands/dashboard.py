"""`genai dashboard`: a page of what a cluster builds and serves."""

from __future__ import annotations

from typing import Annotated

import typer

from genai_cli import options

EXAMPLES = """\b
Examples:
  genai dashboard
  genai dashboard -A --port 0
"""


def dashboard(
    *,
    namespace: options.Namespace = None,
    everywhere: options.AllNamespaces = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0 takes a free one.")
    ] = 8790,
    kubeconfig: options.Kubeconfig = None,
    context_name: options.Context = None,
) -> int:
    """Show builds and deployments of a cluster on a web page, with your own rights.

    It listens on 127.0.0.1 until Ctrl-C and only reads.
    """
    from genai_cli.dashboard.command import serve_dashboard

    access = options.access(kubeconfig, context_name, namespace)
    return serve_dashboard(access, everywhere=everywhere, port=port)
