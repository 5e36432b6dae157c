"""Dropout, L2, L1 and batch normalization on one network: which one helps, and what each does.

What Pathak and Chang did with cats and dogs, at the size of a lunch break: the same small
convolutional network on few images with nothing, dropout, L2, L1 and batch normalization, the
convolutional and the dense layers apart, dropout before and after batch normalization. Losses are
those on the data, without the penalties. The setting of each family is chosen on one half of the
held-out images and judged on the other, at the epoch of the lowest validation loss. A last part
shows what an L2 penalty in front of batch normalization does, and what it does not.
"""

import pathlib
import time

import _onednn  # noqa: F401
import keras
import numpy as np
import pandas as pd
from _data import DATASETS, load_images
from _effects_report import draw, report, summary
from _options import add_dataset, add_epochs, add_seeds, parser, positive
from keras import layers

import keras_regtools as rt

L1, L2 = rt.regularizers.L1, rt.regularizers.L2
SETTINGS = {  # by family and setting: what `regularize` gets
    "nothing": {"": {}},
    "dropout": {
        "dense 0.2": {"dense_dropout": 0.2},
        "dense 0.5": {"dense_dropout": 0.5},
        "conv 0.2": {"conv_dropout": 0.2},
        "conv 0.2, dense 0.5": {"conv_dropout": 0.2, "dense_dropout": 0.5},
        "all 0.2": {"conv_dropout": 0.2, "dense_dropout": 0.2},
    },
    "L2": {
        "dense 1e-3": {"dense": 1e-3},
        "dense 1e-2": {"dense": 1e-2},
        "conv 1e-2": {"conv": 1e-2},
        "conv 1e-3, dense 1e-2": {"conv": 1e-3, "dense": 1e-2},
        "all 1e-2": {"conv": 1e-2, "dense": 1e-2},
    },
    "L1": {
        "dense 1e-4": {"dense": 1e-4},
        "dense 1e-3": {"dense": 1e-3},
        "conv 1e-3": {"conv": 1e-3},
        "conv 1e-4, dense 1e-3": {"conv": 1e-4, "dense": 1e-3},
        "all 1e-3": {"conv": 1e-3, "dense": 1e-3},
    },
    "L1 proximal": {"dense 1e-3": {"dense": 1e-3}},
    "BN": {"": {"batch_norm": True}},
    "BN and dropout": {
        "dense 0.2": {"batch_norm": True, "dense_dropout": 0.2},
        "dense 0.5": {"batch_norm": True, "dense_dropout": 0.5},
        "before it 0.5": {"before": 0.5},
    },
    "BN and L2": {"dense 1e-3": {"batch_norm": True, "dense": 1e-3}},
}
OBJECTS = {
    "L2": L2,
    "BN and L2": L2,
    "L1": L1,
    "L1 proximal": lambda strength: L1(strength, proximal=True),
}


