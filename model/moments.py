"""Dropout's mean and spread without sampling: moments passed through the layers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from torch import Tensor, nn

from model.layers import as_images, has_hooks, layers_of, split_at_first_dropout

Array = np.ndarray

_POINTS = 128
_MOST_CLASSES = 100  # a cube of them is held
_MOST_BENT = 0.5  # part of a variance that the bend may account for
_FLATTEST = 1e-6  # part of the largest variance that every direction is given, so that none is singular
_TINY = 1e-20
# Beyond these, exponentials are nothing beside 1, but slow: they or their products are denormal.
_FARTHEST = 9.0  # standard deviations
_LEAST_LOGIT = -60.0


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of the class probabilities of B images and C classes over all masks; float64, entropies in nats.

    Attributes:
        mean: (B, C), expected probability.
        covariance: (B, C, C), of the probabilities.
        predictive_entropy: (B,), entropy of the mean: the total.
        expected_entropy: (B,), mean entropy under a mask: the aleatoric part.
        mutual_information: (B,), their difference between prediction and weights: the epistemic part.
    """

    mean: Tensor
    covariance: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor

    @property
    def variance(self) -> Tensor:
        """(B, C), variance of each probability."""
        return self.covariance.diagonal(dim1=-2, dim2=-1)


class MomentPropagation:
    """Mean, covariance and mutual information under dropout in a chain of linear layers, ReLU and dropout.

    Nothing is drawn, and the cost depends on no number of samples. Each unit that may be dropped is a source of noise
    with a variance and a third cumulant; what is followed through the layers is their response to all sources:

    - A linear layer acts on mean and responses exactly.
    - Before a ReLU a unit is normal but for its skewness (the first term of Edgeworth's series). The moments behind it
      follow in closed form, from those of the rectified normal (Frey & Hinton 1999, doi:10.1162/089976699300016872).
      Its response has the expected slope; what that leaves of the variance is a source of its own.
    - The logits are normal but for a quadratic bend (Cornish & Fisher 1938) that gives them the third cumulants which
      come from the sources, from the curvature of the ReLUs, and from dropout noise being larger where a unit is. The
      curvature also adds to their covariance. Without all that, the error is three times as large.

    It is an approximation for noise that is small beside the units: behind three narrow layers (24 units) with p = 0.7
    the mutual information is off by a third.

    Softmax is averaged over quasi-random points (Sobol') of that distribution.

    Args:
        network: `nn.Sequential` of `nn.Flatten`, `nn.Linear`, `nn.ReLU` and `nn.Dropout` from images (B, ...) to
            logits (B, C).

    Raises:
        TypeError: another layer, by name.
        ValueError: no active dropout, or more than 100 classes.
    """

    def __init__(self, network: nn.Sequential) -> None:
        layers = layers_of(network, "MomentPropagation")
        for name, layer in layers:
            if type(layer) not in (nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout) or has_hooks(layer):
                raise TypeError(
                    f"layer {name}: moments pass through nn.Flatten, nn.Linear, nn.ReLU and nn.Dropout without hooks, "
                    f"not {type(layer).__name__}"
                )
        self._layers = [layer for _, layer in layers]
        split_at_first_dropout(self._layers)
        self._parameter = next(network.parameters(), None)
        # NumPy's products are small: more threads would cost time, and torch's, which wait busily, much of it.
        self._blas = ThreadpoolController().select(user_api="blas")
        self._classes = _classes(self._layers[-1])
        self._basis = _basis(self._classes)

    def predict(self, images_B: Tensor | np.ndarray) -> Moments:
        """Predict the moments over all masks.

        Args:
            images_B: floating-point images of shape (B, ...).

        Raises:
            TypeError: the images are not floating-point.
            ValueError: images that aren't finite, or don't fit the layers.
        """
        images_B = as_images(images_B, self._parameter)
        classes = self._classes
        mean_BC = np.empty((len(images_B), classes))
        covariance_BCC = np.empty((len(images_B), classes, classes))
        expected_B = np.empty(len(images_B))
        with torch.inference_mode(), self._blas.limit(limits=1):
            for b in range(len(images_B)):
                cumulants = _cumulants(self._pass_through(images_B[b : b + 1].clone()))
                if not np.isfinite(cumulants[0]).all():
                    raise ValueError("the images must be finite")
                mean_BC[b], covariance_BCC[b], expected_B[b] = self._average_softmax(*cumulants)
        predictive_B = -np.vecdot(mean_BC, np.log(mean_BC + _TINY))
        return Moments(
            mean=torch.from_numpy(mean_BC),
            covariance=torch.from_numpy(covariance_BCC),
            predictive_entropy=torch.from_numpy(predictive_B),
            expected_entropy=torch.from_numpy(expected_B),
            mutual_information=torch.from_numpy(np.maximum(predictive_B - expected_B, 0)),
        )

    def _pass_through(self, image: Tensor) -> "_Units":
        before, after = split_at_first_dropout(self._layers)
        for layer in before:
            if not isinstance(layer, nn.Dropout):
                image = layer.forward(image)
        first_stage, *stages = _stages(after)
        units = _drop_known(image.flatten().cpu().numpy(), first_stage)
        for stage in stages:
            units = _drop_noisy(units, stage)
        return units

    def _average_softmax(self, mean_C: Array, covariance_CC: Array, third_CCC: Array) -> tuple[Array, Array, float]:
        """Mean, covariance and expected entropy of the softmax of logits with these cumulants."""
        logits_CP = _bend(covariance_CC, third_CCC) @ self._basis + mean_C[:, None]
        logits_CP -= logits_CP.max(axis=0)
        probs_CP = np.exp(np.maximum(logits_CP, _LEAST_LOGIT))
        sums_P = probs_CP.sum(axis=0)
        probs_CP /= sums_P
        points = len(sums_P)
        mean_C = probs_CP.sum(axis=1, dtype=np.float64) / points
        deviation_CP = probs_CP - mean_C[:, None]  # float64, so that no variance is below 0
        covariance_CC = deviation_CP @ deviation_CP.T / points
        return mean_C, covariance_CC, float(np.log(sums_P).sum() - np.vdot(probs_CP, logits_CP)) / points


