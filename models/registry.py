"""The families that exist: one line each. Import this where it is needed, not at the top of a command line: it brings torch."""

from __future__ import annotations

from collections.abc import Mapping

from models.family import Family
from models.fewshot.family import FewShot
from models.synctalk.family import SyncTalk

_FAMILIES: tuple[Family, ...] = (
    FewShot(),
    SyncTalk(),
    # One line per family; nothing else outside models/<name>/ knows it.
)


def families() -> Mapping[str, Family]:
    """All families by name, in the order of the table."""
    return {entry.name: entry for entry in _FAMILIES}


def family(name: str) -> Family:
    """The family of this name.

    Raises:
        ValueError: naming the families that exist.
    """
    known = families()
    if name not in known:
        raise ValueError(f"there is no family {name!r}; there are: {', '.join(known)}")
    return known[name]
