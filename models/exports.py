"""Networks in an exported folder: one safetensors file each."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn


def save_network(folder: Path, name: str, network: nn.Module) -> None:
    """Write `folder/<name>.safetensors`."""
    save_file({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}, folder / f"{name}.safetensors")


def load_network(network: nn.Module, folder: Path, name: str, family: str) -> None:
    """Read `folder/<name>.safetensors`.

    Raises:
        FileNotFoundError: the folder is no export of this family.
        ValueError: the file belongs to another configuration.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no exported {family} model: it has no {path.name}")
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to another configuration: {str(error).splitlines()[1].strip()}") from error
