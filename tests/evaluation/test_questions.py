"""What names a question."""

from jaxsft.evaluation.task import question_ids


def test_ids_are_of_the_content_alone():
    """Recorded, since files of two versions are compared by them; the order and other questions change nothing."""
    first, second = question_ids([["q", ["x", "y"], [0]], ["q", ["x", "y"], [1]]])
    assert (first, second) == ("a985b274dd4ae1bc", "bf9b8cf64cd2dea3")
    assert question_ids([["other"], ["q", ["x", "y"], [1]], ["q", ["x", "y"], [0]]])[1:] == [second, first]


def test_a_question_that_is_asked_again_has_another_id():
    once = question_ids([["q"]])
    twice = question_ids([["q"], ["p"], ["q"], ["q"]])
    assert twice[:1] == once and len(set(twice)) == 4
    assert question_ids([["q"], ["q"], ["p"], ["q"]])[1] == twice[2]
