"""Search how to regularize LeNet-5: convolutional and dense layers apart, rate tied to batch size.

A small KerasTuner random search over weight penalties, dropout, batch normalization, batch size and
learning rate; prints the trials as a table, best first, and draws what they found.
"""

import pathlib

import _onednn  # noqa: F401
import keras
import keras_tuner
from _data import DATASETS, load_images
from _options import add_dataset, add_epochs, parser, positive
from _verdict import below
from matplotlib.figure import Figure

import keras_regtools as rt


def main():
    args = parse()
    keras.utils.set_random_seed(args.seed)
    (x, y), validation = load_images(args.dataset, args.seed)
    if args.smoke:
        args.trials, args.epochs, x, y = 1, 1, x[:128], y[:128]

    output = pathlib.Path(args.output)
    tuner = keras_tuner.RandomSearch(
        rt.tuner.RegularizationHyperModel(
            lambda: rt.applications.lenet5(x.shape[1:]), samples=128 if args.smoke else 512
        ),
        objective=keras_tuner.Objective("val_loss", "min"),
        max_trials=args.trials,
        seed=args.seed,
        directory=output,
        project_name="trials",
        overwrite=True,
    )
    tuner.search(x, y, validation_data=validation, epochs=args.epochs, verbose=args.verbose)

    table = rt.tuner.table(tuner)
    print(table.to_string(index=False, float_format="%.3g"))
    table.to_csv(output / "trials.csv", index=False)
    draw(table, output / "search.png")
    print(f"\n{verdict(table)}")
    print(f"Table: {output / 'trials.csv'}, picture: {output / 'search.png'}")


def draw(table, path):
    """Every trial's validation loss against what was searched and what was measured."""
    columns = ["conv_l2", "dense_l2", "conv_dropout", "dense_dropout"]
    columns += ["batch_size", "learning_rate", "batch_norm", "generalization_gap", "sharpness"]
    figure = Figure(figsize=(11, 9), layout="constrained")
    for ax, column in zip(figure.subplots(3, 3).flat, columns, strict=True):
        rt.plots.search(table, column, ax=ax)
    figure.suptitle("Each point is a trial: validation loss without penalties (lower is better)")
    below(figure, verdict(table))
    figure.savefig(path, dpi=110)


def verdict(table):
    """The best trial, and what went with the loss over all of them."""
    known = table.dropna(subset=["val_loss"]).sort_values("val_loss")
    if known.empty:
        return "No trial has a validation loss."
    best = known.iloc[0]
    batch_norm = "with" if best["batch_norm"] else "without"
    found = [
        f"The best of {len(table)} trials: loss {best['val_loss']:.3g}, {batch_norm} batch "
        f"normalization, batches of {best['batch_size']:.0f} at the rate "
        f"{best['learning_rate']:.2g}, dropout {best['conv_dropout']:g} and "
        f"{best['dense_dropout']:g}, L2 {best['conv_l2']:.2g} and {best['dense_l2']:.2g} "
        "(convolutions, dense layers)."
    ]
    ranks = known.select_dtypes("number").drop(columns=["val_loss", "loss", "val_accuracy"])
    with_loss = ranks.corrwith(known["val_loss"], method="spearman").dropna()
    if len(known) > 2 and len(with_loss):
        name = with_loss.abs().idxmax()
        found.append(
            f"What went most with the loss was {name} (rank correlation {with_loss[name]:+.2f}); "
            f"{len(known)} trials at random tell little more than where to look next."
        )
    return " ".join(found)


def parse():
    options = parser(__doc__, "runs/search_lenet5")
    add_dataset(options, DATASETS)
    options.add_argument(
        "--trials", type=positive, default=10, help="models to train (default: %(default)s)"
    )
    add_epochs(options, 10)
    options.add_argument(
        "--verbose", type=int, default=1, choices=(0, 1, 2), help="as in fit (default: %(default)s)"
    )
    return options.parse_args()


if __name__ == "__main__":
    main()
