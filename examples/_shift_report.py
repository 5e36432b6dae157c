"""What `internal_covariate_shift.py` shows: a picture, and sentences from its numbers."""

import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

PERCENTILES = ("percentile_15", "percentile_50", "percentile_85")
NAMES = {False: "without batch normalization", True: "with batch normalization"}
COLORS = {False: "C1", True: "C0"}
MARGIN = 1.1  # a factor below it is no difference
BEGUN = 0.5 * math.log(10)  # half the loss of guessing one of ten classes


def report(steps, drifts, args):
    """A finding for each meaning of the shift, from the seeds in which both networks trained."""
    at_end = steps.dropna(subset=["loss"]).groupby(["seed", "batch norm"])["loss"].agg(_at_end)
    trained = (at_end < BEGUN).unstack()
    missing = trained.index[~trained.all(axis=1)]
    text = [""]
    if len(missing):
        seeds = ", ".join(str(seed) for seed in missing)
        text.append(f"Seeds in which a network did not train, and which decide nothing: {seeds}.")
    if len(missing) == len(trained):
        return "\n".join([*text, "No verdict: in no seed did both networks train."])
    steps, drifts = (table[~table["seed"].isin(missing)] for table in (steps, drifts))
    drift, against = (
        drifts.groupby(["seed", "batch norm"])[name].median().unstack()
        for name in ("drift", "drift / width")
    )
    text.append(
        "Percentiles (Ioffe & Szegedy): over the training the three percentiles of what a sigmoid "
        f"of the last hidden layer receives went {_both(drift, '.2f')} (in units of its input, "
        f"median of {args.units} sigmoids), which {_change(drift)}; against the width between the "
        f"outer two they went {_both(against, '.2f')}, which {_change(against)}."
    )
    early, late, same_loss = (compare(steps, "distance", how) for how in ("early", "late", "loss"))
    cosine = compare(steps, "cosine", "loss")
    text.append(
        "Gradients (Santurkar et al.): how far those of the dense layers move when the layers "
        f"before them take their step, ‖G − G'‖, was {_both(early, '.2g')} until the network "
        f"without had begun to learn (a loss below {BEGUN:.2f}), which {_change(early)}; in the "
        f"steps after that {_both(late, '.2g')}, which {_change(late)}; at the same loss "
        f"{_both(same_loss, '.2g')}, which {_change(same_loss)}, and the cosine between G and G' "
        f"was {_both(cosine, '.2f')}."
    )
    reached = _steps_to_target(steps, args.target)
    ends = steps.dropna(subset=["accuracy"]).groupby(["seed", "batch norm"])["accuracy"].last()
    text.append(
        f"Test accuracy: {_both(ends.unstack(), '.4f')} at the end, and {args.target:g} after "
        f"{_both(reached, '.0f')} steps."
    )
    verdicts = [
        f"{_held(drift)} for the percentiles",
        f"{_held(early)} for the gradients in the first steps",
        f"{_held(late)} for those in the later steps",
        f"{_held(same_loss)} for those at the same loss",
    ]
    text.append(
        "That batch normalization reduces internal covariate shift on these data: it "
        f"{', '.join(verdicts)}."
    )
    return "\n".join(text)


def compare(steps, column, how):
    """By seed, the medians without and with batch normalization.

    Over the steps until the network without had begun to learn ("early") or after that ("late"); or
    over the half decades of a loss below 1 that both went by ("loss").
    """
    rows = {}
    for seed, runs in steps.dropna(subset=[column]).groupby("seed"):
        stage = runs["step"] * 0
        if how == "loss":
            runs = runs[runs["loss"] < 1]
            stage = np.floor(2 * np.log10(runs["loss"]))
        else:
            begun = runs.loc[~runs["batch norm"] & (runs["loss"] < BEGUN), "step"].min()
            runs = runs[(runs["step"] < begun) == (how == "early")]
        medians = runs.groupby(["batch norm", stage])[column].median()
        rows[seed] = medians.unstack(0).reindex(columns=[False, True]).dropna().median()
    return pd.DataFrame(rows).T


def _at_end(losses):
    """The median of the last quarter; NaN if it diverged."""
    return losses.tail(math.ceil(len(losses) / 4)).median(skipna=False)


def _steps_to_target(steps, target):
    reached = steps[steps["accuracy"] >= target].groupby(["seed", "batch norm"])["step"].first()
    seeds = pd.MultiIndex.from_product([steps["seed"].unique(), [False, True]])
    return reached.reindex(seeds).unstack()


