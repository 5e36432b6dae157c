"""Internal: what the trials of a search say, from a table of them."""

from keras_regtools.search.answers import of_winners, rank_correlations
from keras_regtools.search.findings import findings
from keras_regtools.search.front import pareto
from keras_regtools.search.importance import importance
from keras_regtools.search.marginal import OFF, is_choice, is_log, marginal, refuse_unknown
from keras_regtools.search.table import TABLE, comparable, table

__all__ = [
    "OFF",
    "TABLE",
    "comparable",
    "findings",
    "importance",
    "is_choice",
    "is_log",
    "marginal",
    "of_winners",
    "pareto",
    "rank_correlations",
    "refuse_unknown",
    "table",
]
