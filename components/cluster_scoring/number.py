"""How many clusters the data allow."""

# FAISS's own rule: below it, it warns that there are too few points to train on.
MIN_POINTS_PER_CENTROID = 39
# The method's K.
MOST_CLUSTERS = 1000


def fitting(asked: int, num_messages: int) -> int:
    """The number of clusters.

    Args:
        asked: num_clusters; 0 for as many as the data allow.
        num_messages: Distinct messages.
    """
    return min(asked, num_messages) if asked else min(MOST_CLUSTERS, _allowed(num_messages))


def _allowed(num_messages: int) -> int:
    return max(1, num_messages // MIN_POINTS_PER_CENTROID)


def doubts(asked: int, num_clusters: int, num_messages: int) -> list[str]:
    """What is doubtful about the number of clusters, a sentence each.

    Args:
        asked: num_clusters; 0 for as many as the data allow.
        num_clusters: As many as there are.
        num_messages: Distinct messages.
    """
    found = []
    if num_clusters < asked:
        cause = "" if num_clusters == num_messages else f", {num_clusters:,} distinct embeddings of those that train"
        found.append(f"{num_messages:,} distinct messages{cause}: {num_clusters:,} clusters instead of {asked:,}.")
    if num_clusters > (allowed := _allowed(num_messages)):
        found.append(
            f"{num_clusters:,} clusters for {num_messages:,} distinct messages, fewer than {MIN_POINTS_PER_CENTROID} "
            "for each: many messages are a centroid of their own, and the text scores say little. "
            f"num_clusters=0 takes {min(MOST_CLUSTERS, allowed):,}."
        )
    return found
