"""Does sharpness-aware minimization help, and does it help against wrong labels?

A small convolutional network learns the digits with SGD, with SAM and with ASAM: with clean
labels, and with 40 % of the training labels drawn at random among the wrong ones. Accuracy on clean
held-out digits is told at the last epoch and at the best one, since published gains depend on
which: at the best epoch plain SGD has not yet learned the wrong labels by heart. The largest
eigenvalue of the Hessian and Keskar's sharpness of the last weights are measured on the labels of
the training.
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
from _data import DATASETS, load_images
from _options import add_dataset, add_epochs, add_seeds, parser, positive
from _verdict import below

import keras_regtools as rt

WRONG = (0.0, 0.4)
RULES = {
    "SGD": lambda args: [],
    "SAM": lambda args: [rt.callbacks.SharpnessAwareMinimization(args.rho)],
    "ASAM": lambda args: [
        rt.callbacks.SharpnessAwareMinimization(args.adaptive_rho, adaptive=True)
    ],
}
COLOURS = {"SGD": "black", "SAM": "C0", "ASAM": "C1"}


def main():
    args = parse()
    begin = time.perf_counter()
    rows, curves = [], []
    for seed in range(args.seed, args.seed + args.seeds):
        (x, y), held_out = load_images(args.dataset, seed, padded=False)
        x, y = x[: args.samples], y[: args.samples]
        held_out = tuple(part[: args.samples] for part in held_out)
        for wrong in WRONG:
            labels = mislabelled(y, wrong, seed)
            for rule in RULES:
                row, course = trial(rule, seed, wrong, (x, labels), held_out, args)
                rows.append(row)
                curves.append(course)
        print(f"seed {seed}: {time.perf_counter() - begin:.0f} s", flush=True)
    table = pd.DataFrame(rows)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "runs.csv", index=False)
    pd.concat(curves).to_csv(folder / "accuracy.csv", index=False)
    sentences = verdict(table)
    draw(table, pd.concat(curves), sentences).savefig(folder / "sharpness_aware.png", dpi=110)
    print(summary(table).to_string(index=False))
    print(sentences)
    print(f"The picture is {folder / 'sharpness_aware.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def parse():
    options = parser(__doc__, "runs/sharpness_aware")
    add_dataset(options, DATASETS)
    add_epochs(options, 30)
    add_seeds(options, 5)
    options.add_argument("--rho", type=float, default=0.1, help="of SAM (default: %(default)s)")
    options.add_argument(
        "--adaptive-rho",
        type=float,
        default=0.2,
        help="of ASAM; 0.5, as in its paper, is too far for this small network "
        "(default: %(default)s)",
    )
    images = "training images, the first ones (default: %(default)s)"
    options.add_argument("--samples", type=positive, default=1437, help=images)
    args = options.parse_args()
    if args.smoke:
        args.samples, args.seeds, args.epochs = 64, 1, 2
    return args


def mislabelled(y, share, seed):
    """Labels of which a share was exchanged for one of the nine wrong ones."""
    rng = np.random.default_rng(seed)
    y = np.array(y, "int64")
    chosen = rng.permutation(len(y))[: round(share * len(y))]
    y[chosen] = (y[chosen] + rng.integers(1, 10, len(chosen))) % 10
    return y


def network(shape, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def trial(rule, seed, wrong, training, held_out, args):
    """One training: a row of the table, and its validation accuracy in each epoch."""
    x, y = training
    model = network(x.shape[1:], seed)
    steps = args.epochs * -(-len(x) // 64)
    rate = keras.optimizers.schedules.CosineDecay(0.05, steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    begin = time.perf_counter()
    history = model.fit(
        x, y, batch_size=64, epochs=args.epochs, validation_data=held_out, verbose=0,
        callbacks=RULES[rule](args),
    ).history  # fmt: skip
    seconds = time.perf_counter() - begin
    accuracy = np.array(history["val_accuracy"])
    surface = rt.LossSurface(model, x[:256], y[:256])
    top = rt.measures.hessian_eigenvalues(surface, tolerance=1e-2, max_products=40)
    row = {
        "wrong labels": wrong,
        "rule": rule,
        "seed": seed,
        "final": accuracy[-1],
        "best": accuracy.max(),
        "best epoch": int(accuracy.argmax()) + 1,
        "training loss": history["loss"][-1],
        "λmax": top.value,
        "Keskar": rt.measures.keskar_sharpness(surface, epsilon=1e-3).value,
        "seconds": seconds,
    }
    course = pd.DataFrame({"epoch": np.arange(1, len(accuracy) + 1), "accuracy": accuracy})
    return row, course.assign(rule=rule, seed=seed, wrong=wrong)


def summary(table):
    """Mean ± standard deviation over the seeds."""
    shown = ["final", "best", "λmax", "Keskar", "training loss", "seconds"]
    groups = table.groupby(["wrong labels", "rule"], sort=False)[shown]
    spread = groups.std(ddof=1).fillna(0.0)
    text = {
        name: [f"{m:.3g} ± {s:.2g}" for m, s in zip(groups.mean()[name], spread[name], strict=True)]
        for name in shown
    }
    return pd.DataFrame(text, index=groups.mean().index).reset_index()


def gain(table, wrong, rule, column):
    """The mean gain of a rule over SGD, seed by seed, and its standard error."""
    part = table[table["wrong labels"] == wrong].pivot(index="seed", columns="rule", values=column)
    gains = part[rule] - part["SGD"]
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else float("nan")
    return float(gains.mean()), float(error)


def verdict(table):
    """One sentence for each kind of labels, from the numbers."""
    lines = []
    for wrong in WRONG:
        told = []
        for rule in ("SAM", "ASAM"):
            parts = []
            for column, when in (("final", "at the last epoch"), ("best", "at the best")):
                mean, error = gain(table, wrong, rule, column)
                if not np.isfinite(error):
                    word = "undecided"
                elif mean > 2 * error:
                    word = "better"
                else:
                    word = "worse" if mean < -2 * error else "undecided"
                parts.append(f"{100 * mean:+.1f} ± {100 * error:.1f} points {when} ({word})")
            told.append(f"{rule} {' and '.join(parts)}")
        means = table[table["wrong labels"] == wrong].groupby("rule")["λmax"].mean()
        flat = [rule for rule in ("SAM", "ASAM") if means[rule] < means["SGD"]]
        ends = f"flatter than SGD by λmax: {' and '.join(flat) if flat else 'neither'}"
        lines.append(
            f"{100 * wrong:.0f} % wrong labels, accuracy against SGD: {'; '.join(told)}; {ends}."
        )
    return "\n".join(lines)


def draw(table, curves, sentences):
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for ax, wrong in zip(axes, WRONG, strict=False):
        for rule, colour in COLOURS.items():
            part = curves[(curves["wrong"] == wrong) & (curves["rule"] == rule)]
            course = part.groupby("epoch")["accuracy"].agg(["mean", "min", "max"])
            ax.plot(course.index, course["mean"], color=colour, label=rule)
            ax.fill_between(course.index, course["min"], course["max"], color=colour, alpha=0.15)
        ax.set(title=f"{100 * wrong:.0f} % wrong labels", xlabel="epoch")
        low = curves[curves["wrong"] == wrong].groupby("epoch")["accuracy"].median()
        ax.set_ylim(max(0.0, low.iloc[len(low) // 10 :].min() - 0.1), 1.0)
    axes[0].set_ylabel("accuracy on clean held-out images")
    axes[0].legend()
    places = np.arange(len(RULES))
    for wrong, mark in zip(WRONG, ("o", "s"), strict=True):
        part = table[table["wrong labels"] == wrong]
        values = [part[part["rule"] == rule]["λmax"] for rule in RULES]
        axes[2].plot(
            places,
            [v.mean() for v in values],
            mark,
            markersize=8,
            label=f"{100 * wrong:.0f} % wrong",
        )
        for place, found in zip(places, values, strict=True):
            axes[2].plot([place] * len(found), found, ".", color="grey", markersize=4, zorder=0)
    axes[2].set_xticks(places, list(RULES))
    axes[2].set(title="Largest eigenvalue in the end", ylabel="λmax of the training loss")
    axes[2].set_yscale("log")
    axes[2].legend()
    below(figure, sentences)
    return figure


if __name__ == "__main__":
    main()
