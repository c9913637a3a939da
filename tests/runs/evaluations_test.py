"""Evaluations in a run's records: which of them compare, and by which checkpoints do."""

import dataclasses

from inti_jax.runs.evaluations import Evaluation, Setting, by_checkpoint, by_step

OWN = Setting(2, 2, "0", "ema")
SOME = dataclasses.replace(OWN, subset=10)


def of(step, top1, setting):
    return Evaluation(step, top1, 1.0, setting)


def test_evaluations_of_some_videos_are_no_own_ones_and_say_so():
    found = [of(2, 0.5, SOME), of(4, 0.4, OWN)]
    assert list(by_step(found, OWN)) == [4] and list(by_step(found, SOME)) == [2]
    assert SOME.differences(OWN) == ["10 videos"] and OWN.differences(OWN) == []
    assert SOME.facts(OWN) == {"dataset": "0", "weights": "ema", "subset": 10}
    assert [each.subset for each in SOME.made()] == [10, 10]


def figures(found, saved=(1, 2, 3, 4)):
    return {step: each.top1 for step, each in by_checkpoint(found, OWN, saved).items()}


def test_checkpoints_compare_by_evaluations_of_all_videos_where_there_is_one():
    found = [of(1, 0.9, SOME), of(2, 0.5, OWN), of(3, 0.8, SOME), of(4, 0.4, OWN)]
    assert figures(found) == {2: 0.5, 4: 0.4}
    assert figures(found, saved=(1, 3)) == {1: 0.9, 3: 0.8}


def test_checkpoints_compare_on_the_same_videos():
    fewer, other = (dataclasses.replace(SOME, **changes) for changes in ({"subset": 5}, {"dataset": "1"}))
    raw = dataclasses.replace(SOME, weights="raw")
    found = [of(1, 0.9, fewer), of(2, 0.5, SOME), of(3, 0.6, SOME), of(3, 0.7, raw), of(4, 0.95, other)]
    assert figures(found) == {2: 0.5, 3: 0.6}
    assert figures(found, saved=(1,)) == {1: 0.9} and figures(found, saved=(4,)) == {}
