"""Sessions of ONNX Runtime."""

from typing import Any

import onnxruntime


def open_session(name: str, data: bytes) -> Any:
    """Read a graph, to be computed by one thread of the processor.

    Raises:
        ValueError: it is not a graph that ONNX Runtime can run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise ValueError(f"{name}: ONNX Runtime can't read it ({str(error).splitlines()[0]})") from error
