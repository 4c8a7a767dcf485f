"""The Open Inference Protocol, version 2, over REST: tensors in, tensors out, in JSON or as raw bytes.

The protocol: https://github.com/kserve/open-inference-protocol; binary tensors and classification are Triton's
extensions of it (https://github.com/triton-inference-server/server/tree/main/docs/protocol).
"""
