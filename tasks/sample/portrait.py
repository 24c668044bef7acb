"""The embedded sample's raw material: the astronaut portrait cut out, with landmarks and masks.

The picture is of Eileen Collins, taken by NASA and in the public domain; scikit-image carries it as `data.astronaut`.
The numbers below are read off that one picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from models.views import Image
from tasks.video.landmarks_mediapipe import without_greetings

SIZE = 512
"""Side of the frame that the canvas is made for."""

MARGIN = 40
"""Pixels that the canvas has beyond the frame on the left, the right and below, so that moving uncovers nothing."""

WIDTH, HEIGHT = SIZE + 2 * MARGIN, SIZE + MARGIN

_CROP_SIDE = 208
"""Side of the square of the portrait that fills a frame: head and collar."""
_CROP_CENTRE = 224

Map = npt.NDArray[np.float32]

# The collar ring is as pale as the backdrop, so no segmentation finds it: its outline on the canvas.
_COLLAR = [(204, 360), (181, 362), (150, 363), (118, 370), (90, 384), (66, 408), (52, 436), (47, 455), (26, 461), (22, 478), (36, 500),
           (0, 506), (0, 552), (492, 552), (482, 530), (466, 504), (442, 475), (410, 447), (372, 427)]  # fmt: skip

_NECK = [(203, 380), (204, 425), (209, 446), (232, 456), (260, 463), (306, 470), (345, 465), (375, 461), (400, 385)]
"""Skin down to the edge of the pullover; in shadow it has the pullover's colours."""

LIPS_INNER_UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LIPS_INNER_LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
LIPS_OUTER_UPPER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LIPS_OUTER_LOWER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
EYES_UPPER = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (362, 398, 384, 385, 386, 387, 388, 466, 263))
EYES_LOWER = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (362, 382, 381, 380, 374, 373, 390, 249, 263))
BROWS = ((70, 63, 105, 66, 107), (336, 296, 334, 293, 300))
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
        152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
"""Indices into MediaPipe's 478 face-mesh points, from left to right in the picture; `OVAL` runs around the face."""


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """The cut-out on its canvas of HEIGHT x WIDTH pixels."""

    image: Image
    """uint8 [HEIGHT, WIDTH, 3]; beyond the person, the nearest colours of the person."""
    alpha: Map
    """float32 [HEIGHT, WIDTH], 0..1."""
    hair: Map
    """float32 [HEIGHT, WIDTH], 0..1, within the person."""
    clothes: Map
    """float32 [HEIGHT, WIDTH], 0..1, within the person."""
    points: npt.NDArray[np.float64]
    """float64 [478, 3], x, y, z in canvas pixels; z grows away from the camera."""


