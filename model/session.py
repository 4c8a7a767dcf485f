"""Sessions of ONNX Runtime."""

from collections.abc import Iterator
from typing import Any

import onnxruntime

OPSET = 20  # version of ONNX's operators that the compiler writes; each version of the runtime keeps the older ones
_OPSET_IMPORT = 8  # field of ModelProto; its parts, OperatorSetIdProto, have a domain and a version
_DOMAIN, _VERSION = 1, 2


def open_session(name: str, data: bytes) -> Any:
    """Read a graph, to be computed by one thread of the processor.

    Raises:
        ValueError: it is not a graph that ONNX Runtime can run, or has other operators than those of ONNX's opset 20.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise ValueError(f"{name}: ONNX Runtime can't read it ({str(error).splitlines()[0]})") from error
    opsets = read_opsets(data)
    if opsets != [("", OPSET)]:
        found = ", ".join(f"{domain or 'ONNX'} {version}" for domain, version in opsets) or "none"
        raise ValueError(f"{name}: expected operators of ONNX {OPSET} only, got {found}: compile the network again")
    return session


def read_opsets(data: bytes) -> list[tuple[str, int]]:
    """Read domains and versions of the operators of a graph that ONNX Runtime can read; the domain of ONNX is empty.

    Raises:
        ValueError: the graph has fields that ONNX does not have.
    """
    imports = [dict(_fields(value)) for number, value in _fields(data) if number == _OPSET_IMPORT]
    return [(bytes(one.get(_DOMAIN, b"")).decode(errors="replace"), one.get(_VERSION, 0)) for one in imports]


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a protobuf message of integers, strings and messages."""
    data, position = memoryview(data), 0

    def integer() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        number, kind = divmod(integer(), 8)
        value: Any = integer()
        if kind == 2:  # a length, before so many bytes
            position += value
            value = data[position - value : position]
        elif kind != 0:
            raise ValueError(f"expected the fields of an ONNX model, got field {number} of kind {kind}")
        yield number, value
