"""What every measure returns."""

import dataclasses

import numpy as np
from keras import ops, tree


@dataclasses.dataclass(frozen=True)
class Result:
    """Base of the results: frozen, and flat for logs and tables."""

    def scalars(self):
        """The numbers and flags of the result, as a dict of floats."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: float(v) for k, v in fields.items() if isinstance(v, (int, float))}

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return all(
            _same(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)
        )

    __hash__ = None


def _same(a, b):
    a, b = tree.flatten(a), tree.flatten(b)
    return len(a) == len(b) and all(
        np.array_equal(_array(x), _array(y)) for x, y in zip(a, b, strict=True)
    )


def _array(x):
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)


def frozen(array):
    """A numpy array that cannot be written to."""
    array = np.array(array)
    array.setflags(write=False)
    return array
