"""Does a searched cocktail beat the plain network and the best single regularizer?

In each repeat other images are drawn. There is a search over all ingredients, each with a switch,
one over each of them alone, and one of the plain network; rate and batch size go along in all. The
winners of the cocktail, of the plain network and of the single regularizer that was best, all by
validation loss, are trained on fresh seeds and scored on images that no trial saw. "Beaten" means a
smaller mean test loss; the paired interval is told.
"""

import argparse
import tempfile
import time
import warnings

import _onednn  # noqa: F401
import keras
import keras_tuner
import machine
import numpy as np
import pandas as pd

import keras_regtools as rt
from keras_regtools.tuner import optional
from keras_regtools.tuner.confirm import _Candidate, _runs
from keras_regtools.tuner.confirmation import mean_interval

STRENGTHS = (1e-5, 1e-2)
SINGLES = {
    "L2": {"conv": {"l2": STRENGTHS}, "dense": {"l2": STRENGTHS}},
    "dropout": {"conv": {"dropout": (0.05, 0.5)}, "dense": {"dropout": (0.05, 0.6)}},
    "batch normalization": {"batch_norm": True},
    "weight decay": {"weight_decay": (1e-4, 1e-1)},
    "label smoothing": {"label_smoothing": (0.02, 0.2)},
}
COCKTAIL = {
    "conv": {"l2": optional(STRENGTHS), "dropout": optional((0.05, 0.5))},
    "dense": {"l2": optional(STRENGTHS), "dropout": optional((0.05, 0.6))},
    "batch_norm": None,
    "label_smoothing": optional((0.02, 0.2)),
}
NONE = {"conv": {}, "dense": {}, "batch_norm": False}


def images(dataset, count, seed):
    """Training, validation and test images; other ones for each seed."""
    if dataset == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
    else:
        (x, y), _ = keras.datasets.fashion_mnist.load_data()
        x = (x[..., None] / 255).astype("float32")
    order = np.random.default_rng(seed).permutation(len(x))
    rest = min((len(x) - count) // 2, 4000)
    ends = count, count + min(rest, 1000), count + rest + min(rest, 1000)
    parts = np.split(order[: ends[-1]], ends[:-1])
    return tuple((x[part], y[part]) for part in parts)


def network(shape):
    """A small convolutional network that overfits a few hundred images."""
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def search(settings, data, trials, epochs, seed, folder):
    """A tuner after its search, and the validation loss of its best trial."""
    training, validation, _ = data
    hypermodel = rt.tuner.RegularizationHyperModel(
        lambda: network(training[0].shape[1:]),
        **{**NONE, "batch_sizes": [32, 64], "results": ["val_loss"], **settings},
    )
    tuner = keras_tuner.BayesianOptimization(
        hypermodel, "val_loss", max_trials=trials, num_initial_points=max(trials // 3, 3),
        seed=seed + 1, directory=folder, max_consecutive_failed_trials=trials,
    )  # fmt: skip
    tuner.search(*training, validation_data=validation, epochs=epochs, verbose=0)
    return tuner, rt.tuner.table(tuner)["val_loss"].min()


def confirmed(tuner, test, seeds):
    """Test losses by seed of the best trial, as `tuner.confirm` has them, without its baselines."""
    best = {"best 1": _Candidate(tuner.get_best_hyperparameters()[0])}
    return _runs(tuner.hypermodel, best, test, seeds, {}, 0).set_index("seed")["test_loss"]


def repeat(args, seed):
    """A row for one draw of the images."""
    data = images(args.dataset, args.images, seed)
    fresh = [2000 + i for i in range(args.seeds)]
    share = max(4, args.trials // 3)
    given = {"cocktail": (COCKTAIL, args.trials), "plain": ({}, share)}
    given |= {name: (settings, share) for name, settings in SINGLES.items()}
    tuners, searched = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (settings, trials) in given.items():
            where = f"{folder}/{name}"
            tuners[name], searched[name] = search(settings, data, trials, args.epochs, seed, where)
            machine.progress(f"repeat {seed}, {name}: {searched[name]:.4f} in the search")
        single = min(SINGLES, key=searched.get)
        losses = {}
        for name in ("cocktail", "plain", single):
            losses[name] = confirmed(tuners[name], data[2], fresh)
            machine.progress(f"repeat {seed}, {name}: {losses[name].mean():.4f} confirmed")
    row = {"repeat": seed, "single": single}
    for name, found in zip(("cocktail", "plain", "of single"), losses.values(), strict=True):
        row[name] = found.mean()
    for name, other in (("plain", "plain"), ("single", single)):
        difference = (losses["cocktail"] - losses[other]).dropna().to_numpy()
        row[f"less {name}"], row[f"{name} low"], row[f"{name} high"] = mean_interval(difference)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", choices=["digits", "fashion_mnist"], default="digits")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--images", type=int, default=300, help="training images")
    parser.add_argument("--trials", type=int, default=24, help="of the cocktail; singles a third")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write results/cocktail_….md")
    args = parser.parse_args()
    machine.pin()
    warnings.filterwarnings("ignore", module="sklearn")  # of the fits of its Gaussian processes
    begun = time.perf_counter()
    rows = pd.DataFrame([repeat(args, seed) for seed in range(args.repeats)])
    header = ["repeat", "cocktail", "plain", "best single, chosen by validation", "its test loss",
              "cocktail less plain (95 %)", "cocktail less single (95 %)"]  # fmt: skip
    told = [
        [row["repeat"], f"{row['cocktail']:.4f}", f"{row['plain']:.4f}", row["single"],
         f"{row['of single']:.4f}",
         f"{row['less plain']:+.4f} ({row['plain low']:+.4f} to {row['plain high']:+.4f})",
         f"{row['less single']:+.4f} ({row['single low']:+.4f} to {row['single high']:+.4f})"]
        for _, row in rows.iterrows()
    ]  # fmt: skip
    beaten = {name: int((rows[f"less {name}"] < 0).sum()) for name in ("plain", "single")}
    sure = {name: int((rows[f"{name} high"] < 0).sum()) for name in ("plain", "single")}
    both = int(((rows["less plain"] < 0) & (rows["less single"] < 0)).sum())
    text = (
        f"# A searched cocktail on {args.images} images of {args.dataset}\n\n"
        f"{machine.provenance()}\n\n{machine.table(header, told)}\n\n"
        f"The cocktail beats the plain network in {beaten['plain']} of {len(rows)} (in "
        f"{sure['plain']} by more than chance explains), the best single regularizer in "
        f"{beaten['single']} (in {sure['single']}), both in {both}. "
        f"{time.perf_counter() - begun:.0f} s.\n"
    )
    print(text)
    if args.write:
        machine.write(f"cocktail_{args.dataset}.md", text)


if __name__ == "__main__":
    main()
