"""What both searches do: split, search, confirm on new data, and write a page."""

import pathlib

import keras
import keras_tuner
from _data import DATASETS, load_images
from _options import add_dataset, add_epochs, parser, positive

import keras_regtools as rt


def options(description, output, trials, epochs, samples):
    """The command line of a search."""
    found = parser(description, output)
    add_dataset(found, DATASETS)
    found.add_argument(
        "--trials", type=positive, default=trials, help="settings to try (default: %(default)s)"
    )
    add_epochs(found, epochs)
    found.add_argument(
        "--samples",
        type=positive,
        default=samples,
        help="training images; few, so that there is something to regularize "
        "(default: %(default)s)",
    )
    found.add_argument(
        "--confirm",
        type=positive,
        default=3,
        help="fresh seeds for the winner and the plain network (default: %(default)s)",
    )
    args = found.parse_args()
    if args.smoke:
        args.trials, args.epochs, args.samples, args.confirm = 2, 1, 96, 2
    return args


def data(args):
    """Training, validation and test images: what is searched by is not what is scored on."""
    (x, y), test = load_images(args.dataset, args.seed)
    training = x[: args.samples], y[: args.samples]
    rest = slice(args.samples, args.samples + max(len(x) // 4, 64))
    validation = x[rest][:1000], y[rest][:1000]
    if args.smoke:
        test = test[0][:64], test[1][:64]
    return training, validation, tuple(part[:2000] for part in test)


def search(args, hypermodel, title):
    """Search, confirm and tell."""
    keras.utils.set_random_seed(args.seed)
    output = pathlib.Path(args.output)
    (x, y), validation, test = data(args)
    tuner = keras_tuner.RandomSearch(
        hypermodel,
        objective="val_loss",
        max_trials=args.trials,
        seed=args.seed + 1,  # KerasTuner takes 0 for none
        directory=output,
        project_name="trials",
        overwrite=True,
        max_consecutive_failed_trials=args.trials,
    )
    progress = Progress(tuner)
    tuner.search(
        x, y, validation_data=validation, epochs=args.epochs, verbose=0, callbacks=[progress]
    )
    table = rt.tuner.table(tuner, failed=True)
    table.to_csv(output / "trials.csv", index=False)
    confirmation = rt.tuner.confirm(tuner, *test, seeds=args.confirm, best=1)
    confirmation.table.to_csv(output / "confirmation.csv", index=False)
    page = rt.report.write_search(tuner, output, confirmation=confirmation, title=title)
    print()
    for finding in rt.tuner.findings(table, confirmation=confirmation):
        print(f"- {finding}")
    print(f"\nThe best settings, to paste:\n\n{hypermodel.code(best_of(tuner))}")
    print(f"Page: {page.path}, table: {output / 'trials.csv'}")


def best_of(tuner):
    """The hyperparameters of the best trial."""
    return tuner.get_best_hyperparameters()[0]


class Progress(keras.callbacks.Callback):
    """A line for each training: how many trials there were, and the best so far."""

    def __init__(self, tuner):
        super().__init__()
        self._tuner = tuner

    def on_train_begin(self, logs=None):
        done = [t for t in self._tuner.oracle.trials.values() if t.score is not None]
        best = min((t.score for t in done), default=float("nan"))
        line = f"trial {len(self._tuner.oracle.trials)}: {len(done)} done, best so far {best:.4f}"
        print(line, flush=True)

    def __deepcopy__(self, memo):
        return self  # KerasTuner copies callbacks; this one holds its tuner
