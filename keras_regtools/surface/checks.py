"""Look for what makes a surface wrong: chance in data or layers, hidden second derivatives."""

import math


def faults(surface):
    return []


def explain(surface, error):
    pass


def why_not_finite(surface, params):
    first = 0
    for number, (batch, count) in enumerate(surface.data.one_by_one(), 1):
        (value,), _ = surface.batch.functions["value"]((params, *surface.batch.state()), batch)
        if not math.isfinite(value):
            return (
                f"Expected a finite loss. Received: a loss of {value} in batch {number} "
                f"(samples {first} to {first + count - 1})"
            )
        first += count
    return "Expected finite derivatives. Received: a product that is not, of a finite loss"
