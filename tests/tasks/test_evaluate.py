"""Evaluation: rows that mean what they say, a leakage that shows, failures that are counted, and a report that opens anywhere."""

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

from models.family import Driver
from models.views import SAMPLES_PER_FRAME
from tasks.data.spread import spread
from tasks.evaluation.clip_pictures import ClipPictures, draw_clip
from tasks.evaluation.evaluate import EvaluationFailed, crop_rule, evaluate_clips, first_frames
from tasks.evaluation.metrics import Better, Metric, NotComputed
from tasks.evaluation.metrics_landmarks import MISSING_FACE_DISTANCE, LandmarkDistance
from tasks.evaluation.metrics_registry import METRICS
from tasks.evaluation.mouth_plot import HEIGHT, draw_mouth_plot
from tasks.evaluation.other_sound import ClipSource, OtherSound, other_sound
from tasks.evaluation.pages import markdown
from tasks.evaluation.report import BASELINE, MODEL, SHUFFLED, TRUTH, ClipRow, Header, gate_metric, judge, measure_leakage, row_names
from tasks.generation.provenance import ModelIdentity
from tasks.settings import EvaluateSettings
from tests.tasks.disc_faces import EYES, DiscConfig, DiscFamily, DiscLandmarker, DiscSynthesizer, clip_of, walk
from tests.tasks.talking_discs import SQUARE, Talker, TalkerLandmarker, TalkingConfig, TalkingFamily, sound, talking_clip

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


def test_the_videos_show_each_row_and_the_difference_and_say_that_they_are_synthetic(report):
    with av.open(str(report.folder / "videos" / "anna_a_0.mp4")) as container:
        assert container.metadata["synthetic"] == "true"
        assert container.metadata["model_uri"] == IDENTITY.uri
        assert container.metadata["clip"] == "anna_a_0"
        assert len(container.streams.audio) == 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 12
    height, width = frames[0].shape[:2]
    assert width == 4 * 240
    truth, baseline = frames[6][height - 240 :, :240].astype(int), frames[6][height - 240 :, 240:480].astype(int)
    assert np.abs(truth - baseline).mean() > 1
    model, difference = frames[6][height - 240 :, 480:720].astype(int), frames[6][height - 240 :, 720:].astype(int)
    expected = np.minimum(4 * np.abs(model - truth), 255)
    assert np.corrcoef(difference.ravel(), expected.ravel())[0, 1] > 0.8
    assert difference[:40].max() < 60


def test_the_picture_shows_each_row_where_its_title_is(report, tmp_path):
    picture = cv2.imread(str(report.grid))
    assert picture is not None
    assert picture.shape[1] > 5 * 176
    case = DiscFamily().evaluation_case(DiscConfig(), clip_of(walk(13)))
    black, white = np.zeros_like(case.targets), np.full_like(case.targets, 255)
    drawn = draw_clip(ClipPictures.of(case, {TRUTH: case.targets, BASELINE: black, MODEL: white}, 1, rows=row_names(DiscFamily())))
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
        name, title, description, better, needs = "fid", "FID", "-", Better.LOWER, frozenset()

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


def row(key: str, name: str, value: float | None, metric: str = "lmd") -> ClipRow:
    return ClipRow(key=key, row=name, frames=1, values={} if value is None else {metric: value}, error="failed" if value is None else None)


def test_failing_never_helps_the_model():
    rows = [row("a", BASELINE, 0.3), row("b", BASELINE, 0.3), row("a", MODEL, 0.1), row("b", MODEL, None)]
    verdict = judge(rows, LandmarkDistance())
    assert verdict.beats_baseline is False
    assert "1 clips without a result of the model" in verdict.sentence
    assert judge([row("a", BASELINE, 0.3), row("a", MODEL, 0.1)], LandmarkDistance()).beats_baseline is True
    assert judge([row("a", BASELINE, None), row("a", MODEL, 0.1)], LandmarkDistance()).beats_baseline is None
    assert judge([row("a", BASELINE, 0.3), row("a", MODEL, 0.3)], LandmarkDistance()).beats_baseline is False