def _classes(last: nn.Module) -> int:
    if not isinstance(last, nn.Linear):
        raise TypeError(f"the network must end in logits from an nn.Linear, not {type(last).__name__}")
    if last.out_features > _MOST_CLASSES:
        raise ValueError(f"moments are for at most {_MOST_CLASSES} classes, got {last.out_features}")
    return last.out_features


class _Stage(NamedTuple):
    """ReLU or not, then dropout or not (p = 0), then a linear layer."""

    relu: bool
    p: float
    linear: nn.Linear


def _stages(layers: list[nn.Module]) -> Iterator[_Stage]:
    """Read a chain that begins with dropout; ReLU behind dropout is the same as before it."""
    relu, keep = False, 1.0
    for layer in layers:
        match layer:
            case nn.ReLU():
                relu = True
            case nn.Dropout():
                keep *= 1 - layer.p
            case nn.Linear():
                yield _Stage(relu, 1 - keep, layer)
                relu, keep = False, 1.0


class _Units(NamedTuple):
    """Mean of n units and their response to R independent sources of noise.

    Attributes:
        mean_U: (n,).
        response_UR: (n, R), linear.
        variance_R: (R,), of the sources.
        third_R: (R,), their third cumulants.
        bends: what isn't linear on the way to here.
    """

    mean_U: Array
    response_UR: Array
    variance_R: Array
    third_R: Array
    bends: tuple["_Curve", ...] = ()


class _Curve(NamedTuple):
    """Units whose noise is not a linear response to sources alone; a source of its own for each follows those.

    Attributes:
        response_UR: of the units before the ReLU, to the sources before them.
        squares_UR: of these responses.
        curvature_U: expected second derivative of the ReLU.
        growth_U: how the variance of the units' own dropout noise grows with what comes in, on average.
    """

    response_UR: Array
    squares_UR: Array
    curvature_U: Array
    growth_U: Array


