"""What a run says at a glance, one sentence each."""

from keras_regtools.plots.picture import declared


def findings(records, info):
    """The sentences at the top of a page: what the pictures found."""
    if not records.series("loss")[0]:
        return ["No epoch was finished."]
    found = [sentence for picture in declared() for sentence in picture.found(records)]
    if info and not info.get("finished"):
        found.append("The run was cut off or still goes on: this is what it has recorded.")
    return found
