"""Internal: the settings of a run, flat."""

SIMPLE = (bool, int, float, str)


def flat(info, before=""):
    """Dict from `optimizer/learning_rate` and its like to plain values.

    Args:
        info: What `Report` knows of a run: dicts of plain values.
        before: What the names begin with.
    """
    found = {}
    for key, value in info.items():
        if not before and key in ("started", "finished"):
            continue
        name = f"{before}{key}"
        if isinstance(value, dict):
            found |= flat(value, f"{name}/")
        elif value is not None:
            found[name] = value if isinstance(value, SIMPLE) else str(value)
    return found
