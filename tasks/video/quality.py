"""Scores of one clip. Nothing is judged here: thresholds are applied when the dataset is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.views import SAMPLES_PER_FRAME, Image, Points
from tasks.samples import QualityScores
from tasks.video.crop import CropBox, face_boxes, head_boxes

LOOK_EVERY = 5
"""Frames from one looked-at picture to the next: sharpness, brightness, stillness and camera motion at 5 Hz."""

FACE_SIDE = 128
FLOW_WIDTH = 160
NOSE_TIP = 30
NOSE_FRAMES = 12

STILL_CHANGE = 4.0
"""Grey levels that the 99th percentile of the face's pixels stays within in a still image; encoder noise is below it."""

SPEECH_LEVEL = 10 ** (-45 / 20)
SPEECH_FLATNESS = 0.3
"""Spectral flatness of white noise is about 0.56 in one frame's spectrum, of voiced speech below 0.1."""

RIGID = (0, 16, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 39, 42, 45)
"""iBUG points that the expression does not move: ears, nose, corners of the eyes."""

HEAD_MODEL = np.array(
    [
        (-50.0, -24.1, 39.6),
        (50.0, -24.1, 39.6),
        (0.0, -31.2, -11.1),
        (0.0, -20.6, -18.4),
        (0.0, -11.1, -27.0),
        (0.0, -5.2, -29.1),
        (-12.4, 3.0, -11.3),
        (-5.6, 4.1, -15.9),
        (0.0, 4.3, -17.1),
        (5.6, 4.1, -15.9),
        (12.4, 3.0, -11.3),
        (-32.4, -28.0, 4.3),
        (-12.5, -26.7, 0.5),
        (12.5, -26.7, 0.5),
        (32.4, -28.0, 4.3),
    ]
)
"""The RIGID points of a symmetric mean head, face width 100; x right in the picture, y down, z away from the camera.

Averaged here from MediaPipe's 3-D mesh over five faces and their mirror images."""


def score_clip(
    images: Sequence[Image],
    points: Points,
    confidence: npt.NDArray[np.float32],
    faces: npt.NDArray[np.int64],
    *,
    box: CropBox,
    scale: float,
    sound: npt.NDArray[np.float32] | None,
) -> QualityScores:
    """All scores of `tasks.samples.QualityScores`.

    Args:
        images: F decoded pictures.
        points: float32 [F, 68, 2] in their pixels.
        confidence: float32 [F]; 0 where the points were held.
        faces: int64 [F], faces of comparable size.
        box: the clip's crop, in the same pixels.
        scale: decoded pixels per source pixel.
        sound: float32 [640 * F] or None.
    """
    angles = np.abs(head_angles(points))
    yaw, pitch, roll = np.percentile(angles, 95, axis=0)
    side = face_side(points)
    look = range(0, len(images), LOOK_EVERY)
    sharpness, brightness = face_light([images[i] for i in look], points[::LOOK_EVERY])
    height, width = images[0].shape[:2]
    return QualityScores(
        face_px=side / scale,
        face_share=side / box.side,
        yaw_p95=float(yaw),
        pitch_p95=float(pitch),
        roll_p95=float(roll),
        one_face=float(np.mean(faces == 1)),
        landmark_rate=float(np.mean(confidence > 0)),
        nose_travel=nose_travel(points),
        head_inside=head_inside(points, height, width),
        sharpness=sharpness,
        brightness=brightness,
        static=is_static([images[i] for i in look], points),
        camera_motion=camera_motion([images[i] for i in look], points[::LOOK_EVERY]),
        speech=None if sound is None else speech_share(sound),
    )


def face_side(points: Points) -> float:
    """Median over the frames of the smaller side of the face's box, brows to chin and cheek to cheek."""
    boxes = face_boxes(points)
    return float(np.median(np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])))


def head_angles(points: Points) -> npt.NDArray[np.float64]:
    """Yaw, pitch and roll in degrees: float32 [F, 68, 2] to float64 [F, 3].

    Positive: towards the picture's right, downwards, and clockwise in the picture. The camera is far away and
    looks at the face, so that the place in the picture does not turn the head.
    """
    import cv2

    angles = np.zeros((len(points), 3))
    for index, face in enumerate(points):
        rigid = face[list(RIGID)].astype(np.float64)
        centre = rigid.mean(axis=0)
        focal = 10 * max(1e-3, float(np.ptp(rigid, axis=0).max()))
        camera = np.array([[focal, 0, 0], [0, focal, 0], [0, 0, 1.0]])
        done, rotation, _ = cv2.solvePnP(HEAD_MODEL, rigid - centre, camera, np.zeros(4), flags=cv2.SOLVEPNP_SQPNP)
        if not done:
            angles[index] = 180.0  # points that are no face at all: as far from frontal as can be
            continue
        matrix, _ = cv2.Rodrigues(rotation)
        # The head's own forward direction is -z of the model; matrix = Rz(roll) Ry Rx.
        yaw = np.degrees(np.arcsin(np.clip(matrix[2, 0], -1, 1)))
        pitch = np.degrees(np.arctan2(matrix[2, 1], matrix[2, 2]))
        roll = np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
        angles[index] = yaw, pitch, roll
    return angles


