"""A surface's curvature as a matrix that is known by its products, as `linalg` wants it."""

import dataclasses

import keras
import numpy as np

from keras_regtools import linalg, vectors
from keras_regtools.measures.result import Result, loss_surface, origin
from keras_regtools.validation import one_of, positive_integer

MATRICES = ("hessian", "gauss_newton")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CurvatureResult(Result):
    """What every measure of curvature says of where its numbers come from.

    Attributes:
        matrix, seed: As given.
        products: Products with the matrix that were made.
        mode, penalties, samples: Those of the surface.
    """

    matrix: str
    seed: int
    products: int
    mode: str
    penalties: bool
    samples: int | None


class Curvature:
    """The Hessian or the Gauss-Newton matrix at the model's weights.

    Args:
        surface: A `LossSurface`.
        matrix: One of `MATRICES`.
        verbose: 1 draws a progress bar.

    Attributes:
        products: How many products have been made.
    """

    def __init__(self, surface, matrix, verbose=0):
        self.matrix = one_of("matrix", matrix, MATRICES)
        self.surface, self.params = loss_surface(surface), surface.params
        self.size = vectors.size(self.params)
        types = {keras.backend.standardize_dtype(p.dtype) for p in self.params}
        self.dtype = np.dtype("float64" if "float64" in types else "float32")
        self.products = 0
        self._bar = keras.utils.Progbar(None, unit_name="product") if verbose else None

    def __call__(self, rows):
        """The products of the matrix with the rows of an array `(k, n)`, as such an array."""
        product = self.surface.hvp if self.matrix == "hessian" else self.surface.gnvp
        groups = -(-len(rows) // _TOGETHER)
        found = []
        for group in np.array_split(rows, groups):
            several = [vectors.unflatten(row, self.params) for row in group]
            found += [vectors.flatten(p, self.dtype) for p in product(self.params, several)]
        self.products += len(rows)
        found = np.stack(found)
        if not np.all(np.isfinite(found)):
            raise ValueError(self.surface.why_not_finite(self.params))
        return found

    def expect(self, most):
        """Say how many products are going to be made at most."""
        if self._bar is not None:
            self._bar.target = most

    def watch(self, products, **numbers):
        """Show how far a measure is."""
        if self._bar is not None:
            self._bar.stateful_metrics = set(numbers)
            self._bar.update(products, list(numbers.items()), finalize=False)

    def done(self):
        """Finish the progress bar, and give what each result says of where it comes from."""
        if self._bar is not None:
            self._bar.target = self.products
            self._bar.update(self.products, finalize=True)
        return {
            "matrix": self.matrix,
            "products": self.products,
            **origin(self.surface),
        }


def estimated_trace(curvature, product, tolerance, sketch, max_products, seed, name="trace"):
    """The trace of a matrix by Hutch++ or, without a sketch, Hutchinson's estimator.

    Args:
        curvature: The `Curvature` whose products are counted and shown.
        product: The matrix, as a function of rows; the curvature itself, or made of it.
        tolerance, sketch, max_products, seed: As for `hessian_trace`.
        name: What the progress bar calls it.

    Returns:
        What `linalg.trace` gives.
    """
    least = 2 * sketch + linalg.FEWEST_DRAWS
    rows = f"2 for each of the {sketch} rows of the sketch and " if sketch else ""
    why = f"{rows}1 for each of {linalg.FEWEST_DRAWS} draws"
    most = most_products(max_products, least, why)
    curvature.expect(most)
    return linalg.trace(
        product,
        curvature.size,
        curvature.dtype,
        tolerance,
        most,
        sketch,
        np.random.default_rng(seed),
        watch=lambda products, estimate, stderr: curvature.watch(
            products, **{name: estimate, "stderr": stderr}
        ),
    )


_TOGETHER = 5  # more at once take longer to trace and gain little


def most_products(value, least, why):
    """`max_products` as an integer that at least allows what a measure cannot do without."""
    value = positive_integer("max_products", value)
    if value < least:
        raise ValueError(
            f"Expected `max_products` to be at least {least}, {why}. Received: max_products={value}"
        )
    return value
