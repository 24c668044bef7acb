"""Choose a few of many samples so that they show all people and videos: a pure function of the keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest


def spread(keys: Iterable[str], limit: int) -> list[str]:
    """At most `limit` keys, in turn from every identity and, within one, in turn from its videos.

    Args:
        keys: `<identity>_<video>_<clip>`, unique, in any order.
        limit: Most keys to return.

    Example:
        >>> spread(["anna_a_0", "anna_a_1", "anna_b_0", "ben_a_0"], 3)
        ['anna_a_0', 'ben_a_0', 'anna_b_0']
    """
    identities: dict[str, dict[str, list[str]]] = {}
    for key in sorted(keys):
        identities.setdefault(key.split("_")[0], {}).setdefault(key.rpartition("_")[0], []).append(key)
    turns = [list(_in_turn(list(videos.values()))) for videos in identities.values()]
    return list(_in_turn(turns))[:limit]


def _in_turn(groups: Sequence[Sequence[str]]) -> Iterator[str]:
    for turn in zip_longest(*groups):
        yield from (key for key in turn if key is not None)
