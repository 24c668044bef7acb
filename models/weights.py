"""Pretrained files: one table that declares each once, and the store that finds, checks and remembers them.

Nothing falls back to random weights silently: a file that is missing is one error which names the file, the
place to put it and the setting that does without. What a run used is kept for its tags.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Origin = Literal["pretrained", "random", "off"]
Progress = Callable[[str, int, int], None]
"""Called with (file name, bytes so far, bytes in all or 0) while a file is downloaded."""

HUB = "https://huggingface.co"
CHUNK = 1 << 20


class MissingWeights(FileNotFoundError):
    """A pretrained file is not here and may not or cannot be downloaded."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CorruptWeights(ValueError):
    """A file's content is not what the table declares."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file as its publisher names it."""

    name: str
    url: str
    sha256: str | None = None
    """Hexadecimal. Either whole, or the first digits where the publisher's file name carries only those; None: never published."""


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """One row of the table."""

    name: str
    title: str
    files: tuple[RemoteFile, ...]
    licence: str
    megabytes: int
    used_by: str
    without: str
    """What works without it, and the setting that says so."""
    hub_id: str | None = None
    revision: str | None = None
    folder: bool = False
    """True where `resolve` gives the folder that holds all files (what transformers reads)."""

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return f"{self.hub_id}@{self.revision}" if self.hub_id else self.files[0].url


def _hub_files(hub_id: str, revision: str, *names: str, sha256: str | None = None) -> tuple[RemoteFile, ...]:
    """Files of a repository of the hub, the weights last; `sha256` is theirs."""
    digests = [None] * (len(names) - 1) + [sha256]
    return tuple(
        RemoteFile(name=name, url=f"{HUB}/{hub_id}/resolve/{revision}/{name}", sha256=digest)
        for name, digest in zip(names, digests, strict=True)
    )


_WAV2VEC = ("facebook/wav2vec2-base-960h", "22aad52d435eb6dbaf354bdad9b0da84ce7d6156")
_HUBERT = ("facebook/hubert-large-ls960-ft", "ece5fabbf034c1073acae96d5401b25be96709d8")
_FAN = "https://www.adrianbulat.com/downloads/python-fan"
_SYNCTALK = "https://github.com/ZiqiaoPeng/SyncTalk_2D/raw/main"
_BLAZEFACE = "https://github.com/hollance/BlazeFace-PyTorch/raw/master"

