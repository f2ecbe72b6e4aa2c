"""Schedules of steps, as refreshing an index and mining negatives take them."""

import pytest

from rag.errors import UserError
from rag.training.schedule import Schedule


def steps(setting, until=4000) -> list[int]:
    schedule = Schedule.parse(setting)
    return [step for step in range(until + 1) if schedule.due(step)]


@pytest.mark.parametrize(
    "setting, expected",
    [
        (None, []),
        (1500, [1500, 3000]),
        ("1500", [1500, 3000]),
        ("0-1000:500,1000-:1000", [500, 1000, 2000, 3000, 4000]),
        (["0-1000:500", "1000-:1000"], [500, 1000, 2000, 3000, 4000]),
        (" 0-1000:500 , 1000-:1000 ", [500, 1000, 2000, 3000, 4000]),
        ("700-1500:300", [700, 1000, 1300]),
        ("0-1000:400,2000-2001:1", [400, 800, 2000, 2001]),
        ("3900-:50", [3900, 3950, 4000]),
        (Schedule.parse("3900-:50"), [3900, 3950, 4000]),
    ],
)
def test_after_which_steps_a_schedule_is_due(setting, expected):
    assert steps(setting) == expected
    assert bool(Schedule.parse(setting)) is bool(expected)
    assert not expected or steps(str(Schedule.parse(setting))) == expected


def test_a_schedule_is_written_as_it_is_given():
    assert [str(Schedule.parse(each)) for each in (500, "500", "0-1000:500,1000-:1000", None)] == [
        "500",
        "500",
        "0-1000:500,1000-:1000",
        "",
    ]


@pytest.mark.parametrize(
    "setting, sentence",
    [
        (0, "every 0 steps is never, in the schedule 0: give 1 or more, or null for never"),
        ("0", "every 0 steps is never"),
        (-3, "every -3 steps is never, in the schedule -3: give 1 or more, or null for never"),
        ("-3", "every -3 steps is never"),
        ("0-100:0", "every 0 steps is never, in the schedule 0-100:0"),
        (
            "often",
            "often is no schedule of steps: give a number of steps, such as 500, or parts first-last:every",
        ),
        ("", "an empty part is no schedule of steps"),
        ("0-100:50,", "an empty part, in 0-100:50,, is no schedule"),
        ("100:50", "100:50 is no schedule of steps"),
        ("0-100:-5", "0-100:-5 is no schedule of steps"),
        ("0-1" + "0" * 5000 + ":5", "is no schedule of steps"),
        ("٣", "٣ is no schedule of steps"),
        (True, "True is no schedule of steps"),
        (0.5, "0.5 is no schedule of steps"),
        ("100-100:5", "100-100:5 ends before it begins"),
        ("200-100:5", "200-100:5 ends before it begins"),
        (
            "0-1000:500,900-:1000",
            "900-:1000 begins before 0-1000:500 ends, in the schedule 0-1000:500,900-:1000: give the parts in the "
            "order of their steps, without overlap",
        ),
        ("1000-:500,0-1000:100", "0-1000:100 begins before 1000-:500 ends"),
        ("500-1000:500,0-200:100", "0-200:100 begins before 500-1000:500 ends"),
        ({"every": 5}, "every is no schedule of steps"),
    ],
)
def test_what_is_no_schedule_is_told_in_a_sentence(setting, sentence):
    with pytest.raises(UserError) as told:
        Schedule.parse(setting)
    assert sentence in str(told.value)
