"""What recording costs a training step: instrumented batch normalization, and gradients.

LeNet-5 and a VGG-like network with batch normalization train on the same images: plain, plain once
more (the control), recording at the defaults, recording everything on every step, and with the
gradient monitor. All are in a fit of their own, and make an epoch in turn; a ratio is taken within
a turn.
"""

import argparse
import statistics
import threading
import time

import _onednn  # noqa: F401
import keras
import machine
import numpy as np

import keras_regtools as rt


def _vgg():
    blocks = ((32, 32), (64, 64), (128, 128))
    return rt.applications.vgg((32, 32, 1), 10, filters=blocks, dense=(128,))


# With the steps of an epoch; the first one is not timed, and of the others a tenth is sampled.
NETWORKS = {"lenet5": (rt.applications.lenet5, 21), "vgg": (_vgg, 11)}
# With XLA or without: JAX without it makes each operation by itself, PyTorch has none.
COMPILED = {"tensorflow": (False, True), "jax": (True,), "torch": (False,)}
BATCH = 128  # as in the examples of both
WARM = 3  # epochs in which something may still be compiled


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", choices=[*NETWORKS, "both"], default="both")
    parser.add_argument("--repeats", type=int, default=15, help="turns (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write results/recording.md")
    args = parser.parse_args()
    machine.pin()
    backend = keras.backend.backend()
    rows = []
    for name in NETWORKS if args.network == "both" else [args.network]:
        for xla in COMPILED[backend]:
            step, ratios = measured(name, xla, args.repeats)
            for kind, values in ratios.items():
                compiled = "yes" if xla else "no"
                rows.append([name, compiled, f"{step:.2f}", kind, machine.spread(values)])
                machine.progress(" ".join(rows[-1]))
    header = ["network", "XLA", "plain step [ms]", "what", "over the plain step"]
    text = f"""# Recording, on {backend}

{machine.provenance()}

Epochs of batches of {BATCH}, in turn; median (min-max) of {args.repeats} turns.

{machine.table(header, rows)}
"""
    print(text)
    if args.write:
        machine.write(
            "recording.md" if backend == "tensorflow" else f"recording_{backend}.md", text
        )


def measured(name, xla, repeats):
    """Milliseconds of a plain step, and the ratios of each kind to the plain network."""
    make, steps = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = rng.random((BATCH * steps, 32, 32, 1), "float32")
    y = rng.integers(0, 10, len(x))
    keras.utils.set_random_seed(0)
    plain = rt.regularize(make(), batch_norm=True)
    models = {
        "plain": (plain, []),
        "plain again (control)": (keras.models.clone_model(plain), []),
        "recording, defaults": (rt.instrument(plain), []),
        "everything on every step": (rt.instrument(plain, record_every=1), []),
        "gradients, defaults": (keras.models.clone_model(plain), [rt.callbacks.GradientMonitor()]),
    }
    for model, _ in models.values():
        model.compile(
            keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", jit_compile=xla
        )
    turns = Turns(models)
    turns.fit(x, y, batch_size=BATCH, epochs=repeats + WARM)
    seconds = {kind: values[WARM:] for kind, values in turns.seconds.items()}
    ratios = {
        kind: machine.ratios(values, seconds["plain"])
        for kind, values in seconds.items()
        if kind != "plain"
    }
    return 1e3 * statistics.median(seconds["plain"]) / (steps - 1), ratios


class Turns:
    """Fits of several models, of which one runs at a time, for one epoch.

    Args:
        models: Dict from names to pairs of a model and its callbacks.
    """

    def __init__(self, models):
        self.models = models
        self.seconds = {name: [] for name in models}
        self._order = list(models)
        self._changed = threading.Condition()
        self._failed = []

    def fit(self, *args, **kwargs):
        """Fit each, in threads that wait for each other."""
        threads = [
            threading.Thread(target=self._fit, args=(name, args, kwargs), daemon=True)
            for name in self.models
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failed:
            raise self._failed[0]

    def _fit(self, name, args, kwargs):
        model, callbacks = self.models[name]
        try:
            self.wait(name)
            model.fit(*args, verbose=0, callbacks=[*callbacks, Turn(name, self)], **kwargs)
        except Exception as error:
            self._failed.append(error)
        with self._changed:
            self._order.remove(name)
            self._changed.notify_all()

    def wait(self, name):
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == name)

    def over(self, name, seconds):
        self.seconds[name].append(seconds)
        with self._changed:
            self._order.append(self._order.pop(0))
            self._changed.notify_all()


class Turn(keras.callbacks.Callback):
    """Times an epoch from the end of its first step on, then lets the others have theirs."""

    def __init__(self, name, turns):
        super().__init__()
        self._name, self._turns = name, turns

    def on_train_batch_end(self, batch, logs=None):
        if batch in (0, self.params["steps"] - 1):
            float(logs["loss"])  # when all is computed
            now = time.perf_counter()
            if batch == 0:
                self._begin = now
            else:
                self._seconds = now - self._begin

    def on_epoch_end(self, epoch, logs=None):
        self._turns.over(self._name, self._seconds)
        if epoch + 1 < self.params["epochs"]:
            self._turns.wait(self._name)


if __name__ == "__main__":
    main()
