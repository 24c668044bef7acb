"""Inspecting: the numbers are the dataset's, the sheet shows the landmarks where they are, the page needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from models.views import NUM_LANDMARKS
from tasks.data.contact_sheet import CAPTION, PANEL, failed_filters, inspect
from tasks.data.dataset import Dataset
from tasks.data.inspect_dataset import SCORES, render, sparkline, summarise
from tasks.data.shards import parquet_bytes, rejects_name, rejects_schema
from tasks.evaluation.drawing import CONTOURS, Line, draw_landmarks, fit, grid, write_lines
from tasks.evaluation.page import Column, Page, histogram_svg
from tasks.settings import FilterSettings
from tests.tasks.disc_faces import shape
from tests.tasks.small_dataset import SCORES as STORED
from tests.tasks.small_dataset import clip_sample, small_dataset, write_shard

SHARDS, VIDEOS, CLIPS, FRAMES = 2, 2, 2, 12
REJECT = {
    "key": "zoe_v",
    "uri": "/videos/Zoë <b>&\udce9.mp4",
    "scope": "video",
    "step": "probe",
    "code": "corrupt",
    "message": "the container is cut off",
    "start": None,
    "end": None,
    "shard": 0,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("dataset")
    small_dataset(folder, shards=SHARDS, videos=VIDEOS, clips=CLIPS, frames=FRAMES)
    rejects = [{**REJECT, "uri": "/videos/Zoë <b>&.mp4"}, {**REJECT, "code": "no_face", "start": 1.0, "end": 2.5}]
    rejects[1]["uri"] = "/videos/b.mp4"
    (folder / rejects_name(0)).write_bytes(parquet_bytes(rejects, rejects_schema()))
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def inspection(dataset, tmp_path_factory):
    return inspect(dataset, tmp_path_factory.mktemp("inspection") / "new", clips=3, frames=4)


def test_the_numbers_are_the_datasets(dataset):
    summary = summarise(dataset)
    clips = dataset.clips()
    assert summary.clips == clips.num_rows == SHARDS * VIDEOS * CLIPS
    assert summary.videos == SHARDS * VIDEOS
    assert summary.frames == sum(clips["num_frames"].to_pylist())
    assert summary.hours == pytest.approx(summary.frames / 25 / 3600)
    assert summary.with_sound == sum(clips["has_audio"].to_pylist())
    assert summary.rejects == {"corrupt": 1, "no_face": 1}
    assert summary.reject_steps == {"probe": 2}
    assert {score.name for score in summary.scores} == set(SCORES)
    for score in summary.scores:
        assert sum(score.counts) + score.missing == summary.clips
    face = next(score for score in summary.scores if score.name == "face_px")
    assert face.limit == 200
    assert face.quantiles[2] == STORED.face_px
    assert face.edges[0] <= 200 <= face.edges[-1]


def test_filters_count_what_they_remove_alone_and_in_order(dataset):
    summary = summarise(dataset, FilterSettings(min_face_px=400, max_yaw=1, max_pitch=90))
    effects = {effect.name: effect for effect in summary.filters}
    everything = SHARDS * VIDEOS * CLIPS
    assert (effects["min_face_px"].fails, effects["min_face_px"].removes, effects["min_face_px"].left) == (everything, everything, 0)
    assert (effects["max_yaw"].fails, effects["max_yaw"].removes) == (everything, 0)
    assert (effects["max_pitch"].fails, effects["max_pitch"].removes) == (0, 0)
    assert summary.usable == 0
    assert summarise(dataset).usable == everything


def test_a_clip_names_the_filters_that_it_fails(dataset):
    row = dataset.clips().to_pylist()[0]
    assert failed_filters(row, FilterSettings()) == []
    assert failed_filters(row, FilterSettings(min_face_px=301)) == ["min_face_px (face_px 300)"]
    assert failed_filters({**row, "yaw_p95": None}, FilterSettings()) != []
    assert failed_filters({**row, "static": True}, FilterSettings()) == ["allow_static (True)"]


def test_the_terminal_shows_counts_filters_and_rejects(dataset):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(summarise(dataset)))
    text = console.export_text()
    for word in ("identities", "face_px", "min_face_px 200", "corrupt", "no_face", "median"):
        assert word in text


def test_an_empty_dataset_is_shown_too(tmp_path):
    small_dataset(tmp_path / "d", shards=0)
    inspection = inspect(Dataset.open(tmp_path / "d"), tmp_path / "out")
    assert inspection.summary.clips == 0
    assert cv2.imread(str(inspection.sheet)) is not None
    Console(file=open("/dev/null", "w")).print(render(inspection.summary))  # noqa: SIM115, PTH123


def test_the_sheet_has_a_row_per_clip_and_shows_its_frames(inspection):
    sheet = cv2.imread(str(inspection.sheet))
    assert sheet.shape[1] == CAPTION + 4 * (PANEL + 4) + 8
    assert sheet.shape[0] > 3 * PANEL
    assert sheet.shape[0] < 4 * PANEL + 200


def test_landmarks_are_drawn_on_the_sheet_where_they_are(tmp_path, monkeypatch):
    """The sheet with and without drawing differs at every stored point of the frame, and nowhere far from them."""
    stored = clip_sample("id00", "v00", 0, frames=8)
    points = (shape(0.8) + np.array([30, 28], np.float32) + np.arange(8, dtype=np.float32)[:, None, None]).astype(np.float32)
    folder = tmp_path / "d"
    small_dataset(folder, shards=0)
    write_shard(folder, 0, {("id00", "v00"): [dataclasses.replace(stored, landmarks=points)]})
    dataset = Dataset.open(folder)
    drawn = cv2.imread(str(inspect(dataset, tmp_path / "a", frames=2).sheet)).astype(int)
    monkeypatch.setattr("tasks.data.contact_sheet.draw_landmarks", lambda image, points, dots: image)
    plain = cv2.imread(str(inspect(dataset, tmp_path / "b", frames=2).sheet)).astype(int)
    changed = np.abs(drawn - plain).sum(axis=2) > 30
    top = drawn.shape[0] - PANEL
    expected = np.zeros_like(changed)
    for column, moment in enumerate((2, 6)):
        left = CAPTION + 4 + column * (PANEL + 4)
        for x, y in (points[moment] + 0.5) * PANEL / stored.size - 0.5:
            row, col = top + round(float(y)), left + round(float(x))
            expected[row, col] = True
            assert changed[row - 1 : row + 2, col - 1 : col + 2].any(), (moment, x, y)
    far = cv2.distanceTransform((~expected).astype(np.uint8), cv2.DIST_L2, 3)
    assert far[changed].max() < 14


def test_every_point_is_drawn_at_its_place():
    image = np.full((200, 240, 3), 128, np.uint8)
    points = shape(3) + np.array([120, 100], np.float32)
    drawn = draw_landmarks(image, points)
    changed = (drawn != image).any(axis=2)
    for x, y in points:
        assert changed[round(float(y)), round(float(x))]
    distance = cv2.distanceTransform((~changed).astype(np.uint8), cv2.DIST_L2, 3)
    assert distance.max() > 40
    assert sum(len(range(*part.indices(NUM_LANDMARKS))) for part, _, _ in CONTOURS) == NUM_LANDMARKS
    nothing = draw_landmarks(image, np.full_like(points, np.nan))
    np.testing.assert_array_equal(nothing, image)
    assert not np.shares_memory(nothing, image)


def test_the_page_is_whole_in_itself_and_escapes(inspection):
    page = inspection.page.read_text()
    assert "http" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "data:image/jpeg;base64," in page
    assert page.count("<svg") == sum(1 for score in inspection.summary.scores if score.counts)
    assert "Zoë &lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    assert "1.00 to 2.50 s: the container is cut off" in page
    for key in inspection.summary.rejects:
        assert key in page
    assert json.loads(inspection.json.read_text())["clips"] == inspection.summary.clips


def test_a_broken_clip_is_a_row_with_its_error(tmp_path):
    folder = tmp_path / "d"
    small_dataset(folder, shards=1, videos=1, clips=2, frames=6)
    dataset = Dataset.open(folder)
    tar = Path(dataset.tar_url("clips", 0))
    tar.write_bytes(tar.read_bytes()[:700])
    inspection = inspect(dataset, tmp_path / "out", frames=2)
    assert inspection.summary.clips == 2
    assert cv2.imread(str(inspection.sheet)).shape[0] > 2 * PANEL


def test_names_that_are_no_text_are_drawn_and_written():
    assert write_lines(200, [Line(text="a\udce9b 日本 " * 20)]).shape == (2 * 6 + 20, 200, 3)
    page = Page(title="\udce9")
    page.table([Column(title="x")], [["\udce9"]])
    assert page.render().decode()


def test_long_captions_lose_their_middle_and_keep_their_end():
    wide = write_lines(120, [Line(text="identity-of-somebody_video-with-a-long-name_0-0001")])
    other = write_lines(120, [Line(text="identity-of-somebody_video-with-a-long-name_0-0002")])
    assert (wide != other).any()


def test_a_grid_puts_panels_in_their_places():
    red, green = np.zeros((10, 10, 3), np.uint8), np.zeros((20, 10, 3), np.uint8)
    red[..., 0] = green[..., 1] = 255
    image = grid([[red, green], [green, red]], titles=["a", "b"], labels=["1", "2"], heading=[Line(text="x")], side=40)
    body = image[-2 * 46 :]
    assert (body[20, 76 + 6 + 20] == (255, 0, 0)).all()
    assert (body[20, 76 + 6 + 46 + 20] == (0, 255, 0)).all()
    assert (body[46 + 20, 76 + 6 + 20] == (0, 255, 0)).all()
    assert (fit(green, 40)[20, 1] == fit(green, 40)[0, 0]).all()


def test_a_histogram_marks_its_limit_only_inside_its_range():
    chart = histogram_svg("a < b", [0.0, 1.0, 2.0], [1, 3], limit=1.0, limit_name="min 1")
    assert 'x1="120.0"' in chart
    assert "a &lt; b" in chart
    assert chart.count("<rect") == 2
    assert "dasharray" not in histogram_svg("a", [0.0, 1.0, 2.0], [1, 0], limit=5.0)
    assert sparkline((0, 1, 1000)) == " ▁█"


def test_reject_columns_are_those_that_are_shown():
    assert isinstance(rejects_schema(), pa.Schema)
    assert set(REJECT) == set(rejects_schema().names)


def test_a_line_with_a_line_break_is_drawn_on_one_line() -> None:
    from tasks.evaluation.drawing import Line, write_lines

    assert np.array_equal(write_lines(300, [Line(text="two\nwords")]), write_lines(300, [Line(text="two words")]))
