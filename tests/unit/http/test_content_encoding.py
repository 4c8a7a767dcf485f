"""Compressed request bodies."""

import gzip
import zlib

from server import ROOT

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()


def test_a_compressed_body_is_accepted(client):
    expected = client.post("/predict", content=BOOT).content
    members = gzip.compress(BOOT[:100]) + gzip.compress(b"") + gzip.compress(BOOT[100:])
    raw = zlib.compress(BOOT)[2:-4]  # without zlib's header and checksum
    bodies = [("gzip", gzip.compress(BOOT)), ("gzip", members), ("gzip", members + bytes(100)), ("GZIP", members)]
    bodies += [("deflate", zlib.compress(BOOT)), ("deflate", raw), ("identity", BOOT)]
    for encoding, body in bodies:
        response = client.post("/predict", content=body, headers={"Content-Encoding": encoding})
        assert (response.status_code, response.content) == (200, expected)