def _drop_known(units_U: Array, stage: _Stage) -> _Units:
    """Drop units that are known, so that each is a source, and combine them linearly."""
    if stage.relu:
        units_U = np.maximum(units_U, 0)
    weight, bias_V = _weights(stage.linear, len(units_U))
    if stage.p == 1:
        return _without_noise(bias_V)
    active = np.flatnonzero(units_U)
    units_U = units_U[active]
    response_VU = weight.index_select(1, torch.from_numpy(active).to(weight.device)).cpu().numpy()
    odds = stage.p / (1 - stage.p)
    return _Units(
        mean_U=response_VU @ units_U + bias_V,
        response_UR=response_VU,
        variance_R=odds * units_U * units_U,
        third_R=_third_of_mask(stage.p) * units_U * units_U * units_U,
    )


def _drop_noisy(units: _Units, stage: _Stage) -> _Units:
    weight, bias_V = _weights(stage.linear, len(units.mean_U))
    weight_VU = weight.cpu().numpy()
    if stage.p == 1:
        return _without_noise(bias_V)
    if not stage.relu and stage.p == 0:
        return units._replace(mean_U=weight_VU @ units.mean_U + bias_V, response_UR=weight_VU @ units.response_UR)
    response_UR = units.response_UR
    squares_UR = response_UR * response_UR
    variance_U = squares_UR @ units.variance_R
    third_U = (squares_UR * response_UR) @ units.third_R
    moments = _rectified if stage.relu else _unchanged
    first_U, second_U, cube_U, slope_U, curvature_U = moments(units.mean_U, variance_U, third_U)
    keep = 1 - stage.p
    growth_U = 2 * stage.p / keep * first_U
    linear_U = slope_U * slope_U * variance_U  # what the response explains of the variance
    third_by_slope_U = slope_U * slope_U * slope_U * third_U
    own_variance_U = second_U / keep - first_U * first_U - linear_U - slope_U * curvature_U * third_U
    third_cumulant_U = cube_U / keep**2 - first_U * (3 / keep * second_U - 2 * first_U * first_U)
    own_third_U = third_cumulant_U - third_by_slope_U - 3 * variance_U * (curvature_U * linear_U + growth_U * slope_U)
    return _Units(
        mean_U=weight_VU @ first_U + bias_V,
        response_UR=np.concatenate([(weight_VU * slope_U) @ response_UR, weight_VU], axis=1),
        variance_R=np.concatenate([units.variance_R, np.maximum(own_variance_U, 0)]),
        third_R=np.concatenate([units.third_R, own_third_U]),
        bends=(*units.bends, _Curve(response_UR, squares_UR, curvature_U, growth_U)),
    )


def _weights(linear: nn.Linear, units: int) -> tuple[Tensor, Array]:
    if linear.in_features != units:
        raise ValueError(f"{units} units don't fit a linear layer of {linear.in_features}")
    bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
    return linear.weight, bias.cpu().numpy()


def _without_noise(mean_U: Array) -> _Units:
    return _Units(mean_U, np.empty((len(mean_U), 0), mean_U.dtype), mean_U[:0], mean_U[:0])


def _third_of_mask(p: float) -> float:
    """Third cumulant of a mask that is 1 / (1 - p) or, with probability p, 0."""
    return p * (2 * p - 1) / (1 - p) ** 2


def _unchanged(mean_U: Array, variance_U: Array, third_U: Array) -> tuple[Array, ...]:
    """First three moments of the units, and slope and curvature of doing nothing."""
    second_U = mean_U**2 + variance_U
    cube_U = mean_U**3 + 3 * mean_U * variance_U + third_U
    return mean_U, second_U, cube_U, np.ones_like(mean_U), np.zeros_like(mean_U)


def _rectified(mean_U: Array, variance_U: Array, third_U: Array) -> tuple[Array, ...]:
    """First three moments of max(x, 0), and its expected slope and curvature, for nearly normal x."""
    scale_U = 1 / np.sqrt(np.maximum(variance_U, _TINY))
    ratio_U = np.minimum(np.maximum(mean_U * scale_U, -_FARTHEST), _FARTHEST)
    slope_U = 0.5 + 0.5 * torch.erf(torch.from_numpy(ratio_U * math.sqrt(0.5))).numpy()
    curvature_U = np.exp(-0.5 * ratio_U * ratio_U) * scale_U * (1 / math.sqrt(2 * math.pi))
    normal_U = mean_U * slope_U + variance_U * curvature_U  # the mean, if there were no skewness
    spread_U = variance_U * slope_U
    skewed_U = third_U * curvature_U
    first_U = np.maximum(normal_U - skewed_U * ratio_U * scale_U / 6, 0)
    second_U = np.maximum(mean_U * normal_U + spread_U + skewed_U / 3, first_U * first_U)
    cube_U = (mean_U * mean_U + 2 * variance_U) * normal_U + mean_U * spread_U + third_U * slope_U
    return first_U, second_U, cube_U, slope_U, curvature_U


