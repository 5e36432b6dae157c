"""Which measures of flatness move although the function does not? The objection of Dinh et al.

A ReLU network computes the same when the weights into a layer are multiplied by a and those out of
it are divided by a. A trained network is rescaled so with a = 1, 3 and 10, and every measure of
flatness is taken: one that moves says something of the weights that the function does not know.
"""

import functools
import pathlib

import _onednn  # noqa: F401
import keras
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from _data import DATASETS, load_images
from _options import add_dataset, add_epochs, parser
from _verdict import below

import keras_regtools as rt

FACTORS = (1, 3, 10)
MEASURES = {
    "Keskar, full space": rt.measures.keskar_sharpness,
    "Keskar, subspace": functools.partial(rt.measures.keskar_sharpness, subspace=100),
    "SAM": rt.measures.sam_sharpness,
    "ASAM": rt.measures.asam_sharpness,
    "average": rt.measures.average_sharpness,
    "average, adaptive": functools.partial(rt.measures.average_sharpness, adaptive=True),
    "worst case l2": rt.measures.worst_sharpness,
    "worst case l2, adaptive": functools.partial(rt.measures.worst_sharpness, adaptive=True),
    "PAC-Bayes 1/σ²": rt.measures.pac_bayes_sharpness,
    "top eigenvalue": rt.measures.hessian_eigenvalues,
    "trace": rt.measures.hessian_trace,
    "relative flatness (layer 1)": functools.partial(rt.measures.relative_flatness, layer="first"),
    "Fisher-Rao": rt.measures.fisher_rao_norm,
    "norm of the weights": rt.measures.weight_norm,
}
FIXED = 1.1  # a measure that changes by less than this factor has not moved


def main():
    options = parser(__doc__, "runs/rescaling")
    add_dataset(options, DATASETS)
    add_epochs(options, 10)
    args = options.parse_args()
    keras.utils.set_random_seed(args.seed)
    (x, y), _ = load_images(args.dataset, args.seed, padded=False)
    units, samples = (8, 64) if args.smoke else (64, 1024)
    x, y = (x[:256], y[:256]) if args.smoke else (x, y)

    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(units, activation="relu", use_bias=False, name="first"),
            keras.layers.Dense(10, activation="softmax", use_bias=False, name="second"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, epochs=1 if args.smoke else args.epochs, verbose=0)

    first, second = model.get_weights()
    surface = rt.LossSurface(model, x[:samples], y[:samples])
    series = {f"{a:g}": [first * a, second / a] for a in FACTORS}
    wanted = MEASURES
    if args.smoke:
        wanted = {name: MEASURES[name] for name in ("SAM", "worst case l2, adaptive")}
    table = rt.measures.by_checkpoint(surface, {"loss": lambda s: s.value()} | wanted, series)
    table = table.to_frame()[["loss", *wanted]].T

    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "rescaling.csv")
    relative = table.div(table["1"], axis=0)
    moves = relative.max(axis=1) > FIXED * relative.min(axis=1)
    text = (
        f"The function is the same for every a. Moved: {'; '.join(moves.index[moves])}.\n"
        f"Not moved: {'; '.join(moves.index[~moves])}."
    )
    figure = draw(relative)
    below(figure, text)
    figure.savefig(folder / "rescaling.png", dpi=110)
    print(table.to_string(float_format=lambda v: f"{v:.4g}"))
    print(f"\n{text}")
    print(f"The picture is {folder / 'rescaling.png'}")


def draw(relative):
    """Each measure relative to what it was before the rescaling."""
    figure, ax = plt.subplots(figsize=(9, 5.5), layout="constrained")
    names = relative.index[::-1]
    for i, a in enumerate(relative.columns):
        ax.plot(
            relative.loc[names, a],
            range(len(names)),
            "os^"[i],
            markersize=11 - 3 * i,
            color=f"C{i}",
            label=f"a = {a}",
        )
    ax.set_yticks(range(len(names)), names)
    ax.set(
        xscale="log",
        xlabel="value relative to a = 1",
        title="First layer times a, second divided by a: the same function",
    )
    ax.axvline(1, color="black", linewidth=0.8, linestyle=":")
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


if __name__ == "__main__":
    main()
