"""The same training on one device and on two: is it the same, is it faster, what does it send?

Each run is a process of its own, as a process can make logical devices once. On TensorFlow the two
are replicas of a `MirroredStrategy`, on JAX two devices of `keras.distribution.DataParallel`. On a
machine without two of them both are parts of the one processor, which then does the same work.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import time

import _onednn  # noqa: F401
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from _data import DATASETS, Shuffled, load_images
from _options import add_dataset, add_epochs, parser, positive
from _verdict import below

import keras_regtools as rt

REPLICAS = (8, 64, 1024)  # of which the last paragraph tells


def main():
    args = parse()
    if args.devices:
        return train(args)
    begin, folder = time.perf_counter(), pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for devices in (1, 2):
        file = folder / f"{devices}.npz"
        own = [sys.executable, __file__, *sys.argv[1:], "--devices", str(devices)]
        subprocess.run([*own, "--output", str(file)], check=True, env=environment(devices))
        runs.append(dict(np.load(file)))
    sentences = verdict(*runs, args)
    draw(*runs, sentences, args).savefig(folder / "two_devices.png", dpi=110)
    print(sentences)
    print(f"The picture is {folder / 'two_devices.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def parse():
    options = parser(__doc__, "runs/two_devices")
    add_dataset(options, DATASETS)
    add_epochs(options, 10)
    options.add_argument(
        "--batch-size", type=positive, default=128,
        help="samples per step, on all devices together (default: %(default)s)",
    )  # fmt: skip
    options.add_argument("--samples", type=positive, default=1408, help="(default: %(default)s)")
    options.add_argument("--devices", type=positive, help="run one training, into a file")
    args = options.parse_args()
    if args.smoke:
        args.samples, args.epochs, args.batch_size = 128, 2, 32
    return args


def environment(devices):
    """JAX must be told of its devices before it begins."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}


def scope_of(devices):
    """Where a model is made that is on so many devices."""
    import keras

    if devices == 1:
        return contextlib.nullcontext()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        if len(found) >= devices:
            names = [f"GPU:{i}" for i in range(devices)]
        else:
            parts = [tf.config.LogicalDeviceConfiguration()] * devices
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, parts)
            names = [f"CPU:{i}" for i in range(devices)]
        return tf.distribute.MirroredStrategy(names).scope()
    if keras.backend.backend() == "jax":
        chosen = keras.distribution.list_devices()[:devices]
        return keras.distribution.DataParallel(devices=chosen).scope()
    raise SystemExit("Keras trains on one device with PyTorch. Set KERAS_BACKEND=tensorflow or jax")


def train(args):
    """One training; what it gave goes into a file."""
    import keras

    (x, y), held_out = load_images(args.dataset, args.seed, padded=False)
    x, y, held_out = x[: args.samples], y[: args.samples], [a[:2000] for a in held_out]
    with scope_of(args.devices):
        keras.utils.set_random_seed(args.seed)
        model = network(x.shape[1:])
        loss = keras.losses.SparseCategoricalCrossentropy()
        compiled = keras.backend.backend() == "jax"  # replicas of TensorFlow cannot be on a CPU
        model.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"], jit_compile=compiled)
        clock = Clock()
        watch = [rt.callbacks.GradientMonitor(every=4), clock]
        if args.devices > 1 and keras.backend.backend() == "tensorflow":
            watch.append(rt.callbacks.GradientNoise(args.batch_size, every=4))
        data = Shuffled(x, y, args.batch_size, args.seed)
        history = model.fit(
            data, epochs=args.epochs, validation_data=tuple(held_out), callbacks=watch, verbose=0,
            shuffle=False,
        ).history  # fmt: skip
        measured = rt.measures.gradient_noise_scale(rt.LossSurface(model, x, y), 16)
    np.savez(
        args.output,
        seconds=clock.seconds,
        samples=len(data) * args.batch_size,
        bytes=sum(4 * int(np.prod(v.shape)) for v in model.trainable_variables),
        noise=measured.value,
        apart=len(keras.distribution.list_devices("gpu")) > 1,
        live=live(history),
        **{name.replace("/", "_"): history[name] for name in history if "noise" not in name},
    )


