"""The mouth's opening over time, beside the sound: whether a mouth moves when, and as far as, the true one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.views import FPS, SAMPLES_PER_FRAME, Image
from tasks.evaluation.drawing import INK, PAPER, RULE, SOFT_INK, Colour
from tasks.evaluation.report import MODEL, SHUFFLED, TRUTH

HEIGHT = 330
"""Of the plot in pixels."""

_DPI = 100
_LETTERS = 12.0
"""Size of all letters in points: 17 px."""

_Dashes = Literal["-"] | tuple[float, Sequence[float]]

_STYLES: Mapping[str, tuple[str, float, _Dashes]] = {
    TRUTH: ("#20242c", 4.0, "-"),
    MODEL: ("#2a6fc9", 2.2, "-"),
    SHUFFLED: ("#d9730d", 1.6, (0, (4, 2))),
}
"""Colour, width and dashes of a curve: told apart without colour too, and a model that covers the truth leaves its rims to be seen."""


def draw_mouth_plot(
    curves: Mapping[str, npt.NDArray[np.float64]], audio: npt.NDArray[np.float32] | None, moments: Sequence[int], *, width: int
) -> Image:
    """Plot opening curves over seconds.

    Args:
        curves: float64 [F] by row, in inter-ocular distances; NaN leaves a gap.
        audio: float32 [640 * F], the true sound, drawn as a strip above.
        moments: Frames to mark, those that the clip's picture shows.
        width: Of the plot in pixels.

    Returns:
        uint8 [HEIGHT, width, 3], RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(width / _DPI, HEIGHT / _DPI), dpi=_DPI, facecolor=_hex(PAPER))
    canvas = FigureCanvasAgg(figure)
    frames = max(len(curve) for curve in curves.values())
    left, right = 68 / width, 1 - 22 / width
    strip = figure.add_axes((left, 0.765, right - left, 0.1))
    plot = figure.add_axes((left, 0.16, right - left, 0.565), sharex=strip)
    for axes in (strip, plot):
        axes.set_facecolor("white")
        axes.tick_params(labelsize=_LETTERS, colors=_hex(SOFT_INK), length=0, pad=5)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_hex(RULE))
        for moment in moments:
            axes.axvline((moment + 0.5) / FPS, color=_hex(RULE), linewidth=1.2, zorder=0)
    if audio is not None and len(audio):
        steps = np.arange(0, len(audio), SAMPLES_PER_FRAME // 4)
        high, low = np.maximum.reduceat(audio, steps), np.minimum.reduceat(audio, steps)
        strip.fill_between((steps + SAMPLES_PER_FRAME / 8) / (SAMPLES_PER_FRAME * FPS), low, high, color="#8a93a0", linewidth=0.4)
        peak = max(float(np.abs(audio).max()), 1e-3)
        strip.set_ylim(-peak, peak)
    strip.set_yticks([])
    strip.set_ylabel("sound", fontsize=_LETTERS, color=_hex(SOFT_INK), rotation=0, ha="right", va="center", labelpad=6)
    strip.tick_params(labelbottom=False)
    # The truth lies lowest, the model over everything.
    for row, curve in sorted(curves.items(), key=lambda item: (TRUTH, SHUFFLED, MODEL).index(item[0])):
        colour, line, dashes = _STYLES[row]
        times = (np.arange(len(curve)) + 0.5) / FPS
        plot.plot(times, curve, color=colour, linewidth=line, linestyle=dashes, solid_joinstyle="round")
    plot.set_xlim(0, frames / FPS)
    top = max((float(np.nanmax(curve)) for curve in curves.values() if np.isfinite(curve).any()), default=0.1)
    plot.set_ylim(0, max(1.12 * top, 0.05))
    plot.locator_params(axis="y", nbins=4)
    plot.yaxis.grid(visible=True, color=_hex(RULE), linewidth=0.8)
    plot.set_axisbelow(True)
    plot.tick_params(axis="x", pad=9)
    plot.locator_params(axis="x", nbins=max(4, width // 110))
    plot.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    figure.text(10 / width, 0.93, "mouth opening", fontsize=_LETTERS, color=_hex(INK), va="center")
    figure.legend(
        handles=[Line2D([], [], color=_STYLES[row][0], linewidth=_STYLES[row][1], linestyle=_STYLES[row][2], label=row) for row in curves],
        loc="center right",
        bbox_to_anchor=(right, 0.93),
        ncol=len(curves),
        frameon=False,
        fontsize=_LETTERS,
        labelcolor=_hex(INK),
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0,
    )
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3], np.uint8, order="C")


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