TABLE: Mapping[str, PretrainedWeights] = {
    row.name: row
    for row in (
        PretrainedWeights(
            name="vgg19",
            title="VGG19, ImageNet",
            files=(RemoteFile(name="vgg19-dcbb9e9d.pth", url="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", sha256="dcbb9e9d"),),
            licence="BSD-3-Clause (torchvision)",
            megabytes=548,
            used_by="fewshot: content loss; synctalk: perceptual loss",
            without="--set config.losses.content=random or off (the demo profiles have off)",
        ),
        PretrainedWeights(
            name="vggface",
            title="VGGFace (VGG16), trained with Caffe",
            files=(
                RemoteFile(
                    name="VGG_FACE.caffemodel.pth",
                    url="https://media.githubusercontent.com/media/yzhang559/vgg-face/master/VGG_FACE.caffemodel.pth",
                ),
            ),
            licence="non-commercial research (University of Oxford, VGG)",
            megabytes=580,
            used_by="fewshot: content loss",
            without="--set config.losses.content=random or off (the demo profile has off)",
        ),
        PretrainedWeights(
            name="synctalk-ave",
            title="SyncTalk_2D's encoder of sound, trained on LRS2",
            files=(RemoteFile(name="audio_visual_encoder.pth", url=f"{_SYNCTALK}/model/checkpoints/audio_visual_encoder.pth"),),
            licence="none stated in the repository; LRS2 is for non-commercial research",
            megabytes=11,
            used_by="synctalk: --set config.audio.ave=pretrained",
            without="--set config.audio.ave=trained (the default)",
        ),
        PretrainedWeights(
            name="wav2vec2-base-960h",
            title="wav2vec 2.0 base, 960 h LibriSpeech",
            files=_hub_files(*_WAV2VEC, "config.json", "preprocessor_config.json", "model.safetensors"),
            hub_id=_WAV2VEC[0],
            revision=_WAV2VEC[1],
            folder=True,
            licence="Apache-2.0",
            megabytes=378,
            used_by="preprocessing, pass 2: speech features",
            without="--set wav2vec.init=random (the demo profile has it), or --set wav2vec=null",
        ),
        PretrainedWeights(
            name="hubert-large-ls960-ft",
            title="HuBERT large, fine-tuned on 960 h LibriSpeech",
            files=_hub_files(
                *_HUBERT,
                "config.json",
                "preprocessor_config.json",
                "pytorch_model.bin",
                sha256="9cf43abec3f0410ad6854afa4d376c69ccb364b48ddddfd25c4c5aa16398eab0",
            ),
            hub_id=_HUBERT[0],
            revision=_HUBERT[1],
            folder=True,
            licence="Apache-2.0",
            megabytes=1262,
            used_by="preprocessing, pass 2: speech features for synctalk's config.audio.encoder=hubert",
            without="--set hubert=null (the default), or --set hubert.init=random",
        ),
        PretrainedWeights(
            name="2dfan4",
            title="2D FAN-4 landmarks of face-alignment",
            files=(RemoteFile(name="2DFAN4-11f355bf06.pth.tar", url=f"{_FAN}/2DFAN4-11f355bf06.pth.tar", sha256="11f355bf06"),),
            licence="BSD-3-Clause",
            megabytes=92,
            used_by="preprocessing: --set stored.landmarks.backend=face-alignment",
            without="the default landmarker mediapipe carries its weights in its wheel",
        ),
        PretrainedWeights(
            name="s3fd",
            title="S3FD face detector of face-alignment",
            files=(RemoteFile(name="s3fd-619a316812.pth", url=f"{_FAN}/s3fd-619a316812.pth", sha256="619a316812"),),
            licence="BSD-3-Clause",
            megabytes=86,
            used_by="preprocessing: --set stored.landmarks.backend=face-alignment",
            without="the default landmarker mediapipe carries its weights in its wheel",
        ),
        PretrainedWeights(
            name="blazeface",
            title="BlazeFace face detector of face-alignment",
            files=(
                RemoteFile(name="blazeface.pth", url=f"{_BLAZEFACE}/blazeface.pth"),
                RemoteFile(name="anchors.npy", url=f"{_BLAZEFACE}/anchors.npy"),
            ),
            folder=True,
            licence="Apache-2.0",
            megabytes=1,
            used_by="preprocessing: --set stored.landmarks.detector=blazeface",
            without="the default landmarker mediapipe carries its weights in its wheel",
        ),
    )
}
"""Every pretrained file that any part of the project can use, by name."""


@dataclass(frozen=True, kw_only=True)
class UsedWeights:
    """What a run did about one row of the table."""

    origin: Origin
    sha256: str | None = None
    """Of the file (of the largest file, for a folder); None unless pretrained."""