def _both(values, form):
    cells = []
    for flag in (False, True):
        known = values[flag].dropna()
        count = "" if len(known) == len(values) else f" ({len(known)} of {len(values)} seeds)"
        number = f"{known.median():{form}}" if len(known) else "no number"
        cells.append(f"{number} {NAMES[flag].split()[0]}{count}")
    return f"{cells[0]} and {cells[1]} batch normalization"


def _change(values):
    values = values.dropna()
    if not len(values):
        return "cannot be compared"
    times = values[True] / values[False]
    if times.median() <= 1:
        return (
            f"is less with it in {(times < 1 / MARGIN).sum()} of {len(times)} seeds, by a factor "
            f"of {1 / times.median():.2g}"
        )
    return (
        f"is more with it in {(times > MARGIN).sum()} of {len(times)} seeds, by a factor of "
        f"{times.median():.2g}"
    )


def _held(values):
    times = (values[True] / values[False]).dropna()
    if not len(times):
        return "has no verdict"
    less = times < 1 / MARGIN
    return "held" if less.all() else "held only in part" if less.any() else "did not hold"


def draw(steps, args):
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.5), layout="constrained")
    figure.suptitle(
        f"Internal covariate shift, twice: three layers of {args.units} sigmoids on "
        f"{args.dataset}, SGD at {args.rate:g}, batches of {args.batch_size}, {args.seeds} seeds",
        fontsize=13,
    )
    for flag, ax in zip((False, True), axes[0], strict=False):
        _draw_percentiles(ax, steps[steps["batch norm"] == flag], flag, args)
    axes[0, 1].sharey(axes[0, 0])
    axes[0, 0].autoscale(axis="y")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low - 0.2 * (high - low), high)  # room for the legend
    accuracy, distance, at_loss, cosine = axes[0, 2], *axes[1]
    for flag in (False, True):
        for seed, run in steps[steps["batch norm"] == flag].groupby("seed"):
            style = {"color": COLORS[flag], "alpha": 0.6, "linewidth": 1.2}
            style["label"] = NAMES[flag] if seed == args.seed else None
            looked, measured = run.dropna(subset=["accuracy"]), run.dropna(subset=["loss"])
            accuracy.plot(looked["step"], looked["accuracy"], **style)
            distance.plot(measured["step"], measured["distance"], **style)
            style |= {"linestyle": "", "marker": ".", "markersize": 4}
            at_loss.plot(measured["loss"], measured["distance"], **style)
            cosine.plot(measured["loss"], measured["cosine"], **style)
    accuracy.set(title="Test accuracy", xlabel="training steps", ylabel="accuracy", ylim=(0, 1.02))
    distance.set(
        title="Santurkar et al.: how far the gradient moves",
        xlabel="training steps",
        ylabel="‖G − G'‖, mean of the dense layers",
        yscale="log",
    )
    at_loss.set(
        title="The same, at the same loss",
        xlabel="loss of the batch (training goes to the right)",
        ylabel="‖G − G'‖, mean of the dense layers",
        yscale="log",
    )
    cosine.set(
        title="Does it keep its direction, at the same loss?",
        xlabel="loss of the batch (training goes to the right)",
        ylabel="cosine of the angle between G and G'",
    )
    for ax in (at_loss, cosine):
        ax.set_xscale("log")
        ax.invert_xaxis()
    for ax in axes.flat:
        ax.grid(alpha=0.3)
        ax.legend(fontsize=9, loc="lower right" if ax in axes[0] else "best")
    return figure


def _draw_percentiles(ax, runs, flag, args):
    run = runs[runs["seed"] == args.seed].dropna(subset=[PERCENTILES[0]])
    low, middle, high = (run[name] for name in PERCENTILES)
    ax.fill_between(run["step"], low, high, color=COLORS[flag], alpha=0.2)
    for values in (low, high):
        ax.plot(run["step"], values, color=COLORS[flag], linewidth=0.8)
    ax.plot(run["step"], middle, color=COLORS[flag], linewidth=1.8, label="50th percentile")
    ax.fill_between([], [], color=COLORS[flag], alpha=0.2, label="15th to 85th percentile")
    ax.set(
        title=f"Ioffe & Szegedy: {NAMES[flag]}",
        xlabel="training steps",
        ylabel="what a typical sigmoid of the\nlast hidden layer receives",
    )
