"""Searches: do importance intervals hold the truth, what does the wrapper cost, what does it keep?

`--what importance` draws 50 searches of an objective whose effects are known and counts how often
an interval holds the importance that 4,000 trials have. `--what cost` runs the same random search
with `RegularizationHyperModel` and by hand, in turn, and reads the memory of the process.
"""

import argparse
import tempfile
import time

import _onednn  # noqa: F401
import keras
import keras_tuner
import machine
import numpy as np
import pandas as pd

import keras_regtools as rt
from keras_regtools.tuner import importance

SPACE = {
    "a": {"low": 0.0, "high": 1.0, "log": False, "step": None, "integer": False},
    "b": {"low": 1e-6, "high": 1e-1, "log": True, "step": None, "integer": False},
    "c": {"choices": [False, True]},
    "d": {"low": 0.0, "high": 1.0, "log": False, "step": None, "integer": False},
    "e": {"choices": [32, 64, 128]},
}


def trials(count, rng):
    """Trials of a loss that is 2 a + .2 (log10 b + 3.5) + .8 c + noise: d and e do nothing."""
    frame = pd.DataFrame(
        {
            "trial": [str(i) for i in range(count)],
            "a": rng.uniform(size=count),
            "b": 10 ** rng.uniform(-6, -1, count),
            "c": rng.integers(0, 2, count).astype(bool),
            "d": rng.uniform(size=count),
            "e": rng.choice([32, 64, 128], count),
        }
    )
    effect = 2 * frame["a"] + 0.2 * (np.log10(frame["b"]) + 3.5) + 0.8 * frame["c"]
    frame["val_loss"] = effect + 0.1 * rng.normal(size=count)
    frame = frame.sort_values("val_loss", ignore_index=True)
    frame.attrs = {"objective": "val_loss", "direction": "min", "space": SPACE, "budgets": False}
    return frame


def coverage(searches, count):
    """How often the intervals hold the truth, and how often all five of a search do."""
    rng = np.random.default_rng(0)
    many = [importance(trials(4000, rng), resamples=1) for _ in range(3)]
    truth = sum(m.set_index("hyperparameter")["importance"] for m in many) / len(many)
    held = []
    for i in range(searches):
        found = importance(trials(count, rng), resamples=100).set_index("hyperparameter")
        ends = found.loc[truth.index]
        held.append((ends["low"] <= truth + 1e-3) & (truth <= ends["high"] + 1e-3))
        machine.progress(f"search {i + 1}: {int(held[-1].sum())} of 5")
    shares = pd.DataFrame(held).mean()
    rows = [[name, f"{truth[name]:.3f}", f"{shares[name]:.2f}"] for name in truth.index]
    rows.append(["all intervals", "", f"{pd.DataFrame(held).to_numpy().mean():.3f}"])
    rows.append(
        ["searches in which all five hold it", "", f"{np.mean([h.all() for h in held]):.2f}"]
    )
    return rows


def images():
    """300 training and 300 validation digits."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
    return (x[:300], y[:300]), (x[300:600], y[300:600])


def network(dropout=0.0, l2=None):
    """A small convolutional network; regularized by hand where it is told so."""
    penalty = {} if l2 is None else {"kernel_regularizer": keras.regularizers.L2(l2)}
    members = [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu", **penalty),
        keras.layers.MaxPooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu", **penalty),
    ]
    members += [keras.layers.Dropout(dropout)] if dropout else []
    return keras.Sequential([*members, keras.layers.Dense(10, activation="softmax", **penalty)])


class ByHand(keras_tuner.HyperModel):
    """What one would write without us; batch size and rate are searched, too."""

    def build(self, hp):
        l2 = hp.Float("l2", 1e-6, 1e-2, sampling="log")
        model = network(hp.Float("dropout", 0.1, 0.5), l2)
        rate = hp.Float("rate", 1e-3, 1e-1, sampling="log")
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    def fit(self, hp, model, *args, **kwargs):
        return model.fit(*args, batch_size=hp.Choice("batch_size", [32, 64]), **kwargs)


def ours():
    return rt.tuner.RegularizationHyperModel(
        network, conv={"l2": (1e-6, 1e-2)}, dense={"l2": (1e-6, 1e-2), "dropout": (0.1, 0.5)},
        batch_norm=False, batch_sizes=[32, 64], results=["val_loss"],
    )  # fmt: skip


def cost(count, turns, epochs):
    """Seconds of a search of ours over one by hand, a pair in turn; memory after 3 and 30."""
    training, validation = images()
    ratios, seconds = [], {"ours": [], "by hand": []}
    for turn in range(turns + 1):
        taken = {}
        for name, hypermodel in (("ours", ours()), ("by hand", ByHand())):
            with tempfile.TemporaryDirectory() as folder:
                tuner = keras_tuner.RandomSearch(
                    hypermodel, "val_loss", max_trials=count, seed=turn + 1, directory=folder
                )
                begun = time.perf_counter()
                tuner.search(*training, validation_data=validation, epochs=epochs, verbose=0)
                taken[name] = time.perf_counter() - begun
        machine.progress(f"turn {turn}: {taken}")
        if turn:  # the first one warms up
            ratios.append(taken["ours"] / taken["by hand"])
            for name, value in taken.items():
                seconds[name].append(value)
    rows = [
        ["search by hand [s]", machine.spread(seconds["by hand"])],
        ["ours / by hand", machine.spread(ratios)],
    ]
    return rows + memory(training, validation)


def memory(training, validation):
    """The memory of the process after 3 and after 30 trials."""
    found = {}

    class Read(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            done = len(tuner.oracle.trials)
            with open("/proc/self/status", encoding="ascii") as file:
                told = dict(line.split(":", 1) for line in file if ":" in line)
            found[done] = int(told["VmRSS"].split()[0]) / 1024

        def __deepcopy__(self, memo):
            return self

    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(
            rt.tuner.RegularizationHyperModel(network), "val_loss", max_trials=31, seed=1,
            directory=folder, max_consecutive_failed_trials=31,
        )  # fmt: skip
        tuner.search(*training, validation_data=validation, epochs=2, verbose=0, callbacks=[Read()])
    return [
        ["memory after 3 trials [MiB]", f"{found[4]:.0f}"],
        ["memory after 30 / after 3", f"{found[31] / found[4]:.3f}"],
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--what", choices=["importance", "cost"], required=True)
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--trials", type=int, default=100, help="of each search of importance")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write results/searching_….md")
    args = parser.parse_args()
    machine.pin()
    if args.what == "importance":
        header = ["hyperparameter", "importance of 4,000 trials", "share of intervals that hold it"]
        rows = coverage(args.searches, args.trials)
        title = f"Importance: {args.searches} searches of {args.trials} trials"
    else:
        header, rows = ["what", "median (min–max)"], cost(12, args.turns, 10)
        title = "A search with the wrapper and by hand: 12 trials of 10 epochs, 300 digits"
    text = f"# {title}\n\n{machine.provenance()}\n\n{machine.table(header, rows)}\n"
    print(text)
    if args.write:
        machine.write(f"searching_{args.what}.md", text)


if __name__ == "__main__":
    main()
