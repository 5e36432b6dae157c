"""What `regularization_effects.py` shows: a table, a picture, a sentence for each claim."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _verdict import below

PUBLISHED = {0.0: 0.4203, 0.2: 0.3883, 0.5: 0.3554}  # validation loss by dropout of dense layers
WITHOUT_BN = ("nothing", "dropout", "L2", "L1", "L1 proximal", "BN")


def summary(table):
    """Mean ± standard deviation over the seeds, by setting."""
    shown = {
        **{name: 3 for name in ("training loss", "validation loss", "test loss", "test accuracy")},
        **{"gap": 1, "epochs": 0, "seconds": 1, "dense norm": 1, "dense zeros": 2},
        **{"dense small": 2, "conv small": 2, "active units": 1, "activity": 1},
    }
    groups = table.groupby(["family", "setting"], sort=False)[list(shown)]
    mean, spread = groups.mean(), groups.std(ddof=1).fillna(0.0)
    text = {
        name: [
            f"{m:.{digits}f} ± {s:.{digits}f}"
            for m, s in zip(mean[name], spread[name], strict=True)
        ]
        for name, digits in shown.items()
    }
    return pd.DataFrame(text, index=mean.index).reset_index()


def chosen(table):
    """By family, the setting of the lowest mean validation loss."""
    means = table.groupby(["family", "setting"], sort=False)["validation loss"].mean()
    return {family: means[family].idxmin() for family in table["family"].unique()}


def runs(table, family, setting):
    part = table[(table["family"] == family) & (table["setting"] == setting)]
    return part.set_index("seed")


def compared(table, one, other, column):
    """Mean and standard error of one minus the other, seed by seed; each a (family, setting)."""
    gains = (runs(table, *one)[column] - runs(table, *other)[column]).dropna()
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
    return float(gains.mean()), float(error)


def word(mean, error):
    """Whether a difference is below zero by two standard errors: held, not, or undecided."""
    if not np.isfinite(error) or abs(mean) <= 2 * error:
        return "undecided"
    return "held" if mean < 0 else "did not hold"


def named(family, setting):
    return f"{family} {setting}".strip()


def report(table, course, args):
    best = chosen(table)
    lines = [
        f"{args.samples} training images of {args.dataset}, {table['seed'].nunique()} seeds; ± is "
        "a standard error. Where families are compared, each takes its best setting on the "
        "validation images, and the test images decide.",
        _dropout_best(table, best),
        _property(
            table, "Dropout makes activations sparse", "dropout", "active units", "{:.1f}",
            "units above zero of 128",
        ),
        _sparse_weights(table),
        _property(
            table, "L2 makes weights small", "L2", "dense norm", "{:.2f}",
            "length of the dense kernels",
        ),
        _apart(table),
        _with_batch_norm(table, best),
        _published(table),
        _penalty_before(course),
    ]  # fmt: skip
    return "\n".join(lines)


def _dropout_best(table, best):
    own = ("dropout", best["dropout"])
    rivals = [f for f in WITHOUT_BN if f in best and f != "dropout"]
    words, parts = [], []
    for family in rivals:
        mean, error = compared(table, own, (family, best[family]), "test loss")
        words.append(word(mean, error))
        parts.append(f"{mean:+.3f} ± {error:.3f} against {named(family, best[family])}")
    all_held = all(w == "held" for w in words)
    verdict = "held" if all_held else next((w for w in words if w == "did not hold"), "undecided")
    return f"Dropout is best ({named(*own)}): {verdict}. Test loss {', '.join(parts)}."


def strongest(table, family):
    """The last setting of a family that acts on the dense layers alone."""
    settings = table[table["family"] == family]["setting"].unique()
    return [setting for setting in settings if setting.startswith("dense")][-1]


def _property(table, claim, family, column, digits, unit):
    setting = strongest(table, family)
    mean, error = compared(table, (family, setting), ("nothing", ""), column)
    values = [runs(table, *x)[column].mean() for x in ((family, setting), ("nothing", ""))]
    now, before = (digits.format(v) for v in values)
    return (
        f"{claim} ({named(family, setting)}): {word(mean, error)}. {now} {unit}, {before} with "
        "nothing."
    )


def _sparse_weights(table):
    own = {family: strongest(table, family) for family in ("L2", "L1", "L1 proximal")}
    own["nothing"] = ""
    found = {
        family: runs(table, family, setting)[["dense small", "dense zeros"]].mean()
        for family, setting in own.items()
    }
    mean, error = compared(table, ("nothing", ""), ("L1", own["L1"]), "dense small")
    plain, exact = found["L1"], found["L1 proximal"]
    return (
        f"L1 makes weights sparse ({named('L1', own['L1'])}): {word(mean, error)}, if sparse "
        f"means below 0.001: {plain['dense small']:.0%} of the dense weights, "
        f"{found['nothing']['dense small']:.0%} with nothing, {found['L2']['dense small']:.0%} "
        f"with L2. Exactly zero are {plain['dense zeros']:.0%}; with a proximal step "
        f"{exact['dense zeros']:.0%}."
    )


def _apart(table):
    """The best tied setting against the best of those that treat the groups differently."""
    parts = []
    for family in ("dropout", "L2", "L1"):
        means = table[table["family"] == family].groupby("setting")["validation loss"].mean()
        tied = [s for s in means.index if s.startswith("all")]
        apart = [s for s in means.index if not s.startswith("all")]
        if not tied or not apart:
            continue
        one, other = means[apart].idxmin(), means[tied].idxmin()
        mean, error = compared(table, (family, one), (family, other), "test loss")
        parts.append(
            f"{family}: {word(mean, error)} ({one} against {other}: {mean:+.3f} ± {error:.3f})"
        )
    told = "; ".join(parts) if parts else "undecided, no such settings were run"
    return f"Convolutional and dense layers want their own strengths: {told}."


def _with_batch_norm(table, best):
    own = ("BN", best["BN"])
    parts = []
    for family in ("BN and dropout", "BN and L2"):
        mean, error = compared(table, (family, best[family]), own, "test loss")
        added = {"held": "helps", "did not hold": "harms", "undecided": "undecided"}
        parts.append(
            f"{named(family, best[family])} {mean:+.3f} ± {error:.3f} ({added[word(mean, error)]})"
        )
    without, error = compared(table, ("dropout", best["dropout"]), ("nothing", ""), "test loss")
    text = (
        f"Less dropout and L2 with batch normalization: what they add to it on the test loss: "
        f"{', '.join(parts)}; dropout without it {without:+.3f} ± {error:.3f}."
    )
    if "before it 0.5" in set(table["setting"]):
        mean, error = compared(
            table, ("BN and dropout", "before it 0.5"), ("BN and dropout", "dense 0.5"), "test loss"
        )
        text += f" Dropout before it instead of after it: {mean:+.3f} ± {error:.3f}."
    return text


def _published(table):
    settings = {0.0: ("nothing", ""), 0.2: ("dropout", "dense 0.2"), 0.5: ("dropout", "dense 0.5")}
    ours = {
        rate: runs(table, *setting)["validation loss"].mean() for rate, setting in settings.items()
    }
    pairs = ", ".join(f"{rate:g}: {ours[rate]:.3f} / {PUBLISHED[rate]:.3f}" for rate in ours)
    return (
        f"Validation loss by dropout of the dense layers, here / published (Pathak & Chang, 2020, "
        f"cats and dogs): {pairs}."
    )


def _penalty_before(course):
    last = {run: part.iloc[-1] for run, part in course.groupby("run", sort=False)}
    curves = {
        run: part["validation loss"].to_numpy() for run, part in course.groupby("run", sort=False)
    }
    plain, penalized, matched = curves
    half = len(curves[plain]) // 2

    def apart(one, other):
        return float(np.abs(np.log(curves[one][half:] / curves[other][half:])).mean())

    ratio = last[plain]["length"] / last[penalized]["length"]
    scaled, loss = last[penalized]["rescaled"], last[penalized]["validation loss"]
    return (
        f"L2 in front of batch normalization: kernels {ratio:.1f} times shorter, so an effective "
        f"rate {ratio**2:.0f} times as large. Ten times as long again they give the validation "
        f"loss {scaled:.3f} instead of {loss:.3f}. Without a penalty, "
        f"but with lengths brought to those of the penalized run after each epoch, the validation "
        f"loss of the second half lies {apart(matched, penalized):.0%} from the penalized run and "
        f"{apart(plain, penalized):.0%} without that."
    )


def draw(table, course, sentences):
    figure, axes = plt.subplots(1, 3, figsize=(13, 5.2), layout="constrained")
    order = table.groupby(["family", "setting"], sort=False)
    names = [named(*key) for key in order.groups]
    places = np.arange(len(names))[::-1]
    families = list(dict.fromkeys(table["family"]))
    colours = [f"C{families.index(key[0])}" for key in order.groups]
    for ax, column, title in (
        (axes[0], "test loss", "Test loss at the best epoch"),
        (axes[1], "active units", "Units above zero, of 128"),
    ):
        for place, colour, (_, part) in zip(places, colours, order, strict=True):
            ax.plot(part[column], [place] * len(part), ".", color=colour, alpha=0.5)
            ax.plot(part[column].mean(), place, "|", color=colour, markersize=14, mew=2)
        nothing = runs(table, "nothing", "")[column].mean()
        ax.axvline(nothing, color="grey", linewidth=0.8, linestyle=":")
        ax.set(title=title)
        ax.set_yticks(places, names if ax is axes[0] else [""] * len(names))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", alpha=0.2)
    axes[0].set_xlabel("each point one seed, bar: mean,\ndotted: with nothing")
    styles = ("-", "-", "--")
    for (run, part), style in zip(course.groupby("run", sort=False), styles, strict=True):
        axes[2].plot(part["epoch"], part["validation loss"], style, label=run)
    axes[2].set(title="L2 in front of batch normalization", xlabel="epoch")
    axes[2].set(ylabel="validation loss on the data", yscale="log")
    axes[2].legend(loc="upper left", fontsize=8)
    below(figure, sentences)
    return figure
