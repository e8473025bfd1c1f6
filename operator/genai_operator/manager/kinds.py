"""The table of kinds: what each watches, what wakes it, and who works on it.

A new kind is a row here, a row in `kube.apiserver.resources`, and a folder with its reconciler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from genai_operator.builds.kind import build_kind
from genai_operator.builds.reconciler import BuildReconciler
from genai_operator.deployments.kind import deployment_kind
from genai_operator.deployments.reconciler import DeploymentReconciler
from genai_operator.kube.apiserver.api import Api
from genai_operator.kube.watch.kinds import Kind, Ref
from genai_operator.kube.watch.observed import Observed
from genai_operator.settings import Settings
from genai_operator.stores.kind import store_kind
from genai_operator.stores.open_stores import Stores
from genai_operator.stores.reconciler import StoreReconciler
from genai_operator.targets.kind import target_kind
from genai_operator.targets.reconciler import TargetReconciler

__all__ = ["kinds_of"]


def kinds_of(
    api: Api, settings: Settings, observed: Observed, *, wake: Callable[[Ref], None]
) -> tuple[Kind[Any], ...]:
    """The table.

    Args:
        api: The apiserver.
        settings: Of the operator.
        observed: The watch cache.
        wake: Has an object looked at, of whatever kind.
    """
    open_stores = Stores(api, settings, observed.stores.get, timing=observed.timing)
    stores = StoreReconciler(
        api, observed, open_stores, collect_seconds=settings.collect_hours * 3600, wake=wake
    )
    builds = BuildReconciler(
        api, observed, open_stores, chain_tasks=settings.chain_tasks, doubt=stores.doubt
    )
    return (
        target_kind(observed, TargetReconciler(api, observed)),
        store_kind(observed, stores),
        deployment_kind(
            observed,
            DeploymentReconciler(api, observed, open_stores, namespace=settings.operator_namespace),
        ),
        build_kind(observed, builds),
    )
