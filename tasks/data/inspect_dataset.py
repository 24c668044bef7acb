"""What a dataset holds, in numbers: counts, hours, scores, what each filter would remove, and why things were rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.views import FPS
from tasks.data.dataset import Dataset
from tasks.data.splits import FILTERS, filter_clips
from tasks.samples import QualityScores
from tasks.settings import FilterSettings

if TYPE_CHECKING:
    from rich.console import RenderableType

BINS = 20
_BARS = " ▁▂▃▄▅▆▇█"

SCORES: tuple[str, ...] = tuple(entry.name for entry in fields(QualityScores) if entry.name != "static")
"""Columns of the index that have a histogram."""


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """One quality score over all clips."""

    name: str
    edges: tuple[float, ...]
    """BINS + 1 bin edges; empty where no clip has the score."""
    counts: tuple[int, ...]
    missing: int
    """Clips for which it could not be computed."""
    quantiles: tuple[float, ...]
    """Minimum, 5 %, median, 95 %, maximum; empty where no clip has the score."""
    filter: str | None
    """Name of the filter that reads it."""
    limit: float | None
    """Threshold of that filter."""


@dataclass(frozen=True, kw_only=True)
class FilterEffect:
    """What one filter does to the clips."""

    name: str
    value: float | bool
    fails: int
    """Clips that fail it, whatever the other filters say."""
    removes: int
    """Clips that it is the first to remove, in the order of the filters."""
    left: int
    """Clips that pass it and all before it."""


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """The numbers of a dataset."""

    url: str
    fingerprint: str
    shards: int
    bytes: int
    """Of all files of finished shards of pass 1."""
    identities: int
    videos: int
    clips: int
    pools: int
    frames: int
    hours: float
    with_sound: int
    """Clips with sound."""
    full_history: int
    """Clips that are long enough for the whole history of the models that read one."""
    static: int
    """Clips that are a still image."""
    licences: Mapping[str, int]
    """Clips by licence; `unknown` where the source says none."""
    scores: tuple[ScoreSummary, ...]
    filters: tuple[FilterEffect, ...]
    usable: int
    """Clips that pass all filters."""
    rejects: Mapping[str, int]
    """Rejects by reason."""
    reject_steps: Mapping[str, int]
    """Rejects by the step that refused."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return asdict(self)


def summarise(dataset: Dataset, filters: FilterSettings | None = None) -> DatasetSummary:
    """Count what the index, the records and the rejects of a dataset say; opens no shard.

    Args:
        dataset: The dataset.
        filters: Thresholds whose effect is shown; None is their defaults.
    """
    filters = filters or FilterSettings()
    clips, pools, rejects = dataset.clips(), dataset.pools(), dataset.rejects()
    frames = int(np.sum(clips["num_frames"].to_numpy())) if clips.num_rows else 0
    effects = _effects(dataset, filters)
    by_column = {rule.column: rule.setting for rule in FILTERS if rule.active(getattr(filters, rule.setting))}
    return DatasetSummary(
        url=dataset.url,
        fingerprint=dataset.fingerprint,
        shards=len(dataset.shards()),
        bytes=sum(entry.bytes for record in dataset.records() for entry in record.files.values()),
        identities=len(set(clips["identity"].to_pylist())),
        videos=len(set(clips["video"].to_pylist())),
        clips=clips.num_rows,
        pools=pools.num_rows,
        frames=frames,
        hours=frames / FPS / 3600,
        with_sound=_count(clips["has_audio"].to_pylist()),
        full_history=_count(clips["full_history"].to_pylist()),
        static=_count(clips["static"].to_pylist()),
        licences=_counted(licence or "unknown" for licence in clips["licence"].to_pylist()),
        scores=tuple(_score(name, clips[name].to_numpy(zero_copy_only=False), by_column.get(name), filters) for name in SCORES),
        filters=effects,
        usable=effects[-1].left if effects else clips.num_rows,
        rejects=_counted(rejects["code"].to_pylist()),
        reject_steps=_counted(rejects["step"].to_pylist()),
    )


