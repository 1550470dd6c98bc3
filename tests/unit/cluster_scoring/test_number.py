import pytest

from components.cluster_scoring.number import doubts, fitting


@pytest.mark.parametrize(
    ("asked", "messages", "wanted"),
    [(0, 1, 1), (0, 77, 1), (0, 78, 2), (0, 38_999, 999), (0, 39_000, 1000), (0, 10**6, 1000), (5, 4, 4), (5, 100, 5)],
)
def test_the_number_of_clusters(asked, messages, wanted):
    assert fitting(asked, messages) == wanted


@pytest.mark.parametrize(("asked", "got", "messages"), [(0, 1, 3), (1, 1, 3), (2, 2, 78), (1000, 1000, 39_000)])
def test_what_fits_is_not_doubtful(asked, got, messages):
    assert doubts(asked, got, messages) == []


def test_too_many_are_doubtful():
    assert doubts(3, 3, 116) == [
        "3 clusters for 116 distinct messages, fewer than 39 for each: many messages are a centroid of their own, and "
        "the text scores say little. num_clusters=0 takes 2."
    ]
    assert doubts(1000, 276, 276)[0] == "276 distinct messages: 276 clusters instead of 1,000."
