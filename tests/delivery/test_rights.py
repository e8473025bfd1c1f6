"""The operator's rights: README, chart and calls agree, and a namespace is not the cluster."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OPERATOR = ROOT / "operator"
Objects = list[dict[str, Any]]
Rights = set[tuple[str, str]]
VERB_OF_CALL = {
    "get": "get",
    "list": "list",
    "create": "create",
    "replace": "update",
    "merge_lists": "patch",
    "delete": "delete",
    "read": "get",
}
WATCHED = (
    "genaibuilds",
    "artifactstores",
    "genaitargets",
    "genaideployments",
    "jobs",
    "pods",
    "deployments",
)
"""Kinds that kopf watches; in `comparing` they stand in a variable."""


def documented() -> dict[str, Rights]:
    """Place -> rights, from the table in the chart's README."""
    text = (ROOT / "charts" / "genai-operator" / "README.md").read_text(encoding="utf-8")
    rows = text.partition("| where | what | verbs |\n|---|---|---|\n")[2].partition("\n\n")[0]
    found: dict[str, Rights] = {}
    for row in rows.splitlines():
        where, what, verbs = (cell.strip() for cell in row.strip("|").split("|"))
        pairs = {(resource, verb) for resource in what.split() for verb in verbs.split()}
        found.setdefault(where, set()).update(pairs)
    assert len(found) == 4
    return found


def rights_of(rules: Iterable[dict[str, Any]]) -> Rights:
    return {
        (resource, verb)
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def role(objects: Objects, kind: str, name: str) -> Rights:
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    assert len(found) == 1, name
    return rights_of(found[0]["rules"])


def test_the_chart_gives_what_the_readme_says_and_no_more(base: Objects) -> None:
    said = documented()
    assert role(base, "ClusterRole", "genai-operator-cluster") == said["cluster"]
    assert role(base, "ClusterRole", "genai-operator-watch") == said["watched namespaces"]
    assert role(base, "ClusterRole", "genai-operator-tenant") == said["enabled namespaces"]
    assert role(base, "Role", "genai-operator-lease") == said["its own namespace"]


def called() -> Rights:
    """What the operator's code asks of the apiserver, read from its source."""
    found: Rights = {(plural, verb) for plural in WATCHED for verb in ("list", "watch")}
    # The plural stands in a variable where a status is written.
    found |= {(f"{plural}/status", "patch") for plural in WATCHED[:4]}
    for path in sorted((OPERATOR / "genai_operator").rglob("*.py")):
        if path.name == "install_check.py":  # runs under the account of `helm test`
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            of = node.func.value
            name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
            if name not in {"api", "_api"} or not node.args:
                continue
            plural = node.args[0]
            if not isinstance(plural, ast.Constant) and node.func.attr in VERB_OF_CALL:
                found |= {(kind, VERB_OF_CALL[node.func.attr]) for kind in WATCHED}
            if isinstance(plural, ast.Constant) and isinstance(plural.value, str):
                if node.func.attr == "apply_status":
                    found.add((f"{plural.value}/status", "patch"))
                elif node.func.attr == "apply":  # it creates what is not there
                    found |= {(plural.value, "patch"), (plural.value, "create")}
                else:
                    found.add((plural.value, VERB_OF_CALL[node.func.attr]))
    return found


def test_the_rights_are_those_that_the_code_uses() -> None:
    given: Rights = set().union(*documented().values())
    used = called()
    assert used - given == set(), "the operator would be refused: add them to README and chart"
    assert given - used == set(), "nothing uses these: take them from README and chart"


def test_no_rule_says_all(base: Objects) -> None:
    for value in base:
        for rule in value.get("rules", ()):
            assert "*" not in [*rule["resources"], *rule["verbs"], *rule["apiGroups"]]


def bound_everywhere(objects: Objects) -> Rights:
    names = {
        o["roleRef"]["name"]
        for o in objects
        if o["kind"] == "ClusterRoleBinding" and o["subjects"][0]["name"] == "genai-operator"
    }
    return set().union(*(role(objects, "ClusterRole", name) for name in names))


def bindings(objects: Objects, role_name: str) -> list[str]:
    return [
        o["metadata"]["namespace"]
        for o in objects
        if o["kind"] == "RoleBinding" and o["roleRef"]["name"] == role_name
    ]


def test_by_default_no_secret_can_be_read_and_no_job_made(base: Objects) -> None:
    everywhere = bound_everywhere(base)
    assert not {pair for pair in everywhere if pair[0] == "secrets"}
    assert not everywhere & {("jobs", "create"), ("jobs", "delete"), ("pods", "delete")}
    served = ("deployments", "services", "poddisruptionbudgets")
    assert not everywhere & {(kind, verb) for kind in served for verb in ("create", "patch")}
    assert bindings(base, "genai-operator-tenant") == []


def test_enabled_namespaces_get_a_binding_each(rendered: Callable[..., Objects]) -> None:
    objects = rendered('enabledNamespaces=["team-a","team-b"]')
    assert bindings(objects, "genai-operator-tenant") == ["team-a", "team-b"]
    assert ("secrets", "get") not in bound_everywhere(objects)
    assert ("secrets", "get") in bound_everywhere(rendered('enabledNamespaces=["*"]'))


def test_an_operator_of_some_namespaces_sees_only_targets_of_the_cluster(
    rendered: Callable[..., Objects],
) -> None:
    objects = rendered('watchNamespaces=["team-a","team-b"]')
    assert bound_everywhere(objects) == {
        ("genaitargets", "list"),
        ("genaitargets", "watch"),
        ("genaitargets/status", "patch"),
    }
    assert bindings(objects, "genai-operator-watch") == ["team-a", "team-b"]
    assert bindings(objects, "genai-operator-tenant") == ["team-a", "team-b"]


def test_a_namespace_that_is_not_watched_cannot_be_enabled(helm: Callable[..., Any]) -> None:
    ran = helm(
        "template", "x", str(ROOT / "charts/genai-operator"), "--kube-version", "1.34.0",
        "--set-json", 'watchNamespaces=["a"]', "--set-json", 'enabledNamespaces=["b"]',
    )  # fmt: skip
    assert ran.returncode != 0
    assert "enabledNamespaces has b" in ran.stderr


def test_roles_of_people_add_themselves_to_the_clusters_own(base: Objects) -> None:
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    roles = {o["metadata"]["name"]: o for o in base if o["kind"] == "ClusterRole"}
    viewer, editor = roles["genai-viewer"], roles["genai-editor"]
    assert viewer["metadata"]["labels"][f"{prefix}view"] == "true"
    assert f"{prefix}view" not in editor["metadata"]["labels"]
    assert {verb for _, verb in rights_of(viewer["rules"])} == {"get", "list", "watch"}
    # A person writes what a person says: never a status, never a target.
    assert not {r for r, _ in rights_of(editor["rules"]) if r.endswith("/status") or "target" in r}


@pytest.mark.parametrize("name", ["genai-viewer", "genai-editor"])
def test_people_get_every_kind_of_a_namespace(base: Objects, name: str) -> None:
    kinds = {"genaibuilds", "genaideployments", "artifactstores"}
    assert kinds <= {resource for resource, _ in role(base, "ClusterRole", name)}
