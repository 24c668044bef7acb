"""The networks: published sizes, every geometry and encoder, the published file, and the perceptual loss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.features import TORCHVISION, VggFeatures
from models.synctalk.config import AudioConfig, LossConfig, SyncTalkConfig
from models.synctalk.losses import STD, build_perceptual_loss
from models.synctalk.networks import AudioEncoder, AudioPicture, SyncNet, UNet, folded, load_published_audio_encoder
from models.weights import CorruptWeights, MissingWeights, WeightsStore

SMALL = {80: [8, 16, 32, 64], 160: [8, 16, 32, 64, 64], 320: [8, 16, 32, 32, 64]}
AUDIO: dict[str, dict[str, Any]] = {
    "ave": {"encoder": "ave", "channels": 8},
    "wav2vec": {"encoder": "wav2vec", "channels": 8, "layers": 3, "width": 24},
    "hubert": {"encoder": "hubert", "layers": 2, "width": 1024},
    "small hubert": {"encoder": "hubert", "layers": 2, "width": 32},
}


def small(core: int, encoder: str = "ave") -> SyncTalkConfig:
    return SyncTalkConfig.model_validate(
        {"geometry": {"core": core}, "network": {"channels": SMALL[core], "sync_channels": 4}, "audio": AUDIO[encoder]}
    )


def sound_of(config: SyncTalkConfig, count: int) -> Tensor:
    """What is heard around `count` frames."""
    audio = config.audio
    return torch.randn(count, 16, 16 * audio.channels) if audio.encoder == "ave" else torch.randn(count, 16, audio.layers, audio.width)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    hubert = SyncTalkConfig.model_validate({"audio": AUDIO["hubert"]})
    half = SyncTalkConfig.model_validate({"geometry": {"core": 160}})
    with torch.device("meta"):
        assert parameters(AudioEncoder(32)) == 2_812_672
        assert parameters(UNet(SyncTalkConfig())) == 12_186_935
        assert parameters(UNet(hubert)) == 12_186_935, "hubert differs in a stride only"
        shapes = [tuple(layers[0].layers[0].weight.shape[:2]) for layers in UNet(half).down]  # type: ignore[index, union-attr]
    assert shapes == [(64, 32), (128, 64), (256, 128), (512, 256)], "four halvings, as in Ultralight-Digital-Human"


@pytest.mark.parametrize("encoder", AUDIO)
@pytest.mark.parametrize("core", SMALL)
def test_every_geometry_paints_with_every_encoder(core: int, encoder: str) -> None:
    torch.manual_seed(0)
    config = small(core, encoder)
    unet = UNet(config)
    shapes: list[torch.Size] = []
    unet.audio.register_forward_hook(lambda module, given, result: shapes.append(result.shape))
    painted = unet(torch.rand(2, 6, core, core), sound_of(config, 2))
    assert painted.shape == (2, 3, core, core)
    assert 0 < float(painted.detach().min()) < float(painted.detach().max()) < 1
    assert shapes == [(2, config.network.channels[-1], 10, 10)]
    painted.mean().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters()), "nothing is left out of the picture"


def test_the_picture_follows_the_sound_and_starts_in_the_middle() -> None:
    torch.manual_seed(0)
    config = small(80)
    unet = UNet(config)
    pictures, heard = torch.rand(4, 6, 80, 80), sound_of(config, 4)
    with torch.no_grad():
        painted = unet(pictures, heard)
        other = unet(pictures, heard.roll(1, dims=0))
    assert 0.3 < float(painted.mean()) < 0.7, "neither black nor white before it has learned"
    assert float(painted.std()) > 0.01
    assert float((painted - other).abs().amax(dim=(1, 2, 3)).min()) > 0.01


def test_wav2vec_layers_weigh_the_same_at_first_and_loudness_does_not_count() -> None:
    config = small(80, "wav2vec")
    unet = UNet(config).eval()
    heard = sound_of(config, 1)
    with torch.no_grad():
        plain = unet.sound(heard)
        torch.testing.assert_close(unet.sound(heard * torch.tensor([1.0, 100, 10])[:, None]), plain, atol=1e-3, rtol=1e-3)
        assert unet.sound.layers is not None
        unet.sound.layers[2] = 50
        torch.testing.assert_close(unet.sound(heard[:, :, 2:].expand_as(heard)), unet.sound(heard), atol=1e-4, rtol=1e-3)
        assert not torch.allclose(unet.sound(heard), plain, atol=1e-2)


def test_what_a_frame_hears_is_laid_out_in_its_order() -> None:
    """As published: 512 numbers of a frame are two channels of 16 x 16."""
    unet = UNet(SyncTalkConfig.model_validate({"geometry": {"core": 80}, "network": {"channels": SMALL[80]}}))
    heard = torch.zeros(1, 16, 512)
    heard[0, 3] = 1
    assert torch.nonzero(unet.sound(heard).sum(dim=(2, 3))[0]).flatten().tolist() == [6, 7]


@pytest.mark.parametrize(("width", "channels"), [(1024, 32), (768, 24), (32, 1)])
def test_hubert_rows_of_any_width_become_32_by_32_pictures(width: int, channels: int) -> None:
    sound = AudioPicture(AudioConfig(encoder="hubert", layers=2, width=width))
    heard = torch.arange(16.0 * 2 * width).reshape(1, 16, 2, width)
    assert torch.equal(sound(heard), torch.arange(16.0 * 2 * width).reshape(1, channels, 32, 32))


@pytest.mark.parametrize("wrong", [{}, {"layers": 2, "width": 1000}, {"layers": 12, "width": 1024}])
def test_hubert_with_another_networks_sizes_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"set config\.audio\.layers=2 and config\.audio\.width=1024"):
        SyncTalkConfig.model_validate({"audio": {"encoder": "hubert", **wrong}})


def test_folding_the_normalisation_changes_no_picture_and_not_the_original() -> None:
    torch.manual_seed(0)
    config = small(80)
    unet = UNet(config)
    pictures, heard = torch.rand(4, 6, 80, 80), sound_of(config, 4)
    for _ in range(5):
        unet(pictures, heard)
    unet.eval()
    quick = folded(unet)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    with torch.no_grad():
        torch.testing.assert_close(quick(pictures, heard), unet(pictures, heard), atol=1e-5, rtol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in unet.modules())


@pytest.mark.parametrize("core", SMALL)
def test_syncnet_embeds_faces_and_sounds_alike(core: int) -> None:
    torch.manual_seed(0)
    config = small(core)
    syncnet = SyncNet(config)
    windows, mels = torch.rand(3, 15, core // 2, core) * 2 - 1, torch.rand(3, 1, 80, 16) * 8 - 4
    with torch.no_grad():
        faces, sounds = syncnet.face(windows), syncnet.audio(mels)
    assert faces.shape == sounds.shape == (3, 256)
    for embedding in (faces, sounds):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
        assert float((embedding @ embedding.T).tril(-1).max()) < 0.999, "different windows are told apart from the start"
    similarity = faces @ sounds.T
    torch.testing.assert_close(syncnet.logits(similarity).diagonal(), syncnet(windows, mels))
    syncnet(windows, mels).sum().backward()
    assert all(parameter.grad is not None for parameter in syncnet.parameters())


def test_syncnets_scale_stays_in_bounds() -> None:
    syncnet = SyncNet(small(80))
    with torch.no_grad():
        syncnet.log_scale.fill_(20)
    torch.testing.assert_close(syncnet.logits(torch.ones(1)), torch.full((1,), 100.0))


def test_a_window_is_judged_by_its_motion_and_by_itself() -> None:
    torch.manual_seed(0)
    syncnet = SyncNet(small(80)).eval()
    windows = torch.rand(4, 15, 40, 80) * 2 - 1
    with torch.no_grad():
        faces = syncnet.face(windows)
        torch.testing.assert_close(faces[:1], syncnet.face(windows[:1]), atol=1e-5, rtol=1e-4)
        backwards = windows.unflatten(1, (5, 3)).flip(1).flatten(1, 2)
        assert float((faces - syncnet.face(backwards)).norm(dim=1).min()) > 1e-3, "the same pictures in another order"


def test_wrong_shapes_are_named() -> None:
    unet, syncnet = UNet(small(80)), SyncNet(small(80))
    with pytest.raises(ValueError, match=re.escape("pictures are [N, 6, 80, 80], got [1, 3, 80, 80]")):
        unet(torch.rand(1, 3, 80, 80), torch.rand(1, 16, 128))
    with pytest.raises(ValueError, match=re.escape("heard around a frame is [N, 16, 128], got [1, 16, 512]")):
        unet(torch.rand(1, 6, 80, 80), torch.rand(1, 16, 512))
    with pytest.raises(ValueError, match="2 pictures and 1 audio windows"):
        unet(torch.rand(2, 6, 80, 80), torch.rand(1, 16, 128))
    with pytest.raises(ValueError, match=re.escape("mel windows are [N, 1, 80, 16], got [1, 1, 16, 80]")):
        syncnet.audio(torch.rand(1, 1, 16, 80))
    with pytest.raises(ValueError, match=re.escape("lower halves are [N, 15, 40, 80], got [1, 15, 80, 80]")):
        syncnet.face(torch.rand(1, 15, 80, 80))


def published_state(encoder: AudioEncoder) -> dict[str, Tensor]:
    """The state under the names of SyncTalk_2D's file."""
    return {
        re.sub(r"blocks\.(\d+)\.(conv|norm)", lambda m: f"{m[1]}.conv_block.{('conv', 'norm').index(m[2])}", name): value
        for name, value in encoder.state_dict().items()
    }


