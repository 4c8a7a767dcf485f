"""Methods of dropout prediction: ours, common implementations, and other libraries.

Each is built for a network and a number of samples and then called with images; each returns class probabilities, of
each pass (S, B, C), or (B, C) where nothing is sampled. Other libraries are baal 2.1 and torch-uncertainty 0.13; one
that can't be imported is left out, with its reason in `UNAVAILABLE`.
"""

from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

import training.vision  # noqa: F401 - torch-uncertainty imports torchvision, which this makes importable with a CPU-only torch
from model import MomentPropagation, MonteCarloDropout

Method = Callable[[Tensor], Tensor]
MethodFactory = Callable[[Any, int], Method]  # from a network, eval mode, and a number of samples

UNAVAILABLE: dict[str, str] = {}


def _optional(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError as error:
        UNAVAILABLE[name.partition(".")[0]] = str(error)
        return None


baal_dropout = _optional("baal.bayesian.dropout")
baal_caching = _optional("baal.bayesian.caching_utils")
baal_wrapper = _optional("baal.modelwrapper")
torch_uncertainty = _optional("torch_uncertainty.methods")


def _eval_forward(network: nn.Module, _: int) -> Method:
    return network


def _ours(masks: str) -> MethodFactory:
    def make(network: nn.Sequential, samples: int) -> Method:
        mc = MonteCarloDropout(network)
        return lambda images_B: mc.sample(images_B, samples=samples, masks=masks)

    return make


def _moments(network: nn.Sequential, _: int) -> Method:
    moments = MomentPropagation(network)
    return lambda images_B: moments.predict(images_B).mean


def in_train_mode(network: nn.Module) -> nn.Module:
    """A copy whose dropout is in train mode, also that of attention weights, and nothing else."""
    stochastic = deepcopy(network).eval()
    for module in stochastic.modules():
        # In eval mode the layer of a transformer calls one fused operator, without its dropout.
        if isinstance(module, (_DropoutNd, nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            module.training = True
    return stochastic


def _loop(network: nn.Module, samples: int) -> Method:
    stochastic = in_train_mode(network)
    return lambda images_B: torch.stack([stochastic(images_B).softmax(dim=-1) for _ in range(samples)])


def _repeated_batch(network: nn.Module, samples: int) -> Method:
    stochastic = in_train_mode(network)

    def run(images_B: Tensor) -> Tensor:
        logits = stochastic(images_B.repeat(samples, *(1 for _ in images_B.shape[1:])))
        return logits.softmax(dim=-1).view(samples, len(images_B), -1)

    return run


def _torch_uncertainty(*, on_batch: bool) -> MethodFactory:
    def make(network: nn.Module, samples: int) -> Method:
        assert torch_uncertainty is not None
        wrapped = torch_uncertainty.mc_dropout(deepcopy(network), num_estimators=samples, on_batch=on_batch).eval()
        return lambda images_B: wrapped(images_B).softmax(dim=-1).view(samples, len(images_B), -1)

    return make


def _baal(*, replicate: bool, cached: bool = False) -> MethodFactory:
    def make(network: nn.Module, samples: int) -> Method:
        assert baal_dropout is not None
        assert baal_caching is not None
        assert baal_wrapper is not None
        stochastic = baal_dropout.patch_module(deepcopy(network), inplace=False).eval()
        if cached:
            stochastic = baal_caching.patch_module(stochastic, inplace=False).eval()
        arguments = baal_wrapper.TrainingArgs(use_cuda=False, replicate_in_memory=replicate)
        wrapper = baal_wrapper.ModelWrapper(stochastic, arguments)

        def run(images_B: Tensor) -> Tensor:
            logits_BCS = wrapper.predict_on_batch(images_B, iterations=samples)
            probs_SBC: Tensor = logits_BCS.softmax(dim=1).permute(2, 0, 1)
            return probs_SBC

        return run

    return make


EVAL = "eval-mode forward"
STRATIFIED, INDEPENDENT, MOMENTS = "ours: stratified", "ours: independent", "ours: moments"
LOOP, REPEATED = "loop of train-mode passes", "repeated batch"
OURS: dict[str, MethodFactory] = {STRATIFIED: _ours("stratified"), INDEPENDENT: _ours("independent"), MOMENTS: _moments}
LIBRARIES: dict[str, MethodFactory] = {}
if torch_uncertainty is not None:
    LIBRARIES["torch-uncertainty, on_batch"] = _torch_uncertainty(on_batch=True)
    LIBRARIES["torch-uncertainty, loop"] = _torch_uncertainty(on_batch=False)
if baal_dropout is not None:
    LIBRARIES["baal, replicated"] = _baal(replicate=True)
    LIBRARIES["baal, loop"] = _baal(replicate=False)
    LIBRARIES["baal, loop, cached"] = _baal(replicate=False, cached=True)
METHODS: dict[str, MethodFactory] = {
    EVAL: _eval_forward,
    **OURS,
    LOOP: _loop,
    REPEATED: _repeated_batch,
    **LIBRARIES,
}

# Methods that copy the images for each sample.
WITH_REPLICATION = (REPEATED, "torch-uncertainty, on_batch", "baal, replicated")
# Methods whose cost does not depend on the number of samples.
WITHOUT_SAMPLES = (EVAL, MOMENTS)
