"""Puts off what importing the graph library would bring and hardly any task ever uses.

onnx-ir computes with symbolic dimensions by sympy, whose import takes longer than all others of a
worker together, and a third of the memory of a fresh one. Stand-ins for the two modules are entered
before onnx-ir is imported; the first look at anything in them loads the real ones.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["put_off"]

PUT_OFF = ("sympy", "onnx_ir._symbolic_shapes")


class _Later(ModuleType):
    """A module that is imported when something of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        # What the import system itself asks for is no reason, but for a submodule of it.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def put_off(*names: str) -> None:
    """Enter stand-ins; a module that is imported already stays."""
    for name in names or PUT_OFF:
        if name not in sys.modules:
            stand_in = _Later(name)
            stand_in.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = stand_in
