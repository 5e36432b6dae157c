"""What a training step costs: memory and time for batches of several sizes."""

import math
import time

import keras
import numpy as np
from keras import tree

from keras_regtools.forward import all_layers

_KEPT = 2  # times the outputs of all layers: a step keeps them and makes their gradients
_SURPRISE = 4  # how much more a step may take: JAX' convolutions on a CPU took 3.3 times that
_SEEN = 2**22  # bytes: less is lost in what the process has free
_TURN = 0.03  # seconds that one size is timed for, at least


def bytes_of_a_sample(model):
    """What a step takes for each sample at the least, as far as the shapes of layers are known."""
    count = 0
    for layer in all_layers(model):
        if isinstance(layer, keras.Model):  # whose layers are counted
            continue
        for tensor in tree.flatten(getattr(layer, "output", [])):
            count += math.prod(n or 1 for n in tensor.shape[1:])
    return _KEPT * 4 * count


def foreseen(sizes, needs, size, least):
    """The memory of a step of another size, which takes at least so much more for each sample.

    What the process has free takes in the first steps, so that what they add says too little.
    """
    slope = needs[0] / sizes[0] if len(sizes) == 1 else _slope(sizes, needs)
    return needs[-1] + max(slope, _SURPRISE * least) * (size - sizes[-1])


def _slope(sizes, needs):
    return (needs[-1] - needs[-2]) / (sizes[-1] - sizes[-2])


def memory_of_a_step(model, data, memory):
    """Bytes, NaN if they are not known; the first step of a size compiles."""
    x, y, weight, _ = next(iter(data))
    model.train_on_batch(x, y, sample_weight=weight)
    if not memory.known:
        return math.nan
    memory.begin()
    model.train_on_batch(x, y, sample_weight=weight)
    return float(max(memory.end(), 0))


def speeds(model, data, sizes, turns):
    """Samples per second, a row for each turn."""
    batches = [next(iter(data.rebatched(size)))[:3] for size in sizes]

    def timed(batch, count):
        begin = time.perf_counter()
        for _ in range(count):
            model.train_on_batch(*batch[:2], sample_weight=batch[2])
        return (time.perf_counter() - begin) / count

    counts = [max(1, math.ceil(_TURN / timed(batch, 1))) for batch in batches]
    seconds = [
        [timed(batch, count) for batch, count in zip(batches, counts, strict=True)]
        for _ in range(turns)
    ]
    return np.array(sizes) / np.array(seconds)


def fits(sizes, needs, limit, least):
    """The largest size that is foreseen to stay below the limit."""
    if not math.isfinite(limit) or not np.isfinite(needs).all():
        return math.nan
    slope = max(least, _slope(sizes, needs) if len(sizes) > 1 else 0.0)
    if slope <= 0 or needs[-1] < _SEEN:
        return math.inf
    return float(sizes[-1] + math.floor((limit - needs[-1]) / slope))
