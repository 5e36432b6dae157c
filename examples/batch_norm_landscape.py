"""Does batch normalization make the loss smoother along the gradient? Santurkar et al., repeated.

A small VGG with batch normalization and one without train from the same weights by plain SGD, at
the same rate. Every few steps the loss is followed along its gradient, for steps of half to four
learning rates: how much the loss varies, how far the gradient moves, the effective β-smoothness.
They are taken on one fixed random batch of the training data, as large as that of a training step,
with its own statistics. The networks are compared at the same steps, as in the paper, and at the
same loss: the one with batch normalization is soon far ahead, and near the end all three are small.
"""

import functools
import math
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
from _options import add_dataset, add_seeds, parser, positive
from _verdict import below

import keras_regtools as rt

CLASSES = 10
NETWORKS = {"without": "without batch normalization", "with": "with batch normalization"}
MEASURES = {
    "loss_variation": "variation of the loss",
    "gradient_predictiveness": "movement of the gradient",
    "beta": "effective β-smoothness",
}
MARGIN = 1.1  # a factor below it is no difference


def main():
    args = parse()
    begin = time.perf_counter()
    (x, y), _ = load_images(args.dataset, args.seed, padded=False)
    x, y = x[: args.steps * args.batch_size], y[: args.steps * args.batch_size]

    runs = []
    for seed in range(args.seed, args.seed + args.seeds):
        for network in NETWORKS:
            run = train(network, seed, x, y, args)
            runs.append(run.assign(seed=seed, network=network))
            print(f"seed {seed}, {NETWORKS[network]}: loss {at_end(run['loss']):.4f}", flush=True)

    table = pd.concat(runs, ignore_index=True)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "steps.csv", index=False)
    text = report(table)
    figure = draw(table, args)
    below(figure, text.splitlines()[-1])
    figure.savefig(folder / "batch_norm_landscape.png", dpi=110)
    print(text)
    print(f"The picture is {folder / 'batch_norm_landscape.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def parse():
    options = parser(__doc__, "runs/batch_norm_landscape")
    add_dataset(options, DATASETS)
    add_seeds(options)
    options.add_argument(
        "--rate", type=float, default=0.1, help="learning rate of SGD (default: %(default)s)"
    )
    options.add_argument(
        "--batch-size", type=positive, default=128, help="samples per step (default: %(default)s)"
    )
    options.add_argument(
        "--steps", type=positive, default=360, help="training steps, about (default: %(default)s)"
    )
    measured = "steps from one measurement to the next (default: %(default)s)"
    options.add_argument("--every", type=positive, default=4, help=measured)
    args = options.parse_args()
    if args.smoke:
        args.seeds, args.steps, args.batch_size, args.every = 1, 4, 32, 2
    return args


def train(network, seed, x, y, args):
    """The measures, a row for each step at which they were taken."""
    keras.utils.set_random_seed(seed)
    small = {"filters": ((4,), (4,)), "dense": (8,)}
    usual = {"filters": ((16, 16), (32, 32), (64, 64)), "dense": (64,)}
    model = rt.applications.vgg(x.shape[1:], CLASSES, **(small if args.smoke else usual))
    if network == "with":
        model = rt.regularize(model, batch_norm=True)
    model.compile(keras.optimizers.SGD(args.rate), "sparse_categorical_crossentropy")
    smoothness = functools.partial(
        rt.measures.gradient_smoothness,
        learning_rate=args.rate,
        span=(0.5, 4),
        points=2 if args.smoke else 4,
    )
    measure = rt.callbacks.Measure(
        {"beta": smoothness},
        x,
        y,
        every_steps=args.every,
        samples=args.batch_size,
        batch_size=args.batch_size,
        mode="batch_statistics",
        seed=seed,
    )
    keras.utils.set_random_seed(seed)  # the order of the samples
    epochs = math.ceil(args.steps / math.ceil(len(x) / args.batch_size))
    model.fit(x, y, batch_size=args.batch_size, epochs=epochs, callbacks=[measure], verbose=0)
    rows = measure.records.to_frame()
    rows = rows[rows["name"].str.startswith("beta")]
    run = rows.pivot(index="step", columns="name", values="value")
    run.columns = [name.removeprefix("beta/") for name in run.columns]
    return run.reset_index()


def at_end(losses):
    """The loss at the end of a training: the median of the last quarter; NaN if it diverged."""
    return losses.tail(math.ceil(len(losses) / 4)).median(skipna=False)


def report(table):
    """How many times larger each measure is without batch normalization, and the finding."""
    trained = table.groupby(["seed", "network"])["loss"].agg(at_end) < 0.5 * math.log(CLASSES)
    missing = [f"seed {seed} {network}" for seed, network in trained.index[~trained]]
    seeds = [s for s in table["seed"].unique() if all(trained[s, n] for n in NETWORKS)]
    text = []
    if missing:
        text.append(f"Did not train, and decide nothing: {', '.join(missing)}.")
    if not seeds:
        return "\n".join([*text, "No verdict: in no seed did both networks train."])
    used = table[table["seed"].isin(seeds)]
    overflown = (used["finite"] != 1).sum()
    if overflown:
        text.append(f"Measurements that met a loss that is not finite: {overflown} of {len(used)}.")
    times = {how: compare(used, how) for how in ("loss", "step")}
    for how, found in times.items():
        text += [f"\nWithout batch normalization over with, at the same {how}, by seed:"]
        text += [found.rename(columns=MEASURES).to_string(float_format=lambda v: f"{v:.3g}")]
    known = pd.concat([found.stack() for found in times.values()]).dropna()
    if known.empty:
        return "\n".join([*text, "No verdict: nothing was measured of both networks."])
    smoother = known > MARGIN
    held = "held" if smoother.all() else "held only in part" if smoother.any() else "did not hold"
    said = {how: ", ".join(_times(found[m], m) for m in MEASURES) for how, found in times.items()}
    text.append(
        f"\nThat batch normalization makes the loss smoother {held} on this data: at the same loss "
        f"{said['loss']}; at the same step {said['step']}."
    )
    return "\n".join(text)


def compare(table, how):
    """By seed, how many times as large each measure is without; the median over the training.

    At the same loss it is the median over the half decades, of a loss below 1, that both went by.
    """
    rows = {}
    for seed, runs in table.dropna().groupby("seed"):
        stage = runs["step"] * 0
        if how == "loss":
            runs = runs[runs["loss"] < 1]
            stage = np.floor(2 * np.log10(runs["loss"]))
        medians = runs.groupby(["network", stage])[list(MEASURES)].median()
        with_it, without = (
            medians[medians.index.get_level_values(0) == name].droplevel(0)
            for name in ("with", "without")
        )
        rows[seed] = (without / with_it).median()
    return pd.DataFrame(rows).T.rename_axis("seed")


def _times(values, measure):
    values = values.dropna()
    if not len(values):
        return f"the {MEASURES[measure]} cannot be compared"
    smaller = values.median() >= 1
    factors = values if smaller else 1 / values
    return (
        f"the {MEASURES[measure]} was {float(f'{factors.median():.2g}'):g} times "
        f"{'smaller' if smaller else 'larger'} "
        f"(in {(factors > MARGIN).sum()} of {len(values)} seeds)"
    )


def draw(table, args):
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 8), layout="constrained")
    figure.suptitle(
        f"How smooth is the loss for the next step, ½ to 4 learning rates along the gradient? "
        f"A small VGG on {args.dataset}, SGD at {args.rate:g}, batches of {args.batch_size}"
    )
    bands = (("loss_lowest", "loss_highest"), ("distance_lowest", "distance_highest"), None)
    titles = ("Loss along the gradient", "How far the gradient moves", "Effective β-smoothness")
    units = ("loss", "distance ‖g − g(s)‖", "largest ‖g − g(s)‖ / ‖s g‖")
    for ax, band, title, unit in zip(axes[0], bands, titles, units, strict=True):
        for i, (network, name) in enumerate(NETWORKS.items()):
            runs = table[table["network"] == network]
            middle = runs.groupby("step").median(numeric_only=True)
            if band:
                low, high = (middle[end] for end in band)
                ax.fill_between(
                    middle.index, low, high, color=f"C{1 - i}", alpha=0.5, linewidth=0, label=name
                )
            else:
                ax.plot(middle.index, middle["beta"], color=f"C{1 - i}", label=name)
        ax.set(title=f"{title}, median of {args.seeds} seeds", xlabel="training step", ylabel=unit)
    units = ("range of the loss", "range of the distance ‖g − g(s)‖", units[2])
    for ax, measure, unit in zip(axes[1], MEASURES, units, strict=True):
        for i, (network, name) in enumerate(NETWORKS.items()):
            runs = table[table["network"] == network]
            ax.plot(
                runs["loss"], runs[measure], ".", color=f"C{1 - i}", alpha=0.5, label=name, mew=0
            )
        ax.set(
            title=f"{MEASURES[measure].capitalize()} at the same loss",
            xlabel="loss at that step (training goes to the right)",
            ylabel=unit,
            xscale="log",
        )
        ax.invert_xaxis()
        ax.axvline(
            math.log(CLASSES),
            color="black",
            linewidth=0.8,
            linestyle=":",
            label="the loss of guessing",
        )
        ax.xaxis.set_major_formatter("{x:g}")
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    for ax in axes[:, :2].flat:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
    for ax in axes[:, 2]:
        ax.set_ylim(0, None)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    line, guessing = (found[-1:] for found in axes[1, 2].get_legend_handles_labels())
    axes[1, 2].legend(handles + line, labels + guessing, loc="upper right")
    return figure


if __name__ == "__main__":
    main()
