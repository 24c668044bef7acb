"""Keys: from any file name to `<identity>_<video>_<clip>` in [A-Za-z0-9_-], unique and stable over re-runs and mounts.

A key depends on the path relative to what was given (or on the manifest's columns), never on where that lies or on what
else is there. A part that has to change its letters carries a short hash of what it was, so two different names stay two.
The limits keep the longest member name of a tar (`<key>.confidence.npy`) within USTAR's 100 bytes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_LOSSY = re.compile(r"[^A-Za-z0-9]+")
_LOSSLESS = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")

SINGLE_UTTERANCE = "0"
"""Name of the utterance where one file is one video."""


def short_hash(text: str, length: int) -> str:
    """First `length` hexadecimal digits of the sha256 of `text`, in Unicode's composed form (file systems differ in it)."""
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")).hexdigest()[:length]


def slug(text: str, limit: int) -> str:
    """Letters and digits of `text` without accents, other runs of characters as one `-`; at most `limit` characters.

    Example:
        >>> slug("Zoë's 2nd take.v2", 20)
        'Zoe-s-2nd-take-v2'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _LOSSY.sub("-", plain.replace("'", "-")).strip("-")[:limit].strip("-") or "x"


def _part(text: str, *, limit: int, keep: int) -> str:
    if len(text) <= keep and _LOSSLESS.fullmatch(text):
        return text
    return f"{slug(text, limit)}-{short_hash(text, 6)}"


def identity_part(identity: str) -> str:
    """Identity as a key's first part, at most 27 characters; itself where it is plain."""
    return _part(identity, limit=20, keep=27)


def video_part(video: str, place: str) -> str:
    """Video as a key's second part, at most 29 characters.

    Args:
        video: Its label.
        place: What tells it from others of the same label: its relative path.
    """
    return f"{slug(video, 20)}-{short_hash(place, 8)}"


def utterance_part(stem: str, distinct: str | None = None) -> str:
    """Name of an utterance inside its video, at most 19 characters; `stem` itself where that is plain and `distinct` is None.

    Args:
        stem: File name without its extension.
        distinct: What tells it from others of the same stem: extension, start and end.
    """
    if distinct is None:
        return _part(stem, limit=12, keep=19)
    return f"{slug(stem, 12)}-{short_hash(f'{stem}/{distinct}', 6)}"


def video_key(identity: str, video: str) -> str:
    """`<identity>_<video>` from two finished parts."""
    return f"{identity}_{video}"