def live(history):
    """The noise scale that the replicas saw in the second half of the epochs."""
    sums = [np.sum(history.get(f"gradient_noise/{n}", [np.nan])[-(len(history["loss"]) // 2) :])
            for n in ("trace", "squared_norm")]  # fmt: skip
    return sums[0] / sums[1] if sums[1] > 0 else np.nan


def network(shape):
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def Clock():  # noqa: N802: a class that is made when Keras is imported
    import keras

    class Seconds(keras.callbacks.Callback):
        """The time of each epoch's training, without the validation."""

        seconds: list = []

        def on_epoch_begin(self, epoch, logs=None):
            self.seconds, self._begin = self.seconds if epoch else [], time.perf_counter()

        def on_test_begin(self, logs=None):
            self.seconds.append(time.perf_counter() - self._begin)

    return Seconds()


def speed(run):
    """Images per second, of the epochs behind the first, which compiles."""
    return float(run["samples"] / np.median(run["seconds"][1:]))


def distance(one, two, name):
    """The largest difference of two curves, of their own size."""
    return float(np.max(np.abs(one[name] - two[name]) / np.abs(one[name])))


def verdict(one, two, args):
    apart, gradients = (distance(one, two, name) for name in ("loss", "gradients_norm"))
    ratio, sent, noise = speed(two) / speed(one), int(one["bytes"]), float(one["noise"])
    same = "the same training" if max(apart, gradients) < 1e-2 else "not the same training"
    live = "" if np.isnan(two["live"]) else f" ({two['live']:.0f} in the second half, by replicas)"
    part = "" if two["apart"] else "; both are parts of the one processor, so nothing can be won"
    size = args.batch_size // 2
    lines = [
        f"{args.dataset}, {args.samples} images, batches of {args.batch_size} in all, "
        f"{args.epochs} epochs.",
        f"The loss curves of one and two devices lie at most {apart:.1e} of their value apart, the "
        f"norms of the gradients {gradients:.1e}: {same}.",
        f"{speed(one):.0f} images per second on one device, {speed(two):.0f} on two: "
        f"{ratio:.2f} times{part}.",
        f"In each step the gradients are added up: {sent / 1e3:.0f} kB, one number of 4 bytes for "
        f"each of {sent // 4} weights, whatever the batch size is.",
        f"The gradient noise scale in the end is {noise:.0f}{live}.",
    ]
    told = []
    for replicas in REPLICAS:
        batch = replicas * size
        through = 2 * (replicas - 1) / replicas * sent
        share = noise / (noise + batch) if np.isfinite(noise) else 1.0
        told.append(
            f"{replicas:,}: batches of {batch:,}, of which a sample is worth {share:.1%} of one in "
            f"a small batch, by the noise scale; each sends {through / 1e3:.0f} kB a step in "
            f"{2 * (replicas - 1):,} messages."
        )
    lines.append(f"More replicas, each with {size} samples, that add up in a ring:")
    return "\n".join(
        [*lines, *told, "So the bytes of a replica hardly grow with their number; messages do, and "
         "what more samples are worth shrinks."]
    )  # fmt: skip


def draw(one, two, sentences, args):
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    epochs = np.arange(1, len(one["loss"]) + 1)
    for name, label, colour in (("loss", "training", "C0"), ("val_loss", "held out", "C1")):
        axes[0].plot(epochs, one[name], color=colour, label=f"{label}, one device")
        axes[0].plot(epochs, two[name], "o", color=colour, mfc="none", label=f"{label}, two")
    axes[0].set(title="Loss", xlabel="epoch", yscale="log")
    axes[0].legend(fontsize=8)
    axes[1].bar(["one device", "two devices"], [speed(one), speed(two)], color=["C0", "C2"])
    axes[1].set(title="Images per second")
    below(figure, sentences)
    return figure


if __name__ == "__main__":
    main()