def main():
    args = parse()
    begin = time.perf_counter()
    rows, course = [], []
    for seed in range(args.seed, args.seed + args.seeds):
        images = halves(args, seed)
        for family, settings in SETTINGS.items():
            for setting, options in list(settings.items())[: args.settings]:
                model = regularized(network(images[0][0].shape[1:], seed), family, options)
                found = trained(model, images, args)
                rows.append({"family": family, "setting": setting, "seed": seed, **found})
        if seed == args.seed:
            course = before_batch_norm(images, seed, args)
        print(f"seed {seed}: {time.perf_counter() - begin:.0f} s", flush=True)
    table = pd.DataFrame(rows)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "runs.csv", index=False)
    course.to_csv(folder / "before_batch_norm.csv", index=False)
    print(summary(table).to_string(index=False))
    sentences = report(table, course, args)
    print(sentences)
    draw(table, course, sentences).savefig(folder / "regularization_effects.png", dpi=110)
    print(f"The picture is {folder / 'regularization_effects.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def parse():
    options = parser(__doc__, "runs/regularization_effects")
    add_dataset(options, DATASETS)
    add_epochs(options, 30)
    add_seeds(options)
    few = (
        "training images, the first ones: few, so that there is overfitting (default: %(default)s)"
    )
    options.add_argument("--samples", type=positive, default=400, help=few)
    options.add_argument("--settings", type=positive, default=9, help=HELP["settings"])
    args = options.parse_args()
    if args.smoke:
        args.samples, args.seeds, args.epochs, args.settings = 48, 1, 2, 1
    return args


HELP = {"settings": "at most so many settings of each family (default: all)"}


def halves(args, seed):
    """Training, validation and test images: what is not trained on is halved."""
    (x, y), (x_other, y_other) = load_images(args.dataset, seed, padded=False)
    few = args.samples
    x_other = np.concatenate([x[few:], x_other])[:2000]
    y_other = np.concatenate([y[few:], y_other])[:2000]
    return (x[:few], y[:few]), (x_other[::2], y_other[::2]), (x_other[1::2], y_other[1::2])


def network(shape, seed, before=None, penalty=None):
    """Two convolutions and two dense layers; `before` is a dropout in front of batch norm."""
    keras.utils.set_random_seed(seed)
    conv = {"padding": "same", "activation": "relu", "kernel_regularizer": penalty}

    def dense(units, name):
        if before is None:
            return [layers.Dense(units, "relu", kernel_regularizer=penalty, name=name)]
        own = [layers.Dense(units, name=name), layers.Dropout(before)]
        return [*own, layers.BatchNormalization(name=f"{name}_bn"), layers.Activation("relu")]

    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(8, 3, name="conv1", **conv),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, name="conv2", **conv),
            layers.MaxPooling2D(),
            layers.Flatten(),
            *dense(128, "dense1"),
            *dense(128, "dense2"),
            layers.Dense(10, activation="softmax", name="output"),
        ]
    )


def regularized(model, family, options):
    """The network with what a setting says."""
    if "before" in options:
        seed_free = network(model.input_shape[1:], 0, options["before"])
        for layer in model.layers:
            if layer.weights:
                seed_free.get_layer(layer.name).set_weights(layer.get_weights())
        return seed_free
    make = OBJECTS.get(family)
    penalties = {
        name: make(value) if name in ("conv", "dense") else value for name, value in options.items()
    }
    return rt.regularize(model, **penalties)


def trained(model, images, args):
    """One training: what the weights of its best epoch are and give."""
    training, validation, test = images
    compiled(model, args)
    best = keras.callbacks.EarlyStopping(
        "val_data_loss", mode="min", patience=args.epochs, restore_best_weights=True
    )
    stop = [rt.callbacks.PenaltyMonitor(logs=["val_data_loss"]), best]
    if any(isinstance(layer, layers.BatchNormalization) for layer in model.layers):
        stop.insert(0, rt.callbacks.PreciseBatchNorm(training[0]))
    begin = time.perf_counter()
    history = model.fit(
        *training, batch_size=32, epochs=args.epochs, verbose=0, callbacks=stop,
        validation_data=validation, validation_batch_size=512,
    ).history  # fmt: skip
    seconds = time.perf_counter() - begin
    epoch = int(np.nanargmin(history["val_data_loss"]))
    model.set_weights(best.best_weights)
    if len(stop) > 2:
        model = rt.recalibrate(model, training[0])
    found = {"epochs": epoch + 1, "seconds": seconds * (epoch + 1) / args.epochs}
    for name, data in (("training", training), ("validation", validation), ("test", test)):
        found[f"{name} loss"], found[f"{name} accuracy"] = losses(model, data)
    found["gap"] = found["test loss"] / found["training loss"]
    for group, names in (("conv", ("conv1", "conv2")), ("dense", ("dense1", "dense2", "output"))):
        kernels = [model.get_layer(name).kernel for name in names]
        weights = np.concatenate([keras.ops.convert_to_numpy(k).ravel() for k in kernels])
        found[f"{group} norm"] = np.linalg.norm(weights)
        found[f"{group} zeros"] = (weights == 0).mean()
        found[f"{group} small"] = (np.abs(weights) < 1e-3).mean()
    return found | activity(model, validation[0][:256])


