"""The batch times k, the rate times k: up to which batch do the curves lie on each other?

The two figures of the course notes: the training loss over the epochs for several batch sizes, all
at one rate, and each at the rate that the rule gives it. Then the test of Goyal et al.: from which
batch size on do the curves no longer coincide, and did the gradient noise scale, measured along the
training with the smallest batch, say so?
"""

import pathlib
import time

import _onednn  # noqa: F401
import keras
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _data import DATASETS, Shuffled, load_images
from _options import add_dataset, add_epochs, add_seeds, parser, positive
from _verdict import below

import keras_regtools as rt

SIZES = (8, 16, 32, 64, 128, 256, 512)
APART = 1.25  # the ratio of two losses from which on curves do not coincide


def main():
    args = parse()
    begin = time.perf_counter()
    curves, noise = [], []
    for seed in range(args.seed, args.seed + args.seeds):
        training, held_out = images(args, seed)
        for size in args.batch_sizes:
            for rule in ("one rate", args.rule):
                if size == args.batch_sizes[0] and rule != "one rate":
                    continue  # the same training
                found, scales = trial(size, rule, training, held_out, seed, args)
                curves.append(found.assign(**{"batch size": size, "rule": rule, "seed": seed}))
                noise += [{"seed": seed, **row} for row in scales]
        print(f"seed {seed}: {time.perf_counter() - begin:.0f} s", flush=True)
    curves, noise = pd.concat(curves), pd.DataFrame(noise)
    first = curves[curves["batch size"] == args.batch_sizes[0]]
    curves = pd.concat([curves, first.assign(rule=args.rule)])
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    curves.to_csv(folder / "curves.csv", index=False)
    noise.to_csv(folder / "noise_scale.csv", index=False)
    ratios = apart(curves, args)
    sentences = verdict(curves, ratios, noise, args)
    draw(curves, ratios, noise, sentences, args).savefig(folder / "linear_scaling.png", dpi=110)
    print(summary(curves, ratios).to_string(index=False))
    print(sentences)
    print(f"The picture is {folder / 'linear_scaling.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def parse():
    options = parser(__doc__, "runs/linear_scaling")
    add_dataset(options, DATASETS)
    add_epochs(options, 20)
    add_seeds(options)
    options.add_argument(
        "--batch-sizes", type=positive, nargs="+", default=SIZES,
        help="the first one is the base (default: %(default)s)",
    )  # fmt: skip
    options.add_argument(
        "--rule", choices=("linear", "sqrt"), default="linear", help="(default: %(default)s)"
    )
    options.add_argument(
        "--learning-rate", type=float, default=0.02, help="of the base (default: %(default)s)"
    )
    options.add_argument(
        "--samples", type=positive, default=1437, help="training images (default: %(default)s)"
    )
    args = options.parse_args()
    if args.smoke:
        args.samples, args.seeds, args.epochs, args.batch_sizes = 128, 1, 2, (8, 32)
    return args


def images(args, seed):
    (x, y), (x_other, y_other) = load_images(args.dataset, seed, padded=False)
    return (x[: args.samples], y[: args.samples]), (x_other[:2000], y_other[:2000])


def network(shape, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


class Curve(keras.callbacks.Callback):
    """After each epoch the losses on all training and held-out images, now and then the noise."""

    def __init__(self, training, held_out, with_noise, epochs):
        super().__init__()
        self.data, self.rows, self.noise = (training, held_out), [], []
        self.surfaces, self.with_noise = None, with_noise
        self.at = {0, *range(4, epochs, 5), epochs - 1}

    def on_epoch_end(self, epoch, logs=None):
        if self.surfaces is None:
            first = rt.LossSurface(self.model, *self.data[0])
            self.surfaces = first, first.over(*self.data[1])
        (loss, _), (held_out, accuracy) = (s.value_and_accuracy() for s in self.surfaces)
        self.rows.append(
            {"epoch": epoch + 1, "loss": loss, "held-out loss": held_out, "accuracy": accuracy}
        )
        if self.with_noise and epoch in self.at:
            count = len(self.data[0][0])
            found = rt.measures.gradient_noise_scale(self.surfaces[0], 8, population=count)
            low, high = found.interval
            self.noise.append({"epoch": epoch + 1, "noise": found.value, "low": low, "high": high})


def trial(size, rule, training, held_out, seed, args):
    base = args.batch_sizes[0]
    model = network(training[0].shape[1:], seed)
    model.compile(keras.optimizers.SGD(args.learning_rate), "sparse_categorical_crossentropy")
    curve = Curve(training, held_out, size == base, args.epochs)
    callbacks = [curve]
    if rule != "one rate":
        warmup = min(5, args.epochs / 4)
        callbacks.insert(
            0, rt.callbacks.LinearScalingLR(size, base, rule=rule, warmup_epochs=warmup)
        )
    data = Shuffled(*training, size, seed)
    model.fit(data, epochs=args.epochs, verbose=0, callbacks=callbacks)
    return pd.DataFrame(curve.rows), curve.noise


def apart(curves, args):
    """By rule, batch size and seed: the ratio of the loss to the base's, second half of epochs."""
    late = curves[curves["epoch"] > args.epochs / 2].copy()
    late["log"] = np.log(late["loss"].fillna(np.inf).clip(1e-12, 1e6))
    means = late.groupby(["rule", "seed", "batch size"])["log"].mean().unstack()
    ratios = np.exp(means.sub(means[args.batch_sizes[0]], axis=0))
    return ratios.stack().rename("ratio").reset_index()


def leaves_at(ratios, rule, sizes):
    """The first batch size from which on the curves do not coincide, in most seeds; or `None`."""
    part = ratios[ratios["rule"] == rule].groupby("batch size")["ratio"].median()
    away = [size for size in sizes if not 1 / APART <= part[size] <= APART]
    return min(away) if away else None


def verdict(curves, ratios, noise, args):
    sizes = args.batch_sizes
    one, other = leaves_at(ratios, "one rate", sizes), leaves_at(ratios, args.rule, sizes)
    middle = float(np.exp(np.log(noise["noise"].clip(1e-3, 1e6)).mean()))
    begin, end = (noise[noise["epoch"] == e]["noise"].median() for e in (1, noise["epoch"].max()))
    last = curves[curves["epoch"] == args.epochs].groupby(["rule", "batch size"])["accuracy"]
    best = {rule: last.mean()[rule].idxmax() for rule in ("one rate", args.rule)}

    def told(size):
        if size is None:
            return f"they coincide up to batch {sizes[-1]}, the largest"
        return f"they no longer coincide from batch {size} on"

    lines = [
        f"Training loss on {args.samples} images of {args.dataset}, {args.seeds} seeds; curves "
        f"coincide where their ratio to that of batch {sizes[0]} stays within {APART:g} in the "
        "second half of the epochs.",
        f"At one rate, {args.learning_rate:g}, {told(one)}.",
        f"With the {args.rule} rule {told(other)}.",
    ]
    scale = (
        f"The gradient noise scale of the training with batch {sizes[0]} was {begin:.0f} after the "
        f"first epoch and {end:.0f} in the end, {middle:.0f} in the geometric mean"
    )
    if other is None:
        lines.append(f"{scale}: no verdict, the curves never leave.")
    else:
        factor = max(other / middle, middle / other)
        said = "it said so" if factor <= 4 else "it did not say so"
        lines.append(f"{scale}, {factor:.1f} times from {other}: {said}, to a factor of 4.")
    lines.append(
        f"Best held-out accuracy after {args.epochs} epochs: batch {best['one rate']} at one rate, "
        f"batch {best[args.rule]} with the rule."
    )
    return "\n".join(lines)


def summary(curves, ratios):
    last = curves[curves["epoch"] == curves["epoch"].max()]
    columns = ["loss", "held-out loss", "accuracy"]
    table = last.groupby(["rule", "batch size"])[columns].mean()
    table["ratio"] = ratios.groupby(["rule", "batch size"])["ratio"].median()
    return table.reset_index().round(4)


def draw(curves, ratios, noise, sentences, args):
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(args.batch_sizes)))
    titles = {"one rate": "Every batch size at one rate", args.rule: f"With the {args.rule} rule"}
    for ax, (rule, title) in zip(axes, titles.items(), strict=False):
        for size, colour in zip(args.batch_sizes, colours, strict=True):
            own = curves[(curves["rule"] == rule) & (curves["batch size"] == size)]
            course = own.groupby("epoch")["loss"].median()
            ax.plot(course.index, course, color=colour, label=f"{size}")
        ax.set(title=title, xlabel="epoch", yscale="log")
    low = curves["loss"].clip(1e-4, None).min()
    for ax in axes[:2]:
        ax.set_ylim(0.8 * low, 10)
    axes[0].set_ylabel("loss on all training images")
    axes[0].legend(title="batch size", fontsize=8)
    for rule, marker in zip(titles, ("o", "s"), strict=True):
        part = ratios[ratios["rule"] == rule].groupby("batch size")["ratio"].median()
        axes[2].plot(part.index, part.clip(None, 100), marker=marker, label=titles[rule].lower())
    axes[2].axhspan(1 / APART, APART, color="grey", alpha=0.2, label="curves coincide")
    ends = noise.groupby("epoch")["noise"].median()
    axes[2].axvspan(ends.min(), ends.max(), color="C3", alpha=0.12, label="noise scale, its range")
    axes[2].set(xscale="log", yscale="log", xlabel="batch size", title="How far apart")
    axes[2].set_ylabel(f"loss / loss of batch {args.batch_sizes[0]}")
    axes[2].set_xlim(args.batch_sizes[0] / 1.3, args.batch_sizes[-1] * 1.3)
    axes[2].legend(fontsize=8)
    below(figure, sentences)
    return figure


if __name__ == "__main__":
    main()
