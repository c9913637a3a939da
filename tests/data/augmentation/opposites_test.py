import pytest
from hypothesis import given
from hypothesis import strategies as st

from inti_jax.data.augmentation.opposites import mirrored_labels, reversed_labels
from inti_jax.data.builders import motion_digits
from inti_jax.errors import UserError

# Of Something-Something v2: all that name a side, and what only looks like it.
SOMETHING = (
    "Laying something on the table on its side, not upright",
    "Plugging something into something but pulling it right out as you remove your hand",
    "Pulling something from left to right",
    "Pulling something from right to left",
    "Pushing something from left to right",
    "Pushing something from right to left",
    "Putting something that cannot actually stand upright upright on the table, so it falls on its side",
    "Turning the camera left while filming something",
    "Turning the camera right while filming something",
    "Turning the camera upwards while filming something",
)


def test_sides_of_something_something_trade_places():
    assert tuple(mirrored_labels(SOMETHING).values()) == (0, 1, 3, 2, 5, 4, 6, 8, 7, 9)


def test_sides_and_senses_of_motion_digits_trade_places():
    mirrored = mirrored_labels(motion_digits.LABELS)
    pairs = {(motion_digits.LABELS[k], motion_digits.LABELS[mirrored[k]]) for k in range(10)}
    assert {pair for pair in pairs if pair[0] != pair[1]} == {
        ("right", "left"),
        ("left", "right"),
        ("clockwise", "counterclockwise"),
        ("counterclockwise", "clockwise"),
    }


@pytest.mark.parametrize(
    ("label", "partner"),
    [
        ("push_left", "push_right"),
        ("PushLeft", "PushRight"),
        ("SWIPE LEFT", "Swipe right"),
        ("left-handed throw", "right-handed throw"),
        ("lefthanded", "righthanded"),
        ("moving leftwards", "moving rightwards"),
        ("from the left side to the right side", "from the right side to the left side"),
        ("Turn clockwise", "turn anti-clockwise"),
        ("Turn Clockwise", "TurnCounterClockwise"),
        ("turn counter clockwise, left hand", "turn clockwise, right hand"),
        ("rotate_cw", "rotate_ccw"),
    ],
)
def test_spelling_is_free(label, partner):
    assert mirrored_labels((label, "other", partner)) == {0: 2, 1: 1, 2: 0}


@pytest.mark.parametrize(
    "label", ["bright", "copyright", "leftover", "cleft", "upright", "C++", "pulling it right out", "链球"]
)
def test_other_words_name_no_side(label):
    assert mirrored_labels((label, "?", "!")) == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(
    "labels",
    [
        ("wave", "turn left"),
        ("turn left", "move right"),
        ("turn left 45", "turn right 90"),
        ("from left to right", "from left to left"),
        ("clockwise", "wave"),
        ("turn right out of the lane", "wave"),
        ("turn left", "turn right", "Turn_Right"),
        ("turn left", "turn right", "Turn_Left"),
    ],
)
def test_a_side_without_one_partner_is_refused_by_name(labels):
    with pytest.raises(UserError) as caught:
        mirrored_labels(labels)
    message = str(caught.value)
    assert "\n" not in message and "`data.flip" in message
    assert any(f"label `{label}`" in message for label in labels if label != "wave")


def test_reversal_exchanges_the_pairs_of_motion_digits_that_are_rendered_backwards():
    labels = motion_digits.LABELS
    partners = {labels[label]: labels[other] for label, other in reversed_labels(labels).items()}
    assert partners == dict(motion_digits.PAIRS) | {other: label for label, other in motion_digits.PAIRS}


@pytest.mark.parametrize(
    ("label", "partner"),
    [
        ("swipe_up", "SwipeDown"),
        ("Pulling something from left to right", "Pushing something from right to left"),
        ("Zooming In With Full Hand", "Zooming Out With Full Hand"),
        ("Rolling Hand Forward", "Rolling Hand Backward"),
        ("Opening something", "Closing something"),
        ("turn on the light", "turn off the light"),
        ("Moving something towards the camera", "Moving something away from the camera"),
        ("walk into the room", "walk out of the room"),
        ("rotate anti-clockwise", "rotate clockwise"),
        ("raise the left hand", "lower the left hand"),
        ("left-handed push", "left-handed pull"),
    ],
)
def test_movements_trade_places_in_reversed_clips(label, partner):
    assert reversed_labels((label, "other", partner)) == {0: 2, 1: 1, 2: 0}


@pytest.mark.parametrize(
    "label", ["left hand", "right-handed throw", "circlecc", "upright", "closet", "inside"]
)
def test_other_words_name_no_movement(label):
    assert reversed_labels((label, "right hand wave", "left hand wave")) == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(
    "labels",
    [
        ("wave", "swipe left"),
        ("wave", "sit down", "stand up"),
        ("push", "pull up"),
        ("zoom in", "wave"),
        ("up", "down", "Down"),
    ],
)
def test_a_movement_without_one_partner_is_refused_by_name(labels):
    with pytest.raises(
        UserError, match=r"^`data\.reverse` cannot reverse label .* `data\.reverse=False`$"
    ) as caught:
        reversed_labels(labels)
    assert "\n" not in str(caught.value)


def test_only_the_listed_labels_are_exchanged():
    labels = ("star", "up", "down", "left", "turn left")
    assert reversed_labels(labels, ("down", "up")) == {1: 2, 2: 1}
    assert mirrored_labels(labels, ("up", "down")) == {1: 1, 2: 2}
    assert mirrored_labels(labels, ("star",)) == {0: 0}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (
            ("up", "donw"),
            "`data.reverse_labels` has `donw`, which is no label of the dataset; did you mean `down`?",
        ),
        (
            ("up",),
            "`data.reverse_labels` has `up` but not `down`, which it is to trade places with: "
            "list both or neither",
        ),
        (
            ("star", "left"),
            "`data.reverse` cannot reverse label `left`: exactly one other label should be `right`; "
            "leave it out of `data.reverse_labels`, or set `data.reverse=False`",
        ),
    ],
)
def test_a_list_that_does_not_fit_the_labels_is_refused(only, message):
    with pytest.raises(UserError) as caught:
        reversed_labels(("star", "up", "down", "left"), only)
    assert str(caught.value) == message


@given(
    st.lists(
        st.lists(st.sampled_from(["left", "right", "clockwise", "counterclockwise", "wave"]), min_size=1),
        max_size=8,
        unique_by=tuple,
    )
)
def test_mirroring_or_reversing_twice_gives_the_label_back(labels):
    labels = [" ".join(words) for words in labels]
    for opposites in (mirrored_labels, reversed_labels):
        try:
            partners = opposites(labels)
        except UserError:
            continue
        assert [partners[partners[k]] for k in range(len(labels))] == list(range(len(labels)))
        for k, label in enumerate(labels):
            assert (label == labels[partners[k]]) == (not set(label.split()) - {"wave"})
