"""What does batch normalization allow? The same network with and without it, from the same starts.

How many steps to a target accuracy, up to which learning rate and with how fast a decay it is still
reached, how wide what the activations receive becomes, how much dropout and L2 it takes, and
whether gradients reach the first of many layers. Networks with batch normalization are always
judged with moving statistics made again, as `recalibrate` does.
"""

import math
import pathlib
import time

import _onednn  # noqa: F401
import keras
import numpy as np
import pandas as pd
from _data import DATASETS, TARGETS, load_images
from _freedom_report import draw, report
from _options import add_dataset, add_epochs, add_seeds, parser, positive

import keras_regtools as rt
from keras_regtools.data import Batches

RATES = [0.01 * 2**i for i in range(11)]  # up to 10.24
DECAYS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # the rate's factor in each epoch
DROPOUTS, PENALTIES = (0.0, 0.2, 0.5), (0.0, 1e-4, 1e-3)
DEEP = {  # activation and scale of `VarianceScaling`; 1 is Keras' default
    "sigmoid": ("sigmoid", 1.0),
    "tanh, weights × 5.5": ("tanh", 30.0),
}
CHECK = 5  # steps from one look at the accuracy to the next


def main():
    args = parse()
    begin = time.perf_counter()
    (x, y), (x_test, y_test) = load_images(args.dataset, args.seed, padded=False)
    x, y, held_out = x[: args.samples], y[: args.samples], (x_test[:2000], y_test[:2000])
    few = (x[: args.few], y[: args.few])
    rest = tuple(np.concatenate([a[args.few :], b]) for a, b in zip((x, y), held_out, strict=True))
    seeds = range(args.seed, args.seed + args.seeds)
    rows, flows = [], []

    def note(trials, starts, row, **run):
        for flag, trial in trials.items():
            own = {k: v[flag] if isinstance(v, dict) else v for k, v in run.items()}
            for seed in starts:
                found = trial.run(starts[seed], seed, **{"epochs": args.epochs, **own})
                found["steps"] = first(found["course"], args.target)
                rows.append({**row, "batch norm": flag, "seed": seed, **own, **found})

    starts = {seed: network(seed, x.shape[1:], args) for seed in seeds}
    trials = both(starts[args.seed], (x, y), held_out, args)
    for rate in args.rates:
        note(trials, starts, {"part": "rate"}, rate=rate)
    best = {flag: fastest(rows, flag) for flag in trials}
    print(f"learning rates: {time.perf_counter() - begin:.0f} s", flush=True)
    for decay in args.decays:
        note(trials, starts, {"part": "decay"}, rate=best[False], decay=decay)
    print(f"decays: {time.perf_counter() - begin:.0f} s", flush=True)
    for dropout in args.dropouts:
        trials = both(rt.strip(starts[args.seed]), few, rest, args, dropout=dropout)
        for penalty in args.penalties:
            row = {"part": "penalty", "dropout": dropout}
            run = {"rate": best, "penalty": penalty, "epochs": args.long, "check": 20}
            note(trials, starts, row, **run)
    print(f"dropout and L2: {time.perf_counter() - begin:.0f} s", flush=True)
    for case, (activation, scale) in args.deep.items():
        starts = {s: network(s, x.shape[1:], args, args.layers, activation, scale) for s in seeds}
        trials = both(starts[args.seed], (x, y), held_out, args)
        for flag, trial in trials.items():
            for seed, start in starts.items():
                flow = trial.flow(start)
                row = {"part": "deep", "case": case, "verdict": flow.verdict}
                row |= {"begins at": flow.begins_at, "first / last": flow.value}
                note({flag: trial}, {seed: start}, row, rate=args.deep_rate, check=10)
                for layer, norm in zip(flow.layers, flow.gradient_norms, strict=True):
                    flows.append([case, flag, seed, layer, norm])

    columns = ["case", "batch norm", "seed", "layer", "gradient norm"]
    table, flows = pd.DataFrame(rows), pd.DataFrame(flows, columns=columns)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    table.drop(columns="course").to_csv(folder / "runs.csv", index=False)
    flows.to_csv(folder / "gradient_flow.csv", index=False)
    draw(table, flows, best, args).savefig(folder / "batch_norm_freedom.png", dpi=110)
    print(report(table, best, args))
    print(f"The picture is {folder / 'batch_norm_freedom.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def parse():
    options = parser(__doc__, "runs/batch_norm_freedom")
    add_dataset(options, DATASETS)
    add_epochs(options, 12)
    add_seeds(options)
    options.add_argument(
        "--target",
        type=float,
        help="validation accuracy to reach; default: 0.95 for digits, 0.9 for MNIST, 0.75 for "
        "Fashion-MNIST, 0.3 for CIFAR-10",
    )
    images = "training images, the first ones (default: %(default)s)"
    options.add_argument("--samples", type=positive, default=1437, help=images)
    few = "those of the comparison of dropout and L2 (default: %(default)s)"
    options.add_argument("--few", type=positive, default=400, help=few)
    options.add_argument(
        "--layers", type=positive, default=20, help="of the deep network (default: %(default)s)"
    )
    options.add_argument("--batch-size", type=positive, default=64, help="default: %(default)s")
    args = options.parse_args()
    args.target = args.target or TARGETS[args.dataset]
    args.units, args.depth, args.deep_rate, args.deep, args.long = 64, 3, 0.1, DEEP, 8 * args.epochs
    args.rates, args.decays, args.dropouts, args.penalties = RATES, DECAYS, DROPOUTS, PENALTIES
    if args.smoke:
        args.samples, args.few, args.layers, args.seeds, args.epochs = 64, 64, 2, 1, 5
        args.units, args.depth, args.long, args.deep = 8, 1, 5, {"sigmoid": DEEP["sigmoid"]}
        args.rates, args.decays, args.dropouts, args.penalties = (
            (0.1, 1.0),
            (1.0,),
            (0.0, 0.5),
            (0.0,),
        )
    return args


def network(seed, shape, args, layers=None, activation="relu", scale=1.0):
    """A plain network of dense layers; the usual one notes what each activation receives."""
    keras.utils.set_random_seed(seed)
    weights = keras.initializers.VarianceScaling(scale, "fan_avg", "uniform")
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten()])
    for i in range(1, (layers or args.depth) + 1):
        model.add(keras.layers.Dense(args.units, kernel_initializer=weights, name=f"hidden_{i}"))
        if layers is None:
            noted = {"record": ["batch_variance"], "name": f"received_{i}"}
            model.add(rt.layers.ActivationStatistics(**noted))
        model.add(keras.layers.Activation(activation, name=f"activation_{i}"))
    model.add(keras.layers.Dense(10, activation="softmax", name="output"))
    return model


