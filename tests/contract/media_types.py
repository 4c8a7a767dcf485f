"""Bodies that schemathesis can't make by itself."""

import io

import numpy as np
import schemathesis
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


_IMAGES = st.integers(1, 3).flatmap(lambda count: arrays(np.uint8, (count, 28, 28)))
schemathesis.openapi.media_type("application/x-npy", _IMAGES.map(_npy))