OPENINGS = {"anna_a_0": [0, 0, 2, 4, 5, 3, 1, 0, 2, 5, 5, 2, 0, 1, 3, 3, 1, 0, 0, 4], "ben_b_0": [3, 5, 4, 2, 0, 0, 1, 4, 5, 3, 0, 2]}


def talk(out: Path, synthesizer: Talker, openings=OPENINGS, *, audible: bool = True, **settings):
    return evaluate_clips(
        [
            ClipSource(key=key, load=lambda key=key, values=values: talking_clip(values, key, audible=audible))
            for key, values in openings.items()
        ],
        family=TalkingFamily(),
        config=TalkingConfig(),
        synthesizer=synthesizer,
        landmarker=TalkerLandmarker(),
        header=Header(model=IDENTITY),
        out=out,
        settings=EvaluateSettings(**{"landmark_side": 96, "grid_clips": 1, "grid_frames": 2, **settings}),
    )


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    return talk(tmp_path_factory.mktemp("talking") / "report", Talker())


def mouth_distance(made: list[int], true: list[int]) -> float:
    """Six of the mouth's 20 points move by half of the opening."""
    return float(np.abs(np.array(made) - np.array(true)).mean()) / 2 * 6 / 20 / EYES


def test_a_mouth_that_follows_the_sound_is_worse_with_another(talking):
    anna, ben = OPENINGS.values()
    other = {"anna": (ben * 2)[: len(anna)], "ben": anna[: len(ben)]}
    expected = np.mean([mouth_distance([o + 1 for o in other["anna"]], anna), mouth_distance([o + 1 for o in other["ben"]], ben)])
    assert [row.name for row in talking.rows] == ["truth", "baseline", "model", "shuffled"]
    assert talking.values(MODEL)["mouth_lmd"] == pytest.approx(mouth_distance([1], [0]), rel=0.005)
    assert talking.values(SHUFFLED)["mouth_lmd"] == pytest.approx(expected, rel=0.005)
    leakage = talking.verdict.leakage
    assert leakage.worse == pytest.approx(expected / mouth_distance([1], [0]) - 1, rel=1e-3)
    assert leakage.follows
    assert re.search(r"With another sound .* distance is \d+% worse .*: the mouth follows the sound", talking.verdict.sentence)


def test_a_mouth_that_leaks_from_the_template_is_found_out(tmp_path):
    report = talk(tmp_path, Talker("template"))
    assert report.beats_baseline
    assert report.verdict.leakage.worse == 0
    assert report.verdict.leakage.follows is False
    assert "0% worse (0.0063 against 0.0063): the mouth does not follow the sound" in report.verdict.sentence


def test_learned_features_change_with_the_sound(tmp_path):
    assert talk(tmp_path, Talker("feature")).values(SHUFFLED)["mouth_lmd"] == pytest.approx(
        talk(tmp_path, Talker("sound")).values(SHUFFLED)["mouth_lmd"]
    )


@pytest.mark.parametrize(("worse", "follows"), [(0.29, False), (0.31, True), (-0.2, False)])
def test_the_rule_of_leakage(worse, follows):
    gate = gate_metric(TalkingFamily())
    leakage = measure_leakage([row("a", MODEL, 0.1, gate.name), row("a", SHUFFLED, 0.1 * (1 + worse), gate.name)], gate)
    assert leakage.follows is follows
    assert f"{abs(worse):.0%} {'worse' if worse > 0 else 'better'}" in leakage.sentence


def test_leakage_is_measured_where_both_sounds_were_and_of_a_flawless_model_too():
    gate = gate_metric(TalkingFamily())
    rows = [row("a", MODEL, 0.1, gate.name), row("b", MODEL, 9.0, gate.name), row("a", SHUFFLED, 0.2, gate.name), row("b", SHUFFLED, None)]
    assert measure_leakage(rows, gate).worse == pytest.approx(1)
    assert "over 1 clips" in measure_leakage(rows, gate).sentence
    flawless = measure_leakage([row("a", MODEL, 0.0, gate.name), row("a", SHUFFLED, 0.2, gate.name)], gate)
    assert (flawless.follows, flawless.worse) == (True, None)
    failed = measure_leakage([row("a", MODEL, 0.1, gate.name), row("a", SHUFFLED, None)], gate)
    assert failed.follows is None
    assert "failed" in failed.sentence


