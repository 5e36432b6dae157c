"""A mean over batches, one call each: for where a traced loop is not to be had, or slower."""

import numpy as np
from keras import ops, tree


def batch_by_batch(fn, args, batches):
    """The means of `fn(*args, x, y, sample_weight)` -> `(scalars, tensors)` over the samples."""
    losses, totals, samples = [], None, 0
    for *batch, count in batches.tensors():
        scalars, tensors = fn(*args, *batch)
        losses.append((count, scalars))  # read at the end, so that the device need not wait
        part = tree.map_structure(lambda t, weight=float(count): t * weight, tensors)
        totals = part if totals is None else tree.map_structure(ops.add, totals, part)
        samples += count
    batches.samples = samples
    means = sum(count * np.array([_float(s) for s in scalars]) for count, scalars in losses)
    return (means / samples).tolist(), tree.map_structure(lambda total: total / samples, totals)


def _float(scalar):
    return float(ops.convert_to_numpy(scalar))
