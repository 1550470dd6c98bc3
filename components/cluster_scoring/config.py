"""Settings and ports of the cluster_scoring stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from free2ds_common.errors import SettingError
from free2ds_common.settings import InputFolder, Output, SeedSettings, require_at_least, require_choice

KEY, REFERENCE = "key", "reference"


@dataclass(frozen=True, kw_only=True)
class ClusterScoringSettings(SeedSettings):
    """Settings of the stage.

    Attributes:
        num_clusters: Centroids of the text side's k-means, no more than distinct messages; 0 for a 39th of those,
            1000 at most. 0 in a local run unless it is given.
        num_iterations: Iterations of k-means, at most; with order=key it ends where nothing changes any more.
        order: key (training by record keys: the same scores with any input order, parts and threads) or reference
            (FAISS's own k-means).
        kmeans_uri: The kmeans folder of an earlier run, to score against instead of training, so that its records keep
            their scores; empty trains.
        seed: Seed of k-means: training points and initial centroids.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("num_iterations", "order")
    SEED_BITS: ClassVar[int] = 31

    num_clusters: int = 1000
    num_iterations: int = 100
    order: str = KEY
    kmeans_uri: str = ""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_at_least("num_clusters", self.num_clusters, 0)
        require_at_least("num_iterations", self.num_iterations, 1)
        require_choice("order", self.order, (KEY, REFERENCE))
        if self.kmeans_uri and self.order != KEY:
            raise SettingError("kmeans_uri", f"works with order={KEY} only, got order={self.order}. Leave out one.")


@dataclass(frozen=True, kw_only=True)
class ClusterScoringConfig(ClusterScoringSettings):
    """Score how typical each record's messages are: how near they lie to a k-means centroid.

    Attributes:
        features: Input folder of bert_features, or several, one per part.
        scores: Output folder, text_scores/2: one row per record.
        kmeans: Output folder, kmeans/1: one row per cluster with centroid, size and typical message; empty for none.
    """

    features: Sequence[InputFolder]
    scores: Output
    kmeans: Output = ""
