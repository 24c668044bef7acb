"""One picture of a training run's curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.training.spool import read_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
Points = Sequence[tuple[int, float]]


def draw_curves(folder: Path) -> Path | None:
    """Draw a run folder's curves as `curves.png`: one small panel a loss, training and validation together, then speeds.

    Returns:
        The picture, or None where nothing has been recorded.
    """
    curves = {name: points for name, points in read_curves(folder).items() if not name.startswith("system/")}
    if not curves:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(list(curves))
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(4.2 * min(COLUMNS, len(panels)), 2.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, min(COLUMNS, len(panels)), squeeze=False).ravel()
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        _panel(axis, title, {name: curves[name] for name in names})
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    path = folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def _panels(names: Sequence[str]) -> dict[str, list[str]]:
    """Title -> curves: `train/x` and `validation/x` share panel x; losses come before speeds."""
    panels: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name.startswith("speed/"), name.partition("/")[2], name)):
        group, _, rest = name.partition("/")
        panels.setdefault(rest if group in ("train", "validation") else name, []).append(name)
    return panels


def _panel(axis: Axes, title: str, curves: dict[str, Points]) -> None:
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        validation = name.startswith("validation/")
        axis.plot(
            steps,
            values,
            label=name.partition("/")[0],
            color="#d95f02" if validation else "#1b6ca8",
            marker="o" if validation or len(points) < 3 else None,
            markersize=3,
            linewidth=1.2,
        )
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.locator_params(axis="x", integer=True)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if any(name.startswith(("train/", "validation/")) for name in curves):
        axis.legend(fontsize=7)
