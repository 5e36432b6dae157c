"""What all pictures share: an Axes to draw on, epochs that count from one, colours by depth."""

from keras_regtools.validation import has

RECORDS = has("series", "`Records` of a run")
AXES = has("set_xlabel", "matplotlib axes, or `None` for those of a new figure")


def on(ax):
    """`ax`, or that of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def over_epochs(ax):
    """Label the horizontal axis in whole epochs, counted from one."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)
    return ax


def curve(ax, records, name, **style):
    """Draw one quantity over the epochs; nothing if it was not recorded."""
    epochs, values = records.series(name)
    if epochs:
        style.setdefault("marker", "o" if len(epochs) < 30 else None)
        ax.plot([epoch + 1 for epoch in epochs], values, markersize=3.5, **style)
    return bool(epochs)


def by_depth(count):
    """`count` colours from dark to light, from the input to the output."""
    import matplotlib

    colours = matplotlib.colormaps["viridis"]
    return [colours(i / max(1, count - 1) * 0.9) for i in range(count)]


def legend(ax, title=None):
    """A legend beside the curves where it has many entries, in them where it has few."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 5:
        ax.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7, title=title, title_fontsize=7
        )
    elif labels:
        ax.legend(fontsize=8, title=title, title_fontsize=8)


def depth_bar(ax, layers):
    """A bar of the colours of many layers, with the names of the first and the last."""
    import matplotlib

    colours = matplotlib.colors.ListedColormap(by_depth(256))
    bar = ax.figure.colorbar(matplotlib.cm.ScalarMappable(cmap=colours), ax=ax)
    bar.set_ticks([0, 1], labels=[f"input\n{layers[0]}", f"output\n{layers[-1]}"], fontsize=6)
    bar.set_label(f"{len(layers)} layers", fontsize=7)


def note(ax, text):
    """A sentence where a picture would have nothing to show."""
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, wrap=True)
    ax.set_axis_off()
    return ax


def log_if_wide(ax, values):
    """A logarithmic vertical axis if the positive values span more than a factor of 30."""
    positive = [v for v in values if v > 0]
    if positive and len(positive) == len(values) and max(positive) > 30 * min(positive):
        ax.set_yscale("log")
