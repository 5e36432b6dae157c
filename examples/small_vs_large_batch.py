"""Do small batches find flat minimizers and large ones sharp minimizers? Keskar et al., repeated.

From the same start, Adam trains with a small batch, with a large one, and with a large one whose
rate is scaled and warmed up, until each has the same training loss. Then their minimizers are
compared: test accuracy after `recalibrate`, Keskar's sharpness in the full space and in random
subspaces, the distance from the start, and the loss on the way from one to the other.
"""

import functools
import pathlib
import time

import _onednn  # noqa: F401
import keras
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _batch_report import EPSILONS, GROUPS, report, verdict
from _data import DATASETS, load_images
from _options import add_dataset, parser, positive
from _verdict import below

import keras_regtools as rt

NETWORKS = {"f1": rt.applications.f1, "c1": rt.applications.c1, "c2": rt.applications.c2}
RATE = 1e-3  # Adam's default


def main():
    args = parse()
    begin = time.perf_counter()
    (x, y), (x_test, y_test) = load_images(args.dataset, args.seed, padded=False)
    if args.smoke:
        x, y, x_test, y_test = x[:128], y[:128], x_test[:64], y_test[:64]
        args.seeds, args.subspace, args.samples, args.warmup_steps = 1, 5, len(x), 2
    small = args.small_batch or (16 if args.dataset == "digits" else 256)
    large = args.large_batch or round(len(x) * (0.25 if args.dataset == "digits" else 0.1))
    sizes = {"small": small, "large": large, "scaled": large}

    make = NETWORKS[args.network]
    if args.smoke and args.network == "f1":
        make = functools.partial(make, units=16)
    keras.utils.set_random_seed(args.seed)
    model = make(x.shape[1:])
    model.compile(
        keras.optimizers.Adam(RATE), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.optimizer.build(model.trainable_variables)
    fresh = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    surface = rt.LossSurface(model, x, y, mode="batch_statistics")
    measured = rt.LossSurface(
        model, surface.data.subsample(args.samples, args.seed), mode="batch_statistics"
    )

    rows, ends = [], {}
    for seed in range(args.seed, args.seed + args.seeds):
        keras.utils.set_random_seed(seed)
        start = make(x.shape[1:]).get_weights()
        for group in GROUPS:
            keras.utils.set_random_seed(seed)  # the order of the samples
            model.set_weights(start)
            for variable, value in zip(model.optimizer.variables, fresh, strict=True):
                variable.assign(value)
            stop = StopAtLoss(measured, args.target, steps=max(1, 64 // sizes[group]) * 4)
            scaling = rt.callbacks.LinearScalingLR(
                large, small, RATE, rule=args.rule, warmup_steps=args.warmup_steps
            )
            model.fit(
                x,
                y,
                batch_size=sizes[group],
                epochs=1 if args.smoke else args.epochs,
                callbacks=[stop, scaling] if group == "scaled" else [stop],
                verbose=0,
            )
            rt.recalibrate(model, x)
            row = {"seed": seed, "group": group, **stop.found()}
            # The paper has no third group to set its subspaces beside.
            spaces = {"full": None} | ({} if group == "scaled" else {"subspace": args.subspace})
            row |= compare(model, measured, start, spaces, (x_test, y_test), args)
            rows.append(row)
            ends[seed, group] = model.get_weights()
            print(
                f"seed {seed}, {group:6} batch {sizes[group]:5}: loss {row['loss']:.4f} after "
                f"{row['steps']:.0f} steps, test accuracy {row['test accuracy']:.4f}, "
                f"sharpness {row['full 0.001']:.3g}",
                flush=True,
            )

    table = pd.DataFrame(rows)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "runs.csv", index=False)
    lines = parametric(model, ends, args.seed, (x, y), (x_test, y_test), args)
    for name, line in lines.items():
        line.to_frame().to_csv(folder / f"line_{name}.csv")
    figure = draw(table, lines, sizes, args)
    below(figure, verdict(table, args))
    figure.savefig(folder / "small_vs_large_batch.png", dpi=110)
    print(report(table, sizes, args))
    print(f"The picture is {folder / 'small_vs_large_batch.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def parse():
    options = parser(__doc__, "runs/small_vs_large_batch")
    add_dataset(options, DATASETS)
    options.add_argument(
        "--network",
        choices=NETWORKS,
        default="f1",
        help="the paper's F1, C1 or a small C2 (default: %(default)s)",
    )
    options.add_argument(
        "--seeds", type=positive, default=2, help="how many starts (default: %(default)s)"
    )
    options.add_argument(
        "--small-batch", type=positive, help="default: 16 for digits, 256 for other images"
    )
    options.add_argument(
        "--large-batch", type=positive, help="default: 25 %% of digits, 10 %% of other images"
    )
    options.add_argument(
        "--target",
        type=float,
        help="training loss (without dropout) to train to; default: 0.01 for digits, 0.02 for "
        "other images",
    )
    options.add_argument(
        "--epochs",
        type=positive,
        help="the most epochs; default: 20 for digits, 100 for other images",
    )
    options.add_argument(
        "--rule",
        choices=("linear", "sqrt"),
        default="linear",
        help="how the rate of the third group follows the batch (default: %(default)s)",
    )
    reached = "steps until that rate is reached (default: %(default)s)"
    options.add_argument("--warmup-steps", type=positive, default=40, help=reached)
    measured = (
        "training images that sharpness is measured on; default: 512 of digits, 1024 of others"
    )
    options.add_argument("--samples", type=positive, help=measured)
    options.add_argument(
        "--subspace", type=positive, default=100, help="its dimension (default: %(default)s)"
    )
    args = options.parse_args()
    args.target = args.target or (0.01 if args.dataset == "digits" else 0.02)
    args.samples = args.samples or (512 if args.dataset == "digits" else 1024)
    args.epochs = args.epochs or (20 if args.dataset == "digits" else 100)
    return args


class StopAtLoss(keras.callbacks.Callback):
    """Stop as soon as the loss without dropout is low enough, looked at every few steps."""

    def __init__(self, surface, target, steps):
        super().__init__()
        self.surface, self.target, self.every = surface, target, steps
        self.steps, self.loss = 0, float("inf")

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps % self.every == 0:
            self.loss = self.surface.value()
            self.model.stop_training = self.loss <= self.target

    def found(self):
        return {"steps": self.steps, "reached": self.loss <= self.target}


def compare(model, surface, start, spaces, test, args):
    """The numbers of one minimizer, its sharpness in each of the spaces."""
    smoke = {"iterations": 1} if args.smoke else {}
    row = {
        "loss": surface.value(),
        "test accuracy": model.evaluate(*test, verbose=0, return_dict=True)["accuracy"],
    }
    for epsilon in EPSILONS:
        for name, subspace in spaces.items():
            found = rt.measures.keskar_sharpness(
                surface, epsilon=epsilon, subspace=subspace, **smoke
            )
            row[f"{name} {epsilon:g}"] = found.value
    row["ratio"] = row["full 0.001"] / row["full 0.0005"]
    row["distance"] = rt.measures.weight_distance(surface, start).value
    return row


def parametric(model, ends, seed, training, test, args):
    """The loss between the minimizers of the first seed."""
    surface = rt.LossSurface(model, *training, mode="inference")  # recalibrated at each point
    small = surface.at(ends[seed, "small"])
    points = 2 if args.smoke else 13
    return {
        f"{group}_{path}": rt.landscape.loss_line(
            small, ends[seed, group], path=path, points=points, test=test
        )
        for group, path in (("large", "linear"), ("large", "curvilinear"), ("scaled", "linear"))
    }


def draw(table, lines, sizes, args):
    figure, axes = plt.subplots(2, 2, figsize=(12.5, 9), layout="constrained")
    figure.suptitle(f"Small against large batches: {args.network.upper()} on {args.dataset}")
    sharpness = axes[0, 0]
    for i, epsilon in enumerate(EPSILONS):
        for seed, runs in table.groupby("seed"):
            values = runs.set_index("group").loc[list(GROUPS), f"full {epsilon:g}"]
            label = f"ε = {epsilon:g}" if seed == args.seed else None
            sharpness.plot(range(3), values, "o-", color=f"C{i}", alpha=0.7, label=label)
            short = ~runs.set_index("group").loc[list(GROUPS), "reached"].to_numpy(bool)
            sharpness.plot(np.arange(3)[short], values[short], "ko", markersize=10, mfc="none")
    sharpness.set_xticks(
        range(3),
        [
            f"small ({sizes['small']})",
            f"large ({sizes['large']})",
            f"large, rate scaled\n({args.rule}), warm-up",
        ],
    )
    sharpness.set(
        yscale="log",
        ylabel="Keskar's sharpness\n[% of 1 + loss]",
        title=f"Sharpness at the same training loss, {args.seeds} seeds",
    )
    sharpness.grid(alpha=0.3)
    if not table["reached"].all():
        sharpness.plot([], [], "ko", markersize=10, mfc="none", label="did not reach that loss")
    sharpness.legend()
    names = {"large": f"the large batch ({sizes['large']})", "scaled": "its scaled rate"}
    for ax, (name, line) in zip([axes[0, 1], axes[1, 0], axes[1, 1]], lines.items(), strict=True):
        group, path = name.split("_")
        rt.plots.line(line, ax)
        ax.set_title(f"From the small batch to {names[group]}, {path}", fontsize=10)
        ax.set_xlabel("α: 0 at the small batch, 1 at the other; statistics re-estimated")
    return figure


if __name__ == "__main__":
    main()
