"""Lip-sync metrics by the model's own judge: does the mouth fit the sound best where it should, at offset 0?

The judge (`Synthesizer.lip_sync`) was trained with the model, on the same dataset, and a model may be trained to please
it. So these numbers never stand alone: the truth row says what the judge makes of real mouths, the shuffled row what it
makes of mouths that follow another sound. Every row is judged against the true sound.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.evaluation.metrics import Better, Metric, MetricCase, Need, NotComputed

OFFSETS = 31
MIDDLE = 15
"""The column of offset 0."""
NEAR = slice(MIDDLE - 1, MIDDLE + 2)
"""Columns that count as right: within one frame of 0."""

OWN_JUDGE = "Judged by this model's own lip-sync network, which was trained on the same dataset: it never stands alone."


class SyncAccuracy(Metric):
    """Share of windows in which the judge finds the right offset."""

    name = "sync_accuracy"
    title = "Sync accuracy"
    description = (
        "Share of the windows whose best offset, among the up to 31 that lie within the clip, is within one frame of 0 (a draw is not)."
        f" Chance is 0.1 where all 31 exist, more in short clips. {OWN_JUDGE}"
    )
    better = Better.HIGHER
    needs = frozenset({Need.SOUND, Need.JUDGE})

    def compute(self, case: MetricCase) -> float | NotComputed:
        if isinstance(case.lip_sync, NotComputed):
            return case.lip_sync
        scores = np.where(np.isfinite(case.lip_sync), case.lip_sync, -np.inf)
        near = scores[:, NEAR].max(axis=1, initial=-np.inf)
        far = np.delete(scores, np.r_[NEAR], axis=1).max(axis=1, initial=-np.inf)
        choice = np.isfinite(near) & np.isfinite(far)
        if not choice.any():
            return NotComputed(reason="the clip is too short: no window has a wrong offset to choose from")
        return float((near > far)[choice].mean())


class SyncConfidence(Metric):
    """How much the best offset stands out, in the spirit of Sync-C."""

    name = "sync_confidence"
    title = "Sync confidence"
    description = (
        "Mean score over windows at the best offset minus the median of the means over offsets (as Sync-C, with the judge's scores"
        f" instead of SyncNet's distances; offsets that at least half of the windows have). {OWN_JUDGE}"
    )
    better = Better.HIGHER
    needs = frozenset({Need.SOUND, Need.JUDGE})

    def compute(self, case: MetricCase) -> float | NotComputed:
        means = offset_means(case)
        return means if isinstance(means, NotComputed) else float(np.nanmax(means) - np.nanmedian(means))


class SyncOffset(Metric):
    """The offset that fits best."""

    name = "sync_offset"
    title = "Sync offset"
    description = (
        "The offset with the best mean score, in frames: positive where the sound comes later than the mouth (offsets that at least half"
        f" of the windows have). Means over clips are of its size, without the sign. {OWN_JUDGE}"
    )
    better = Better.ZERO
    needs = frozenset({Need.SOUND, Need.JUDGE})

    def compute(self, case: MetricCase) -> float | NotComputed:
        means = offset_means(case)
        if isinstance(means, NotComputed):
            return means
        if np.nanmax(means) == np.nanmin(means):
            return NotComputed(reason="the judge scores every offset alike")
        return float(int(np.nanargmax(means)) - MIDDLE)


def offset_means(case: MetricCase) -> npt.NDArray[np.float64] | NotComputed:
    """Mean score of every offset over the windows that have it: float64 [31], NaN where fewer than half of them do."""
    if isinstance(case.lip_sync, NotComputed):
        return case.lip_sync
    scores = case.lip_sync.astype(np.float64)
    there = np.isfinite(scores)
    counts = there.sum(axis=0)
    usable = (counts > 0) & (2 * counts >= len(scores))
    if usable.sum() < 3:
        return NotComputed(reason="the clip is too short: fewer than three offsets lie within it for half of the windows")
    sums = np.where(there, scores, 0.0).sum(axis=0)
    return np.where(usable, sums / np.maximum(counts, 1), np.nan)
