"""Checkpoint header: what a safetensors file says of itself, checked before its tensors are read.

With the metadata goes a digest of it and of all tensors.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from maml_dist.core.schema import checked, from_json
from maml_dist.runs.folder import Folder
from maml_dist.runs.safetensors_file import read_contents

DTYPES = {  # of what we write, by safetensors' names
    **{"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16},
    **{"U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
    **{"I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F32": torch.float32, "F64": torch.float64, "C64": torch.complex64},
}


class Kind(NamedTuple):
    """What a tensor is, but for its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Kind":
        """A tensor's."""
        return cls(tensor.dtype, tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def kinds_of(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """What each tensor is, by name."""
    return {name: Kind.of(value) for name, value in tensors.items()}


@dataclass(frozen=True)
class Metadata:
    """What we write of a checkpoint beside its tensors; what 0.1.0 did not write is None."""

    iteration: int
    recipe: dict[str, Any]  # the whole configuration
    maximize: bool | None = None  # whether more of the score is better
    fixed: str | None = None  # sha256 of the file of what is fixed
    sha256: str | None = None  # digest of the metadata and all tensors

    def __post_init__(self) -> None:
        if not 0 <= self.iteration < 10**18:
            raise ValueError(f"iteration must be 0 or more, not {str(self.iteration)[:20]}")


class Header(NamedTuple):
    """The header of a file."""

    path: str
    texts: dict[str, str]  # the metadata as it stands there
    kinds: dict[str, Kind]  # of the tensors by name
    size: int  # bytes of the whole file

    @property
    def metadata(self) -> Metadata:
        """Ours; ValueError where it is not there or of another form."""
        where = f"{self.path}: its metadata"
        names = {each.name for each in fields(Metadata)}
        values = {name: text for name, text in self.texts.items() if name in names}
        for name in {"iteration", "recipe", "maximize"} & values.keys():
            values[name] = from_json(values[name], Any, f"{where}.{name}")
        metadata: Metadata = checked(values, Metadata, where)
        return metadata

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError where the digest, if there is one, is not that of these tensors."""
        rest = {name: text for name, text in self.texts.items() if name != "sha256"}
        if "sha256" in self.texts and digest(rest, tensors) != self.texts["sha256"]:
            raise ValueError(f"{self.path} is damaged: its checksum differs")

    def expect(self, kinds: Mapping[str, Kind], what: str) -> None:
        """Raise ValueError where the tensors are not of these kinds.

        Args:
            kinds: what is expected, by name.
            what: whose they should be, for the message.
        """
        for name in sorted({*kinds, *self.kinds}):
            there, here = self.kinds.get(name), kinds.get(name)
            if there != here:
                raise ValueError(
                    f"{self.path} does not fit {what}: {name} is {there or 'missing'} there, "
                    f"{here or 'unknown'} here"
                )


Expect = Callable[[Header], None]  # raises ValueError where a file is not what is expected


def read_header(folder: Folder, name: str) -> Header:
    """The header of a file.

    Raises:
        ValueError: the file is not there, no safetensors file, or not whole.
    """
    path, texts, tensors, size = read_contents(folder, name)
    kinds = {}
    for key, each in tensors.items():
        if each.dtype not in DTYPES:
            raise ValueError(f"{path}: {key} is of dtype {each.dtype[:20]!r}, which no run writes")
        kinds[key] = Kind(DTYPES[each.dtype], tuple(each.shape))
    return Header(path, texts, kinds, size)


def read_tensors(
    folder: Folder, name: str, *, sha256: str | None = None, expect: Expect = lambda header: None
) -> tuple[dict[str, Tensor], Header]:
    """The tensors of a file, by name in order, and its header.

    Args:
        folder: where it is.
        name: the file's.
        sha256: of its content, if that is known.
        expect: raises ValueError where the header is not what is expected.

    Raises:
        ValueError: it is missing, damaged or unexpected.
    """
    header = read_header(folder, name)
    expect(header)
    content = folder.read(name, most=header.size) or b""
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{header.path} is damaged: its checksum differs")
    try:
        tensors = dict(sorted(load(content).items()))  # safetensors keeps no order
    except SafetensorError as error:
        raise ValueError(f"{header.path} is damaged: {error}") from None
    header.check(tensors)
    return tensors, header


def digest(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of metadata and tensors, in order of their names."""
    found = hashlib.sha256(json.dumps(dict(sorted(texts.items()))).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(Kind.of(tensor))]).encode())
        if tensor.numel():  # of an empty one there is no view
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
