"""The command-line options that the examples share."""

import argparse


def parser(description, output):
    """A parser with `--output`, `--seed` and `--smoke`."""
    options = argparse.ArgumentParser(description=description.split("\n\n")[0])
    options.add_argument(
        "--output", default=output, help="folder of what is made (default: %(default)s)"
    )
    options.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    options.add_argument(
        "--smoke", action="store_true", help="as little as possible, to see that it runs"
    )
    return options


def positive(text):
    """An integer above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, received {text}")
    return value


def add_dataset(options, datasets):
    """`--dataset`, one of the names."""
    options.add_argument(
        "--dataset",
        choices=datasets,
        default=datasets[0],
        help="the images: scikit-learn's digits need no download (default: %(default)s)",
    )


def add_training(options, batch_size, epochs, scaling):
    """`--batch-size`, `--epochs` and `--batch-norm`; `scaling` tells how the rate follows."""
    options.add_argument(
        "--batch-size",
        type=positive,
        default=batch_size,
        help=f"samples per step; {scaling} (default: %(default)s)",
    )
    add_epochs(options, epochs)
    options.add_argument(
        "--batch-norm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put batch normalization before each activation but the last (default: on)",
    )


def add_epochs(options, epochs):
    """`--epochs`."""
    options.add_argument(
        "--epochs",
        type=positive,
        default=epochs,
        help="passes over the data (default: %(default)s)",
    )


def add_seeds(options, seeds=3):
    """`--seeds`."""
    options.add_argument(
        "--seeds", type=positive, default=seeds, help="how many starts (default: %(default)s)"
    )
