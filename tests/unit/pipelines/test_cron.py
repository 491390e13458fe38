from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlp.errors import UserError
from pipelines.cron import next_times

# A Thursday.
NOW = datetime(2026, 11, 26, 15, 30, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "times"),
    [
        ("0 0 3 * * 1", ["2026-11-30 03:00:00", "2026-12-07 03:00:00", "2026-12-14 03:00:00"]),
        ("0 */15 * * * *", ["2026-11-26 15:45:00", "2026-11-26 16:00:00", "2026-11-26 16:15:00"]),
        ("0 0 0-6/3 1,15 jan-MAR ?", ["2027-01-01 00:00:00", "2027-01-01 03:00:00", "2027-01-01 06:00:00"]),
        ("@daily", ["2026-11-27 00:00:00", "2026-11-28 00:00:00", "2026-11-29 00:00:00"]),
        ("@every 1h30m", ["2026-11-26 17:00:00", "2026-11-26 18:30:00", "2026-11-26 20:00:00"]),
        ("59 59 23 31 12 *", ["2026-12-31 23:59:59", "2027-12-31 23:59:59", "2028-12-31 23:59:59"]),
        ("0 0 0 29 2 *", ["2028-02-29 00:00:00", "2032-02-29 00:00:00"]),
        # Either kind of day, where both are named.
        ("0 0 0 13 * FRI", ["2026-11-27 00:00:00", "2026-12-04 00:00:00", "2026-12-11 00:00:00"]),
        ("50/5 30 15 * * *", ["2026-11-26 15:30:50", "2026-11-26 15:30:55", "2026-11-27 15:30:50"]),
    ],
)
def test_the_next_times_are_known(expression: str, times: list[str]) -> None:
    found = next_times(expression, NOW)
    assert [f"{time:%Y-%m-%d %H:%M:%S}" for time in found] == times


@given(
    st.tuples(*(st.integers(least, most) for least, most in ((0, 59), (0, 59), (0, 23)))),
    st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)),
)
def test_a_time_of_day_comes_once_a_day(time: tuple[int, int, int], now: datetime) -> None:
    first, second, third = next_times(f"{time[0]} {time[1]} {time[2]} * * *", now)
    assert now < first <= now + timedelta(days=1) and third - second == second - first == timedelta(days=1)
    assert (first.second, first.minute, first.hour) == time


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("0 3 * * 1", 'expected six fields, .* got 5. Did you mean "0 0 3 \\* \\* 1"'),
        ("not a cron", "got 3"),
        ("@every 99999999999999h", "at most 999999"),
        (f"0 0 {'9' * 5000} * * *", "hour"),
        (f"0 0 */{'9' * 5000} * * *", "hour"),
        ("", "got 0"),
        ("60 0 3 * * 1", "second '60': expected numbers from 0 to 59"),
        ("0 0 24 * * *", "hour '24'"),
        ("0 0 3 0 * *", "day of the month '0'"),
        ("0 0 3 * * 7", "day of the week '7': .* SUN to SAT"),
        ("0 0 3 * 5-3 *", "month '5-3'"),
        ("0 */0 3 * * *", "minute"),
        ("0 x 3 * * *", "minute 'x'"),
        ("@reboot", "got 1"),
        ("@every", "got 1"),
        ("@every 0s", "expected a time, such as @every 24h"),
        ("@every 1d", "got 2"),
        ("0 0 0 31 2 *", "there is no such day"),
    ],
)
def test_what_kubeflow_would_read_otherwise_is_refused(expression: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        next_times(expression, NOW)
