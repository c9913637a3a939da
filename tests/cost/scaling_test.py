"""Steps compared over topologies: predicted time, efficiency, and the clips that a host has to load."""

import pytest

from inti_jax.cost import scaling
from inti_jax.cost.topology import Compiled, Roofline, Traffic
from tests.commands import call
from tests.main_test import CONFIG


def compiled(topology, devices, *seconds, fits=True, collectives=()):
    """A step whose bounds by compute, HBM, ICI and DCN are `seconds`."""
    return Compiled(
        topology=topology,
        devices=devices,
        mesh={"data": devices, "fsdp": 1, "tensor": 1},
        remat=False,
        seconds=60.0,
        flops_per_device=1e12 if fits else None,
        bytes_per_device=1e9 if fits else None,
        hbm_bytes_per_device=1e9 if fits else None,
        arithmetic_intensity=1e3 if fits else None,
        state_gib=0.5,
        peak_hbm_gib=2.0 if fits else 20.0,
        hbm_gib=16.0,
        fits=fits,
        collectives=list(collectives),
        roofline=Roofline(*seconds, binds="compute") if seconds else None,
        remedies=[],
    )


SUMMED = Traffic("all-reduce", 1, 400, 700.0, "chips")
BETWEEN = Traffic("all-reduce", 1, 50, 75.0, "slices")
STEPS = (
    compiled("v5e:2x4", 8, 0.010, 0.004, 0.001, 0.0, collectives=[SUMMED]),
    compiled("v5e:2x4*4", 32, 0.010, 0.004, 0.001, 0.020, collectives=[SUMMED, BETWEEN, BETWEEN]),
)


def test_a_step_takes_between_the_longest_part_and_the_sum():
    one, four = scaling.compare(STEPS, (32, 128))
    assert (one.overlapped, one.in_turn) == pytest.approx((0.010, 0.015))
    assert (four.overlapped, four.in_turn) == pytest.approx((0.020, 0.035))
    assert (four.sent, four.sent_between_slices) == (700, 150)


def test_efficiency_compares_videos_a_second_of_one_chip():
    _, weak = scaling.compare(STEPS, (32, 128))
    assert (weak.efficiency_overlapped, weak.efficiency_in_turn) == pytest.approx((0.5, 3 / 7))
    _, strong = scaling.compare(STEPS, (32, 32))  # a quarter of the videos in this time
    assert (strong.efficiency_overlapped, strong.efficiency_in_turn) == pytest.approx((0.125, 3 / 28))


def test_other_chips_are_compared_among_themselves():
    steps = (STEPS[0], compiled("v6e:2x4", 8, 0.002, 0.002, 0.001, 0.0), STEPS[1])
    found = scaling.compare(steps, (32, 32, 128))
    assert [one.efficiency_overlapped for one in found] == pytest.approx([1, 1, 0.5])


def test_chips_need_the_clips_of_the_shorter_step():
    one, four = scaling.compare(STEPS, (32, 128), 80.0)
    assert (one.clips, four.clips) == pytest.approx((400, 200))  # 4 in 10 ms, and in 20
    assert (one.cores, four.cores) == pytest.approx((5, 2.5))


def test_without_a_time_the_rest_of_the_table_stands():
    small = compiled("v5e:1x1", 1, fits=False)
    unknown = compiled("v4:2x2x1*2", 8, 0.01, 0.01, 0.01, None, collectives=[BETWEEN])
    found = scaling.compare((small, *STEPS, unknown), (4, 32, 128, 32), 80.0)
    assert [one.efficiency_overlapped for one in found] == [None, 1, pytest.approx(0.5), None]
    header, _, *rows = scaling.render(found).splitlines()
    assert rows[0].split() == ["v5e:1x1", "1", "4", "20.00", "does", "not", "fit"]
    assert rows[1].endswith("1.0   0.0  10.0 to 15.0  100 to 100 %      400    5.0")
    assert rows[2].endswith("10.0   4.0   1.0  20.0  20.0 to 35.0    50 to 43 %      200    2.5")
    assert rows[3].split() == ["v4:2x2x1*2", "8", "4", "2.00", "0.0", "0.0", "10.0", "10.0", "10.0"]
    assert {len(header), *map(len, rows[:3])} == {len(rows[1])}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos_per_chip", "4"], "and --topology"),
        (["--topology", "v5e:2x2", "--videos_per_chip", "0"], "a number from 1 on"),
        (["--topology", "v5e:2x2", "--clips_per_core", "70"], "with several names"),
        (["--topology", "v5e:2x2,v5e:2x4", "--clips_per_core", "nan"], "a number above 0"),
    ],
)
def test_arguments_that_say_nothing_are_refused(arguments, message):
    process = call("plan", "--config", CONFIG, *arguments)
    assert process.returncode == 2 and message in process.stderr and process.stdout == ""
