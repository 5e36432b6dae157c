"""The true top eigenvalue and trace, in float64 PyTorch; nothing of the package is used here.

The eigenvalue is scipy's `eigsh` at a tolerance of 1e-9. The trace is estimated with Hutch++ and
several hundred products (Meyer et al., 2021, https://arxiv.org/abs/2010.09649): the trace on the
range of a sketch is exact, and what is left is sampled, which gives its standard error.
"""

import hashlib
import json

import numpy as np
import scipy.sparse.linalg
import torch
from networks import torch_batches, twin_of

EIGENVALUE_TOLERANCE = 1e-9
SKETCH, DRAWS = 200, 400


def true_values(model, x, y, path, trace):
    """The true values, computed once and then read from `path`.

    Args:
        model: The trained Keras model, of which the weights are taken.
        x, y: The data.
        path: A .json file. It is not read if it belongs to other weights or data.
        trace: Whether the trace is wanted too.

    Returns:
        A dict with `eigenvalue`, `eigenvalue_residual`, and `trace` and `trace_stderr` if wanted.
    """
    stored = json.loads(path.read_text()) if path.exists() else {}
    digest = _digest([*model.get_weights(), x, y])
    if stored.get("digest") != digest:
        stored = {"digest": digest}
    hessian = _Hessian(model, x, y)
    if "eigenvalue" not in stored:
        stored["eigenvalue"], stored["eigenvalue_residual"] = _top_eigenvalue(hessian)
    if trace and "trace" not in stored:
        stored["trace"], stored["trace_stderr"] = _trace(hessian)
    path.write_text(json.dumps(stored, indent=1))
    return stored


def _digest(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


class _Hessian:
    """The Hessian of the float64 twin, times the columns of a matrix."""

    def __init__(self, model, x, y):
        self.twin = twin_of(model, torch.float64)
        self.batches = torch_batches(x, y, torch.float64, size=32)  # faster than more
        self.params = list(self.twin.parameters())
        self.size = sum(p.numel() for p in self.params)

    def __matmul__(self, matrix):
        loss, result = torch.nn.CrossEntropyLoss(reduction="sum"), np.zeros(matrix.shape)
        samples = sum(len(y) for _, y in self.batches)
        for x, y in self.batches:
            gradient = torch.autograd.grad(
                loss(self.twin(x), y) / samples, self.params, create_graph=True
            )
            for column, product in zip(matrix.T, result.T, strict=True):
                parts = torch.autograd.grad(
                    gradient, self.params, grad_outputs=self._split(column), retain_graph=True
                )
                product += np.concatenate([part.numpy().ravel() for part in parts])
        return result

    def _split(self, vector):
        sizes = [p.numel() for p in self.params]
        parts = torch.from_numpy(np.ascontiguousarray(vector)).split(sizes)
        return [part.reshape(p.shape) for part, p in zip(parts, self.params, strict=True)]


def _top_eigenvalue(hessian):
    def product(vector):
        return (hessian @ vector.reshape(-1, 1)).ravel()

    size = hessian.size
    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype="float64")
    start = np.random.default_rng(0).standard_normal(size)
    values, vectors = scipy.sparse.linalg.eigsh(
        operator, k=1, which="LA", tol=EIGENVALUE_TOLERANCE, v0=start
    )
    residual = product(vectors[:, 0]) - values[0] * vectors[:, 0]
    return float(values[0]), float(np.linalg.norm(residual))


def _trace(hessian):
    rng = np.random.default_rng(0)
    sketch = rng.choice([-1.0, 1.0], (hessian.size, SKETCH))
    basis, _ = np.linalg.qr(hessian @ sketch)
    exact = np.sum(basis * (hessian @ basis))
    draws = rng.choice([-1.0, 1.0], (hessian.size, DRAWS))
    draws -= basis @ (basis.T @ draws)
    sampled = np.sum(draws * (hessian @ draws), axis=0)
    return float(exact + sampled.mean()), float(sampled.std(ddof=1) / np.sqrt(DRAWS))
