"""The pictures of a page: those that are declared, and one for whatever else was measured."""

import functools

from keras_regtools import plots
from keras_regtools.plots.picture import Picture, declared, file_name


def pictures(records):
    """The pictures that these records have something for, in the order of the page."""
    found = [picture for picture in declared() if picture.is_shown(records)]
    return found + [_of_others(prefix) for prefix in _other_prefixes(records)]


_MOST = 12  # pictures of quantities that nothing is known of
_TIMES = "time/"  # a table of the page


def _other_prefixes(records):
    """What else was measured: the part before the slash, or the whole name without one."""
    prefixes = {}
    for name in records.names():
        logged = name.startswith(("val_", _TIMES)) or name.endswith(("accuracy", "acc"))
        drawn = any(picture.is_of(name) for picture in declared())
        if not drawn and not (logged and "/" not in name.removeprefix(_TIMES)):
            prefixes.setdefault(name.rpartition("/")[0] or name)
    # Of a measure `name` with numbers `name/number`, the value alone is the picture.
    values = set(records.names())
    own = [p for p in prefixes if not any("/" in q and _is_in(p, q) for q in values)]
    return own[:_MOST]


def _is_in(prefix, value):
    return prefix == value or prefix.startswith(f"{value}/")


def _of_others(prefix):
    draw = functools.partial(_draw_quantities, prefix=prefix)
    caption = f"{prefix}, as it was measured."
    return Picture(f"measured_{file_name(prefix)}", draw, (prefix,), lambda records: caption)


def _draw_quantities(records, ax, prefix):
    return plots.quantities(records, prefix, ax)
