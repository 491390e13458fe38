from __future__ import annotations

import pytest

from amlp.errors import UserError
from pipelines.cron import check_cron


@pytest.mark.parametrize(
    "expression",
    ["0 0 3 * * 1", "0 */15 * * * *", "0 0 0-6/2 1,15 jan-MAR ?", "@daily", "@every 1h30m", "59 59 23 31 12 SAT"],
)
def test_what_kubeflow_reads_as_it_is_meant(expression: str) -> None:
    check_cron(expression)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("0 3 * * 1", 'expected six fields, .* got 5. Did you mean "0 0 3 \\* \\* 1"'),
        ("not a cron", "got 3"),
        ("", "got 0"),
        ("60 0 3 * * 1", "second '60': expected numbers from 0 to 59"),
        ("0 0 24 * * *", "hour '24'"),
        ("0 0 3 0 * *", "day of the month '0'"),
        ("0 0 3 * * 7", "day of the week '7': .* SUN to SAT"),
        ("0 0 3 * 5-3 *", "month '5-3'"),
        ("0 */0 3 * * *", "minute"),
        ("0 x 3 * * *", "minute 'x'"),
        ("@reboot", "got 1"),
    ],
)
def test_what_kubeflow_would_read_otherwise_is_refused(expression: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_cron(expression)
