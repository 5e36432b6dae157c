"""Internal: what a run is, flat."""

_OF_THE_CLOCK = ("started", "finished")  # and no settings


def flat_settings(info, before=""):
    """Dict from `optimizer/learning_rate` and its like to plain values; `None` is left out.

    Args:
        info: What `run.json` holds: a dict of plain values, lists and dicts of such.
        before: What the names begin with.
    """
    found = {}
    for key, value in info.items():
        if not before and key in _OF_THE_CLOCK:
            continue
        name = f"{before}{key}"
        if isinstance(value, dict):
            found |= flat_settings(value, f"{name}/")
        elif value is not None:
            found[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