def nose_travel(points: Points) -> float:
    """Largest distance of the nose tip between frames at most 12 apart, in face widths."""
    boxes = face_boxes(points)
    width = max(1e-6, float(np.median(boxes[:, 2] - boxes[:, 0])))
    nose = points[:, NOSE_TIP].astype(np.float64)
    lags = range(1, min(NOSE_FRAMES, len(nose) - 1) + 1)
    return max((float(np.linalg.norm(nose[lag:] - nose[:-lag], axis=1).max()) for lag in lags), default=0.0) / width


def head_inside(points: Points, height: int, width: int) -> float:
    """Share of frames whose head box, hair included, lies inside the picture."""
    boxes = head_boxes(points)
    inside = (boxes[:, :2] >= -0.5).all(axis=1) & (boxes[:, 2] <= width - 0.5) & (boxes[:, 3] <= height - 0.5)
    return float(np.mean(inside))


def face_light(images: Sequence[Image], points: Points) -> tuple[float, float]:
    """Median variance of the Laplacian of the faces at 128 px, and their mean luma 0..255."""
    import cv2

    sharpness, luma = [], []
    for image, face in zip(images, points, strict=True):
        grey = _grey_part(image, face_boxes(face), FACE_SIDE)
        sharpness.append(float(cv2.Laplacian(grey, cv2.CV_64F).var()))
        luma.append(float(grey.mean()))
    return float(np.median(sharpness)), float(np.mean(luma))


def is_static(images: Sequence[Image], points: Points) -> bool:
    """Whether nothing in the region of the face ever changes."""
    boxes = face_boxes(points)
    union = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    parts = [_grey_part(image, union, FACE_SIDE).astype(np.int16) for image in images]
    return all(float(np.percentile(np.abs(part - parts[0]), 99)) < STILL_CHANGE for part in parts[1:])


def camera_motion(images: Sequence[Image], points: Points) -> float:
    """Mean displacement of the background per frame, as a share of the picture's width.

    Corners outside head and body are followed from one looked-at picture to the next; a background without
    corners counts as still.
    """
    import cv2

    if len(images) < 2:
        return 0.0
    height, width = images[0].shape[:2]
    factor = FLOW_WIDTH / width
    size = (FLOW_WIDTH, max(16, round(height * factor)))
    small = [cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for image in images]
    moved = []
    for before, after, face in zip(small, small[1:], points, strict=False):
        corners = cv2.goodFeaturesToTrack(before, maxCorners=60, qualityLevel=0.02, minDistance=5, mask=_background(face * factor, size))
        if corners is None:
            moved.append(0.0)
            continue
        follow, status, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, np.zeros_like(corners), winSize=(15, 15), maxLevel=3)
        steps = np.linalg.norm((follow - corners).reshape(-1, 2), axis=1)[status.reshape(-1) == 1]
        moved.append(float(np.median(steps)) if len(steps) else 0.0)
    return float(np.mean(moved)) / FLOW_WIDTH / LOOK_EVERY


def speech_share(sound: npt.NDArray[np.float32]) -> float:
    """Share of video frames whose sound is loud enough and tonal enough to be speech: float32 [640 * F]."""
    frames = sound[: len(sound) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME).astype(np.float64)
    if not len(frames):
        return 0.0
    loud = np.sqrt((frames**2).mean(axis=1)) > SPEECH_LEVEL
    power = np.abs(np.fft.rfft(frames * np.hanning(SAMPLES_PER_FRAME), axis=1)) ** 2
    band = power[:, 4:160] + 1e-12  # 100 to 4000 Hz
    flatness = np.exp(np.log(band).mean(axis=1)) / band.mean(axis=1)
    return float(np.mean(loud & (flatness < SPEECH_FLATNESS)))


def _grey_part(image: Image, box: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.uint8]:
    """The part of a picture inside a box, grey, size x size."""
    import cv2

    height, width = image.shape[:2]
    x0, y0 = (int(v) for v in np.clip(np.floor(box[:2]), 0, (width - 1, height - 1)))
    x1, y1 = (int(v) for v in np.clip(np.ceil(box[2:]) + 1, (x0 + 1, y0 + 1), (width, height)))
    part = cv2.cvtColor(np.ascontiguousarray(image[y0:y1, x0:x1]), cv2.COLOR_RGB2GRAY)
    method = cv2.INTER_AREA if min(part.shape) >= size else cv2.INTER_LINEAR
    return cv2.resize(part, (size, size), interpolation=method).astype(np.uint8, copy=False)


def _background(face: Points, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """255 outside the head and the body below it: uint8 [size[1], size[0]]."""
    x0, y0, x1, y1 = (float(v) for v in head_boxes(face))
    mask = np.full((size[1], size[0]), 255, np.uint8)
    around = 0.25 * (x1 - x0)
    mask[max(0, int(y0 - around)) :, max(0, int(x0 - around)) : max(0, int(x1 + around))] = 0
    # Shoulders: as wide as three heads from the chin down.
    mask[max(0, int(y1)) :, max(0, int(x0 - (x1 - x0))) : max(0, int(x1 + (x1 - x0)))] = 0
    return mask
