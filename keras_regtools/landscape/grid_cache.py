"""Grids in files that numpy reads without us: kept as they grow, so that they can be resumed."""

import json
import os
import pathlib
import time
import zlib

import keras
import numpy as np
from keras import ops

from keras_regtools.measures.result import frozen


def fill(names, shape, evaluate, file, same, described, verbose):
    """Evaluate every point of a grid, going on where the file left off.

    Args:
        names: The quantities.
        shape: Shape of the grid.
        evaluate: From an index of the grid to a dict of floats.
        file: A path that ends in `.npz`, or `None`.
        same: Dict of what must agree with the file for its points to be of the same grid.
        described: Dict of arrays and texts that are kept beside the quantities.
        verbose: 1 draws a progress bar.

    Returns:
        Dict from each name to a read-only array.
    """
    values = {name: np.full(shape, np.nan) for name in names}
    done = np.zeros(shape, bool)
    path = _path(file)
    if path is not None and path.exists():
        _take_over(path, same, values, done)
    kept = {**described, "same": json.dumps(same)}
    bar = keras.utils.Progbar(done.size, verbose=verbose, unit_name="point")
    last = time.monotonic()
    try:
        for number, index in enumerate(np.ndindex(*shape), 1):
            if not done[index]:
                for name, value in evaluate(index).items():
                    values[name][index] = value
                done[index] = True
                if path is not None and time.monotonic() - last > _SECONDS:
                    _write(path, values, done, kept)
                    last = time.monotonic()
            bar.update(number)
    finally:
        if path is not None:
            _write(path, values, done, kept)
    return {name: frozen(array) for name, array in values.items()}


_SECONDS = 10.0  # between two writes


def fingerprint(tensors):
    """A short number that other weights would not have."""
    total = 0
    for t in tensors:
        total = zlib.crc32(np.ascontiguousarray(ops.convert_to_numpy(t)), total)
    return total


def _path(file):
    if file is None:
        return None
    path = pathlib.Path(file)
    if path.suffix != ".npz":
        raise ValueError(f"Expected `file` to end in '.npz'. Received: file={os.fspath(file)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def read_grid(path):
    """The arrays of a file that `fill` wrote, as a dict.

    Raises:
        ValueError: a file of something else, or a broken one.
    """
    try:
        # Opened here: numpy leaves a file open that it cannot read.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            if "same" in arrays:
                json.loads(str(arrays["same"]))
    except Exception as error:
        raise ValueError(
            "Expected a whole `.npz` file of a landscape. "
            f"Received: {os.fspath(path)!r}, which gave: {error!r}"
        ) from error
    if not {"same", "done", "loss"} <= set(arrays):
        raise ValueError(
            f"Expected a file of a line or a plane. Received: {os.fspath(path)!r} with the arrays "
            f"{sorted(arrays)}"
        )
    known = ("done", "loss", "accuracy", "test_loss", "test_accuracy")
    shapes = {arrays[name].shape for name in known if name in arrays}
    if len(shapes) > 1:
        raise ValueError(
            "Expected a whole `.npz` file of a landscape. "
            f"Received: {os.fspath(path)!r}, with arrays of the shapes {sorted(shapes)}"
        )
    return arrays


def _take_over(path, same, values, done):
    file = read_grid(path)
    held = json.loads(str(file["same"]))
    other = [k for k in same if not _agree(held.get(k), same[k])]
    if not other and any(file[n].shape != done.shape for n in (*values, "done") if n in file):
        other = ["shape"]
    if other or not set(values) <= set(file):
        raise ValueError(
            "Expected `file` to be new, or to hold a part of the same grid. Received: "
            f"{os.fspath(path)!r}, made with other {', '.join(other or ['quantities'])}"
        )
    for name, array in values.items():
        array[...] = file[name]
    done[...] = file["done"]


def _agree(a, b):
    if isinstance(a, dict) and isinstance(b, dict):
        return all(_agree(a[k], b[k]) for k in a.keys() & b.keys())
    if isinstance(a, float) and isinstance(b, float):
        same = a == b or a != a and b != b
        return same or abs(a - b) <= 1e-4 * max(abs(a), abs(b))
    return a == b


def _write(path, values, done, kept):
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        np.savez_compressed(file, **values, done=done, **kept)
    os.replace(partial, path)  # a file that was cut off while written is no file
