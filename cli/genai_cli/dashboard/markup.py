"""HTML elements. Text is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

__all__ = ["Content", "Html", "element", "joined", "raw_page", "row"]


class Html(str):
    """Text that is HTML already; any other text is escaped when it is put into an element."""

    __slots__ = ()


Content: TypeAlias = "str | Iterable[str]"

_VOID = {"meta", "link", "br"}


def element(tag: str, *content: Content, **attributes: str) -> Html:
    """One element; `class_` means `class`, `data_x` `data-x`; an empty attribute is left out."""
    words = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value
    )
    if tag in _VOID:
        return Html(f"<{tag}{words}>")
    return Html(f"<{tag}{words}>{joined(*content)}</{tag}>")


def joined(*content: Content) -> Html:
    """Pieces one after another."""
    return Html(
        "".join(
            _text(piece)
            for one in content
            for piece in ((one,) if isinstance(one, str) else tuple(one))
        )
    )


def row(*cells: Content, head: bool = False) -> Html:
    """A row of a table."""
    return element("tr", [element("th" if head else "td", cell) for cell in cells])


def raw_page(title: str, main: Html) -> Html:
    """A whole page around its `<main>`, HTML 5."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("link", rel="stylesheet", href="/dashboard.css"),
    )
    script = element("script", src="/dashboard.js")
    body = element("body", element("main", main), script)
    return Html("<!doctype html>\n" + element("html", head, body, lang="en"))


def _text(piece: str) -> str:
    return piece if isinstance(piece, Html) else escape(piece)
