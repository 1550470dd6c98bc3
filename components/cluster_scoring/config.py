"""Settings and ports of the cluster_scoring stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from free2ds_common.settings import SeedSettings, require_at_least


@dataclass(frozen=True, kw_only=True)
class ClusterScoringSettings(SeedSettings):
    """Settings of the stage.

    Attributes:
        num_clusters: Centroids of the text side's k-means; fewer where there are fewer distinct messages.
        num_iterations: Iterations of k-means.
        seed: Seed of k-means: training points and initial centroids.
    """

    SEED_BITS: ClassVar[int] = 31

    num_clusters: int = 1000
    num_iterations: int = 100

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_at_least("num_clusters", self.num_clusters, 1)
        require_at_least("num_iterations", self.num_iterations, 1)


@dataclass(frozen=True, kw_only=True)
class ClusterScoringConfig(ClusterScoringSettings):
    """Score how typical each record's messages are: how near they lie to a k-means centroid.

    Attributes:
        features: Input folder of bert_features, or several, one per part.
        scores: Output folder, text_scores/2: one row per record.
        kmeans: Output folder, kmeans/1: one row per cluster with centroid, size and typical message; empty for none.
    """

    features: Sequence[str]
    scores: str
    kmeans: str = ""
