"""Resources of the apiserver that the operator uses: where they lie, and which it watches. Pure.

What is watched is listed and watched by kopf (`manager.handlers`), projected while it is parsed
(`projection`), held against listings (`relist`) and taken in by the row of its name in
`manager.kinds`.
"""

from __future__ import annotations

from dataclasses import dataclass

from genai_core.wire import GROUP, SELECTOR, VERSION

__all__ = ["RESOURCES", "Resource", "watched"]


@dataclass(frozen=True)
class Resource:
    """A resource of the apiserver.

    Attributes:
        group: Empty = the core's.
        watched: Events of it are taken in.
        selector: Labels of those that are watched; empty = all.
        namespaced: Its objects lie in namespaces.
    """

    plural: str
    group: str
    version: str
    watched: bool = False
    selector: str = ""
    namespaced: bool = True

    @property
    def path(self) -> str:
        """Of its API, without namespace and plural."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def ours(self) -> bool:
        """It is one of our own kinds: users write it, and its spec and status are kept."""
        return self.group == GROUP


_ROWS = (
    Resource("genaitargets", GROUP, VERSION, watched=True, namespaced=False),
    Resource("artifactstores", GROUP, VERSION, watched=True),
    Resource("genaideployments", GROUP, VERSION, watched=True),
    # The apiserver leaves out what is not ours: a cluster may run any number of other pods.
    Resource("jobs", "batch", "v1", watched=True, selector=SELECTOR),
    Resource("pods", "", "v1", watched=True, selector=SELECTOR),
    Resource("deployments", "apps", "v1", watched=True, selector=SELECTOR),
    Resource("genaibuilds", GROUP, VERSION, watched=True),
    Resource("services", "", "v1"),
    Resource("poddisruptionbudgets", "policy", "v1"),
    Resource("networkpolicies", "networking.k8s.io", "v1"),
    Resource("configmaps", "", "v1"),
    Resource("secrets", "", "v1"),
    Resource("nodes", "", "v1", namespaced=False),
    Resource("events", "", "v1"),
    Resource("leases", "coordination.k8s.io", "v1"),
)
RESOURCES = {row.plural: row for row in _ROWS}


def watched() -> tuple[Resource, ...]:
    """Those that are watched, in the order in which they are listed: builds refer to all others."""
    return tuple(row for row in _ROWS if row.watched)