def both(plain, training, held_out, args, dropout=0.0):
    """The network without and with batch normalization."""
    return {
        batch_norm: Trial(plain, batch_norm, dropout, training, held_out, args.batch_size)
        for batch_norm in (False, True)
    }


class Trial:
    """A network that is compiled once and trained again and again, from any start."""

    def __init__(self, plain, batch_norm, dropout, training, held_out, batch_size):
        self.batch_norm, self.x, self.y = batch_norm, *training
        self.batch_size = min(batch_size, len(self.x))
        self.penalty = rt.regularizers.L2(0.0)
        self.model = rt.regularize(
            plain, dense=self.penalty, dense_dropout=dropout, batch_norm=batch_norm
        )
        self.model.compile(keras.optimizers.SGD(), "sparse_categorical_crossentropy")
        self.surface = rt.LossSurface(self.model, *held_out)
        self.seen = Batches(self.x[:2000], batch_size=2000)  # for moving statistics made again
        self.received = [
            layer
            for layer in self.model.layers
            if isinstance(layer, rt.layers.ActivationStatistics)
        ]

    def begin(self, plain):
        """At the weights of a plain network."""
        start = rt.regularize(plain, batch_norm=True) if self.batch_norm else plain
        self.model.set_weights(start.get_weights())

    def run(self, start, seed, *, rate, epochs, decay=1.0, penalty=0.0, check=5):
        """Plain gradient descent with a rate that falls smoothly; what came out."""
        self.begin(start)
        self.penalty.l2 = penalty
        chance, order, course, seconds = np.random.default_rng(seed), [], {}, []
        in_epoch = len(self.x) // self.batch_size
        last = epochs * in_epoch
        for step in range(1, last + 1):
            if not order:
                order = list(chance.permutation(len(self.x))[: in_epoch * self.batch_size])
            if step == last - in_epoch + 1:  # ranges are those of the last epoch
                for layer in self.received:
                    layer.reset_statistics()
            chosen, order = order[: self.batch_size], order[self.batch_size :]
            self.model.optimizer.learning_rate = rate * decay ** ((step - 1) / in_epoch)
            begin = time.perf_counter()
            loss = self.model.train_on_batch(self.x[chosen], self.y[chosen])
            seconds.append(time.perf_counter() - begin)
            if step % check == 0 or step == last:
                course[step] = self.surface.recalibrated(self.seen).value_and_accuracy()[1]
        variances = [layer.statistics()["batch_variance"].mean() for layer in self.received]
        finite = bool(np.isfinite([loss, *variances]).all())
        return {
            "accuracy": float(np.mean(list(course.values())[-5:])),  # one look is noisy
            "spread": float(np.sqrt(max(variances))) if finite and variances else math.nan,
            "finite": finite,
            "seconds per step": float(np.median(seconds)),
            "course": course,
        }

    def flow(self, start):
        """The gradient of each layer at the start, on a batch with its own statistics."""
        self.begin(start)
        size = self.batch_size
        batch = rt.LossSurface(
            self.model, self.x[:size], self.y[:size], batch_size=size, mode="batch_statistics"
        )
        return rt.measures.gradient_flow(batch)


def first(course, target):
    """The first step at which the accuracy was at the target; NaN if it never was."""
    return next((step for step, accuracy in course.items() if accuracy >= target), math.nan)


def fastest(rows, batch_norm):
    """The rate at which the target was reached in the most seeds, then in the fewest steps."""
    runs = pd.DataFrame([row for row in rows if row["batch norm"] == batch_norm])
    steps = runs.groupby("rate")["steps"]
    ranks = pd.DataFrame({"missed": -steps.count(), "steps": steps.median()})
    return float(ranks.sort_values(["missed", "steps"]).index[0])


if __name__ == "__main__":
    main()