@pytest.mark.parametrize("whole_syncnet", [False, True])
def test_the_published_file_is_read(tmp_path: Path, whole_syncnet: bool) -> None:
    torch.manual_seed(1)
    encoder = AudioEncoder(32).eval()
    state = published_state(encoder)
    assert "0.conv_block.0.weight" in state
    assert "12.conv_block.1.running_var" in state
    if whole_syncnet:
        state = {f"audio_encoder.{name}": value for name, value in state.items() if "num_batches" not in name}
        state["face_encoder.0.conv_block.0.weight"] = torch.zeros(1)
    torch.save({"state_dict": state} if whole_syncnet else state, tmp_path / "ave.pth")
    loaded = AudioEncoder(32).eval()
    loaded.load_state_dict(load_published_audio_encoder(tmp_path / "ave.pth"))
    mels = torch.rand(2, 1, 80, 16) * 8 - 4
    with torch.no_grad():
        torch.testing.assert_close(loaded(mels), encoder(mels), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"3.conv_block.0.weight": None}, "has nothing for blocks.3.conv.weight"),
        ({"3.conv_block.0.weight": torch.zeros(64, 32, 5, 5)}, r"3\.conv_block\.0\.weight has shape \(64, 32, 5, 5\)"),
        ({"13.conv_block.0.weight": torch.zeros(1)}, "it has 13.conv_block.0.weight"),
        ({"fc.weight": torch.zeros(1)}, "it has fc.weight"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, change: dict[str, Tensor | None], words: str) -> None:
    state = {**published_state(AudioEncoder(32)), **change}
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "ave.pth")
    with pytest.raises(CorruptWeights, match=words):
        load_published_audio_encoder(tmp_path / "ave.pth")