def render(summary: DatasetSummary) -> RenderableType:
    """The summary for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for name, value in tiles(summary).items():
        facts.add_row(Text(name, style="dim"), value)
    facts.add_row(Text("fingerprint", style="dim"), summary.fingerprint[:16])

    scores = Table(
        "score", "min", "5 %", "median", "95 %", "max", "histogram", "limit", box=box.SIMPLE_HEAD, title="Scores", title_justify="left"
    )
    for score in summary.scores:
        limit = f"{score.filter} {score.limit:g}" if score.limit is not None else ""
        cells = [f"{value:.3g}" for value in score.quantiles] or ["–"] * 5
        scores.add_row(score.name, *cells, sparkline(score.counts) or f"{score.missing} clips without", limit)

    filters = Table(
        "filter",
        "value",
        "fail it",
        "removed first",
        "left",
        box=box.SIMPLE_HEAD,
        title="Filters, at these thresholds",
        title_justify="left",
    )
    for effect in summary.filters:
        filters.add_row(effect.name, f"{effect.value:g}", str(effect.fails), str(effect.removes), str(effect.left))

    parts: list[RenderableType] = [Text(summary.url, style="bold"), facts, scores, filters]
    if summary.rejects:
        rejects = Table("reason", "count", box=box.SIMPLE_HEAD, title="Rejects", title_justify="left")
        for code, count in summary.rejects.items():
            rejects.add_row(code, str(count))
        parts.append(rejects)
    else:
        parts.append(Text("No rejects."))
    return Group(*parts)


def tiles(summary: DatasetSummary) -> dict[str, str]:
    """The main numbers by name, for people."""
    share = 100 / max(1, summary.clips)
    hours = f"{summary.hours:.1f} h" if summary.hours >= 1 else f"{summary.hours * 60:.1f} min"
    return {
        "identities": f"{summary.identities:,}",
        "videos": f"{summary.videos:,}",
        "clips": f"{summary.clips:,}",
        "length": hours,
        "frames": f"{summary.frames:,}",
        "keyframes pools": f"{summary.pools:,}",
        "clips that pass the filters": f"{summary.usable:,}",
        "with full history": f"{summary.full_history * share:.0f} %",
        "with sound": f"{summary.with_sound * share:.0f} %",
        "rejects": f"{sum(summary.rejects.values()):,}",
        "shards": f"{summary.shards:,}",
        "size": f"{summary.bytes / 1e9:.2f} GB" if summary.bytes >= 1e9 else f"{summary.bytes / 1e6:.1f} MB",
    }


def sparkline(counts: tuple[int, ...]) -> str:
    """Counts as one character each; what isn't 0 is never blank."""
    top = max(counts, default=0)
    return "".join(_BARS[0 if not n else max(1, round(n / top * (len(_BARS) - 1)))] for n in counts)


def _effects(dataset: Dataset, filters: FilterSettings) -> tuple[FilterEffect, ...]:
    clips = dataset.clips()
    _, removed = filter_clips(clips, filters)
    effects = []
    left = clips.num_rows
    for rule in FILTERS:
        value = getattr(filters, rule.setting)
        if not rule.active(value):
            continue
        passes = rule.keep(clips[rule.column].to_numpy(zero_copy_only=False), value)
        left -= removed[rule.setting]
        effects.append(FilterEffect(name=rule.setting, value=value, fails=int((~passes).sum()), removes=removed[rule.setting], left=left))
    return tuple(effects)


def _score(name: str, values: npt.NDArray[Any], setting: str | None, filters: FilterSettings) -> ScoreSummary:
    """Histogram of one score; the threshold is always within its range, so that a chart can show it."""
    numbers = values.astype(np.float64)
    known = numbers[np.isfinite(numbers)]
    limit = None if setting is None else float(getattr(filters, setting))
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    if len(known):
        low, high = float(known.min()), float(known.max())
        if limit is not None:
            low, high = min(low, limit), max(high, limit)
        if high <= low:
            low, high = low - 0.5, high + 0.5
        histogram, bin_edges = np.histogram(known, bins=BINS, range=(low, high))
        edges, counts = tuple(float(edge) for edge in bin_edges), tuple(int(count) for count in histogram)
    quantiles = tuple(float(value) for value in np.quantile(known, (0, 0.05, 0.5, 0.95, 1))) if len(known) else ()
    missing = len(numbers) - len(known)
    return ScoreSummary(name=name, edges=edges, counts=counts, missing=missing, quantiles=quantiles, filter=setting, limit=limit)


def _count(values: list[bool | None]) -> int:
    return sum(value is True for value in values)


def _counted(values: Any) -> dict[str, int]:
    """Counts by value, the most frequent first."""
    return dict(Counter(values).most_common())
