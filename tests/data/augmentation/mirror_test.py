import pytest
from hypothesis import given
from hypothesis import strategies as st

from inti_jax.data.augmentation.mirror import mirrored_labels
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
    assert mirrored_labels(SOMETHING) == (0, 1, 3, 2, 5, 4, 6, 8, 7, 9)


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
    assert mirrored_labels((label, "other", partner)) == (2, 1, 0)


@pytest.mark.parametrize(
    "label", ["bright", "copyright", "leftover", "cleft", "upright", "C++", "pulling it right out", "链球"]
)
def test_other_words_name_no_side(label):
    assert mirrored_labels((label, "?", "!")) == (0, 1, 2)


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


@given(
    st.lists(
        st.lists(st.sampled_from(["left", "right", "clockwise", "counterclockwise", "up"]), min_size=1),
        max_size=8,
        unique_by=tuple,
    )
)
def test_mirroring_twice_gives_the_label_back(labels):
    labels = [" ".join(words) for words in labels]
    try:
        mirrored = mirrored_labels(labels)
    except UserError:
        return
    assert [mirrored[k] for k in mirrored] == list(range(len(labels)))
    for label, partner in zip(labels, mirrored, strict=True):
        assert (label == labels[partner]) == (not set(label.split()) - {"up"})
