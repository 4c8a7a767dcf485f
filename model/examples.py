"""Example images of an artifact: PNG files of the network's size in the folder `examples`, listed in the card."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.input_spec import InputSpec

FOLDER = "examples"
MAX_EXAMPLES = 10
MAX_NAME = 200  # characters
_FIELDS = {"file", "name", "sha256"}

_HEAD = struct.Struct(">8sI4sIIBBBBB")  # signature; length, type and fields of the chunk IHDR (PNG, 5.2 and 11.2.1)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2}  # grey and RGB, by channels


@dataclass(frozen=True)
class Example:
    """An example image.

    Attributes:
        name: what it shows, for people; mostly its class.
        content: PNG file with the pixels of the network's input, before normalization: 8 bits, grey or RGB.
    """

    name: str
    content: bytes


def file_name(place: int) -> str:
    """Path in the artifact of the example at a place in the list, from 0."""
    return f"{FOLDER}/{place}.png"


def max_bytes(spec: InputSpec) -> int:
    """Largest size of an example's file, which uncompressed pixels fit into."""
    return 2 * spec.values + 2**14


def check_entries(entries: Any) -> None:
    """Check the list of examples in a card.

    Raises:
        ValueError: an entry is invalid; the message has the rule.
    """
    if not isinstance(entries, list) or len(entries) > MAX_EXAMPLES:
        raise ValueError(f"expected a list of at most {MAX_EXAMPLES} examples, got {str(entries)[:100]}")
    for place, entry in enumerate(entries):
        if not (isinstance(entry, dict) and entry.keys() == _FIELDS and set(map(type, entry.values())) == {str}):
            raise ValueError(f"expected the texts {', '.join(sorted(_FIELDS))}, got {str(entry)[:100]}")
        if entry["file"] != file_name(place):
            raise ValueError(f"expected the file {file_name(place)}, got {entry['file'][:100]}")
        if not 1 <= len(entry["name"]) <= MAX_NAME:
            raise ValueError(f"expected a name of 1 to {MAX_NAME} characters, got {len(entry['name'])}")


def check_files(examples: Sequence[Example], spec: InputSpec) -> None:
    """Check that each file is a PNG of the network's size and channels, by its head.

    Raises:
        ValueError: a file is another one, or too large.
    """
    for place, example in enumerate(examples):
        if len(example.content) > max_bytes(spec):
            raise ValueError(
                f"{file_name(place)}: expected at most {max_bytes(spec)} bytes, got {len(example.content)}"
            )
        expected = (_SIGNATURE, 13, b"IHDR", spec.width, spec.height, 8, _COLOUR_TYPES[spec.channels], 0, 0, 0)
        if len(example.content) < _HEAD.size or _HEAD.unpack_from(example.content) != expected:
            kind = {1: "grey", 3: "RGB"}[spec.channels]
            raise ValueError(
                f"{file_name(place)}: expected a {kind} PNG of {spec.width} x {spec.height} pixels and 8 bits, "
                "not interlaced"
            )