def compiled(model, args):
    model.compile(
        keras.optimizers.SGD(0.03, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=1 if keras.backend.backend() == "torch" else 13,
    )


def losses(model, data):
    """Loss on the data, without penalties, and accuracy."""
    p = np.clip(keras.ops.convert_to_numpy(model(data[0], training=False)), 1e-7, 1)
    return -np.log(p[np.arange(len(p)), data[1]]).mean(), (p.argmax(1) == data[1]).mean()


def activity(model, x):
    """How many units of the two hidden dense layers are above zero, and Σ|a|, per image."""
    hidden = [layer for layer in model.layers if layer.name.startswith("dense")]
    ends = []
    for name in ("dense1", "dense2"):  # the last of the layers of each: normalized, rectified
        own = [x for x in hidden if x.name.startswith(name)]
        after = model.layers[model.layers.index(own[0]) :]
        ends.append(next(x for x in after if is_relu(x)).output)
    values = map(keras.ops.convert_to_numpy, keras.Model(model.inputs[0], ends)(x, training=False))
    values = list(values)
    return {
        "active units": float(np.mean([(v > 0).sum(1).mean() for v in values])),
        "activity": float(np.mean([np.abs(v).sum(1).mean() for v in values])),
    }


def is_relu(layer):
    return getattr(layer, "activation", None) is keras.activations.relu


def before_batch_norm(images, seed, args):
    """L2 in front of batch normalization: three runs from one start, epoch by epoch.

    Without a penalty; with one on the kernels that batch normalization follows; and without one,
    but with those kernels brought to the lengths of the second run after each epoch. The last has
    the second's effective rate, the learning rate over the squared length, and no penalty.
    """
    training, validation, _ = images
    lengths, parts = [], []
    for run in ("no penalty", "L2 0.02", "no penalty, lengths of L2"):
        penalty = L2(0.02) if run == "L2 0.02" else None
        model = network(training[0].shape[1:], seed, penalty=penalty)
        model = rt.regularize(model, batch_norm=True)
        own = [model.get_layer(name) for name in ("conv1", "conv2", "dense1", "dense2")]
        compiled(model, args)
        follow = Lengths(own, lengths, run == "no penalty, lengths of L2")
        watch = rt.callbacks.PenaltyMonitor(logs="all")
        history = model.fit(
            *training, batch_size=32, epochs=args.epochs, verbose=0,
            validation_data=validation, validation_batch_size=512,
            callbacks=[rt.callbacks.PreciseBatchNorm(training[0]), follow, watch],
        ).history  # fmt: skip
        if run == "L2 0.02":
            lengths = follow.seen
        part = {
            "run": run,
            "epoch": np.arange(1, args.epochs + 1),
            "data loss": history["data_loss"],
            "validation loss": history["val_data_loss"],
            "validation accuracy": history["val_accuracy"],
            "rescaled": np.nan,
            "length": [np.sqrt(np.square(x).sum()) for x in follow.seen],
        }
        parts.append(pd.DataFrame(part))
        if run == "L2 0.02":
            parts[-1]["rescaled"] = rescaled(model, own, training, validation)
    return pd.concat(parts)


def rescaled(model, own, training, validation):
    """The validation loss of the last epoch when those kernels and biases are ten times as long."""
    for layer in own:
        layer.set_weights([10 * w for w in layer.get_weights()])
    return losses(rt.recalibrate(model, training[0]), validation)[0]


class Lengths(keras.callbacks.Callback):
    """Note the lengths of kernels after each epoch, or bring them to those noted before."""

    def __init__(self, own, wanted, bring):
        super().__init__()
        self.own, self.wanted, self.bring, self.seen = own, wanted, bring, []

    def on_epoch_end(self, epoch, logs=None):
        self.model  # noqa: B018 - on JAX, which puts the weights back into it
        for i, layer in enumerate(self.own):
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            if self.bring:
                layer.kernel.assign(kernel * self.wanted[epoch][i] / np.linalg.norm(kernel))
        self.seen.append(
            [float(np.linalg.norm(keras.ops.convert_to_numpy(x.kernel))) for x in self.own]
        )


if __name__ == "__main__":
    main()
