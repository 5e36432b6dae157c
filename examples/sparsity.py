"""How much of a network can be zero? LeNet-5 with single zeros, LeNet-5 and a small VGG without
whole filters and units.

Each network is trained plainly; then from the same start with a penalty that acts by a proximal
step and comes in slowly, until enough is zero; then what is left is trained without it. Zeros of
single weights (L1) are held, zeros of whole filters and units (group lasso) are taken out by
`shrink`. Accuracy is that on held-out images; the plain network gets as many epochs as both
trainings together.
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
from _options import add_dataset, add_seeds, parser, positive
from _verdict import below

import keras_regtools as rt
from keras_regtools.applications import lenet5, vgg

PARTS = {  # network and penalty, with the strengths for digits and for larger data
    "LeNet-5, single weights": (lenet5, rt.regularizers.L1),
    "LeNet-5, filters and units": (lenet5, rt.regularizers.GroupLasso),
    "small VGG, filters and units": (
        lambda shape: vgg(shape, 10, filters=((16, 16), (32, 32)), dense=(64,)),
        rt.regularizers.GroupLasso,
    ),
}
STRENGTHS = {  # of convolutional and of dense layers
    "digits": ((2e-4, 3e-3), (8e-4, 8e-4), (2e-4, 2e-4)),
    "fashion_mnist": ((3e-5, 8.5e-4), (2e-4, 3e-4), (2e-4, 3e-4)),
}
BATCHES = {"digits": (32, 256), "fashion_mnist": (128, 2048)}  # usual ones, and the last ones


def main():
    args = parse()
    begin = time.perf_counter()
    rows = []
    for seed in range(args.seed, args.seed + args.seeds):
        (x, y), held_out = load_images(args.dataset, seed)
        training = x[: args.samples], y[: args.samples]
        for part, strengths in zip(PARTS, own(STRENGTHS, args), strict=True):
            rows += trial(part, strengths, training, held_out, seed, args)
        print(f"seed {seed}: {time.perf_counter() - begin:.0f} s", flush=True)
    table = pd.DataFrame(rows)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "runs.csv", index=False)
    sentences = verdict(table, args)
    draw(table, sentences).savefig(folder / "sparsity.png", dpi=110)
    print(table.to_string(index=False, float_format="{:.4g}".format))
    print(sentences)
    print(f"The picture is {folder / 'sparsity.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def own(by_dataset, args):
    return by_dataset.get(args.dataset, by_dataset["fashion_mnist"])


def parse():
    options = parser(__doc__, "runs/sparsity")
    add_dataset(options, DATASETS)
    add_seeds(options, 2)
    options.add_argument(
        "--epochs",
        type=positive,
        default=None,
        help="with the penalty; as many again without it (default: 25 for digits, 20 for others)",
    )
    options.add_argument("--samples", type=positive, default=None, help="training images (all)")
    args = options.parse_args()
    if args.smoke:
        args.samples, args.seeds, args.epochs = 64, 1, 2
    args.epochs = args.epochs or (25 if args.dataset == "digits" else 20)
    return args


def compiled(model, epochs, training, batch):
    steps = epochs * (len(training[0]) // batch)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, max(steps, 1))),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def fit(model, training, batch, epochs, seed, *callbacks):
    data = Shuffled(*training, min(batch, len(training[0])), seed)
    model.fit(data, epochs=epochs, verbose=0, callbacks=list(callbacks))


def trial(part, strengths, training, held_out, seed, args):
    """One network: plain, sparse, and sparse with what is left trained."""
    make, kind = PARTS[part]
    batch, large = own(BATCHES, args)
    shape = training[0].shape[1:]
    keras.utils.set_random_seed(seed)
    plain = make(shape)
    conv, dense = (kind(0.0, proximal=True) for _ in strengths)
    sparse = rt.regularize(plain, conv=conv, dense=dense)

    compiled(plain, 2 * args.epochs, training, batch)
    fit(plain, training, batch, 2 * args.epochs, seed)
    before = told(part, seed, "plain", plain, plain, held_out)

    few = max(args.epochs // 5, 1)  # of the last epochs, in large batches
    ramp = [
        rt.callbacks.Schedule(penalty, name, up_to(value, args.epochs - few))
        for penalty, value in zip((conv, dense), strengths, strict=True)
        for name in penalty.strengths
    ]
    compiled(sparse, 4 * args.epochs, training, batch)  # so that the rate hardly falls
    fit(sparse, training, batch, args.epochs - few, seed, *ramp)
    fit(sparse, training, large, few, seed)
    found = told(part, seed, "sparse", sparse, plain, held_out)

    for penalty in (conv, dense):
        for name in penalty.strengths:
            setattr(penalty, name, 0.0)
    if kind is rt.regularizers.L1:
        rt.regularizers.hold_zeros(sparse)
        small = sparse
    else:
        small = rt.shrink(sparse, verbose=seed == args.seed)
    compiled(small, args.epochs, training, batch)
    fit(small, training, batch, args.epochs, seed)
    return [before, found, told(part, seed, "trained again", small, plain, held_out)]


def up_to(value, epochs):
    """Nothing, then from nothing to a value in the middle half, then that."""
    return lambda epoch: value * float(np.clip(2 * (epoch + 1) / max(epochs, 1) - 0.5, 0, 1))


def told(part, seed, state, model, plain, held_out):
    kernels = [
        keras.ops.convert_to_numpy(v).ravel() for v in model.trainable_variables if len(v.shape) > 1
    ]
    weights = np.concatenate(kernels)
    whole = sum(int(np.prod(v.shape)) for v in plain.trainable_variables if len(v.shape) > 1)
    return {
        "part": part,
        "seed": seed,
        "state": state,
        "accuracy": model.evaluate(*held_out, batch_size=512, verbose=0)[1],
        "zeros": 1 - np.count_nonzero(weights) / whole,
        "parameters": model.count_params(),
    }


def verdict(table, args):
    """A sentence for each network, from its numbers."""
    lines = [f"On {args.dataset}, {table['seed'].nunique()} seeds (mean ± standard deviation):"]
    for part in PARTS:
        own = table[table["part"] == part].set_index(["state", "seed"])
        plain, last = own.loc["plain"], own.loc["trained again"]
        lost = 100 * (plain["accuracy"] - last["accuracy"])
        sizes = last["parameters"] / plain["parameters"]
        size = f"{last['zeros'].mean():.1%} of the weights exactly zero"
        if "single" not in part:
            size = f"{1 - sizes.mean():.0%} of the parameters gone"
        lines.append(
            f"{part}: {size} at an accuracy of {last['accuracy'].mean():.4f}, "
            f"{plain['accuracy'].mean():.4f} plain: {lost.mean():.2f} ± {lost.std(ddof=0):.2f} "
            "points lost."
        )
    return "\n".join(lines)


def draw(table, sentences):
    figure, axes = plt.subplots(1, len(PARTS), figsize=(12, 4), layout="constrained", sharey=True)
    for ax, part in zip(axes, PARTS, strict=True):
        own = table[table["part"] == part]
        for state, marker in (("plain", "o"), ("sparse", "s"), ("trained again", "D")):
            rows = own[own["state"] == state]
            ax.plot(100 * rows["zeros"], rows["accuracy"], marker, label=state, alpha=0.8)
        ax.set(title=part, xlabel="weights that are zero or gone, %", xlim=(-4, 104))
        ax.grid(alpha=0.2)
    axes[0].set_ylabel("accuracy on held-out images")
    axes[0].legend()
    below(figure, sentences)
    return figure


if __name__ == "__main__":
    main()
