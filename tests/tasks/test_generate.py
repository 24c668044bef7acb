"""Generation: what goes in is checked, what comes out is whole, marked and in time with its sound."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.family import DriverKind
from models.views import SAMPLE_RATE, SAMPLES_PER_FRAME
from tasks.generation.faces import prepare_face
from tasks.generation.generate import GenerationError, generate
from tasks.generation.inputs import fill_gaps, prepare_landmark_driver
from tasks.settings import StoredSettings, Wav2VecSettings
from tasks.video.audio import read_audio
from tasks.video.video_out import VideoWriter
from tests.tasks.disc_faces import SIZE, DiscFamily, DiscLandmarker, DiscSynthesizer, picture, shape, walk
from tests.tasks.flash_family import SQUARE, FlashFamily, FlashSynthesizer, HearingFamily


@dataclass
class Model:
    """What generation reads of a loaded model."""

    synthesizer: Any
    family: Any
    uri: str = "models:/talking-heads-discs/3"
    version: int | None = 3
    run_id: str | None = "run7"
    stored: StoredSettings = field(default_factory=StoredSettings)
    config: Any = None
    stage: str = "only"
    record: dict[str, Any] = field(default_factory=dict)


class SoundFamily(DiscFamily):
    name = "talkers"
    driver = DriverKind.AUDIO


class SoundSynthesizer(DiscSynthesizer):
    """Grey frames, one per 640 samples, as bright as its sound is loud."""

    def synthesize(self, face, driver, *, seed=0):
        for start in range(0, len(driver.audio), SAMPLES_PER_FRAME):
            yield np.full((self.size, self.size, 3), int(200 * np.abs(driver.audio[start : start + SAMPLES_PER_FRAME]).max()), np.uint8)


def write(path: Path, images, sound=None) -> Path:
    with VideoWriter(path, width=images[0].shape[1], height=images[0].shape[0], crf=4, audio=sound) as writer:
        for image in images:
            writer.write(image)
    return path


def clicks(frames: int, every: int = 10) -> np.ndarray:
    """A burst of noise in every tenth frame."""
    sound = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    rng = np.random.default_rng(0)
    for frame in range(5, frames, every):
        start = frame * SAMPLES_PER_FRAME
        sound[start : start + SAMPLES_PER_FRAME] = rng.uniform(-0.6, 0.6, SAMPLES_PER_FRAME)
    return sound


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "Zoë's face.png"
    cv2.imwrite(str(path), picture((50, 46), 192)[..., ::-1])
    return path


@pytest.fixture
def driver(tmp_path):
    return write(tmp_path / "driver.mp4", [picture(centre) for centre in walk(40)], clicks(40))


def make(out: Path, *, model: Model | None = None, **inputs):
    return generate(model or Model(DiscSynthesizer(0), DiscFamily()), out=out, landmarker=DiscLandmarker(), **inputs)


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_video_is_whole_and_marked(tmp_path, photo, driver):
    seen = []
    out = tmp_path / "new folder" / "out.mp4"
    made = make(out, face=photo, driver=driver, progress=lambda what, done, total: seen.append((what, done, total)))
    assert (made.path, made.frames, made.fps, made.seconds, made.width, made.height) == (out, 40, 25, 1.6, SIZE, SIZE)
    assert made.sound
    assert made.references == 1
    assert made.driver_frames_without_face == 0
    assert len(frames_of(out)) == 40
    with av.open(str(out)) as container:
        metadata = container.metadata
    assert metadata["synthetic"] == "true"
    assert metadata["model_uri"] == "models:/talking-heads-discs/3"
    assert metadata["model_version"] == "3"
    assert metadata["run_id"] == "run7"
    assert "Synthetic" in metadata["comment"]
    assert ("making frames", 40, 40) in seen
    assert ("tracking the driver", 40, 40) in seen


def test_the_face_moves_as_the_driver_moves(tmp_path, photo, driver):
    out = tmp_path / "out.mp4"
    make(out, face=photo, driver=driver)
    found = [face.points[[36, 45]].mean(axis=0) for face in DiscLandmarker().track(frames_of(out))]
    moved = np.array(found) - found[0]
    prepared = prepare_landmark_driver(driver, DiscLandmarker(), size=SIZE, margin=0.35)
    expected = (np.array(walk(40), float) - walk(40)[0]) * SIZE / prepared.box.side
    assert np.abs(moved - expected).max() < 1.5
    assert np.ptp(moved[:, 0]) > 5


def test_the_crop_is_that_of_the_dataset_that_the_model_learned_from(tmp_path, photo, driver, monkeypatch):
    from tasks.generation import generate as module

    margins = []
    for name in ("prepare_face", "prepare_landmark_driver"):
        real = getattr(module, name)

        def record(*inputs, real=real, **options):
            margins.append(options["margin"])
            return real(*inputs, **options)

        monkeypatch.setattr(module, name, record)
    stored = StoredSettings.model_validate({"clips": {"margin": 0.125}})
    model = Model(DiscSynthesizer(0), DiscFamily(), stored=stored)
    make(tmp_path / "as trained.mp4", model=model, face=photo, driver=driver)
    make(tmp_path / "as asked.mp4", model=model, face=photo, driver=driver, margin=0.5)
    assert margins == [0.125, 0.125, 0.5, 0.5]


def test_the_sound_stays_in_time(tmp_path, photo, driver):
    out = tmp_path / "out.mp4"
    make(out, face=photo, driver=driver)
    sound = read_audio(out, start=0, end=40 / 25)
    expected = clicks(40)
    correlation = np.correlate(sound, expected, mode="full")
    offset = int(np.argmax(correlation)) - (len(expected) - 1)
    assert abs(offset) < SAMPLES_PER_FRAME // 2
    assert correlation.max() / np.linalg.norm(sound) / np.linalg.norm(expected) > 0.7


def test_a_silent_driver_makes_a_silent_video(tmp_path, photo):
    made = make(tmp_path / "out.mp4", face=photo, driver=write(tmp_path / "d.mp4", [picture(c) for c in walk(12)]))
    assert not made.sound
    with av.open(str(made.path)) as container:
        assert not container.streams.audio


def test_frames_without_a_face_are_filled_and_said(tmp_path, photo):
    centres = [None if 4 <= i < 8 else centre for i, centre in enumerate(walk(20))]
    made = make(tmp_path / "out.mp4", face=photo, driver=write(tmp_path / "d.mp4", [picture(c) for c in centres]))
    assert made.frames == 20
    assert made.driver_frames_without_face == 4
    assert any("4 of 20 driver frames show no face" in note for note in made.notes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
def test_gaps_are_filled_between_and_held_at_the_ends(found):
    times = np.arange(len(found), dtype=np.float32)
    truth = (shape()[None] + times[:, None, None] * 3).astype(np.float32)
    points = truth.copy()
    points[~np.array(found)] = np.nan
    filled = fill_gaps(points)
    known = np.flatnonzero(found)
    expected = truth[np.clip(np.arange(len(found)), known[0], known[-1])]
    np.testing.assert_allclose(filled, expected, atol=1e-3)
    assert filled.dtype == np.float32


def test_side_by_side_shows_reference_driver_and_result(tmp_path, photo, driver):
    made = make(tmp_path / "out.mp4", face=photo, driver=driver, side_by_side=True, size=128)
    assert (made.width, made.height) == (384, 128)
    frames = frames_of(made.path)
    first, last = frames[0].astype(int), frames[8].astype(int)
    assert np.abs(first[:, :128] - last[:, :128]).mean() < 1
    assert np.abs(first[:, 128:256] - last[:, 128:256]).mean() > 3


def test_references_come_from_photos_folders_and_videos(tmp_path, photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), picture((48 + index, 48), texture=index)[..., ::-1])
    cv2.imwrite(str(folder / "3 nobody.png"), picture(None)[..., ::-1])
    (folder / "notes.txt").write_text("not a photo")
    video = write(tmp_path / "person.mov", [picture(centre) for centre in walk(30)])
    one = prepare_face([folder], DiscLandmarker(), references=8, size=SIZE, margin=0.35)
    assert one.face.images.shape == (3, SIZE, SIZE, 3)
    assert one.notes == ("left out of the face: 3 nobody.png (no face found)",)
    both = prepare_face([photo, video], DiscLandmarker(), references=5, size=SIZE, margin=0.35)
    assert len(both.face.images) == len(both.face.landmarks) == 5
    for image, points in zip(both.face.images, both.face.landmarks, strict=True):
        seen = DiscLandmarker().detect(image).points
        assert np.abs(seen - points).max() < 1.5


def test_a_photo_turned_by_its_camera_is_upright(tmp_path):
    from PIL import Image

    upright = picture((30, 60), 96)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.jpg"
    Image.fromarray(np.rot90(upright).copy()).save(path, exif=exif, quality=98)
    face = prepare_face([path], DiscLandmarker(), references=1, size=96, margin=0.35).face
    plain = tmp_path / "plain.jpg"
    Image.fromarray(upright).save(plain, quality=98)
    expected = prepare_face([plain], DiscLandmarker(), references=1, size=96, margin=0.35).face
    np.testing.assert_allclose(face.landmarks, expected.landmarks, atol=1)


def test_an_audio_family_makes_a_frame_per_640_samples(tmp_path, photo):
    sound = tmp_path / "speech.wav"
    import soundfile

    soundfile.write(sound, clicks(21)[: 20 * SAMPLES_PER_FRAME + 100], SAMPLE_RATE)
    made = make(tmp_path / "out.mp4", model=Model(SoundSynthesizer(), SoundFamily()), face=photo, audio=sound)
    assert made.frames == 21
    assert made.sound
    levels = [frame.mean() for frame in frames_of(made.path)]
    assert [i for i, level in enumerate(levels) if level > 60] == [5, 15]


def bad_inputs(tmp_path: Path) -> dict[str, tuple[dict, str]]:
    empty = tmp_path / "empty folder"
    empty.mkdir()
    nobody = tmp_path / "nobody.png"
    cv2.imwrite(str(nobody), picture(None)[..., ::-1])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    broken = tmp_path / "text.mp4"
    broken.write_text("no video")
    hollow = tmp_path / "hollow.mp4"
    hollow.touch()
    blank = write(tmp_path / "blank.mp4", [picture(None)] * 5)
    return {
        "no face in the photo": ({"face": nobody}, "no face found in nobody.png"),
        "face is missing": ({"face": tmp_path / "gone.png"}, "gone.png does not exist"),
        "face is no picture": ({"face": text}, "text.png can't be read as a photo"),
        "folder without photos": ({"face": empty}, "holds no photo"),
        "driver without a face": ({"driver": blank}, "no face found in any of the 5 frames of blank.mp4"),
        "driver is no video": ({"driver": broken}, "--driver: text.mp4"),
        "driver is empty": ({"driver": hollow}, "--driver: hollow.mp4"),
        "driver is missing": ({"driver": tmp_path / "gone.mp4"}, "does not exist"),
        "sound for a family of landmarks": (
            {"driver": None, "audio": blank},
            "discs is driven by a video: give --driver VIDEO instead of --audio",
        ),
        "both drivers": ({"audio": blank}, "leave out --audio"),
        "no driver": ({"driver": None}, "discs is driven by a video: give --driver VIDEO"),
        "no references": ({"references": 0}, "at least 1"),
        "odd size": ({"size": 97}, "must be even"),
        "face video without a face": ({"face": blank}, "no face found in blank.mp4"),
        "not an mp4": ({"out": tmp_path / "out.avi"}, "must end in .mp4"),
    }


CASES = (
    "no face in the photo",
    "face is missing",
    "face is no picture",
    "folder without photos",
    "driver without a face",
    "driver is no video",
    "driver is empty",
    "driver is missing",
    "sound for a family of landmarks",
    "both drivers",
    "no driver",
    "no references",
    "odd size",
    "face video without a face",
    "not an mp4",
)


@pytest.mark.parametrize("name", CASES)
def test_bad_inputs_say_what_to_do_and_leave_the_old_video(tmp_path, photo, driver, name):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"an older video")
    inputs, message = bad_inputs(tmp_path)[name]
    with pytest.raises(GenerationError, match=message.replace("(", r"\(")):
        make(**{"out": out, "face": photo, "driver": driver, **inputs})
    assert out.read_bytes() == b"an older video"
    assert not list(tmp_path.glob("*.tmp"))


def test_every_bad_input_has_a_case(tmp_path):
    assert set(bad_inputs(tmp_path)) == set(CASES)


def test_an_audio_family_wants_sound(tmp_path, photo, driver):
    model = Model(SoundSynthesizer(), SoundFamily())
    with pytest.raises(GenerationError, match="talkers is driven by sound: give --audio FILE instead of --driver"):
        make(tmp_path / "out.mp4", model=model, face=photo, driver=driver)
    silent = write(tmp_path / "silent.mp4", [picture((48, 48))] * 3)
    with pytest.raises(GenerationError, match=r"silent\.mp4 holds no sound"):
        make(tmp_path / "out.mp4", model=model, face=photo, audio=silent)


def test_an_input_is_never_overwritten(tmp_path, photo, driver):
    before = driver.read_bytes()
    with pytest.raises(GenerationError, match="also an input"):
        make(driver, face=photo, driver=driver)
    assert driver.read_bytes() == before


def test_a_model_that_stops_early_leaves_no_video(tmp_path, photo, driver):
    out = tmp_path / "out.mp4"
    with pytest.raises(RuntimeError, match="made 38 of 40 frames"):
        make(out, model=Model(DiscSynthesizer(0, frames_off=-2), DiscFamily()), face=photo, driver=driver)
    assert not out.exists()


def flashing(**changes: Any) -> Model:
    return Model(**{"synthesizer": FlashSynthesizer(), "family": FlashFamily(), **changes})


def wide(centre, texture: int = 0) -> np.ndarray:
    """A face on a frame of 128x96, its upper left corner grey."""
    image = np.concatenate([picture(centre, texture=texture), picture(None, texture=99)[:, :32]], axis=1)
    image[: SQUARE + 4, : SQUARE + 4] = 128
    return image


@pytest.fixture
def template(tmp_path):
    return write(tmp_path / "me.mp4", [wide(centre, i) for i, centre in enumerate(walk(12))])


def save_sound(path: Path, sound: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    import soundfile

    soundfile.write(path, sound, rate)
    return path


def flashes(path: Path) -> np.ndarray:
    return np.array([frame[2 : SQUARE - 2, 2 : SQUARE - 2].mean() for frame in frames_of(path)])


def test_a_flash_falls_on_its_click(tmp_path, template):
    clicking = np.zeros(75 * SAMPLES_PER_FRAME * 3, np.float32)
    rng = np.random.default_rng(0)
    for frame in (4, 17, 31, 38, 52, 66):
        start = frame * SAMPLES_PER_FRAME * 3
        clicking[start : start + SAMPLES_PER_FRAME * 3] = rng.uniform(-0.7, 0.7, SAMPLES_PER_FRAME * 3)
    made = make(
        tmp_path / "o.mp4", model=flashing(), face=template, audio=save_sound(tmp_path / "a.wav", np.stack([clicking] * 2, 1), 48_000)
    )
    assert (made.frames, made.template_frames) == (75, 12)
    # Both as a player shows them, 16,000 times a second: each frame from its own timestamp on.
    light, sound = np.zeros(75 * SAMPLES_PER_FRAME), np.zeros(75 * SAMPLES_PER_FRAME)
    with av.open(str(made.path)) as container:
        for frame, bright in zip(container.decode(video=0), flashes(made.path), strict=True):
            start = round(frame.time * SAMPLE_RATE)
            light[start : start + SAMPLES_PER_FRAME] = bright > 128
    with av.open(str(made.path)) as container:
        for piece in container.decode(audio=0):
            start = round(piece.time * SAMPLE_RATE)
            samples = np.abs(piece.to_ndarray().mean(axis=0))[max(0, -start) :]
            place = max(0, start)
            sound[place : place + len(samples)] = samples[: len(sound) - place]
    lags = np.arange(-3 * SAMPLES_PER_FRAME, 3 * SAMPLES_PER_FRAME + 1, 20)
    match = [np.roll(light - light.mean(), lag) @ (sound - sound.mean()) for lag in lags]
    assert abs(lags[int(np.argmax(match))]) < SAMPLES_PER_FRAME / 2


@pytest.mark.parametrize(("samples", "frames"), [(1600, 3), (640 * 5, 5), (640 * 40 + 1, 41)])
def test_sound_of_any_length_plays_the_template_to_and_fro_at_its_own_size(tmp_path, template, samples, frames):
    sound = save_sound(tmp_path / "s.flac", np.full(samples, 0.5, np.float32))
    made = make(tmp_path / "o.mp4", model=flashing(), face=template, audio=sound)
    assert (made.frames, made.width, made.height, made.sound) == (frames, 128, 96, True)
    assert made.seconds == pytest.approx(frames / 25)
    shown = frames_of(made.path)
    originals = frames_of(template)
    for i, frame in enumerate(shown):
        place = min(i % 22, 22 - i % 22)
        outside = frame[SQUARE + 4 :].astype(int) - originals[place][SQUARE + 4 :]
        assert np.abs(outside).mean() < 6, i
    assert (flashes(made.path) > 200).all()


def test_a_photo_is_a_template_too(tmp_path):
    cv2.imwrite(str(tmp_path / "me.png"), wide((50, 46))[:95, ::-1, ::-1])
    made = make(tmp_path / "o.mp4", model=flashing(), face=tmp_path / "me.png", audio=save_sound(tmp_path / "s.wav", clicks(20)))
    assert (made.frames, made.template_frames, made.width, made.height) == (20, 1, 128, 94)
    assert [i for i, level in enumerate(flashes(made.path)) if level > 128] == [5, 15]
    assert any("because H.264 wants even sizes" in note for note in made.notes)


def test_size_is_the_short_side_and_keeps_the_shape(tmp_path, template):
    sound = save_sound(tmp_path / "s.wav", clicks(15))
    made = make(tmp_path / "o.mp4", model=flashing(), face=template, audio=sound, size=50, side_by_side=True)
    assert (made.width, made.height) == (2 * 66, 50)
    frames = frames_of(made.path)
    assert frames[5].shape == (50, 132, 3)
    painted, original = frames[5][:5, 66:71], frames[5][:5, :5]
    assert painted.mean() > 200 > 160 > original.mean() > 90
    assert np.abs(frames[5][10:, :66].astype(int) - frames[5][10:, 66:]).mean() < 8


def test_frames_without_a_face_are_shown_as_they_are(tmp_path):
    centres = [None if 8 <= i < 16 else centre for i, centre in enumerate(walk(24))]
    video = write(tmp_path / "away.mp4", [wide(centre) for centre in centres])
    sound = save_sound(tmp_path / "s.wav", np.full(24 * SAMPLES_PER_FRAME, 0.5, np.float32))
    made = make(tmp_path / "o.mp4", model=flashing(), face=video, audio=sound)
    assert made.template_frames_without_face == 8
    assert [i for i, level in enumerate(flashes(made.path)) if level < 200] == [*range(8, 16)]
    assert any("8 of 24 template frames show no face" in note for note in made.notes)


def test_silence_and_a_plumbing_sized_model_are_said(tmp_path, template):
    sound = save_sound(tmp_path / "s.wav", np.zeros(10 * SAMPLES_PER_FRAME, np.float32))
    made = make(tmp_path / "o.mp4", model=flashing(record={"profile": "demo"}), face=template, audio=sound)
    assert (flashes(made.path) < 60).all()
    assert made.notes[0] == "the sound of s.wav is silent: the mouth has nothing to follow"
    assert "plumbing-sized (profile demo)" in made.notes[1]


def test_any_name_and_container_works(tmp_path, template, monkeypatch):
    folder = tmp_path / 'it\'s "here"\nand ünïcode %d'
    folder.mkdir()
    face = template.rename(folder / "my face.mp4")
    spoken = write(folder / "12:30 said 'so'.mkv.mp4", [picture(None)] * 20, clicks(20))
    monkeypatch.chdir(folder)
    made = make(Path("o\n p.mp4"), model=flashing(), face=Path(face.name), audio=Path(spoken.name))
    assert made.path == folder / "o\n p.mp4"
    assert {5, 15} <= {i for i, level in enumerate(flashes(made.path)) if level > 128} <= {4, 5, 6, 14, 15, 16}, "AAC smears a click"


def test_bad_sound_is_one_clear_error(tmp_path, template):
    empty, noise, blank = tmp_path / "e.wav", tmp_path / "n.wav", tmp_path / "b.wav"
    empty.touch()
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    save_sound(blank, np.zeros(0, np.float32))
    holes = tmp_path / "h.wav"
    import soundfile

    soundfile.write(holes, np.full(3200, np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")
    silent = write(tmp_path / "v.mp4", [picture(None)] * 3)
    for sound, words in (
        (empty, "e.wav"),
        (noise, "n.wav"),
        (blank, "b.wav holds no sound"),
        (holes, "h.wav holds samples that are no numbers"),
        (silent, "v.mp4 holds no sound"),
        (tmp_path / "gone.wav", "is not a file"),
        (tmp_path, "is not a file"),
    ):
        with pytest.raises(GenerationError, match=words) as error:
            make(tmp_path / "o.mp4", model=flashing(), face=template, audio=sound)
        assert str(error.value).startswith("--audio: ")
    assert not (tmp_path / "o.mp4").exists()


def hearing(settings: Wav2VecSettings, version: str | None = None) -> Model:
    from tasks.preprocessing.speech_networks import network_version

    stored = settings.model_dump(mode="json", exclude={"device", "path"})
    known = {"wav2vec": {"settings": stored, "version": version or network_version(settings)}}
    return flashing(family=HearingFamily(), record={"dataset": {"features": known}})


def test_the_model_hears_with_the_network_of_its_dataset(tmp_path, template):
    from tasks.preprocessing.speech_networks import load_network, speech_rows

    network = Wav2VecSettings(init="random", random_layers=2, random_width=48, device="cpu")
    model = hearing(network)
    sound = save_sound(tmp_path / "s.wav", clicks(12))
    make(tmp_path / "o.mp4", model=model, face=template, audio=sound)
    rows = model.synthesizer.features["wav2vec"]
    assert rows.shape == (12, 2, 48)
    expected = speech_rows(read_audio(sound), load_network(network))
    np.testing.assert_array_equal(rows, expected)


def test_an_export_says_which_network_its_dataset_was_heard_with(tmp_path, monkeypatch):
    import json

    from tasks.settings import TrainSettings
    from tasks.training import output
    from tasks.training.request import TrainRequest
    from tasks.training.stage_data import StageData

    info = {"version": "wav2vec2/1 x", "settings": {"init": "random"}, "clips": 3}
    (tmp_path / "data/features/wav2vec").mkdir(parents=True)
    (tmp_path / "data/features/wav2vec/feature.json").write_text(json.dumps(info))
    family = HearingFamily()
    monkeypatch.setattr("models.registry._FAMILIES", (family,))
    request = TrainRequest(
        family=family.name, stage="hear", config={}, train=TrainSettings(), dataset=str(tmp_path / "data"), folder=tmp_path, code="abc"
    )
    source = StageData(train=iter(()), held_out=lambda n: [], video_keys=(), samples=0, held_out_samples=0, fingerprint="f" * 64)
    module = family.build(family.config_type(), "hear", None)
    output.write_export(tmp_path / "export", module, request, source, tags={}, step=0)
    record = json.loads((tmp_path / "export" / output.RUN_RECORD).read_text())
    assert record["dataset"]["features"] == {"wav2vec": {"version": "wav2vec2/1 x", "settings": {"init": "random"}}}


def test_another_network_than_the_datasets_is_refused(tmp_path, template):
    sound = save_sound(tmp_path / "s.wav", clicks(12))
    own = hearing(Wav2VecSettings(init="random"), version="wav2vec2/1 path@0123456789abcdef")
    unknown = flashing(family=HearingFamily())
    for model, words in ((own, "learned to hear with the network wav2vec2/1 path@0123456789abcdef"), (unknown, "does not say of which")):
        with pytest.raises(GenerationError, match=words) as error:
            make(tmp_path / "o.mp4", model=model, face=template, audio=sound)
        assert "--speech-network FOLDER" in str(error.value)
    made = make(tmp_path / "o.mp4", model=unknown, face=template, audio=sound, speech=[Wav2VecSettings(init="random")])
    assert made.frames == 12


def test_an_encoder_that_fails_ends_it_with_its_own_error(tmp_path, template, monkeypatch):
    calls = []

    def fail(self, frame):
        calls.append(frame.shape)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VideoWriter, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path / "o.mp4", model=flashing(), face=template, audio=save_sound(tmp_path / "s.wav", clicks(100)))
    assert len(calls) < 30
    assert not list(tmp_path.glob("o.mp4*"))


def test_pyfunc_rows_for_sound(tmp_path, template, monkeypatch):
    import pandas

    from tasks.generation import generate as module
    from tasks.training.pyfunc_model import TalkingHeads

    sound = save_sound(tmp_path / "s.wav", clicks(12))
    real = module.generate
    monkeypatch.setattr(module, "generate", lambda model, **inputs: real(model, **inputs, landmarker=DiscLandmarker()))
    loaded = TalkingHeads()
    loaded.model = flashing()
    rows = pandas.DataFrame(
        [
            {"face": str(template), "driver": None, "audio": str(sound), "out": str(tmp_path / "1.mp4")},
            {"template": str(template), "driver": float("nan"), "audio": str(sound), "out": str(tmp_path / "2.mp4")},
        ]
    )
    made = loaded.predict(None, rows, params={"seed": 1})
    assert made.to_dict("records") == [{"path": str(tmp_path / f"{n}.mp4"), "frames": 12} for n in (1, 2)]
    assert (flashes(tmp_path / "1.mp4") > 128).sum() == 1
    with pytest.raises(GenerationError, match="driven by sound: give --audio FILE"):
        loaded.predict(None, rows.drop(columns="audio"))


@pytest.mark.slow
@pytest.mark.samples
def test_real_face_and_driver(tmp_path, samples_dir):
    made = generate(
        Model(DiscSynthesizer(0, size=128), DiscFamily()),
        face=samples_dir / "portrait_512_24fps_noaudio.mp4",
        driver=samples_dir / "portrait_224_h264_25fps.mp4",
        out=tmp_path / "out.mp4",
        side_by_side=True,
    )
    assert made.references == 8
    assert made.frames == 100
    assert made.driver_frames_without_face == 0
    assert made.notes == ()
    assert made.width == 3 * 128
