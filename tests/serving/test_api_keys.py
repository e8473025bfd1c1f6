"""Keys of clients, from a folder that changes while the server runs."""

from __future__ import annotations

from pathlib import Path

from genai_serving.api.api_keys import ApiKeys


def test_allow_follows_the_folder_when_a_key_is_rotated(tmp_path: Path) -> None:
    now = 0.0
    keys = ApiKeys(["fixed"], tmp_path, clock=lambda: now)
    assert keys.wanted
    assert keys.allow(b"Bearer fixed")
    assert not keys.allow(b"Bearer ")
    (tmp_path / "a").write_text("  one\n")
    (tmp_path / "..data").write_text("hidden")
    now = 3.0
    assert keys.allow(b"bearer one")
    assert not keys.allow(b"Bearer hidden")
    assert not keys.allow(b"Basic one")
    (tmp_path / "a").write_text("two")
    assert keys.allow(b"Bearer one"), "read again only every two seconds"
    now = 6.0
    assert not keys.allow(b"Bearer one")
    assert keys.allow(b"Bearer two")


def test_allow_lets_nobody_in_when_the_folder_is_empty_or_gone(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        keys = ApiKeys((), folder)
        assert keys.wanted
        assert not keys.allow(b"")
        assert not keys.allow(b"Bearer ")
    assert ApiKeys().allow(b"")
