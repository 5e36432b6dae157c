"""Which optimizer a trial has, and from which rates its own is chosen."""

from __future__ import annotations

import keras

from keras_regtools.keras_internals import rate_of_steps
from keras_regtools.surgery.compilation import copy_of_optimizer
from keras_regtools.training import base_optimizers
from keras_regtools.tuner.values import Kind, Value
from keras_regtools.validation import positive

_SGD, _OTHERS = (1e-3, 1e-1), (1e-4, 1e-2)
_AROUND = 10  # times less and more than the rate that a model was compiled with
_rate = Kind(positive, is_log=True)


class Optimizers:
    """The optimizers of a search.

    Args:
        given: `None` to keep that of the model, a name, an optimizer, a list of names, or a dict
            from names to ranges of rates.
        rates: A rate, a range or a list; `None` for those around the compiled one, or the usual.
    """

    def __init__(self, given, rates):
        self.given, self.rates = given, rates
        if rates is not None:
            Value("learning_rate", rates, _rate)
        self.names = []
        if isinstance(given, (list, tuple, dict)):
            if not given:
                raise ValueError("Expected one optimizer or more. Received: none")
            self.names = [_known(name) for name in given]
        elif isinstance(given, str):
            _known(given)
        elif not (given is None or isinstance(given, keras.optimizers.Optimizer)):
            raise ValueError(
                "Expected `optimizer` to be None, to keep that of the model, the name of one, an "
                "optimizer, a list of names or a dict from names to ranges of rates. "
                f"Received: optimizer={given!r}"
            )
        if isinstance(given, dict):
            for name, one in given.items():
                Value(f"{name}/learning_rate", one, _rate)

    def choose(self, hp, model, taken=()):
        """A new optimizer for a copy of a model.

        Args:
            hp: `keras_tuner.HyperParameters`.
            model: The model that `model_fn` gave.
            taken: Names that the user's own hyperparameters have.

        Returns:
            The optimizer and its base rate, `None` for a schedule.
        """
        if self.names:
            return self._one_of(hp)
        if isinstance(self.given, str):
            rate = self._rate(hp, "learning_rate", self.rates or _usual(self.given), taken)
            return made(self.given, rate), rate
        held = self.given if self.given is not None else model.optimizer if model.compiled else None
        if held is None:
            rate = self._rate(hp, "learning_rate", self.rates or _SGD, taken)
            return made("sgd", rate), rate
        optimizer = copy_of_optimizer(held)
        first = base_optimizers(optimizer)[0]
        if rate_of_steps(first) is not None and self.rates is None:
            return optimizer, None
        own = float(first.learning_rate) if rate_of_steps(first) is None else 1e-2
        if "learning_rate" in taken:
            return optimizer, own
        rates = self.rates or (own / _AROUND, own * _AROUND)
        rate = self._rate(hp, "learning_rate", rates, taken, own)
        for one in base_optimizers(optimizer):
            one.learning_rate = rate
        return optimizer, rate

    def _rate(self, hp, name, rates, taken=(), default=None):
        return hp.get(name) if name in taken else Value(name, rates, _rate, default)(hp)

    def _one_of(self, hp):
        name = hp.Choice("optimizer", self.names)
        found = {}
        for one in self.names:
            own = self.given[one] if isinstance(self.given, dict) else self.rates or _usual(one)
            with hp.conditional_scope("optimizer", [one]):
                found[one] = self._rate(hp, f"{one}/learning_rate", own)
        return made(name, found[name]), found[name]

    def told(self):
        """What is searched, for JSON."""
        given = self.given
        if isinstance(given, keras.optimizers.Optimizer):
            given = type(given).__name__
        return {"optimizer": given, "learning_rates": self.rates}


def made(name, rate):
    """An optimizer by its name; SGD with momentum .9."""
    if name == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9)
    optimizer = keras.optimizers.get(name)
    optimizer.learning_rate = rate
    return optimizer


def _usual(name):
    return _SGD if name == "sgd" else _OTHERS


def _known(name):
    try:
        keras.optimizers.get(name)
    except Exception as error:
        raise ValueError(
            f"Expected the names of Keras' optimizers, such as 'sgd'. Received: {name!r}"
        ) from error
    if not isinstance(name, str):
        raise ValueError(f"Expected names of optimizers. Received: {name!r}")
    return name
