"""Evaluation: three rows that mean what they say, failures that are counted, and a report that opens anywhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.views import SAMPLES_PER_FRAME
from tasks.data.spread import spread
from tasks.evaluation.evaluate import ClipSource, EvaluationFailed, crop_rule, evaluate_clips, first_frames
from tasks.evaluation.metrics import Metric, NotComputed
from tasks.evaluation.metrics_landmarks import MISSING_FACE_DISTANCE
from tasks.evaluation.metrics_registry import METRICS
from tasks.evaluation.pages import draw_clip, markdown
from tasks.evaluation.report import BASELINE, MODEL, TRUTH, ClipPictures, ClipRow, Header, judge
from tasks.generation.provenance import ModelIdentity
from tasks.settings import EvaluateSettings
from tests.tasks.disc_faces import EYES, DiscConfig, DiscFamily, DiscLandmarker, DiscSynthesizer, clip_of, walk

IDENTITY = ModelIdentity(family="discs", uri="models:/talking-heads-discs/3", version="3", run_id="run7")


def run(out: Path, synthesizer: DiscSynthesizer, *, keys=("anna_a_0", "ben_b_0"), frames: int = 13, sources=None, **options):
    sources = sources or [ClipSource(key=key, load=lambda key=key: clip_of(walk(frames), key, sound=True)) for key in keys]
    header = Header(
        model=IDENTITY,
        dataset_url="/data",
        dataset_fingerprint="f" * 64,
        crop_rule="square",
        landmarker="disc 1",
        weights={"vgg19": "ab" * 32},
    )
    settings = EvaluateSettings(**{"landmark_side": 96, "grid_clips": 2, "grid_frames": 2, **options.pop("settings", {})})
    return evaluate_clips(
        sources,
        family=DiscFamily(),
        config=DiscConfig(),
        synthesizer=synthesizer,
        landmarker=DiscLandmarker(),
        header=header,
        out=out,
        settings=settings,
        **options,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return run(tmp_path_factory.mktemp("report") / "a b", DiscSynthesizer(shift=2))


def test_the_three_rows_measure_what_they_say(report):
    assert [row.name for row in report.rows] == ["truth", "baseline", "model"]
    assert report.values(TRUTH)["lmd"] == 0
    assert report.values(TRUTH)["ssim"] == pytest.approx(1, abs=1e-6)
    assert report.values(MODEL)["lmd"] == pytest.approx(2 / EYES, rel=0.03)
    still, moving = np.array(walk(13)[0]), np.array(walk(13)[1:])
    expected = np.linalg.norm(moving - still, axis=1).mean() / EYES
    assert report.values(BASELINE)["lmd"] == pytest.approx(expected, rel=0.03)
    for row in report.rows:
        assert (row.clips, row.frames, row.failures) == (2, 24, 0)


def test_the_gate_says_who_is_better(report, tmp_path):
    assert report.beats_baseline
    assert "beats its baseline" in report.verdict.sentence
    worse = run(tmp_path, DiscSynthesizer(shift=14), keys=("anna_a_0",))
    assert not worse.beats_baseline
    assert "does not beat its baseline" in worse.verdict.sentence


def test_the_page_is_whole_in_itself(report):
    page = report.page.read_text()
    assert "http" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    for text in (
        "truth",
        "baseline",
        "model",
        "LMD",
        "models:/talking-heads-discs/3",
        "f" * 64,
        "vgg19 abababab",
        "disc 1",
        "run7",
        "square",
    ):
        assert text in page
    assert page.count("data:video/mp4;base64,") == 2
    assert page.count("data:image/jpeg;base64,") == 2
    assert 'name="viewport"' in page


def test_the_header_says_what_the_numbers_depend_on(report):
    facts = report.facts()
    assert facts["Videos"].startswith("2 videos, 2 clips, 24 frames")
    assert facts["Clip length"].startswith("12 measured frames per clip")
    assert facts["Failures"] == "truth 0, baseline 0, model 0"
    assert "/data" in facts["Dataset"]


def test_the_table_has_a_line_per_clip_and_row(report):
    table = pq.read_table(report.table).to_pylist()
    assert [(line["key"], line["row"]) for line in table] == [
        (k, r) for k in ("anna_a_0", "ben_b_0") for r in ("truth", "baseline", "model")
    ]
    assert all(line["error"] is None and line["frames"] == 12 for line in table)
    mean = np.mean([line["lmd"] for line in table if line["row"] == "model"])
    assert mean == pytest.approx(report.values(MODEL)["lmd"])
    assert json.loads(report.json.read_text())["beats_baseline"] is True


def test_the_videos_show_three_panels_and_say_that_they_are_synthetic(report):
    with av.open(str(report.folder / "videos" / "anna_a_0.mp4")) as container:
        assert container.metadata["synthetic"] == "true"
        assert container.metadata["model_uri"] == IDENTITY.uri
        assert container.metadata["clip"] == "anna_a_0"
        assert len(container.streams.audio) == 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 12
    height, width = frames[0].shape[:2]
    assert width == 3 * 240
    truth, baseline = frames[6][height - 240 :, :240].astype(int), frames[6][height - 240 :, 240:480].astype(int)
    assert np.abs(truth - baseline).mean() > 1


def test_the_picture_shows_each_row_where_its_title_is(report, tmp_path):
    picture = cv2.imread(str(report.grid))
    assert picture is not None
    assert picture.shape[1] > 5 * 176
    case = DiscFamily().evaluation_case(DiscConfig(), clip_of(walk(13)))
    black, white = np.zeros_like(case.targets), np.full_like(case.targets, 255)
    drawn = draw_clip(ClipPictures.of(case, {TRUTH: case.targets, BASELINE: black, MODEL: white}, 1))
    row = drawn[drawn.shape[0] - 176 : drawn.shape[0] - 10]
    panels = [row[:, 76 + 6 + 182 * i : 76 + 6 + 182 * i + 176] for i in range(5)]
    assert panels[3].max() == 0
    assert panels[4].min() == 255
    assert (panels[1][..., 1] > 150).any()
    assert panels[1][:8, :8].max() < 40


def test_a_failing_clip_is_counted_and_the_rest_goes_on(tmp_path):
    def broken():
        raise OSError("the shard is damaged")

    sources = [
        ClipSource(key="bad_a_0", load=broken),
        ClipSource(key="anna_a_0", load=lambda: clip_of(walk(8), "anna_a_0")),
    ]
    seen = []
    report = run(tmp_path, DiscSynthesizer(), sources=sources, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert [row.failures for row in report.rows] == [1, 1, 1]
    assert {failure.key for failure in report.failures} == {"bad_a_0"}
    assert "the shard is damaged" in report.page.read_text()
    assert "OSError: the shard is damaged" in markdown(report)
    assert pq.read_table(report.table)["error"].to_pylist().count("OSError: the shard is damaged") == 3


def test_when_every_clip_fails_there_is_no_report(tmp_path):
    with pytest.raises(EvaluationFailed, match=r"all 2 clips failed; the first, anna_a_0: RuntimeError: out of memory"):
        run(tmp_path / "out", DiscSynthesizer(fails="out of memory"))
    with pytest.raises(EvaluationFailed, match="no held-out clip"):
        evaluate_clips(
            [],
            family=DiscFamily(),
            config=DiscConfig(),
            synthesizer=DiscSynthesizer(),
            landmarker=DiscLandmarker(),
            header=Header(model=IDENTITY),
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("off", "message"), [(-2, "made 10 frames, the truth has 12"), (1, "more than the 12 frames")])
def test_a_model_with_the_wrong_number_of_frames_fails_its_clip(tmp_path, off, message):
    with pytest.raises(EvaluationFailed, match=message):
        run(tmp_path, DiscSynthesizer(frames_off=off))


def test_a_model_of_another_size_fails_its_clip(tmp_path):
    with pytest.raises(EvaluationFailed, match=r"shape \(64, 64, 3\), the truth is uint8 \(96, 96, 3\)"):
        run(tmp_path, DiscSynthesizer(size=64))


def test_missing_faces_are_in_the_report(tmp_path):
    report = run(tmp_path, DiscSynthesizer(shift=0, faceless=(0, 1, 2)), keys=("anna_a_0",))
    assert report.values(MODEL)["face_found"] == pytest.approx(9 / 12)
    assert report.values(MODEL)["lmd"] == pytest.approx(3 / 12 * MISSING_FACE_DISTANCE, abs=0.01)
    assert report.values(TRUTH)["face_found"] == 1


def test_a_metric_that_is_not_computed_is_said_and_never_zero(tmp_path):
    class NeedsWeights(Metric):
        name, title, description, higher_is_better, needs = "fid", "FID", "-", False, frozenset()

        def compute(self, case):
            return NotComputed(reason="needs inception.pth")

    report = run(tmp_path, DiscSynthesizer(), keys=("anna_a_0",), metrics=(*METRICS, NeedsWeights()))
    assert "fid" not in report.values(MODEL)
    assert "FID not computed: needs inception.pth" in report.page.read_text()
    assert "FID not computed: needs inception.pth" in markdown(report)
    assert pq.read_table(report.table)["fid"].to_pylist() == [None] * 3


def test_markdown_has_the_rows_and_what_they_depend_on(report):
    text = markdown(report)
    assert re.search(r"^\| truth \| 100\.00", text, re.M)
    assert re.search(r"^\| model \|", text, re.M)
    assert "LMD ↓" in text
    assert "PSNR ↑" in text
    assert "f" * 64 in text


def row(key: str, name: str, lmd: float | None) -> ClipRow:
    return ClipRow(key=key, row=name, frames=1, values={} if lmd is None else {"lmd": lmd}, error="failed" if lmd is None else None)


def test_failing_never_helps_the_model():
    rows = [row("a", BASELINE, 0.3), row("b", BASELINE, 0.3), row("a", MODEL, 0.1), row("b", MODEL, None)]
    verdict = judge(rows)
    assert verdict.beats_baseline is False
    assert "1 clips without a result of the model" in verdict.sentence
    assert judge([row("a", BASELINE, 0.3), row("a", MODEL, 0.1)]).beats_baseline is True
    assert judge([row("a", BASELINE, None), row("a", MODEL, 0.1)]).beats_baseline is None
    assert judge([row("a", BASELINE, 0.3), row("a", MODEL, 0.3)]).beats_baseline is False


def test_a_clip_is_cut_with_its_sound():
    clip = clip_of(walk(10), sound=True)
    short = first_frames(clip, 4)
    assert (short.num_frames, len(short.landmarks), len(short.audio)) == (4, 4, 4 * SAMPLES_PER_FRAME)
    assert first_frames(clip, 10) is clip
    np.testing.assert_array_equal(short.read_frames([3]), clip.read_frames([3]))


def test_the_crop_rule_is_read_from_the_dataset():
    assert "35%" in crop_rule({"settings": {"clips": {"margin": 0.35, "size": 512}}})
    assert crop_rule({})


KEYS = st.builds(lambda i, v, c: f"{i}_{v}_{c}", st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 5))


@given(st.sets(KEYS, max_size=40), st.integers(0, 12), st.randoms())
def test_spreading_takes_everybody_before_anybody_twice(keys, limit, random):
    shuffled = sorted(keys)
    random.shuffle(shuffled)
    chosen = spread(shuffled, limit)
    assert len(chosen) == len(set(chosen)) == min(limit, len(keys))
    assert set(chosen) <= keys
    assert chosen == spread(sorted(keys), limit)
    identities = [key.split("_")[0] for key in chosen]
    available = {i: sum(key.startswith(i + "_") for key in keys) for i in "abc"}
    taken = {i: identities.count(i) for i in available}
    for one in available:
        for other in available:
            assert taken[one] >= min(available[one], taken[other] - 1)


class Balance(HTMLParser):
    """Notes tags that are closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "line", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_well_formed(report):
    balance = Balance()
    balance.feed(report.page.read_text())
    assert balance.open == []
    assert balance.wrong == []
