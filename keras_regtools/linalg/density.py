"""The spectral density of a matrix by stochastic Lanczos quadrature."""

import numpy as np

from keras_regtools.linalg.lanczos import Lanczos
from keras_regtools.linalg.random_signs import random_signs


def density(matrix, n, dtype, steps, draws, rng, block=5, watch=None):
    """The spectral density by stochastic Lanczos quadrature.

    Each draw gives nodes θ and weights τ = (first component)² of the eigenvectors of T, with
    Σ τ f(θ) ≈ gᵀ f(A) g for a random unit vector g, whose mean is tr f(A) / n
    ([Ubaru et al., 2017](https://doi.org/10.1137/16M1104974)).

    Args:
        matrix, n, dtype: The matrix, its size and the precision of its products.
        steps: Lanczos steps of a draw.
        draws: Random start vectors.
        rng: Numpy `Generator`.
        block: Draws made together.
        watch: Called with the number of products.

    Returns:
        `(nodes, weights, residuals)`: arrays `(draws, steps)`, with fewer steps if the space has
        fewer. A residual is the spread of the eigenvalues that a node stands for.
    """
    nodes, weights, widths, used = [], [], [], 0
    for first in range(0, draws, block):
        starts = random_signs(rng, (min(block, draws - first), n), dtype)
        processes = [Lanczos(start, rng) for start in starts]
        for _ in range(min(steps, n)):
            products = matrix(np.stack([process.next for process in processes]))
            for process, product in zip(processes, products, strict=True):
                process.advance(product)
            used += len(processes)
            if watch is not None:
                watch(used)
        for process in processes:
            values, columns, residuals = process.ritz()
            nodes.append(values)
            weights.append(columns[0] ** 2)
            widths.append(residuals)
    return np.stack(nodes), np.stack(weights), np.stack(widths)
