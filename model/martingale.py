"""An anytime-valid test that prediction sets keep their coverage: a bettor who gains from sets without the true class.

Under the null hypothesis each set misses the true class with a conditional probability of at most p, given the past. A
bet on a larger probability q multiplies the evidence by q / p after a miss, and by (1 - q) / (1 - p) otherwise, which
is at most 1 in expectation (betting: Waudby-Smith & Ramdas 2024, arXiv:2010.09686; on conformal errors: Vovk et al.
2021, arXiv:2102.09292). Evidence that was lost over a long time without change would delay the alarm. So new bets
start at each image t with a part w_t of the capital, and the w_t sum to 1:

    evidence_t = (evidence_{t-1} + w_t) * factor_t

Sums over starting times are the e-detectors of Shin, Ramdas & Rinaldo (2022, arXiv:2203.03532). With these weights the
sum, together with the capital that is not yet bet, is a nonnegative supermartingale from 1. By Ville's inequality, the
evidence ever reaches 1 / a with a probability of at most a, however often one looks. So does the mean over several bets
or tests.
"""

import math

import numpy as np
from scipy import special

from model.chain import Array

ODDS = (1.5, 2.0, 4.0, 8.0)  # of a miss, that the bets assume, relative to those of the null hypothesis
CAP = 1e6  # largest evidence; capital above it is given away, so that a past change is forgotten
_DOUBT = 1e-3  # probability that the sets of an unchanged calibration miss more often than is tolerated


def tolerated_miss(coverage: float, *, images: int) -> float:
    """Compute the probability of a miss that a finite calibration explains.

    Given the calibration images, the probability of a miss has the distribution Beta(n + 1 - k, k), where
    k = ceil((n + 1) coverage) is the rank of the threshold among n scores (Vovk 2012, arXiv:1209.2673). It exceeds the
    returned value with probability 0.001.

    Args:
        coverage: the requested coverage.
        images: number n of calibration images, enough for this coverage.
    """
    rank = math.ceil((images + 1) * coverage - 1e-9)
    return float(special.betaincinv(images + 1 - rank, rank, 1 - _DOUBT))


def start_weight(image: int) -> float:
    """Part of the capital whose bets start at an image, counted from 0; the parts sum to 1.

    It falls like 1 / (t log^2 t), so that the delay of an alarm grows only with the logarithm of the time before.
    """
    return 1 / math.log2(image + 2) - 1 / math.log2(image + 3)


def next_evidence(evidence_K: Array, missed: Array, tolerated: Array, *, image: int) -> Array:
    """Bet on one image.

    Args:
        evidence_K: evidence of each test (...) and bet K; 0 before the first image.
        missed: booleans of shape (...), true where the set does not contain the true class.
        tolerated: probability of a miss under the null hypothesis, of shape (...) or one that broadcasts.
        image: number of images before this one.
    """
    null_1 = np.asarray(tolerated)[..., None]
    odds_K = np.array(ODDS)
    rest_K = 1 / (1 - null_1 + null_1 * odds_K)  # (1 - q) / (1 - p), where q has the odds of p times `ODDS`
    factor_K = np.where(np.asarray(missed)[..., None], odds_K * rest_K, rest_K)
    capital_K: Array = np.minimum((evidence_K + start_weight(image)) * factor_K, CAP)
    return capital_K
