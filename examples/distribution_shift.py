"""Trained on grey images and shown coloured ones: what helps a network, and where does it break?

The notes' black and coloured cats, with digits: half of the training images are grey and have
labels, the other half are new and rendered in another way. A small VGG with batch normalization and
one without are trained on the grey ones and tested on both renderings: as they are, after
`recalibrate` on the new images without their labels, and after retraining on them with labels. The
drift of what each layer receives is measured against what it received in the training.
"""

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
from _options import add_dataset, add_epochs, add_seeds, parser
from _verdict import below

import keras_regtools as rt

CLASSES = 10
NETWORKS = {"with": "with batch normalization", "without": "without batch normalization"}
SITUATIONS = {
    "trained": "grey images,\nas trained",
    "new": "new images,\nas trained",
    "recalibrated": "new images,\nrecalibrated\n(no labels)",
    "retrained": "new images,\nretrained\n(labels)",
}
DRIFTS = {
    "new": "new images, before",
    "recalibrated": "new images, after recalibration",
    "grey": "other grey images",
}
MARGIN = 0.01  # a difference in accuracy below it is none
TRAINED = 0.5  # accuracy on grey test images below which a network has not been trained


def main():
    args = parse()
    begin = time.perf_counter()
    (x, y), (x_test, y_test) = load_images(args.dataset, args.seed, padded=False)
    if args.smoke:
        x, y, x_test, y_test = x[:64], y[:64], x_test[:64], y_test[:64]
    images = [x.mean(-1, keepdims=True), x_test.mean(-1, keepdims=True)]
    grey, grey_test = (np.repeat(part, 3, axis=-1) for part in images)
    new, new_test = (render(args.rendering, part, i) for i, part in enumerate(images))
    half = len(x) // 2
    old = {"x": grey[:half], "y": y[:half], "test": (grey_test, y_test)}
    new = {"x": new[half:], "y": y[half:], "test": (new_test, y_test), "grey": grey[half:]}

    rows, layers, begins = [], [], []
    for seed in range(args.seed, args.seed + args.seeds):
        for network in NETWORKS:
            found, drifts, layer = run(network, seed, old, new, args)
            rows.append({"seed": seed, "network": network, **found})
            if network == "with":
                layers.append(drifts.assign(seed=seed))
                begins.append(layer)
            said = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"seed {seed}, {NETWORKS[network]}: accuracy {said}", flush=True)

    table, layers = pd.DataFrame(rows), pd.concat(layers)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "accuracy.csv", index=False)
    layers.to_csv(folder / "layers.csv")
    text = report(table, begins, args)
    figure = draw(table, layers, grey_test, new_test, args)
    below(figure, text.splitlines()[-1])
    figure.savefig(folder / "distribution_shift.png", dpi=110)
    print(text)
    print(f"The picture is {folder / 'distribution_shift.png'}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


def parse():
    options = parser(__doc__, "runs/distribution_shift")
    add_dataset(options, DATASETS)
    options.add_argument(
        "--rendering",
        choices=("coloured", "tinted", "faded", "negative"),
        default="coloured",
        help="the new images: each in a colour of its own on a darker one, all in the same two "
        "colours, of little contrast, or in negative (default: %(default)s)",
    )
    add_seeds(options)
    add_epochs(options, 15)
    args = options.parse_args()
    if args.smoke:
        args.seeds, args.epochs = 1, 1
    return args


def render(rendering, images, seed):
    """Images of three channels from images of one: light where they are light, or in negative."""
    rng = np.random.default_rng(seed)
    light, dark = {
        "coloured": [rng.uniform(low, low + 0.5, (len(images), 1, 1, 3)) for low in (0.5, 0)],
        "tinted": [(1, 0.7, 0.2), (0.1, 0.3, 0.6)],
        "faded": [(0.7,) * 3, (0.4,) * 3],
        "negative": [(0,) * 3, (1,) * 3],
    }[rendering]
    light, dark = (np.asarray(colour, "float32") for colour in (light, dark))
    return dark + images * (light - dark)


def run(network, seed, old, new, args):
    """The accuracy by situation, the drift by layer, and the layer at which the shift begins."""
    keras.utils.set_random_seed(seed)
    small = {"filters": ((4,),), "dense": (8,)}
    usual = {"filters": ((16, 16), (32, 32)), "dense": (64,)}
    model = rt.applications.vgg(old["x"].shape[1:], CLASSES, **(small if args.smoke else usual))
    if network == "with":
        model = rt.regularize(model, batch_norm=True)
    train(model, old, args.epochs)
    accuracy = {"trained": test(model, old), "new": test(model, new)}
    shift = rt.measures.distribution_shift(model, old["x"], new["x"])
    statistics = inputs(model)
    received = statistics(old["x"])
    drifts = {
        name: drift(received, statistics(new[key]))
        for name, key in (("grey", "grey"), ("new", "x"))
    }
    if network == "with":
        rt.recalibrate(model, new["x"])
        accuracy["recalibrated"] = test(model, new)
        drifts["recalibrated"] = drift(received, statistics(new["x"]))
    train(model, new, math.ceil(args.epochs / 3))
    accuracy["retrained"] = test(model, new)
    return accuracy, pd.DataFrame(drifts).rename_axis("layer"), shift.begins_at


def train(model, data, epochs):
    model.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(data["x"], data["y"], batch_size=32, epochs=epochs, verbose=0)
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        rt.recalibrate(model, data["x"])  # after few steps its moving statistics lag behind


def test(model, data):
    return model.evaluate(*data["test"], verbose=0, return_dict=True)["accuracy"]


def inputs(model):
    """A function to the mean and variance, by channel, of what each layer with weights receives."""
    names = [layer.name for layer in model.layers if layer.weights]
    inner = keras.Model(model.inputs, [model.get_layer(name).input for name in names])

    def statistics(x):
        parts = [part.reshape(-1, part.shape[-1]) for part in inner.predict(x[:1024], verbose=0)]
        return {n: (part.mean(0), part.var(0)) for n, part in zip(names, parts, strict=True)}

    return statistics


def drift(before, after):
    """By layer, the distance of the means in standard deviations, as `distribution_shift` has it.

    That measure looks at one network. Recalibrated, it would send the old images through the new
    statistics too; here they go through those that it was trained with.
    """
    return {
        name: math.sqrt(np.sum((after[name][0] - mean) ** 2) / np.sum(variance))
        for name, (mean, variance) in before.items()
    }


def report(table, begins, args):
    """A table of accuracies, and the finding."""
    by_seed = table.pivot(index="seed", columns="network").reindex(columns=SITUATIONS, level=0)
    shown = 100 * table.groupby("network")[list(SITUATIONS)].agg(["mean", "std"])
    text = ["\nTest accuracy in per cent:", shown.T.to_string(float_format=lambda v: f"{v:.1f}")]
    trained = (by_seed["trained"] >= TRAINED).all(axis=1)
    if not trained.all():
        failed = ", ".join(str(seed) for seed in trained.index[~trained])
        text.append(f"Did not train on the grey images, and decide nothing: seeds {failed}.")
    if not trained.any():
        return "\n".join([*text, "No verdict: in no seed did both networks train."])
    found, begins = by_seed[trained], [b for b, ok in zip(begins, trained, strict=True) if ok]
    mean = {key: f"{100 * value:.0f} %" for key, value in found.mean().items()}
    helped = (found["recalibrated", "with"] > found["new", "with"] + MARGIN).sum()
    hurt = (found["new", "with"] < found["new", "without"] - MARGIN).sum()
    seeds = f"{len(found)} seeds"
    first = max(set(begins), key=begins.count)
    text.append(
        f"\nTrained on grey {args.dataset}, the network with batch normalization was right on "
        f"{mean['new', 'with']} of {args.rendering} test images ({mean['trained', 'with']} of grey "
        f"ones), on {mean['recalibrated', 'with']} recalibrated without labels (more in {helped} "
        f"of {seeds}) and on {mean['retrained', 'with']} retrained with labels; the one without "
        f"was right on {mean['new', 'without']} (more than the one with in {hurt} of {seeds}) and "
        f"on {mean['retrained', 'without']} retrained; the shift in the one with begins at "
        f"{first or 'no layer'} (in {begins.count(first)} of {seeds})."
    )
    return "\n".join(text)


def draw(table, layers, old, new, args):
    figure = plt.figure(figsize=(14, 5.5), layout="constrained")
    figure.suptitle(
        f"A small VGG trained on grey {args.dataset} and shown {args.rendering} ones, "
        f"{args.seeds} seeds"
    )
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 2.6, 2.6))
    strips = [
        np.pad(part[:6], ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1) for part in (old, new)
    ]
    left.imshow(np.concatenate([np.concatenate(strip) for strip in strips], axis=1))
    left.set_title("trained on | shown", fontsize=11)
    left.set_axis_off()
    for i, (network, name) in enumerate(NETWORKS.items()):
        runs = table[table["network"] == network]
        for j, situation in enumerate(SITUATIONS):
            values = 100 * runs[situation]
            place = j + 0.4 * (i - 0.5)
            label = {"label": name} if j == 0 else {}
            middle.bar(place, values.mean(), 0.38, color=f"C{i}", alpha=0.6, **label)
            label = {"label": "one seed"} if (i, j) == (1, 0) else {}
            middle.plot([place] * len(values), values, "k.", **label)
            known = values.notna().any()
            said = f"{values.mean():.0f}" if known else "nothing to\nrecalibrate"
            middle.text(place, 1, said, ha="center", va="bottom", fontsize=9 if known else 7)
    middle.set_xticks(range(len(SITUATIONS)), SITUATIONS.values(), fontsize=9)
    middle.set(ylim=(0, 100), ylabel="test accuracy [%]", title="What helps: test accuracy")
    middle.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, fontsize=9)

    names = list(layers.index.unique())
    for i, (column, label) in enumerate(DRIFTS.items()):
        by_layer = layers.groupby("layer")[column]
        places = range(len(names))
        low, high = (end.loc[names] for end in (by_layer.min(), by_layer.max()))
        color = ("C3", "C2", "0.5")[i]
        right.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
        right.plot(places, by_layer.mean().loc[names], "o-", color=color, label=label)
    right.axhline(0.5, color="black", linewidth=0.8, linestyle=":", label="counts as shifted")
    right.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    right.set(
        ylim=(0, None),
        ylabel="drift of the layer's input\n[standard deviations of the training]",
        title="Where it breaks: drift by layer, with batch normalization",
    )
    right.grid(alpha=0.3)
    right.legend(fontsize=9)
    return figure


if __name__ == "__main__":
    main()
