"""Does batch normalization reduce internal covariate shift? Ioffe & Szegedy's net, both meanings.

Their network of three layers of 100 sigmoids trains with and without batch normalization, from the
same small random weights. Over training: the 15th, 50th and 85th percentile of what each sigmoid of
the last hidden layer receives, as they drew them; the test accuracy, with moving statistics made
anew; and the shift as Santurkar et al. define it, how far the gradient of each layer moves when the
layers before it take their step.
"""

import math
import pathlib
import time

import _onednn  # noqa: F401
import keras
import numpy as np
import pandas as pd
from _data import DATASETS, TARGETS, Shuffled, load_images
from _options import add_dataset, add_seeds, parser, positive
from _shift_report import PERCENTILES, draw, report
from _verdict import below

import keras_regtools as rt
from keras_regtools.data import Batches

LAST = "received_3"


def main():
    args = parse()
    begin = time.perf_counter()
    training, (x_test, y_test) = load_images(args.dataset, args.seed, padded=False)
    test = x_test[:2000], y_test[:2000]

    steps, drifts = [], []
    for seed in range(args.seed, args.seed + args.seeds):
        keras.utils.set_random_seed(seed)
        plain = network(training[0].shape[1:], args.units)
        for batch_norm in (False, True):
            model = rt.regularize(plain, batch_norm=batch_norm)
            run, at, channels = train(model, seed, training, test, args)
            found = drift(channels)
            typical = (found["drift"] - found["drift"].median()).abs().idxmin()
            shown = pd.DataFrame(channels[:, :, typical], index=at, columns=list(PERCENTILES))
            run = run.join(shown, how="outer").rename_axis("step").reset_index()
            which = {"seed": seed, "batch norm": batch_norm}
            steps.append(run.assign(**which))
            drifts.append(found.assign(**which))
            print(
                f"seed {seed}, {'with' if batch_norm else 'without'} batch normalization: test "
                f"accuracy {run['accuracy'].dropna().iloc[-1]:.4f}",
                flush=True,
            )

    steps, drifts = pd.concat(steps, ignore_index=True), pd.concat(drifts)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    steps.to_csv(folder / "steps.csv", index=False)
    drifts.to_csv(folder / "drifts.csv", index_label="unit")
    text = report(steps, drifts, args)
    figure = draw(steps, args)
    below(figure, text)
    figure.savefig(folder / "internal_covariate_shift.png", dpi=110)
    print(text)
    print(f"The picture is {folder / 'internal_covariate_shift.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def parse():
    options = parser(__doc__, "runs/internal_covariate_shift")
    add_dataset(options, DATASETS)
    add_seeds(options)
    options.add_argument(
        "--rate", type=float, default=0.3, help="learning rate of SGD (default: %(default)s)"
    )
    options.add_argument(
        "--batch-size", type=positive, default=60, help="samples per step (default: %(default)s)"
    )
    options.add_argument(
        "--steps", type=positive, default=3000, help="training steps, about (default: %(default)s)"
    )
    measured = "steps from one measurement to the next (default: %(default)s)"
    options.add_argument("--every", type=positive, default=12, help=measured)
    args = options.parse_args()
    args.units, args.target = 100, TARGETS[args.dataset]
    if args.smoke:
        args.seeds, args.steps, args.every, args.units = 1, 8, 2, 8
    return args


def network(shape, units):
    """Three layers of sigmoids, which note what they receive, from small Gaussian weights."""
    small = keras.initializers.RandomNormal(stddev=0.1)
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten()])
    for i in range(1, 4):
        model.add(keras.layers.Dense(units, kernel_initializer=small, name=f"hidden_{i}"))
        if f"received_{i}" == LAST:
            model.add(
                rt.layers.ActivationStatistics(record=["percentiles"], record_every=1, name=LAST)
            )
        model.add(keras.layers.Activation("sigmoid", name=f"sigmoid_{i}"))
    model.add(keras.layers.Dense(10, activation="softmax", kernel_initializer=small, name="output"))
    return model


def train(model, seed, training, test, args):
    """The numbers by step; and the steps of the percentiles, and these by step and unit."""
    x, y = training[0][: args.steps * args.batch_size], training[1][: args.steps * args.batch_size]
    model.compile(keras.optimizers.SGD(args.rate), "sparse_categorical_crossentropy")
    batch = {"samples": args.batch_size, "batch_size": args.batch_size, "seed": seed}
    seen = Batches(x[:2000], batch_size=2000)  # for moving statistics made again

    def accuracy(surface):
        return surface.recalibrated(seen).value_and_accuracy()[1]

    monitors = [
        rt.callbacks.ActivationMonitor(per_channel=True, every_steps=args.every),
        rt.callbacks.Measure({"accuracy": accuracy}, *test, every_steps=args.every),
        rt.callbacks.Measure(
            {"shift": lambda surface: shift(surface, args.rate)},
            x,
            y,
            every_steps=args.every,
            mode="batch_statistics",
            **batch,
        ),
    ]
    batches = Shuffled(x, y, args.batch_size, seed)
    epochs = math.ceil(args.steps / len(batches))
    model.fit(batches, epochs=epochs, callbacks=monitors, verbose=0)
    records = monitors[0].records
    series = {}  # by name, the steps and what was measured there; not all at the same steps
    for name in records.names():
        if name.startswith(("accuracy", "shift/")):
            series[name.removeprefix("shift/")] = pd.Series(*records.series(name, by="step")[::-1])
    channels = [records.series(f"channels/{LAST}/{name}", by="step") for name in PERCENTILES]
    run = pd.DataFrame(series).rename_axis("step")
    return run, channels[0][0], np.stack([np.array(found) for _, found in channels], axis=1)


def shift(surface, rate):
    """How far the gradients of the dense layers move, in all and against their own length."""
    found = rt.measures.internal_covariate_shift(surface, rate)
    dense = [name in ("hidden_2", "hidden_3", "output") for name in found.layers]
    return {
        "loss": found.loss,
        "distance": np.mean(found.distances[dense]),
        "cosine": np.mean(found.cosines[dense]),
        "relative": np.mean(found.distances[dense] / found.gradient_norms[dense]),
    }


def drift(channels):
    """Of each unit, how far its percentiles go in training, and how wide they lie apart."""
    went = (channels.max(axis=0) - channels.min(axis=0)).mean(axis=0)
    width = (channels[:, -1] - channels[:, 0]).mean(axis=0)
    return pd.DataFrame({"drift": went, "width": width, "drift / width": went / width})


if __name__ == "__main__":
    main()
