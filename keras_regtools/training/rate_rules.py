"""How a learning rate follows the batch size: rules, and what Adam's full rule changes besides."""

import math
import warnings
import weakref

import keras

from keras_regtools.keras_internals import shadow, shadowed, unshadow
from keras_regtools.validation import positive

RULES = ("linear", "sqrt", "adam", "noise_scale", "adascale")


def rate_factor(rule, batch_size, base_batch_size, noise_scale=None):
    """The multiple of the rate at another batch size.

    With k = batch_size / base_batch_size: k for `"linear"`, and at most for `"adascale"`, √k for
    `"sqrt"` and `"adam"`, and for `"noise_scale"` the ratio of η(B) = η_max B / (B + noise_scale)
    at both ([McCandlish et al., 2018](https://arxiv.org/abs/1812.06162)); a callable gets k.

    Example:

    >>> rate_factor("linear", 64, 16), rate_factor("adam", 64, 16)
    (4.0, 2.0)
    >>> rate_factor("noise_scale", 90, 10, noise_scale=30.0)  # (90 / 120) / (10 / 40)
    3.0
    """
    ratio = batch_size / base_batch_size
    if callable(rule):
        factor = rule(ratio)
        if not positive.allows(factor):
            raise ValueError(
                "Expected a rule that gives a positive finite number. "
                f"Received: {factor!r} of {ratio:g} times the batch"
            )
        return float(factor)
    if rule in ("linear", "adascale"):
        return ratio
    if rule == "noise_scale":
        return ratio * (base_batch_size + noise_scale) / (batch_size + noise_scale)
    return math.sqrt(ratio)


def told(rule, sizes, base, factor, steps):
    """In one line what will happen to a rate.

    Args:
        rule: One of `RULES`, or a callable.
        sizes: The batch size, how many are accumulated, and the base batch size.
        base: The base rate, or `None` for a schedule.
        factor: The multiple of it.
        steps: Of the warm-up.
    """
    size, accumulated, base_size = sizes
    times = f" × {accumulated} accumulated" if accumulated > 1 else ""
    name = rule if isinstance(rule, str) else "its own rule"
    begin, end = "its schedule", f"{factor:g} times that"
    if base is not None:
        begin, end = f"{base:g}", f"{base * factor:g}"
    ends = f"in {steps} steps" if rule != "adascale" else "at most, as the gain is"
    return f"batch {size}{times} for {base_size}, {name}: from {begin} to {end} {ends}"


def checked_noise_scale(rule, given):
    """B_noise, from a number or a result; wanted for its own rule alone."""
    value = getattr(given, "value", given)
    if rule != "noise_scale":
        if given is not None:
            raise ValueError(
                f"Expected `noise_scale` for rule='noise_scale' alone. Received: rule={rule!r}"
            )
        return None
    if value is None:
        raise ValueError(
            "Expected `noise_scale=` for rule='noise_scale': a number, or what "
            "`measures.gradient_noise_scale(surface)` gave. Received: None"
        )
    return positive("noise_scale", value)


def adam_settings(beta_1, beta_2, epsilon, ratio):
    """Adam's β₁, β₂ and ε for a batch that is `ratio` times as large.

    β' = 1 − κ (1 − β) and ε / √κ ([Malladi et al., 2022](https://arxiv.org/abs/2205.10287)), so
    that the averages are over as many samples as before.

    Raises:
        ValueError: κ ≥ 1 / (1 − β), for which there is no such average.

    Example:

    >>> [round(value, 6) for value in adam_settings(0.9, 0.999, 1e-7, 4)]
    [0.6, 0.996, 0.0]
    """
    most = 1 / (1 - min(beta_1, beta_2))
    if ratio >= most * (1 - 1e-9):
        raise ValueError(
            f"Expected less than {most:g} times the base batch size, as Adam's β = "
            f"{min(beta_1, beta_2):g} averages over {most:g} steps. Received: {ratio:g} times. Use "
            "rule='sqrt', or a larger base batch size with its own rate."
        )
    return 1 - ratio * (1 - beta_1), 1 - ratio * (1 - beta_2), epsilon / math.sqrt(ratio)


class AdamRule:
    """Adam's other settings for a larger batch, put into an optimizer until they are taken back.

    A compiled step holds them as constants: it has to be made again afterwards.
    """

    def __init__(self, optimizer, ratio):
        if not isinstance(optimizer, keras.optimizers.Adam):
            raise ValueError(
                "Expected Adam or AdamW for rule='adam'. Received: "
                f"{type(optimizer).__name__}. Use 'linear' for SGD, 'sqrt' for others."
            )
        self._optimizer = optimizer
        names = ("beta_1", "beta_2", "epsilon")
        self._before = {name: getattr(optimizer, name) for name in names}
        self._wanted = dict(zip(names, adam_settings(**self._before, ratio=ratio), strict=True))

    def put_in(self):
        """Set them; files that are saved meanwhile get those that stood there before."""
        for name, value in self._wanted.items():
            setattr(self._optimizer, name, value)
        optimizer, before = weakref.ref(self._optimizer), self._before

        def get_config():
            return {**type(optimizer()).get_config(optimizer()), **before}

        shadow(self._optimizer, "get_config", get_config)

    def __call__(self):
        """Set those that stood there before."""
        if shadowed(self._optimizer, "get_config") is not None:
            unshadow(self._optimizer, "get_config")
            for name, value in self._before.items():
                setattr(self._optimizer, name, value)


def refuse_base_rate(schedules, given):
    """Say it if a base rate is given beside a schedule.

    Args:
        schedules: List of schedules, `None` for a rate that is a number.
        given: The base rate, or `None`.
    """
    if any(schedules) and given is not None:
        raise ValueError(
            "Expected no `base_learning_rate` for an optimizer built with a schedule, which the "
            f"factor multiplies. Received: {given}"
        )


def refuse_rivals(callback, kind, callbacks, warmup_steps):
    """Say it if others of a fit set the rate that a callback sets.

    Args:
        callback: The callback.
        kind: Its class, of which there may be one.
        callbacks: All of the fit.
        warmup_steps: For how many steps it sets the rate.
    """
    same = [c for c in callbacks if isinstance(c, kind)]
    if len(same) > 1:
        raise ValueError(
            f"Expected one `{kind.__name__}` in a fit, as it sets the rate. Received: {len(same)}"
        )
    if callback.rule == "adascale":  # for which what others set is the base rate
        return
    if any(isinstance(c, keras.callbacks.LearningRateScheduler) for c in callbacks):
        warnings.warn(
            f"`LearningRateScheduler` and `{kind.__name__}` both set the rate: for "
            f"{warmup_steps} steps of warm-up the latter does, afterwards the former, which "
            "does not scale it. Give the optimizer a schedule in place of the former.",
            stacklevel=3,
        )