def test_what_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ave.pth").write_text("<html>")
    with pytest.raises(CorruptWeights, match="not a readable weights file"):
        load_published_audio_encoder(tmp_path / "ave.pth")


def test_conv3_3_is_torchvisions_fourteenth_layer() -> None:
    torch.manual_seed(0)
    vgg = VggFeatures(19, TORCHVISION)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    x = vgg.normalise(images)
    position = 0
    for stage, count in enumerate((2, 2, 3)):
        for i in range(count):
            x = vgg.stages[stage][i](x)  # type: ignore[index]
            if (stage, i) != (2, 2):
                x = x.relu()
                position += 2
        if stage < 2:
            x = nn.functional.max_pool2d(x, 2)
            position += 1
    assert position == 14
    torch.testing.assert_close(vgg.convolution(images, 3, 3), x)
    assert float(x.min()) < 0, "before the ReLU"
    with pytest.raises(ValueError, match="ends before conv5_2"):
        vgg.convolution(images, 5, 2)


def test_the_perceptual_loss_is_a_choice_that_is_tagged(tmp_path: Path) -> None:
    store = WeightsStore(root=tmp_path, offline=True)
    with pytest.raises(MissingWeights, match=r"config\.losses\.content=random"):
        build_perceptual_loss(LossConfig(), store)
    for settings in (LossConfig(content="off"), LossConfig(perceptual=0)):
        off = build_perceptual_loss(settings, store)
        assert not off.active
        assert float(off(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))) == 0
        assert store.tags()["weights.vgg19"] == "off"
    first, second = (build_perceptual_loss(LossConfig(content="random"), store) for _ in range(2))
    assert store.tags()["weights.vgg19"] == "random"
    truth, made = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32, requires_grad=True)
    loss = first(made, truth)
    assert torch.equal(loss, second(made, truth)), "the same random features after a resume"
    assert float(first(truth, truth)) == 0
    loss.backward()
    assert made.grad is not None
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert first.network is not None
    difference = first.network.convolution(made * 2 - 1, 3, 3) - first.network.convolution(truth * 2 - 1, 3, 3)
    torch.testing.assert_close(loss, difference.square().mean() * STD**2)