@dataclass
class WeightsStore:
    """Finds the files of `TABLE`: explicit path, then the local folder, then a download.

    Args:
        root: local folder; a file lies at `root/<file>`, the files of a folder row at `root/<name>/<file>`.
        overrides: explicit paths by row name; they are not checked against the declared hash, but hashed for the record.
        offline: never download.
    """

    root: Path
    overrides: Mapping[str, Path] = field(default_factory=dict)
    offline: bool = False
    used: dict[str, UsedWeights] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        unknown = sorted(set(self.overrides) - set(TABLE))
        if unknown:
            raise ValueError(f"no pretrained weights are called {', '.join(unknown)}; there are: {', '.join(TABLE)}")

    def place(self, name: str) -> Path:
        """Where the file, or the folder of files, of row `name` is looked for in the local folder."""
        row = _row(name)
        return self.root / row.name if row.folder else self.root / row.files[0].name

    def find(self, name: str) -> Path | None:
        """The local path of row `name` where it is complete, without a download; None otherwise.

        Raises:
            MissingWeights: an explicit path that does not exist.
        """
        row = _row(name)
        if name in self.overrides:
            explicit = Path(self.overrides[name])
            if not explicit.exists():
                raise MissingWeights(f"weights {name}: the given path {explicit} does not exist")
            return explicit
        place = self.place(name)
        complete = all((place / file.name).is_file() for file in row.files) if row.folder else place.is_file()
        return place if complete else None

    def resolve(self, name: str, progress: Progress | None = None) -> Path:
        """The local path of row `name`, downloaded where necessary; remembers it as used.

        Raises:
            MissingWeights: not here and offline, or the download failed.
            CorruptWeights: the content differs from the declared hash.
        """
        row = _row(name)
        path = self.find(name)
        if path is None:
            path = self.fetch(name, progress)
        if path.is_dir():
            digests = {file.name: sha256_of(path / file.name) for file in row.files if (path / file.name).is_file()}
        else:
            digests = {row.files[0].name: sha256_of(path)}
        if name not in self.overrides:
            for file in row.files:
                _check(file, digests[file.name], path)
        largest = row.files[-1].name if row.hub_id else row.files[0].name
        self.used[name] = UsedWeights(origin="pretrained", sha256=digests.get(largest))
        return path

    def fetch(self, name: str, progress: Progress | None = None) -> Path:
        """Download row `name` into the local folder; a file that is already there stays.

        Raises:
            MissingWeights: offline, or the download failed.
            CorruptWeights: what arrived is not what is declared; nothing is kept.
        """
        row = _row(name)
        place = self.place(name)
        if self.offline:
            raise MissingWeights(self._missing(row, "downloads are switched off"))
        folder = place if row.folder else place.parent
        folder.mkdir(parents=True, exist_ok=True)
        for file in row.files:
            target = folder / file.name
            if target.is_file():
                continue
            try:
                _download(file, target, progress)
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                raise MissingWeights(self._missing(row, f"the download of {file.url} failed: {error}")) from error
        return place

    def record(self, name: str, origin: Origin) -> None:
        """Remember that the network of row `name` was left `random` or `off` by choice."""
        _row(name)
        self.used[name] = UsedWeights(origin=origin)

    def tags(self) -> dict[str, str]:
        """What was used, as tags of a run: `weights.<name>` and, where pretrained, `weights.<name>.sha256`."""
        tags: dict[str, str] = {}
        for name, used in sorted(self.used.items()):
            tags[f"weights.{name}"] = used.origin
            tags[f"weights.{name}.pretrained"] = str(used.origin == "pretrained").lower()
            if used.sha256:
                tags[f"weights.{name}.sha256"] = used.sha256
        return tags

    def _missing(self, row: PretrainedWeights, why: str) -> str:
        files = ", ".join(file.name for file in row.files)
        return (
            f"pretrained weights {row.name} ({row.title}) are not here and {why}. "
            f"Get {files} from {row.source} ({row.megabytes} MB, {row.licence}) and put it at {self.place(row.name)}, "
            f"or do without: {row.without}"
        )


def load_state(path: Path) -> dict[str, Any]:
    """Read a state dict from safetensors or a torch file, never unpickling code.

    Raises:
        CorruptWeights: the file cannot be read, or needs more than `weights_only=True` allows.
    """
    import pickle

    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CorruptWeights(f"{path} is not a readable weights file: {error}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CorruptWeights(f"{path} holds no state dict (a mapping of names to tensors)")
    return dict(state)


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def render_table() -> str:
    """The table as Markdown, for the README."""
    lines = ["| name | what | source | size | licence | used by | without it | sha256 |", "|---|---|---|---|---|---|---|---|"]
    for row in TABLE.values():
        digests = ", ".join(
            "not published" if file.sha256 is None else f"`{file.sha256}`" + ("" if len(file.sha256) == 64 else "…") for file in row.files
        )
        source = f"`{row.source}`" if row.hub_id else f"<{row.source}>"
        lines.append(
            f"| `{row.name}` | {row.title} | {source} | {row.megabytes} MB | {row.licence} | {row.used_by} | {row.without} | {digests} |"
        )
    return "\n".join(lines) + "\n"


def _row(name: str) -> PretrainedWeights:
    if name not in TABLE:
        raise ValueError(f"no pretrained weights are called {name!r}; there are: {', '.join(TABLE)}")
    return TABLE[name]


def _check(file: RemoteFile, digest: str, path: Path) -> None:
    if file.sha256 is not None and not digest.startswith(file.sha256):
        raise CorruptWeights(f"{path} has sha256 {digest}, declared is {file.sha256}: delete it, then it is downloaded again")


def _download(file: RemoteFile, target: Path, progress: Progress | None) -> None:
    """Stream to a temporary file beside the target, hash, check, rename."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    digest = hashlib.sha256()
    done = 0
    try:
        with urllib.request.urlopen(file.url, timeout=60) as response, temporary.open("wb") as out:
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(file.name, done, total)
            out.flush()
            os.fsync(out.fileno())
        if total and done != total:
            raise CorruptWeights(f"{file.url} ended after {done} of {total} bytes")
        _check(file, digest.hexdigest(), target)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