def _cumulants(units: _Units) -> tuple[Array, Array, Array]:
    """Mean (C,), covariance (C, C) and third cumulants (C, C, C) of the last units."""
    response_CR, variance_R, third_R = units.response_UR, units.variance_R, units.third_R
    covariance_CC = (response_CR * variance_R) @ response_CR.T
    pairs, singles = [response_CR], [response_CR * (third_R / 3)]  # whose products, summed, are third cumulants
    for bend in units.bends:
        count, sources = bend.response_UR.shape
        before_CR = response_CR[:, :sources]
        own_CU = response_CR[:, sources : sources + count]
        with_units_CU = (before_CR * variance_R[:sources]) @ bend.response_UR.T  # covariance of logits and units
        curved_CU = own_CU * bend.curvature_U
        pairs.append(with_units_CU)
        singles.append(curved_CU)
        singles[0][:, sources : sources + count] += with_units_CU * bend.growth_U
        skewed_CR = (curved_CU @ bend.squares_UR) * (third_R[:sources] / 2)
        by_curvature_CC = skewed_CR @ before_CR.T
        covariance_CC += by_curvature_CC + by_curvature_CC.T
    pairs_CK, singles_CK = np.concatenate(pairs, axis=1), np.concatenate(singles, axis=1)
    classes, terms = pairs_CK.shape
    products = (pairs_CK[:, None] * pairs_CK).reshape(classes * classes, terms)
    third_CCC = (products @ singles_CK.T).reshape(classes, classes, classes).astype(np.float64)
    third_CCC = third_CCC + third_CCC.transpose(0, 2, 1) + third_CCC.transpose(2, 1, 0)
    return units.mean_U, covariance_CC.astype(np.float64), third_CCC


def _basis(classes: int) -> Array:
    """Points of the standard normal distribution, (C, P), above their centred products, (C * C, P); float32.

    Sobol' points and their mirror images, made to have the identity as covariance.
    """
    half = max(_POINTS, 4 * classes) // 2
    engine = torch.quasirandom.SobolEngine(classes, scramble=True, seed=0)  # type: ignore[no-untyped-call]
    uniform = engine.draw(half, dtype=torch.float64)
    normal_CP = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).numpy().T
    normal_CP = np.concatenate([normal_CP, -normal_CP], axis=1)
    normal_CP = np.linalg.solve(np.linalg.cholesky(normal_CP @ normal_CP.T / (2 * half)), normal_CP)
    products_CCP = normal_CP[:, None] * normal_CP - np.eye(classes)[:, :, None]
    return np.concatenate([normal_CP, products_CCP.reshape(classes * classes, -1)]).astype(np.float32)


def _bend(covariance_CC: Array, third_CCC: Array) -> Array:
    """Matrix (C, C + C * C) that turns `_basis` into points of these cumulants, the third to first order; float32."""
    classes = len(covariance_CC)
    variance_K, axes_CK = np.linalg.eigh(covariance_CC)
    deviation_K = np.sqrt(np.maximum(variance_K, max(_FLATTEST * variance_K[-1], _TINY)))
    whiten_CK = axes_CK / deviation_K
    linear_CK = axes_CK * deviation_K
    bend_CK = ((third_CCC @ whiten_CK).transpose(0, 2, 1) @ whiten_CK).reshape(classes, -1)
    whitened_KK = whiten_CK.T @ bend_CK
    added_KK = whitened_KK @ whitened_KK.T / 18  # what the bend adds to the variance: taken from the linear part
    excess = math.sqrt(max(added_KK.diagonal().max() / _MOST_BENT, 1))
    linear_CK -= linear_CK @ added_KK / (2 * excess**2)
    return np.concatenate([linear_CK, bend_CK / (6 * excess)], axis=1).astype(np.float32)
