"""One training on one or on two devices of this processor, as a process of its own.

`python tests/two_devices.py DEVICES FILE.npz`: a process can make logical devices once.
"""

import contextlib
import sys

import keras
import numpy as np

import keras_regtools as rt
from keras_regtools.measures.declaration import DECLARED

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(96, 8, 8, 1)).astype("float32"), RNG.integers(0, 3, 96)
SYNCHRONIZED = keras.backend.backend() == "tensorflow"  # JAX sees one batch
callbacks = rt.callbacks


def network(scope, optimizer, penalty=None, normalized=True):
    keras.utils.set_random_seed(1)
    penalty, norm = penalty or rt.regularizers.L2(1e-3), keras.layers.BatchNormalization
    with scope():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3, kernel_regularizer=penalty, name="conv"),
                *([norm(synchronized=SYNCHRONIZED, name="norm")] if normalized else []),
                keras.layers.Activation("relu", name="relu"),
                keras.layers.Flatten(),
                keras.layers.Dense(8, activation="tanh", name="middle"),
                keras.layers.Dense(3, name="last"),
            ]
        )
        model = rt.instrument(model, record_every=1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss, metrics=["accuracy"], jit_compile=False)
    return model, penalty


def sgd():
    return keras.optimizers.SGD(0.05, momentum=0.9)


def everything(penalty, directory):
    """Every callback that replicas may have, in one fit."""
    return [
        callbacks.LinearScalingLR(32, 16, warmup_epochs=1),
        callbacks.Schedule(penalty, "l2", lambda epoch: 1e-3 / (1 + epoch), key="l2"),
        callbacks.Sharpness(X, Y),
        callbacks.Measure({"noise": rt.measures.gradient_noise_scale}, X, Y, batch_size=4),
        callbacks.ActivationMonitor(),
        callbacks.GradientMonitor(every=2),
        callbacks.WeightMonitor(),
        callbacks.WeightTrajectory(),
        callbacks.PenaltyMonitor(),
        callbacks.PreciseBatchNorm(X),
        callbacks.Report(directory),
    ]


def measured(model):
    """Every measure of a model, by name."""
    arguments = {
        "gradient_smoothness": {"learning_rate": 0.1, "points": 2},
        "internal_covariate_shift": {"learning_rate": 0.1},
        "hessian_trace": {"tolerance": 0.2},
        "normalization_noise": {"batch_size": 8},
        "recalibrated_loss": {"x": X},
    }
    surface = rt.LossSurface(model, X, Y, batch_size=16, mode="batch_statistics")
    found = {}
    for name in DECLARED:
        others = arguments.get(name, {})
        if name == "weight_distance":
            others = {"start": [2 * p for p in surface.params]}
        result = getattr(rt.measures, name)(surface, **others)
        found[f"measures/{name}"] = result.value
    shift = rt.measures.distribution_shift(model, X, X + 1, batch_size=16)
    found["measures/distribution_shift"] = shift.value
    return found


def acting(scope):
    """What acts on a training: zeros by proximal steps, held zeros, a dropout that changes."""
    model, _ = network(scope, sgd, rt.regularizers.L1(2e-2, proximal=True))
    fit(model, epochs=4)
    found = {"acting/zeros": [np.mean(w == 0) for w in model.get_weights()]}
    rt.regularizers.hold_zeros(model)
    fit(model, epochs=2)
    found["acting/held"] = [np.mean(w == 0) for w in model.get_weights()]
    smaller = rt.shrink(rt.strip(model))
    found["acting/shrunk"] = np.asarray(smaller.predict(X, verbose=0))
    found["acting/recalibrated"] = rt.recalibrate(model, X).predict(X, verbose=0)
    sam = callbacks.SharpnessAwareMinimization
    for name, callback in {
        "sam": sam(0.1), "every": sam(0.1, every=2), "adaptive": sam(0.2, adaptive=True),
        "parts": sam(0.1, m=8), "watched": sam(0.1, every=2),
    }.items():  # fmt: skip
        # In parts batch normalization would use each part's moments, or those of two.
        minimized, _ = network(scope, sgd, normalized=name != "parts")
        used = [callback]
        if name in ("sam", "watched"):
            used.append(callbacks.GradientMonitor(every=1))
        history = fit(minimized, callbacks=used).history
        found |= {f"acting/{name}/{key}": values for key, values in history.items()}
        found |= {f"acting/{name}/{i}": w for i, w in enumerate(minimized.get_weights())}
    rates = rt.find_learning_rate(model, X, Y, batch_size=32, steps=20, orders=2, edge=True)
    found |= {"acting/rates": rates.smoothed, "acting/edge": rates.edge}
    return found


def of_replicas(scope):
    """The noise scale while training, and the rate that follows it: gradients are the inputs."""

    def fitted(rate, callback):
        with scope():
            model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1, use_bias=False)])
            model.compile(keras.optimizers.SGD(rate), loss=lambda y, p: p[:, 0], jit_compile=False)
        return fit(model, mine=lambda a: 0.2 + a.reshape(len(a), -1), callbacks=[callback]).history

    found = fitted(0.0, callbacks.GradientNoise(32, every=1))
    found |= fitted(0.1, callbacks.LinearScalingLR(32, 16, rule="adascale"))
    return {f"parts/{name}": values for name, values in found.items()}


def fit(model, mine=lambda a: a, **options):
    x, y = mine(X), mine(Y)
    fixed = {"batch_size": 32, "epochs": 2, "shuffle": False, "validation_data": (x, y)}
    return model.fit(x, y, verbose=0, **{**fixed, **options})


def recorded(scope, directory, mine=lambda a: a, **options):
    """What all callbacks together give of one fit, and the weights it ends with."""
    model, penalty = network(scope, sgd)
    used = everything(penalty, directory)
    history = fit(model, mine, callbacks=used, **options).history
    found = {f"history/{name}": values for name, values in history.items()}
    records = used[0].records
    for name in records.names():
        if not name.startswith("time/") and not name.endswith("histogram"):
            found[f"records/{name}"] = records.series(name, by="step")[1]
    return found | {f"weights/{i}": w for i, w in enumerate(model.get_weights())}


def main(devices, path):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    configuration = [tf.config.LogicalDeviceConfiguration()] * devices
    tf.config.set_logical_device_configuration(cpu, configuration)
    scope = contextlib.nullcontext
    if devices > 1:
        scope = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)]).scope
    found = {}

    found |= recorded(scope, f"{path}.report")

    for name, watch in (("plain", []), ("watched", [callbacks.GradientMonitor(every=2)])):
        model, _ = network(scope, keras.optimizers.Adam)
        fit(model, callbacks=watch)
        found |= {f"{name}/{i}": w for i, w in enumerate(model.get_weights())}

    model, penalty = network(scope, sgd)
    batches = rt.GrowingBatches(X, Y, {0: 16, 1: 48})
    grown = model.fit(
        batches, epochs=2, verbose=0, shuffle=False, callbacks=[callbacks.BatchSize(batches)]
    )
    found |= {f"grown/{name}": values for name, values in grown.history.items()}

    found |= measured(network(scope, sgd)[0]) | acting(scope)
    if devices > 1:
        found |= of_replicas(scope)
    np.savez(path, **found)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
