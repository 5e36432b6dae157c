"""The peers behind one interface: a Hessian product, the top eigenvalue and the trace.

Each is called as its documentation says, on the same batches of the PyTorch twin, and each is
given its vector in the form that it prefers. Products are counted from outside. An eigenvalue comes
with its products and the residual that the peer reports, not a number if it reports none.
"""

import warnings

import curvlinops
import hessian_eigenthings
import numpy as np
import pyhessian
import scipy.sparse.linalg
import torch


class PyHessian:
    """Double backward over the batches, power iteration, Hutchinson until two means agree."""

    name = "PyHessian"

    def __init__(self, twin, batches):
        warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
        self.loss = torch.nn.CrossEntropyLoss()
        self.hessian = _CountingPyHessian(twin, self.loss, dataloader=batches, cuda=False)

    def product(self, vector):
        return self.hessian.dataloader_hv_product(vector)[1]

    def eigenvalue(self, seed, tolerance):
        torch.manual_seed(seed)
        self.hessian.products = 0
        values, _ = self.hessian.eigenvalues(tol=tolerance)
        return values[0], self.hessian.products, np.nan

    def trace(self, seed):
        """The estimate, the standard error that its draws imply, and their number."""
        torch.manual_seed(seed)
        draws = self.hessian.trace()
        return np.mean(draws), np.std(draws, ddof=1) / np.sqrt(len(draws)), len(draws)


class _CountingPyHessian(pyhessian.hessian):
    products = 0

    def dataloader_hv_product(self, v):
        self.products += 1
        return super().dataloader_hv_product(v)


class Curvlinops:
    """Forward over reverse with `torch.func`, and scipy's `eigsh`."""

    name = "curvlinops"

    def __init__(self, twin, batches):
        # It checks at construction that model and data are deterministic; that is timed apart.
        params, loss = list(twin.parameters()), torch.nn.CrossEntropyLoss()
        self.operator = curvlinops.HessianLinearOperator(twin, loss, params, batches)

    def product(self, vector):
        return self.operator @ _flat(vector)

    def products(self, vectors):
        return self.operator @ torch.stack([_flat(vector) for vector in vectors], dim=1)

    def eigenvalue(self, seed, tolerance):
        operator, count = self.operator.to_scipy(), 0

        def product(vector):
            nonlocal count
            count += 1
            return operator @ vector

        counting = scipy.sparse.linalg.LinearOperator(
            operator.shape, matvec=product, dtype=operator.dtype
        )
        start = np.random.default_rng(seed).standard_normal(operator.shape[0])
        values = scipy.sparse.linalg.eigsh(
            counting,
            k=1,
            which="LA",
            tol=tolerance,
            v0=start.astype(operator.dtype),
            return_eigenvectors=False,
        )
        return values[0], count, np.nan


class HessianEigenthings:
    """Double backward, a Lanczos method of a fixed number of steps, Hutch++."""

    name = "hessian-eigenthings"

    def __init__(self, twin, batches):
        loss = hessian_eigenthings.supervised_loss(torch.nn.CrossEntropyLoss())
        self.operator = hessian_eigenthings.HessianOperator(twin, batches, loss)

    def product(self, vector):
        return self.operator @ _flat(vector)

    def eigenvalue(self, seed, steps=None):
        """At its defaults two steps for one eigenvalue, whatever its tolerance."""
        result = hessian_eigenthings.lanczos(self.operator, k=1, seed=seed, max_iter=steps)
        return result.eigenvalues[0].item(), result.iterations, result.residuals[0].item()

    def trace(self, seed):
        result = hessian_eigenthings.trace(self.operator, seed=seed)
        return result.estimate, result.stderr, 3 * len(result.samples)


def _flat(vector):
    return torch.cat([part.reshape(-1) for part in vector])


PEERS = (PyHessian, Curvlinops, HessianEigenthings)
