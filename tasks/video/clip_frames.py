"""Decode only the wanted frames of a stored clip."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.views import Image

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class BadClip(ValueError):
    """Stored bytes that are not the clip that the index promises."""


def decode_frames(mp4: bytes, indices: Sequence[int]) -> Image:
    """Decode chosen frames of a clip that lies in memory.

    Decoding jumps to a key frame where one lies between the last decoded and the next wanted frame, and goes on
    otherwise; so a dense request costs one sequential pass and a sparse one at most a key-frame interval per frame. The
    pixels are those of a full decode (each jump lands on a key frame). Only wanted frames are converted to RGB.

    Args:
        mp4: a clip of `tasks.video.video_out.encode_clip`.
        indices: frame numbers from 0, in any order, repeats allowed.

    Returns:
        uint8 [len(indices), height, width, 3], RGB, in the order asked.

    Raises:
        IndexError: an index outside of the clip.
        BadClip: the bytes cannot be decoded.
    """
    import av

    if not len(indices):
        raise IndexError("no frames asked for")
    wanted = sorted(set(map(int, indices)))
    try:
        images = _decode(mp4, wanted)
    except av.error.FFmpegError as error:
        raise BadClip(f"the clip cannot be decoded: {error}") from error
    lost = [index for index in wanted if index not in images]
    if lost:
        raise BadClip(f"frames {lost[:5]} of the clip could not be decoded")
    return np.stack([images[int(index)] for index in indices])


def _decode(mp4: bytes, wanted: Sequence[int]) -> dict[int, Image]:
    """The frames of `wanted` (ascending) by number."""
    import av

    images: dict[int, Image] = {}
    with av.open(io.BytesIO(mp4), mode="r", format="mp4") as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        codec.thread_count = 1
        packets = [packet for packet in container.demux(stream) if packet.pts is not None and packet.size]
        number = {pts: index for index, pts in enumerate(sorted(packet.pts for packet in packets if packet.pts is not None))}
        if wanted[0] < 0 or wanted[-1] >= len(packets):
            raise IndexError(f"frames {wanted[0]}..{wanted[-1]} of a clip of {len(packets)}")
        keys = [position for position, packet in enumerate(packets) if packet.is_keyframe]
        missing = set(wanted)

        def keep(frames: Sequence[VideoFrame]) -> None:
            for frame in frames:
                index = None if frame.pts is None else number.get(frame.pts)
                if index is not None and index in missing:
                    images[index] = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                    missing.discard(index)

        at = 0
        for index in wanted:
            key = keys[bisect_right(keys, index) - 1]
            if index in missing and key > at:
                codec.flush_buffers()
                at = key
            while index in missing and at < len(packets):
                keep(codec.decode(packets[at]))
                at += 1
        if missing:
            keep(codec.decode(None))
    return images
