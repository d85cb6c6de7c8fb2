"""Uncertainty measures of one distribution over classes, and of several samples.

Samples come from Monte Carlo dropout (Gal and Ghahramani, "Dropout as a Bayesian Approximation",
ICML 2016), test-time augmentation, an ensemble of runs, or all of these. Entropies are in nats.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def entropy(probabilities: Floats) -> Floats:
    """Return the Shannon entropy (...,) of distributions (..., K), in nats: 0 .. ln K."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    total: Floats = 0.0 - (probabilities * logs).sum(axis=-1)  # 0 log 0 is 0
    return total


def margin(probabilities: Floats) -> Floats:
    """Return the highest probability minus the second, (...,) of (..., K): 0 .. 1."""
    if probabilities.shape[-1] < 2:
        return probabilities[..., 0]
    top = np.partition(probabilities, -2, axis=-1)
    return top[..., -1] - top[..., -2]


@dataclass(frozen=True)
class Uncertainty:
    """The uncertainty of N pictures from S samples of each one's distribution.

    mean, std: (N, K) over the samples; std with divisor S. All others (N,):
    predictive_entropy: of the mean (total). expected_entropy: mean of the samples' entropies
    (aleatoric). mutual_information: the difference (BALD, epistemic). variation_ratio: share of
    samples whose first class is not the most frequent one, 0 .. 1 - 1/K. margin: of the mean.
    Source: Gal, "Uncertainty in Deep Learning", 2016, section 3.3.1; Houlsby et al., "Bayesian
    Active Learning for Classification and Preference Learning", 2011.
    """

    mean: Floats
    std: Floats
    predictive_entropy: Floats
    expected_entropy: Floats
    mutual_information: Floats
    variation_ratio: Floats
    margin: Floats


def uncertainty_of(samples: Floats) -> Uncertainty:
    """Summarize probabilities (N, S, K), S >= 1; one sample does not vary."""
    mean = samples.mean(axis=1)
    predictive, expected = entropy(mean), entropy(samples).mean(axis=1)
    num_classes = samples.shape[2]
    votes = samples.argmax(axis=2)  # (N, S)
    counts = (votes[:, :, None] == np.arange(num_classes)).sum(axis=1)  # (N, K)
    return Uncertainty(
        mean=mean,
        std=samples.std(axis=1),
        predictive_entropy=predictive,
        expected_entropy=expected,
        mutual_information=np.maximum(predictive - expected, 0.0),  # rounding may go below 0
        variation_ratio=1 - counts.max(axis=1) / samples.shape[1],
        margin=margin(mean),
    )
