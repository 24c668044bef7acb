"""Networks: capacities of the spec, AdaIN slices, spectral norm, attention, rows of W."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from models.fewshot.blocks import AdaIN, ResidualBlock, SelfAttention, conv, instance_norm
from models.fewshot.config import FewShotConfig, NetworkConfig
from models.fewshot.networks import Discriminator, Embedder, Generator, VideoTable, video_id
from models.registry import family


def parameters(network: nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


def test_paper_profile_has_the_papers_capacity() -> None:
    entry = family("fewshot")
    config = entry.config_type.model_validate(dict(entry.profile("paper").config))
    with torch.device("meta"):
        networks = entry.networks(config, "meta")
    assert 14.5 <= parameters(networks["embedder"]) <= 15.5
    assert 37 <= parameters(networks["generator"]) <= 39
    assert 19 <= parameters(networks["discriminator"]) <= 20.5


def test_sizes_at_256_are_the_specs() -> None:
    config = FewShotConfig()
    seen: dict[str, list[tuple[int, int]]] = {"embedder": [], "discriminator": [], "generator": []}
    with torch.device("meta"):
        networks = family("fewshot").networks(config, "meta")
        for name, network in networks.items():
            for module in network.modules():
                if isinstance(module, ResidualBlock | SelfAttention):
                    mark = -1 if isinstance(module, SelfAttention) else 1
                    module.register_forward_hook(lambda m, i, o, n=name, k=mark: seen[n].append((k * o.shape[1], o.shape[2])))
        picture = torch.zeros(1, 3, 256, 256)
        e = networks["embedder"](picture, picture)
        made = networks["generator"](picture, networks["generator"].project(e))
        score, features = networks["discriminator"](picture, picture, torch.zeros(1, 512))
    assert e.shape == (1, 512)
    assert made.shape == (1, 3, 256, 256)
    assert score.shape == (1,)
    assert len(features) == 7
    trunk = [(64, 128), (128, 64), (256, 32), (-256, 32), (512, 16), (512, 8), (512, 4)]
    assert seen["embedder"] == trunk
    assert seen["discriminator"] == [*trunk, (512, 4)]
    down = [(64, 128), (128, 64), (256, 32), (-256, 32), (512, 16)]
    up = [(512, 32), (256, 64), (-256, 64), (128, 128), (64, 256)]
    assert seen["generator"] == [*down, *[(512, 16)] * 4, *up]
    assert networks["generator"].psi_length == 13_056


@settings(max_examples=20, deadline=None)
@given(
    size=st.sampled_from([64, 128]),
    channels=st.integers(4, 12),
    top=st.integers(8, 40),
    blocks=st.integers(1, 3),
    embedding=st.integers(8, 24),
)
def test_slices_cover_psi_exactly_once(size: int, channels: int, top: int, blocks: int, embedding: int) -> None:
    config = NetworkConfig(image_size=size, channels=channels, max_channels=top, embedding=embedding, bottleneck_blocks=blocks)
    with torch.device("meta"):
        generator = Generator(config)
    taken = torch.zeros(generator.psi_length, dtype=torch.int64, device="cpu")
    for layer in generator.adaptive_layers():
        taken[layer.offset : layer.offset + 2 * layer.channels] += 1
    assert (taken == 1).all()
    assert generator.projection.out_features == generator.psi_length


def test_every_slice_of_psi_reaches_the_picture(tiny: FewShotConfig) -> None:
    torch.manual_seed(0)
    generator = Generator(tiny.network).eval()
    psi = torch.zeros(1, generator.psi_length, requires_grad=True)
    torch.manual_seed(1)
    generator(torch.rand(1, 3, 64, 64) * 2 - 1, psi).square().sum().backward()
    assert psi.grad is not None
    for layer in generator.adaptive_layers():
        assert psi.grad[0, layer.offset : layer.offset + layer.channels].abs().sum() > 0
        assert psi.grad[0, layer.offset + layer.channels : layer.offset + 2 * layer.channels].abs().sum() > 0


def test_smallest_features_of_the_generator_are_16_wide() -> None:
    """Without skip connections a coarser bottleneck would lose where the landmarks are."""
    for size in (64, 128, 256):
        config = NetworkConfig(image_size=size, channels=4, generator_channels=8, max_channels=16, embedding=8, bottleneck_blocks=1)
        with torch.device("meta"):
            generator = Generator(config)
            x = torch.zeros(1, 3, size, size)
            for block in generator.down:
                x = block(x)
            assert x.shape[2:] == (16, 16)
            assert generator(torch.zeros(1, 3, size, size), torch.zeros(1, generator.psi_length)).shape == (1, 3, size, size)
        assert sum(isinstance(block, SelfAttention) for block in (*generator.down, *generator.up)) == 2


def test_gain_starts_at_one() -> None:
    layer = AdaIN(3)
    layer.offset = 0
    x = torch.randn(2, 3, 8, 8) * 5 + 2
    torch.testing.assert_close(layer(x, torch.zeros(2, 6)), F.instance_norm(x, eps=1e-4), atol=1e-5, rtol=1e-4)
    psi = torch.tensor([[0.5, 0, 0, 0, 2.0, 0]])
    torch.testing.assert_close(layer(x, psi)[:, 0], 1.5 * F.instance_norm(x, eps=1e-4)[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer(x, psi)[:, 1], 2 + F.instance_norm(x, eps=1e-4)[:, 1], atol=1e-5, rtol=1e-4)


def test_gains_of_a_fresh_generator_are_near_one() -> None:
    torch.manual_seed(0)
    generator = Generator(NetworkConfig(image_size=64, channels=16, max_channels=64, embedding=64, bottleneck_blocks=2))
    gains = generator.gains(generator.project(torch.rand(4, 64) * 0.1)).detach()
    assert abs(float(gains.mean()) - 1) < 0.1
    assert float(gains.min()) > 0.5


def test_no_instance_norm_follows_an_adaptive_block(tiny: FewShotConfig) -> None:
    generator = Generator(tiny.network)
    for block in (*generator.bottleneck, *generator.up):
        if isinstance(block, ResidualBlock):
            assert isinstance(block.norm1, AdaIN)
            assert isinstance(block.norm2, AdaIN)
    assert isinstance(generator.last_norm, AdaIN)


def test_instance_norm_is_torchs() -> None:
    x = torch.randn(2, 5, 7, 7)
    torch.testing.assert_close(instance_norm(x), F.instance_norm(x, eps=1e-4), atol=1e-5, rtol=1e-4)


def test_first_block_sees_the_raw_image(tiny: FewShotConfig) -> None:
    """A ReLU on the raw image would make all that is darker than grey look the same."""
    torch.manual_seed(0)
    networks = family("fewshot").networks(tiny, "meta")
    dark, darker = torch.full((1, 3, 64, 64), -0.4), torch.full((1, 3, 64, 64), -0.9)
    for name, first in (
        ("embedder", networks["embedder"].blocks[0]),
        ("discriminator", networks["discriminator"].blocks[0]),
        ("generator", networks["generator"].down[0]),
    ):
        assert first.first, name
        channels = first.conv1.in_channels // 3
        assert not torch.allclose(first(dark.repeat(1, channels, 1, 1)), first(darker.repeat(1, channels, 1, 1)), atol=1e-3), name


def test_all_weights_are_spectrally_normalised(tiny: FewShotConfig) -> None:
    torch.manual_seed(0)
    for name, network in family("fewshot").networks(tiny, "meta").items():
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert layers
        for _ in range(30):
            for layer in layers:
                _ = layer.weight
        for layer in layers:
            assert abs(float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) - 1) < 0.05, name


def test_spectral_norm_iterates_in_training_only() -> None:
    layer = conv(4, 6, 3).eval()
    first, second = layer.weight, layer.weight
    assert torch.equal(first, second)
    before = layer.parametrizations.weight[0].u.clone()
    layer.train()
    _ = layer.weight
    assert not torch.equal(before, layer.parametrizations.weight[0].u)


def test_spectral_norm_works_under_autocast() -> None:
    layer = conv(4, 6, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 4, 8, 8)).dtype == torch.bfloat16
        assert layer.weight.dtype == torch.float32


def test_attention_starts_as_identity_and_matches_the_formula() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(16).eval()
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.gamma.fill_(0.5)
    f, g, h = (part(x).flatten(2) for part in (layer.query, layer.key, layer.value))
    weights = torch.softmax(torch.einsum("bci,bcj->bij", f, g), dim=-1)
    expected = x + 0.5 * torch.einsum("bij,bcj->bci", weights, h).view_as(x)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    assert layer.query.out_channels == 2


def test_pooling_is_the_settings() -> None:
    config = NetworkConfig(image_size=64, channels=4, max_channels=8, embedding=8, bottleneck_blocks=1)
    torch.manual_seed(0)
    by_sum, by_max = Embedder(config, "sum"), Embedder(config, "max")
    by_max.load_state_dict(by_sum.state_dict())
    for network in (by_sum, by_max):
        network.eval()
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    small, large = by_max(picture, picture).detach(), by_sum(picture, picture).detach()
    assert (large >= small - 1e-6).all()
    assert float(large.sum()) > 2 * float(small.sum())


def test_score_is_v_times_row_plus_shared_and_is_not_bounded(tiny: FewShotConfig) -> None:
    torch.manual_seed(0)
    network = Discriminator(tiny.network, "sum").eval()
    picture = torch.rand(2, 3, 64, 64) * 2 - 1
    alone, features = network(picture, picture, None)
    v = F.relu(features[-1]).flatten(2).sum(2)
    row = torch.randn(2, tiny.network.embedding) * 10
    score, _ = network(picture, picture, row)
    torch.testing.assert_close(score, alone + (v * row).sum(1), atol=1e-4, rtol=1e-4)
    whole, _ = network(picture, picture, row + network.shared_row(), whole=True)
    torch.testing.assert_close(whole, score, atol=1e-4, rtol=1e-4)
    assert score.abs().max() > 1


names = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=8, unique=True)


@settings(max_examples=50, deadline=None)
@given(before=names, after=names)
def test_rows_keep_their_video_when_videos_come_and_go(before: list[str], after: list[str]) -> None:
    table = VideoTable(before, 4)
    rows = {key: table.row(key) for key in before}
    values = {key: table.rows.weight[table.row(key)].detach().clone() for key in before}
    table.add(after)
    for key in before:
        assert table.row(key) == rows[key]
        assert torch.equal(table.rows.weight[table.row(key)], values[key])
    assert sorted(table.row(key) for key in {*before, *after}) == list(range(len({*before, *after})))
    # A row's start does not depend on the order in which videos came.
    for key in after:
        assert torch.equal(VideoTable([key], 4).rows.weight[0], table.rows.weight[table.row(key)])


def test_video_ids_fit_into_int64_and_are_stable() -> None:
    assert video_id("id00012_21Uxsk56VDQ") == video_id("id00012_21Uxsk56VDQ")
    assert 0 <= video_id("x") < 2**63
    table = VideoTable(["a", "b"], 4)
    ids = torch.tensor([video_id("b"), video_id("a")], dtype=torch.int64)
    assert table.row_indices(ids).tolist() == [table.row("b"), table.row("a")]
