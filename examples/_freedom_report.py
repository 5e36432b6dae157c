"""What `batch_norm_freedom.py` shows: a picture of six panels, and sentences from its numbers."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from _verdict import under
from matplotlib.ticker import MaxNLocator

NAMES = {False: "without batch normalization", True: "with batch normalization"}
COLORS = {False: "C1", True: "C0"}
MARKERS = "os^dv"


def report(table, best, args):
    """One finding for each question."""
    parts = dict(list(table.groupby("part")))
    text = [
        f"\nDense networks on {args.samples} images of {args.dataset}, {args.seeds} seeds, at most "
        f"{args.epochs} epochs of plain gradient descent to a validation accuracy of "
        f"{args.target:g}.",
        _steps(parts["rate"], best),
        _extreme(parts["rate"], "rate", max, "Learning rate: the largest that reaches it"),
        _extreme(
            parts["decay"],
            "decay",
            min,
            f"Decay, from a rate of {best[False]:g}: the smallest factor per epoch that reaches it",
        ),
        _range(parts["rate"]),
        *_penalties(parts["penalty"], args),
        *_deep(parts["deep"], args),
    ]
    return "\n".join(text)


def _pairs(runs, column):
    """By seed, the number without and with batch normalization, where there are both."""
    return runs.pivot_table(index="seed", columns="batch norm", values=column).reindex(
        columns=[False, True]
    )


def _steps(runs, best):
    own = runs[runs["rate"] == runs["batch norm"].map(best)]
    sentences = []
    compared = [(runs[runs["rate"] == best[False]], f"both at the rate {best[False]:g}")]
    if best[True] != best[False]:
        compared.insert(0, (own, f"each at its best rate ({best[False]:g} and {best[True]:g})"))
    for chosen, where in compared:
        steps = _pairs(chosen, "steps").dropna()
        if len(steps) == 0:
            sentences.append(f"{where}: no verdict, there is no seed in which both got there")
            continue
        fewer = (steps[True] < steps[False]).sum()
        sentences.append(
            f"{where}: {steps[False].median():.0f} without and {steps[True].median():.0f} with "
            f"batch normalization, fewer with it in {fewer} of {len(steps)} seeds"
        )
    seconds = runs.groupby("batch norm")["seconds per step"].median()
    return (
        f"Steps to the target, {'; '.join(sentences)}. A step took "
        f"{seconds[True] / seconds[False]:.2f} times as long with it."
    )


def _extreme(runs, column, choose, what):
    """The outermost of the settings that reach the target, and whether that is the last tried."""
    reached = runs.dropna(subset=["steps"])
    outermost = reached.groupby(["seed", "batch norm"])[column].agg(choose).reset_index()
    both = _pairs(outermost, column).dropna()
    if len(both) == 0:
        return f"{what}: no verdict, there is no seed in which both got there with any."
    bound = choose(runs[column])
    better = (both[True] > both[False]) if choose is max else (both[True] < both[False])
    cells = [
        f"{both[flag].median():.3g}"
        + (" (the last one tried)" if both[flag].median() == bound else "")
        + f" {NAMES[flag].split()[0]}"
        for flag in (False, True)
    ]
    return (
        f"{what} was {cells[0]} and {cells[1]} batch normalization in the median: "
        f"{'larger' if choose is max else 'smaller'} with it in {better.sum()} of {len(both)} "
        f"seeds, by a factor of {(both.max(axis=1) / both.min(axis=1)).median():.3g} in the median."
    )


def _range(runs):
    failed = runs.loc[~runs["finite"], "rate"].min()
    calm = runs if np.isnan(failed) else runs[runs["rate"] < failed]
    everywhere, there = [], []
    for flag in (False, True):
        own = runs[runs["batch norm"] == flag]
        span = own["spread"].min(), own["spread"].max()
        everywhere.append(
            f"from {span[0]:.2g} to {span[1]:.2g} {NAMES[flag]} "
            f"({(~own['finite']).sum()} of {len(own)} runs were not finite)"
        )
        spread = calm.loc[calm["batch norm"] == flag, "spread"]
        there.append(f"from {spread.min():.2g} to {spread.max():.2g} {NAMES[flag].split()[0]}")
    calmly = ""
    if len(calm):
        calmly = f"; up to the rate {calm['rate'].max():g}, where all were, {' and '.join(there)}"
    return (
        f"Range, at rates from {runs['rate'].min():g} to {runs['rate'].max():g}: the standard "
        "deviation of what the activations receive, in the layer where it is largest, went "
        f"{' and '.join(everywhere)}{calmly}."
    )


def _penalties(runs, args):
    means = runs.groupby(["batch norm", "dropout", "penalty"])["accuracy"].mean()
    top = {flag: means[flag].idxmax() for flag in (False, True)}
    pairs = [
        f"{NAMES[f]} was dropout {top[f][0]:g} with L2 {top[f][1]:g} ({means[f].max():.4f})"
        for f in (False, True)
    ]
    yield (
        f"Dropout and L2, trained on {args.few} images: the best of the {len(means[True])} pairs "
        f"{' and '.join(pairs)}; with batch normalization and neither of them the accuracy was "
        f"{means[True, 0, 0]:.4f}."
    )
    for flag in (False, True):
        own = runs[runs["batch norm"] == flag].rename(columns={"penalty": "L2"})
        changes = {}
        for column, values in (("dropout", args.dropouts[1:]), ("L2", args.penalties[1:])):
            by_seed = own.pivot_table(index="seed", columns=column, values="accuracy")
            for value in values:
                changes[column, value] = 100 * (by_seed[value] - by_seed[0])
        cells = [
            f"{name} {value:g} {change.mean():+.2f} points (up in {(change > 0).sum()} of "
            f"{len(change)} seeds)"
            for (name, value), change in changes.items()
        ]
        if not cells:
            continue
        verdict = _notes({v: c for (n, v), c in changes.items() if n == "dropout"}) * flag
        yield f"Added to a network {NAMES[flag]}: {', '.join(cells)}.{verdict}"


def _notes(changes):
    """The course notes say both "remove dropout" and "use both"."""
    up = {rate: change.mean() for rate, change in changes.items() if (change > 0).all()}
    seeds = len(next(iter(changes.values())))
    if seeds < 3 or not (up or all((change < 0).all() for change in changes.values())):
        return ' The seeds do not decide between "remove dropout" and "use both".'
    if up:
        rate = max(up, key=up.get)
        return (
            f' Of the two pieces of advice it is "use both" that holds here, with dropout {rate:g} '
            f'and by {up[rate]:.2f} points, and not "remove dropout".'
        )
    return ' Of the two pieces of advice "remove dropout" holds here and "use both" does not.'


def _deep(runs, args):
    for case, own in runs.groupby("case", sort=False):
        cells = []
        for flag in (False, True):
            of = own[own["batch norm"] == flag]
            verdict = of["verdict"].mode()[0]
            begins = of["begins at"].dropna().mode()
            where = f" from {begins[0]} down to the input" if len(begins) else ""
            cells.append(
                f"{NAMES[flag]} the gradients were {verdict} in {(of['verdict'] == verdict).sum()} "
                f"of {len(of)} seeds{where} (first "
                f"kernel / last kernel {of['first / last'].median():.2g}) and the accuracy "
                f"after training was {of['accuracy'].median():.2f}"
            )
        yield f"{args.layers} layers, {case}: {'; '.join(cells)}."


def draw(table, flows, best, args):
    """The six panels."""
    figure, axes = plt.subplots(2, 3, figsize=(17, 13), layout="constrained")
    figure.suptitle(
        f"What batch normalization allows: dense networks on {args.samples} images of "
        f"{args.dataset}, {args.seeds} seeds",
        fontsize=14,
    )
    parts = dict(list(table.groupby("part")))
    _draw_course(axes[0, 0], parts["rate"], best, args)
    _draw_reached(axes[0, 1], parts["rate"], "rate", args)
    axes[0, 1].set(xlabel="learning rate", title="b. Up to which learning rate is it reached?")
    _draw_reached(axes[0, 2], parts["decay"], "decay", args)
    axes[0, 2].set(
        xlabel=f"factor of the rate per epoch, from {best[False]:g}; small is fast",
        title="c. With how fast a decay is it reached?",
    )
    _draw_range(axes[1, 0], parts["rate"])
    _draw_penalties(axes[1, 1], parts["penalty"], args)
    _draw_flow(axes[1, 2], flows, args)
    for ax, text in zip(axes.flat, _verdicts(parts, best, args), strict=True):
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
        under(ax, text)
    return figure


def _verdicts(parts, best, args):
    """A finding for each panel."""
    return [
        _steps(parts["rate"], best),
        _extreme(parts["rate"], "rate", max, "The largest rate"),
        _extreme(parts["decay"], "decay", min, "The smallest factor per epoch"),
        _range(parts["rate"]),
        "\n".join(_penalties(parts["penalty"], args)),
        "\n".join(_deep(parts["deep"], args)),
    ]


def _draw_course(ax, runs, best, args):
    for flag in (False, True):
        own = runs[(runs["batch norm"] == flag) & (runs["rate"] == best[flag])]
        for i, course in enumerate(own["course"]):
            label = f"{NAMES[flag]}, rate {best[flag]:g}" if i == 0 else None
            ax.plot(list(course), list(course.values()), color=COLORS[flag], label=label)
    ax.axhline(args.target, color="black", linestyle=":", label=f"target {args.target:g}")
    ax.set(
        xlabel="training steps",
        ylabel="validation accuracy",
        xscale="log",
        title="a. How many steps, each at its best rate?",
    )


def _draw_reached(ax, runs, column, args):
    """Steps to the target; a cross above where it was not reached."""
    nowhere = 1.35 * max(runs["steps"].max(), 1) if runs["steps"].notna().any() else 1.0
    for flag in (False, True):
        own = runs[runs["batch norm"] == flag]
        reached = own.dropna(subset=["steps"])
        missed = own[own["steps"].isna()]
        middle = reached.groupby(column)["steps"].median()
        ax.plot(middle.index, middle, color=COLORS[flag], alpha=0.6)
        ax.plot(reached[column], reached["steps"], "o", color=COLORS[flag], label=NAMES[flag])
        height = nowhere * (1.0 if flag else 1.15)
        shifts = 1 + 0.06 * (missed["seed"] - missed["seed"].mean())
        ax.plot(missed[column] * shifts, np.full(len(missed), height), "x", color=COLORS[flag])
    ax.axhline(nowhere * 0.9, color="gray", linewidth=0.8)
    ax.text(
        0.02,
        0.965,
        "× not reached, one for each seed",
        transform=ax.transAxes,
        va="top",
        fontsize=9,
    )
    ax.set(
        xscale="log", ylabel=f"steps to an accuracy of {args.target:g}", ylim=(0, nowhere * 1.35)
    )


def _draw_range(ax, runs):
    for flag in (False, True):
        own = runs[(runs["batch norm"] == flag)]
        finite = own[own["finite"]]
        middle = finite.groupby("rate")["spread"].median()
        ax.plot(middle.index, middle, color=COLORS[flag], alpha=0.6)
        ax.plot(finite["rate"], finite["spread"], "o", color=COLORS[flag], label=NAMES[flag])
        for rate in own[~own["finite"]]["rate"].unique():
            ax.axvspan(rate * 0.75, rate * 1.33, color=COLORS[flag], alpha=0.15)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="learning rate (shaded: runs that were not finite)",
        ylabel="standard deviation, widest layer",
        title="d. How wide is what the activations receive?",
    )


def _draw_penalties(ax, runs, args):
    for flag in (False, True):
        for i, penalty in enumerate(args.penalties):
            own = runs[(runs["batch norm"] == flag) & (runs["penalty"] == penalty)]
            by_dropout = own.groupby("dropout")["accuracy"]
            middle = by_dropout.mean()
            ax.errorbar(
                middle.index + 0.008 * (i - 1) + 0.004 * flag,
                middle,
                [middle - by_dropout.min(), by_dropout.max() - middle],
                fmt=f"{MARKERS[i]}-",
                capsize=2,
                alpha=0.8,
                color=COLORS[flag],
                label=f"{NAMES[flag].split()[0]}, L2 {penalty:g}",
            )
    ax.set(
        xlabel="dropout rate",
        ylabel="validation accuracy (bars: lowest to highest seed)",
        title=f"e. How much dropout and L2, on {args.few} images?",
    )


def _draw_flow(ax, flows, args):
    hidden = flows[flows["layer"].str.match(r"hidden_\d+$")]
    for i, (case, of) in enumerate(hidden.groupby("case", sort=False)):
        for flag in (False, True):
            for j, (_, run) in enumerate(of[of["batch norm"] == flag].groupby("seed")):
                label = f"{case}, {NAMES[flag]}" if j == 0 else None
                numbers = range(1, len(run) + 1)
                style = {"marker": MARKERS[i], "markersize": 4, "linestyle": ["-", "--"][i % 2]}
                ax.plot(numbers, run["gradient norm"], color=COLORS[flag], label=label, **style)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
        yscale="log",
        xlabel="hidden layer, from the input to the output",
        ylabel="norm of the layer's gradient",
        title=f"f. Do gradients reach the first of {args.layers} layers, at the start?",
    )
