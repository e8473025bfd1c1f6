"""What a pattern allows, in words: the same sentence on a laptop and from an apiserver.

A regular expression in a message is a riddle for whoever mistyped a name. So each pattern of the
kinds has its words here, which command-line messages use and which the CRDs carry as CEL rules
beside the pattern itself. `self.matches` costs a tenth of a character times a quarter of the
pattern, and everything here is bounded, so all of them together stay far below what an apiserver
allows a CRD.
"""

from __future__ import annotations

from typing import Any

from genai_core.files.paths import FILE_NAME, PREFIX

__all__ = ["WORDS", "key_rule", "pattern_rule", "words_of"]

WORDS = {
    FILE_NAME: "the name of a file below the source: relative, without . and .., at most 256 "
    "characters",
    PREFIX: "a prefix without . and .. between its slashes",
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": "a name of lower-case letters, digits, '-' and '.', with "
    "a letter or digit at both ends",
    r"^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$": "a name of lower-case letters, digits, '-', '.' and '_', "
    "with a letter or digit at both ends",
    r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$": "the name of a bucket: 3 to 63 lower-case letters, digits, "
    "'-' and '.', with a letter or digit at both ends",
    r"^sha256:[0-9a-f]{64}$": "sha256: and 64 lower-case hex digits",
    r"^[0-9]+(\.[0-9]+)?(m|k|Ki|[EPTGM]i?)?$": "a quantity such as 20Gi or 500m",
    r"^-?[0-9]{1,4}(\.[0-9]{1,8})?$": "a decimal number in quotes such as '0.5', at most 8 digits "
    "behind the point",
    r"^[^\x00-\x1f\x7f]+$": "an address or a folder, without control characters",
    r"^[1-9][0-9]{0,2}(\.[0-9]{1,4})?$": "a decimal number in quotes, at least 1 and below 1000, "
    "such as '1.5'",
    r"^[A-Za-z_][A-Za-z0-9_]{0,62}$": "a name of letters, digits and '_' that begins with no digit",
    r"^v[0-9]{2}$": "a Hexagon version such as v79",
    r"^[^\s@]+@sha256:[0-9a-f]{64}$": "an image by digest, name@sha256: and 64 hex digits",
}


def words_of(pattern: str) -> str:
    """What a pattern allows."""
    return WORDS.get(pattern, f"text that matches {pattern}")


def pattern_rule(pattern: str) -> dict[str, Any]:
    """The pattern once more as a CEL rule, which has a message of its own."""
    return {"rule": f"self.matches(r'{pattern}')", "message": f"expected {words_of(pattern)}"}


def key_rule(longest: int) -> dict[str, Any]:
    """A limit for the keys of a map, which a schema cannot state."""
    return {
        "rule": f"self.all(key, size(key) <= {longest})",
        "message": f"a key has at most {longest} characters",
    }