@cache  # two portraits for a process
def read_portrait(*, mirrored: bool) -> Portrait:
    """Cut the person out of the portrait.

    Raises:
        RuntimeError: when MediaPipe does not find the face (a broken installation: it always does).
    """
    import cv2
    from skimage.data import astronaut

    scale = SIZE / _CROP_SIDE
    shift = (scale - 1) / 2
    place = np.array([[scale, 0, MARGIN - (_CROP_CENTRE - _CROP_SIDE / 2) * scale + shift], [0, scale, shift]])
    image = cv2.warpAffine(astronaut(), place, (WIDTH, HEIGHT), flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
    image = cv2.addWeighted(image, 1.35, cv2.GaussianBlur(image, (0, 0), 1.8), -0.35, 0)  # enlarging took the edge off
    hard = _person(image)
    if mirrored:
        image, hard = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(hard[:, ::-1])
    points = _mesh(image)
    alpha = _soft_edge(image, hard)
    hair = _hair(image, hard, points)
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    dark = (hsv[..., 2] < 90) | (hsv[..., 1] < 50) | ((hsv[..., 1] > 170) & (hsv[..., 2] > 120))
    skin = _filled([points[i, :2] for i in OVAL]) | _filled([np.array((WIDTH - 1 - x if mirrored else x, y)) for x, y in _NECK])
    clothes = (hard > 0) & dark & (rows > points[152, 1] - 90) & (cv2.erode(skin, _disc(5)) == 0)
    clothes = cv2.morphologyEx(clothes.astype(np.uint8), cv2.MORPH_CLOSE, _disc(9))
    soft_clothes = cv2.GaussianBlur(clothes.astype(np.float32), (0, 0), 1.5)
    return Portrait(image=_spread(image, hard), alpha=alpha, hair=hair * (1 - soft_clothes), clothes=soft_clothes, points=points)


def _mesh(image: Image) -> npt.NDArray[np.float64]:
    from mediapipe.python.solutions.face_mesh import FaceMesh

    with without_greetings(), FaceMesh(static_image_mode=True, refine_landmarks=True, max_num_faces=1) as mesh:
        found = mesh.process(image).multi_face_landmarks
    if not found:
        raise RuntimeError("MediaPipe does not find the face in scikit-image's astronaut portrait: reinstall mediapipe and scikit-image")
    return np.array([(p.x * WIDTH, p.y * HEIGHT, p.z * WIDTH) for p in found[0].landmark])


def _person(image: Image) -> npt.NDArray[np.uint8]:
    """1 on the person: MediaPipe's segmentation made exact along colours by GrabCut, and the collar by its outline."""
    import cv2
    from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation

    with without_greetings(), SelfieSegmentation(model_selection=0) as model:
        likely = np.asarray(model.process(image).segmentation_mask)
    mask = np.where(likely > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[cv2.erode((likely > 0.9).astype(np.uint8), _disc(25)) > 0] = cv2.GC_FGD
    mask[cv2.dilate((likely > 0.1).astype(np.uint8), _disc(45)) == 0] = cv2.GC_BGD
    cv2.setRNGSeed(0)  # GrabCut starts from a random clustering
    cv2.grabCut(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
    person = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    collar = _filled([np.array(point) for point in _COLLAR])
    # Below the shoulders the outline is the truth; above, the segmentation.
    person[collar.shape[0] - 190 :][collar[collar.shape[0] - 190 :] > 0] = 1
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    person[(rows > 440) & (collar == 0) & ((columns < 200) | (columns > 380))] = 0
    _, labels, stats, _ = cv2.connectedComponentsWithStats(person)
    return (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)


def _soft_edge(image: Image, hard: npt.NDArray[np.uint8]) -> Map:
    """Alpha that follows hair: a guided filter (He, Sun and Tang, 2010) in a band along the edge."""
    import cv2

    def mean(x: Map) -> Map:
        return cv2.boxFilter(x, -1, (13, 13))

    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    start = cv2.GaussianBlur(hard.astype(np.float32), (0, 0), 1.2)
    slope = (mean(guide * start) - mean(guide) * mean(start)) / (mean(guide * guide) - mean(guide) ** 2 + 1e-4)
    alpha = np.clip((mean(slope) * guide + mean(mean(start) - slope * mean(guide)) - 0.12) / 0.8, 0, 1)
    band = cv2.dilate(hard, _disc(13)) - cv2.erode(hard, _disc(13))
    band[400:] = 0  # the collar's highlights are as pale as the backdrop and would become holes
    return np.where(band > 0, alpha, cv2.GaussianBlur(hard.astype(np.float32), (0, 0), 0.8)).astype(np.float32)


def _hair(image: Image, hard: npt.NDArray[np.uint8], points: npt.NDArray[np.float64]) -> Map:
    """Probability of hair: a linear discriminant of LAB colours between what is surely hair and surely skin."""
    import cv2

    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    lab = cv2.GaussianBlur(lab, (0, 0), 2.0)
    oval = _filled([points[i, :2] for i in OVAL])
    rows = np.arange(HEIGHT)[:, None]
    face = cv2.erode(oval, _disc(9)) * (rows > points[168, 1]).astype(np.uint8)
    surely_hair = (cv2.erode(hard, _disc(9)) > 0) & (rows < points[10, 1] - 8)
    colours = lab.reshape(-1, 3)
    hsvs, hair_colours = colours[face.ravel() > 0], colours[surely_hair.ravel()]
    spread = np.cov(hsvs.T) + np.cov(hair_colours.T)
    direction = np.linalg.solve(spread, hair_colours.mean(0) - hsvs.mean(0))
    score = (colours - (hair_colours.mean(0) + hsvs.mean(0)) / 2) @ direction
    hair = 1 / (1 + np.exp(-1.5 * score.reshape(HEIGHT, WIDTH)))
    hair[surely_hair] = 1
    # Brows, lashes and nostrils are hair-coloured and are not hair; nor is anything below the ears. The fringe is, down to the brows.
    eyes = min(points[i, 1] for upper in EYES_UPPER for i in upper)
    not_hair = cv2.erode(oval, _disc(17)) * (rows > eyes - 4).astype(np.uint8)
    for brow in BROWS:
        cv2.polylines(not_hair, [np.round(points[list(brow), :2]).astype(np.int32)], False, 1, 11)
    below_brows = cv2.GaussianBlur(not_hair.astype(np.float32), (0, 0), 2)
    fade = np.clip((points[132, 1] + 12 - rows) / 16, 0, 1)
    grown = cv2.dilate(hair.astype(np.float32), _disc(5))  # the tips are half skin
    return (cv2.GaussianBlur(grown, (0, 0), 1.5) * (1 - below_brows) * fade * (hard > 0)).astype(np.float32)


def _spread(image: Image, hard: npt.NDArray[np.uint8]) -> Image:
    """Carry the person's colours outwards over the old backdrop, so that soft edges hold none of it."""
    import cv2

    core = cv2.erode(hard, _disc(5)).astype(np.float32)
    filled = image.astype(np.float32)
    known = core
    for radius in (3, 8, 20, 60):
        weight = cv2.GaussianBlur(known, (0, 0), radius)
        colour = cv2.GaussianBlur(filled * known[..., None], (0, 0), radius) / np.maximum(weight, 1e-6)[..., None]
        reach = (known < 0.5) & (weight > 0.02)
        filled[reach] = colour[reach]
        known = np.maximum(known, reach.astype(np.float32))
    return np.clip(np.round(filled), 0, 255).astype(np.uint8)


def _filled(points: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.uint8]:
    import cv2

    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [np.round(np.array(points)).astype(np.int32)], 1)
    return mask


def _disc(size: int) -> npt.NDArray[np.uint8]:
    import cv2

    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