def test_the_gate_of_a_family_looks_at_what_drives_it(talking):
    assert (gate_metric(DiscFamily()).name, gate_metric(TalkingFamily()).name) == ("lmd", "mouth_lmd")
    assert talking.gate.name == "mouth_lmd"
    assert "beats its baseline on M-LMD" in talking.verdict.comparison
    rows = [
        ClipRow(key="a", row=name, frames=1, values={"lmd": lmd, "mouth_lmd": mouth})
        for name, lmd, mouth in ((BASELINE, 0.1, 0.2), (MODEL, 0.2, 0.1))
    ]
    assert judge(rows, gate_metric(TalkingFamily())).beats_baseline is True
    assert judge(rows, gate_metric(DiscFamily())).beats_baseline is False


def test_pixel_metrics_look_at_the_painted_square_only(talking):
    """One row of ten pixels is wrong in every frame; in the whole frame it would weigh 12 times less."""
    x, y, side = SQUARE
    wrong = []
    for opening in OPENINGS["anna_a_0"]:
        true, made = talking_clip([opening]).read_frames([0])[0], talking_clip([opening + 1]).read_frames([0])[0]
        assert (true == made)[:y].all()
        wrong.append(np.mean((true[y : y + side, x : x + side].astype(float) - made[y : y + side, x : x + side]) ** 2))
    line = next(line for line in pq.read_table(talking.table).to_pylist() if (line["key"], line["row"]) == ("anna_a_0", "model"))
    assert line["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / np.array(wrong))), abs=1e-3)
    assert (line["width"], line["height"], line["painted"]) == (128, 96, 32)
    assert talking.facts()["Frame size"] == "128x96 px"
    assert "painted square of every frame, cut to 32 px" in talking.facts()["Pixel metrics look at"]


def test_every_row_is_judged_against_the_true_sound(talking):
    assert talking.values(TRUTH)["sync_offset"] == 0
    offsets = [line["sync_offset"] for line in pq.read_table(talking.table).to_pylist() if line["row"] == "baseline"]
    assert min(offsets) < 0
    assert talking.values(BASELINE)["sync_offset"] == np.abs(offsets).mean() > 0
    assert talking.values(TRUTH)["sync_accuracy"] > 0.9
    assert talking.values(SHUFFLED)["sync_confidence"] < talking.values(MODEL)["sync_confidence"] < talking.values(TRUTH)["sync_confidence"]


def test_a_model_without_a_judge_says_so(tmp_path, report):
    deaf = talk(tmp_path, Talker(deaf_judge=True))
    reason = "Sync accuracy, Sync confidence, Sync offset not computed: this model has no lip-sync judge"
    assert reason in markdown(deaf)
    assert reason in deaf.page.read_text()
    assert reason.replace("this model has no lip-sync judge", "the clip's sound is silence") in markdown(report)


def test_the_report_of_a_talker_carries_the_shuffled_row(talking):
    page = talking.page.read_text()
    leakage = json.loads(talking.json.read_text())["leakage"]
    assert leakage["follows"] is True
    assert leakage["worse"] == talking.verdict.leakage.worse
    assert talking.verdict.leakage.sentence in page
    assert re.search(r"^\| shuffled \|", markdown(talking), re.M)
    assert page.count("data:image/png;base64,") == 1
    assert "difference ×4" in page
    assert "next evaluated clip" in talking.facts()["Another sound"]
    table = pq.read_table(talking.table).to_pylist()
    assert [line["row"] for line in table] == ["truth", "baseline", "model", "shuffled"] * 2
    assert [bool(line["sound"]) for line in table] == [False, False, False, True] * 2
    with av.open(str(talking.folder / "videos" / "anna_a_0.mp4")) as container:
        assert container.metadata["panels"] == "truth, baseline, model, difference ×4"
        assert container.streams.video[0].width == 4 * 320
        assert len(container.streams.audio) == 1


def test_without_sound_there_is_no_other_sound(tmp_path):
    class Deaf(Talker):
        def synthesize(self, face, driver, *, seed=0):
            return self.baseline(face, driver)

    report = talk(tmp_path, Deaf(), audible=False)
    shuffled = report.row(SHUFFLED)
    assert (shuffled.clips, shuffled.frames, shuffled.failures) == (0, 0, 0)
    assert shuffled.scores["mouth_lmd"] == NotComputed(reason="the clip has no sound")
    assert report.verdict.leakage.follows is None
    assert "the clip has no sound" in report.verdict.leakage.sentence
    with pytest.raises(EvaluationFailed, match="there is no sound to follow"):
        talk(tmp_path, Talker(), audible=False)


def test_a_failing_talker_counts_in_its_rows(tmp_path):
    class Breaks(Talker):
        def synthesize(self, face, driver, *, seed=0):
            if driver.audio[0] != 0 or driver.audio[5 * SAMPLES_PER_FRAME + 10] != 0:
                yield from super().synthesize(face, driver, seed=seed)
            else:
                raise RuntimeError("this sound breaks it")

    report = talk(tmp_path, Breaks(), {"anna_a_0": [2] * 12, "ben_b_0": [1] * 5 + [0] * 7})
    assert [row.failures for row in report.rows] == [0, 0, 1, 1]
    assert {(failure.key, failure.row) for failure in report.failures} == {("ben_b_0", "model"), ("anna_a_0", "shuffled")}


def sources(*clips) -> list[ClipSource]:
    def load(clip):
        if isinstance(clip, Exception):
            raise clip
        return clip

    return [ClipSource(key=str(index), load=lambda clip=clip: load(clip)) for index, clip in enumerate(clips)]


def test_another_sound_is_the_next_one_that_can_be_told_from_the_own():
    own, other = talking_clip([1, 2, 3, 4, 5], "anna_a_0"), talking_clip([6, 0, 6], "ben_b_0")
    driver = Driver(audio=own.audio, features=own.features)
    mute = talking_clip([1, 2], "ben_b_1", audible=False)
    quieter = talking_clip([0, 1, 2, 3, 4], "anna_a_0")
    made = other_sound(driver, sources(own, OSError("damaged"), mute, quieter, talking_clip([0, 0], "carl_c_0"), other), 0)
    assert isinstance(made, OtherSound)
    np.testing.assert_array_equal(made.driver.features["loudness"][:, 0], [6, 0, 6, 6, 0])
    np.testing.assert_array_equal(made.driver.audio, np.concatenate([other.audio, other.audio[: 2 * SAMPLES_PER_FRAME]]))
    last = other_sound(Driver(audio=other.audio, features=other.features), sources(own, other), 1)
    np.testing.assert_array_equal(last.driver.features["loudness"][:, 0], [1, 2, 3])


def test_a_single_clip_hears_itself_half_its_length_later():
    clip = talking_clip([1, 2, 3, 4, 5])
    made = other_sound(Driver(audio=clip.audio, features=clip.features), sources(clip), 0)
    np.testing.assert_array_equal(made.driver.features["loudness"][:, 0], [4, 5, 1, 2, 3])
    np.testing.assert_array_equal(made.driver.audio, sound([4, 5, 1, 2, 3], 5 + sum(b"anna_a_0") % 20))
    assert "rolled" in made.origin
    silent = other_sound(Driver(audio=np.zeros(640 * 5, np.float32)), sources(clip_of(walk(5), sound=True)), 0)
    assert isinstance(silent, NotComputed)
    assert "silence" in silent.reason


@pytest.mark.parametrize("width", [720, 1174])
def test_the_plot_shows_every_curve_and_leaves_gaps(width):
    curve = np.linspace(0, 0.3, 50)
    gap = np.where(np.arange(50) < 25, curve, np.nan)
    drawn = draw_mouth_plot({TRUTH: curve, MODEL: gap, SHUFFLED: curve[::-1]}, sound([3] * 50), [10, 40], width=width)
    assert drawn.shape == (HEIGHT, width, 3)
    body = drawn[60:, 80:].astype(int)
    blue = (np.abs(body - (42, 111, 201)).max(axis=2) < 12).any(axis=0)
    assert blue[: (width - 90) // 2 - 20].sum() > 100
    assert not blue[(width - 90) // 2 + 30 :].any()
    draw_mouth_plot({TRUTH: np.full(3, np.nan)}, None, [], width=width)


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
