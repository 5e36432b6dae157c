"""A fit that is killed and resumed ends as one that was not: see kill_campaign.py."""

import kill_campaign
import pytest


def test_a_fit_that_is_killed_once_ends_as_one_that_was_not():
    _, differences = kill_campaign.campaign(1, "backup first", seed=1)
    assert differences == []


@pytest.mark.slow
@pytest.mark.parametrize("order", ["backup first", "backup last"])
def test_a_fit_that_is_killed_twenty_times_ends_as_one_that_was_not(order):
    made, differences = kill_campaign.campaign(20, order)
    assert made >= 5
    assert differences == []
