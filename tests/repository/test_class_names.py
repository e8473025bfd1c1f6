"""One class name means one thing, so that a search for it finds what is meant."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "planner", "runtime", "stages", "serving", "cli", "operator", "builder")
ALLOWED = {
    "GenerationMetrics": "builder offers the vendor's API, whose name it is; the fields differ",
}


def defined(module: Path) -> set[str]:
    """Public classes of a module; those inside functions and classes are nobody else's."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    classes = (node.name for node in tree.body if isinstance(node, ast.ClassDef))
    return {name for name in classes if not name.startswith("_")}


def doubled(root: Path, rooms: tuple[str, ...] = ROOMS) -> dict[str, list[str]]:
    """Name -> modules that each define a class of it, where there are several."""
    places: dict[str, list[str]] = defaultdict(list)
    for room in rooms:
        for module in sorted((root / room).rglob("*.py")):
            for name in defined(module):
                places[name].append(str(module.relative_to(root)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_class_names_are_unique_in_the_product() -> None:
    found = {name: places for name, places in doubled(ROOT).items() if name not in ALLOWED}
    assert not found, "say in the name what each is, or add it to ALLOWED with the reason"


def test_class_names_that_are_allowed_twice_are_defined_twice() -> None:
    assert ALLOWED.keys() <= doubled(ROOT).keys()


def test_doubled_names_both_modules_when_two_define_a_class(tmp_path: Path) -> None:
    for room, body in (("a", "class One: ..."), ("b", "class One: ...\nclass Two: ...")):
        (tmp_path / room).mkdir()
        (tmp_path / room / "m.py").write_text(body)
    assert doubled(tmp_path, ("a", "b")) == {"One": ["a/m.py", "b/m.py"]}
