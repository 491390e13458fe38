import math

from amlp.reporting.charts import LineChart


def test_values_that_were_not_taken_are_passed_over():
    """As of a validation split that is looked at every few epochs: its points are joined, not lost."""
    every = LineChart([1, 2, 3, 4, 5], {"DSC": [math.nan, 0.4, math.nan, 0.6, math.nan]}, "DSC", "text")
    taken = LineChart([2, 4], {"DSC": [0.4, 0.6]}, "DSC", "text")
    assert every.svg() == taken.svg()
    LineChart([1, 2], {"DSC": [math.nan, math.nan]}, "DSC", "text").svg()
