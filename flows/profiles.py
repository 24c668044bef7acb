"""Profiles: a file of settings over one class, and `--set a.b=c` on top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

PROFILES = Path(__file__).parent / "profiles"

SettingsT = TypeVar("SettingsT", bound=BaseModel)


class SettingsError(ValueError):
    """A setting that does not exist or is out of bounds; the message names it."""


def profile_names() -> tuple[str, ...]:
    """Names of the profiles, sorted."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.yaml")))


def read_profile(name: str) -> dict[str, Any]:
    """Content of `flows/profiles/<name>.yaml`.

    Raises:
        SettingsError: naming the profiles that exist.
    """
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise SettingsError(f"no profile {name!r}; there are: {', '.join(profile_names())}")
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["a.b=1", "c=x"]` as `{"a": {"b": 1}, "c": "x"}`; values are read as YAML.

    Raises:
        SettingsError: for a pair without `=` or with an empty name.
    """
    result: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        parts = name.strip().split(".")
        if not separator or not all(parts):
            raise SettingsError(f"--set {pair!r}: write it as name=value, e.g. train.steps=500")
        node = result
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise SettingsError(f"--set {pair!r}: {part} was already set to a plain value")
        try:
            node[parts[-1]] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {pair!r}: the value is not valid YAML ({error})") from None
    return result


def under(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings below `name`, whether they were given with that prefix or, in a command about nothing else, without.

    >>> under("filters", {"min_yaw": 1, "filters": {"max_yaw": 2}})
    {'filters': {'min_yaw': 1, 'max_yaw': 2}}
    """
    return {name: overlay({key: value for key, value in given.items() if key != name}, given.get(name, {}))}


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, mapping by mapping; neither is changed."""
    merged = dict(base)
    for name, value in top.items():
        current = merged.get(name)
        merged[name] = overlay(current, value) if isinstance(current, Mapping) and isinstance(value, Mapping) else value
    return merged


def resolve(settings: type[SettingsT], *layers: Mapping[str, Any], prefix: str = "") -> SettingsT:
    """Validate the layers, later over earlier, as `settings`; errors name settings with the prefix that a user writes.

    Raises:
        SettingsError: one line per wrong setting, with the names that exist beside it.
    """
    content: dict[str, Any] = {}
    for layer in layers:
        content = overlay(content, layer)
    try:
        return settings.model_validate(content)
    except ValidationError as error:
        raise SettingsError(_readable(settings, error, prefix)) from None


def _readable(settings: type[BaseModel], error: ValidationError, prefix: str) -> str:
    lines = []
    for problem in error.errors():
        name = (prefix + ".".join(str(part) for part in problem["loc"])).rstrip(".")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{name}: no such setting; beside it there are: {', '.join(_siblings(settings, problem['loc']))}")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            # A rule about several settings has all of them as its input, and says itself which are at fault.
            lines.append(f"{name}: {said}" if isinstance(problem["input"], Mapping) else f"{name}: {said} (got {problem['input']!r})")
    return "; ".join(lines)


def _siblings(settings: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    current: type[BaseModel] = settings
    for part in location[:-1]:
        field = current.model_fields.get(str(part))
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        groups = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not groups:
            break
        current = groups[0]
    return sorted(current.model_fields)
