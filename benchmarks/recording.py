"""What recording costs a training step: instrumented batch normalization, and gradients.

LeNet-5 and a VGG-like network with batch normalization train on the same images: plain, plain once
more (the control), recording at the defaults, recording everything on every step, and with the
gradient monitor. Epochs are made in turn; a ratio is taken within a turn.
"""

import argparse
import statistics
import time

import keras
import machine
import numpy as np

import keras_regtools as rt


def _vgg():
    blocks = ((32, 32), (64, 64), (128, 128))
    return rt.applications.vgg((32, 32, 1), 10, filters=blocks, dense=(128,))


NETWORKS = {"lenet5": (rt.applications.lenet5, 60), "vgg": (_vgg, 8)}
BATCH = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", choices=[*NETWORKS, "both"], default="both")
    parser.add_argument("--repeats", type=int, default=9, help="turns (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write results/recording.md")
    args = parser.parse_args()
    machine.pin()
    backend = keras.backend.backend()
    rows = []
    for name in NETWORKS if args.network == "both" else [args.network]:
        for xla in (False,) if backend == "torch" else (False, True):
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
    watches = {kind: ThirdEpoch() for kind in models}
    for _ in range(repeats + 1):  # the first turn compiles
        for kind, (model, callbacks) in models.items():
            together = [*callbacks, watches[kind]]
            model.fit(x, y, batch_size=BATCH, epochs=3, verbose=0, callbacks=together)
    seconds = {kind: watch.seconds[1:] for kind, watch in watches.items()}
    ratios = {
        kind: machine.ratios(values, seconds["plain"])
        for kind, values in seconds.items()
        if kind != "plain"
    }
    return 1e3 * statistics.median(seconds["plain"]) / steps, ratios


class ThirdEpoch(keras.callbacks.Callback):
    """The seconds of the third epoch of each fit: earlier, a callback may make XLA compile."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2:
            self.seconds.append(time.perf_counter() - self._begin)


if __name__ == "__main__":
    main()
