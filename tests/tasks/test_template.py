"""Templates: the pixels of the file at every index, in whatever order, in bounded memory, with landmarks where there is a face."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.family import ping_pong
from tasks.generation import template as module
from tasks.generation.inputs import GenerationError
from tasks.generation.template import BlockReader, bridge_gaps, prepare_template
from tasks.video.decode import read_frames
from tasks.video.probe import probe
from tasks.video.video_out import VideoWriter
from tests.tasks.disc_faces import DiscLandmarker, picture, shape, walk


def write(path: Path, images, **options) -> Path:
    with VideoWriter(path, width=images[0].shape[1], height=images[0].shape[0], crf=4, **options) as writer:
        for image in images:
            writer.write(image)
    return path


def prepare(*sources: Path, references: int = 4):
    return prepare_template(sources, DiscLandmarker(), references=references, size=64, margin=0.35)


@given(st.integers(1, 9), st.integers(1, 40))
def test_the_walk_goes_forwards_and_backwards_without_showing_an_end_twice(length, steps):
    walked = list(islice(ping_pong(length), steps))
    period = max(1, 2 * (length - 1))
    assert walked == [min(i % period, period - i % period) for i in range(steps)]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 6))
def test_only_short_gaps_between_faces_are_bridged(found, longest):
    truth = (shape()[None] + np.arange(len(found), dtype=np.float32)[:, None, None]).astype(np.float32)
    points = truth.copy()
    points[~np.array(found)] = np.nan
    bridged = bridge_gaps(points, longest)
    runs = "".join("x" if face else "." for face in found)
    for i, face in enumerate(found):
        gap = len(runs[:i]) - len(runs[:i].rstrip(".")) + 1 + len(runs[i + 1 :]) - len(runs[i + 1 :].lstrip("."))
        inside = "x" in runs[:i] and "x" in runs[i + 1 :]
        if face or (inside and gap <= longest):
            np.testing.assert_allclose(bridged[i], truth[i], atol=1e-4)
        else:
            assert np.isnan(bridged[i]).all()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """70 frames of other pixels each, one key frame."""
    images = [picture(centre, texture=i) for i, centre in enumerate(walk(70))]
    return write(tmp_path_factory.mktemp("template") / "t.mp4", images)


def open_reader(path: Path):
    return read_frames(path, probe(path), short_side=1080)


def test_frames_by_index_are_those_of_a_pass_in_any_order(video, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_FRAMES", 16)
    passed = [frame.image for frame in open_reader(video)]
    read = BlockReader(open_reader(video), len(passed), (96, 96))
    order = list(islice(ping_pong(len(passed)), 2 * len(passed)))
    for start in range(0, len(order), 8):
        for index, image in zip(order[start : start + 8], read(order[start : start + 8]), strict=True):
            assert np.array_equal(image, passed[index]), index
    rng = np.random.default_rng(0)
    for index in rng.integers(0, len(passed), 20):
        assert np.array_equal(read([index])[0], passed[index])
    with pytest.raises(IndexError):
        read([70])


def test_a_walk_opens_nothing_anew_and_holds_three_blocks(video, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_FRAMES", 10)
    reader = open_reader(video)
    monkeypatch.setattr(type(reader), "_open", lambda self: pytest.fail("opened again"))
    read = BlockReader(reader, 70, (96, 96))
    for index in islice(ping_pong(70), 300):
        read([index])
        assert len(read._blocks) <= 3
    monkeypatch.setattr(module, "CACHE_BYTES", 3 * 5 * 96 * 96 * 3)
    assert BlockReader(reader, 70, (96, 96)).block == 5


@pytest.mark.parametrize("frames", [70, 25])
def test_a_look_back_at_single_frames_decodes_little_twice(video, monkeypatch, frames):
    monkeypatch.setattr(module, "BLOCK_FRAMES", 10)
    reader = open_reader(video)
    decoded = []
    real = reader.read
    monkeypatch.setattr(reader, "read", lambda indices: decoded.extend(indices) or real(indices))
    read = BlockReader(reader, frames, (96, 96))
    order = list(islice(ping_pong(frames), 4 * (frames - 1)))
    for start in range(0, len(order), 8):
        read(order[start : start + 8])
        for index in order[start : start + 8]:
            read([index])
    assert len(decoded) == 25 if frames == 25 else len(decoded) <= len(order), "what fits is decoded once"


def test_a_read_frame_may_be_painted_on(video):
    template = prepare(video).face.template
    assert template is not None
    before = template.read([3])[0].copy()
    template.read([3])[...] = 0
    assert np.array_equal(template.read([3])[0], before)


def test_a_video_becomes_a_template_and_references(video):
    made = prepare(video)
    template = made.face.template
    assert template is not None
    assert (len(template), made.canvas, made.notes, made.without_face) == (70, (96, 96), (), 0)
    assert made.face.images.shape == (4, 64, 64, 3)
    for index in (0, 33, 69):
        seen = DiscLandmarker().detect(template.read([index])[0]).points
        np.testing.assert_allclose(template.landmarks[index], seen, atol=0.01)


def test_frames_without_a_face_are_bridged_or_left_and_said(tmp_path):
    hidden = {*range(5, 9), *range(20, 30), 49}
    video = write(tmp_path / "gaps.mp4", [picture(None if i in hidden else centre) for i, centre in enumerate(walk(50))])
    made = prepare(video)
    template = made.face.template
    assert template is not None
    assert np.flatnonzero(np.isnan(template.landmarks).any(axis=(1, 2))).tolist() == [*range(20, 30), 49]
    assert made.without_face == 11
    assert made.notes == (
        "11 of 50 template frames show no face; they are shown as they are",
        "4 of 50 template frames show no face for a moment; their landmarks were interpolated",
    )


def test_several_faces_are_said(video):
    class Crowd(DiscLandmarker):
        def track(self, frames):
            for face in super().track(frames):
                yield type(face)(points=face.points, confidence=1.0, faces=2)

    made = prepare_template([video], Crowd(), references=1, size=64, margin=0.35)
    assert made.notes == ("70 of 70 template frames show several faces; the largest one speaks",)


def test_a_photo_is_a_template_of_one_upright_even_frame(tmp_path):
    from PIL import Image

    upright = picture((60, 90), 192)[:151, :125]
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone's photo.png"
    Image.fromarray(np.rot90(upright).copy()).save(path, exif=exif)
    made = prepare(path)
    assert made.face.template is not None
    assert (len(made.face.template), made.canvas) == (1, (150, 124))
    assert np.array_equal(made.face.template.read([0, 0]), np.stack([upright[:150, :124]] * 2))
    assert made.notes == ("phone's photo.png is 125x151; the made video is 124x150, because H.264 wants even sizes",)


def test_large_templates_are_scaled_and_said(tmp_path):
    cv2.imwrite(str(tmp_path / "large.png"), cv2.resize(picture((48, 48)), (2500, 2200), interpolation=cv2.INTER_NEAREST)[..., ::-1])
    made = prepare(tmp_path / "large.png")
    assert made.canvas == (1080, 1228)
    assert made.notes == ("large.png is 2500x2200; it is worked on at 1228x1080",)


def test_odd_videos_lose_a_pixel(tmp_path):
    import av

    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 97, 95, "bgr0"
        for centre in walk(6):
            image = np.ascontiguousarray(np.pad(picture(centre), ((0, 0), (0, 1), (0, 0)), mode="edge")[:95])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    made = prepare(path)
    template = made.face.template
    assert template is not None
    assert made.canvas == (94, 96)
    assert template.read([5]).shape == (1, 94, 96, 3)
    assert "97x95; the made video is 96x94" in made.notes[0]


def test_of_a_folder_the_first_photo_with_a_face_is_painted_on(tmp_path):
    for name, centre in (("a", None), ("b", (40, 50)), ("c", (50, 40))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture(centre)[..., ::-1])
    made = prepare(tmp_path)
    assert made.face.template is not None
    assert np.array_equal(made.face.template.read([0])[0], picture((40, 50)))
    assert len(made.face.images) == 2
    assert made.notes == ("left out of the face: a.png (no face found)",)


def test_no_face_or_too_few_pixels_is_an_error_with_a_way_out(tmp_path):
    blank = write(tmp_path / "blank.mp4", [picture(None)] * 5)
    with pytest.raises(GenerationError, match=r"no face found in any of the 5 frames of blank\.mp4; use a picture or video"):
        prepare(blank)
    cv2.imwrite(str(tmp_path / "nobody.png"), picture(None)[..., ::-1])
    with pytest.raises(GenerationError, match=r"no face found in nobody\.png; use a picture"):
        prepare(tmp_path / "nobody.png")
    cv2.imwrite(str(tmp_path / "tiny.png"), picture((24, 24), 48)[..., ::-1])
    with pytest.raises(GenerationError, match=r"tiny\.png is 48x48, too small for a face"):
        prepare(tmp_path / "tiny.png")


def test_of_a_broken_video_the_good_frames_are_the_template(video, tmp_path):
    images = [picture(centre, texture=i) for i, centre in enumerate(walk(70))]
    whole = write(tmp_path / "whole.mp4", images, gop=10).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    made = prepare(cut)
    template = made.face.template
    assert template is not None
    assert 20 < len(template) < 70
    assert made.notes[0].startswith("the template ends early: ")
    for index in (len(template) - 1, 0):
        assert np.abs(template.read([index])[0].astype(int) - images[index]).mean() < 4


@pytest.mark.samples
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fullbody_1080x1920_hevc_25fps.mp4", "portrait_512_24fps_noaudio.mp4"])
def test_real_codecs_read_backwards(samples_dir, name):
    path = samples_dir / name
    passed = [frame.image[::7, ::7].copy() for frame in open_reader(path)]
    reader = open_reader(path)
    read = BlockReader(reader, len(passed), reader.size)
    for index in range(len(passed) - 1, -1, -1):
        assert np.array_equal(read([index])[0, ::7, ::7], passed[index]), index
