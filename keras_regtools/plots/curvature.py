"""The spectrum of the Hessian."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_regtools.plots.axes import AXES, on
from keras_regtools.validation import checked, has

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked(result=has("nodes", "a `HessianDensity`"), ax=AXES)
def density(result: Any, ax: Any = None) -> Axes:
    """The density of the eigenvalues of the Hessian, on a logarithmic axis.

    Each eigenvalue that was found is smoothed to a bell, half a per cent of the spectrum wide.

    Args:
        result: A `measures.HessianDensity`.
        ax: Matplotlib axes to draw on; those of a new figure by default.

    Returns:
        The axes.

    Reference:
        [Ghorbani et al., 2019](https://arxiv.org/abs/1901.10159).
    """
    ax = on(ax)
    low, high = float(np.min(result.nodes)), float(np.max(result.nodes))
    width = 0.005 * ((high - low) or abs(high) or 1.0)
    grid = np.linspace(low - 5 * width, high + 5 * width, 2001)
    heights = result.curve(grid, width)
    floor = max(1 / (100 * result.size * width), np.max(heights) * 1e-12)
    ax.fill_between(grid, floor, np.maximum(heights, floor), alpha=0.3)
    ax.plot(grid, np.maximum(heights, floor), linewidth=1)
    ax.axvline(0.0, color="black", linewidth=0.8, linestyle=":")
    numbers = result.scalars()
    matrix = result.matrix.replace("_", "-").replace("hessian", "Hessian")
    ax.set(
        yscale="log",
        ylim=(floor, None),
        xlabel="eigenvalue",
        ylabel="density (share of eigenvalues per unit)",
        title=f"Spectrum of the {matrix.replace('gauss-newton', 'Gauss-Newton matrix')}",
    )
    ax.text(
        0.98,
        0.96,
        f"{result.size:,} eigenvalues\n"
        f"from {numbers['smallest']:.3g} to {numbers['value']:.3g}\n"
        f"{result.below_zero}\n"
        f"trace {_with_error(numbers['trace'], numbers['trace_stderr'])}",
        ha="right",
        va="top",
        fontsize=8,
        transform=ax.transAxes,
    )
    ax.grid(alpha=0.3)
    return ax


def _with_error(value, error):
    """The value to the second digit of its standard error; a single draw has none."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"
