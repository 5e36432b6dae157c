"""Several penalties of one kernel, where Keras takes one."""

from __future__ import annotations

from typing import Any

import keras

from keras_regtools.regularizers.strength import Penalty


@keras.saving.register_keras_serializable(package="keras_regtools")
class Sum(Penalty):
    """The sum of several penalties.

    The strengths stay those of its members: `penalty.penalties[0].l2 = 0.0` acts in the next step.

    Args:
        *penalties: Two or more penalties of ours, which penalize by their gradient.

    Raises:
        TypeError: something that is no penalty of ours.
        ValueError: fewer than two penalties, or one with a proximal step, of which a kernel can
            have one only.

    Example:

    >>> from keras_regtools.regularizers import L2, Orthogonal, Sum
    >>> penalty = Sum(L2(0.5), Orthogonal(1.0))
    >>> float(penalty(keras.ops.array([[2.0], [0.0]])))  # 0.5 · 4 + (4 − 1)²
    11.0
    """

    def __init__(self, *penalties: Penalty) -> None:
        super().__init__()
        for one in penalties:
            if not isinstance(one, Penalty):
                raise TypeError(f"Expected penalties of ours. Received: {one!r}")
            if getattr(one, "proximal", False):
                raise ValueError(
                    "Expected penalties without a proximal step, as a kernel can have one only. "
                    f"Received: {one!r}"
                )
        if len(penalties) < 2:
            raise ValueError(f"Expected two or more penalties. Received: {list(penalties)}")
        self.penalties = list(penalties)

    def __call__(self, x: Any) -> Any:
        return sum((one(x) for one in self.penalties[1:]), self.penalties[0](x))

    def of_layer(self, layer: Any, name: str) -> Any:
        members = [one.of_layer(layer, name) for one in self.penalties]
        same = all(a is b for a, b in zip(members, self.penalties, strict=True))
        return self if same else Sum(*members)

    def get_config(self) -> dict[str, Any]:
        return {"penalties": [keras.saving.serialize_keras_object(one) for one in self.penalties]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(*map(keras.saving.deserialize_keras_object, config["penalties"]))

    def __repr__(self):
        return f"Sum({', '.join(map(repr, self.penalties))})"
