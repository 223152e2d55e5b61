"""Safetensors file: its header, checked against its size, without its tensors and without torch.

It starts with the length of a JSON object and that object: each tensor's dtype, shape and place,
and our metadata as texts.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from maml_dist.core.schema import checked, from_json
from maml_dist.runs.folder import Folder

HEADER_BYTES = 50_000_000  # at the most


@dataclass(frozen=True)
class Listed:
    """The entry of a tensor in the JSON object."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


class Contents(NamedTuple):
    """What a file says that it holds."""

    path: str
    texts: dict[str, str]  # the metadata as it stands there
    tensors: dict[str, Listed]
    size: int  # bytes of the whole file


def read_contents(folder: Folder, name: str) -> Contents:
    """What a file holds.

    Raises:
        ValueError: the file is not there, no safetensors file, or not whole.
    """
    path = f"{folder.path}/{name}"
    size = folder.size(name)
    if size is None:
        raise ValueError(f"{path} is not there")
    length = int.from_bytes(folder.read(name, most=8) or b"", "little")
    if size < 10 or length > min(size - 8, HEADER_BYTES):
        raise ValueError(f"{path} is damaged: no safetensors file, or not a whole one")
    text = folder.read(name, most=length, start=8) or b""
    content = from_json(text, dict[str, Any], f"{path}: its header")
    texts = checked(content.pop("__metadata__", {}), dict[str, str], f"{path}: its metadata")
    listed = checked(content, dict[str, Listed], f"{path}: its header")
    end = max((0, *(offset for each in listed.values() for offset in each.data_offsets[-1:])))
    if size != 8 + length + end:
        raise ValueError(f"{path} is damaged: it has {size:,} bytes, not {8 + length + end:,}")
    return Contents(path, texts, listed, size)
