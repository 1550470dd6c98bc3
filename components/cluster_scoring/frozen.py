"""kmeans_uri: the centroids of an earlier run, so that old records keep their scores; how far the data moved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.cluster_scoring.config import KEY
from free2ds_common.checkpoints import download_folder
from free2ds_common.datasets import open_dataset
from free2ds_common.downloads import local_folder
from free2ds_common.errors import StageError
from free2ds_common.redact import redacted
from free2ds_common.schemas import kmeans_schema

# What decides an embedding: with another one, distances to the centroids mean nothing.
_SAME_EMBEDDINGS = ("model_fingerprint", "dtype", "max_tokens")
# What the scores of a later run need of the manifest.
_WANTED = ("largest_squared_distance", "mean_squared_distance", "objective", "order", *_SAME_EMBEDDINGS)
# Messages that did not train lie farther off than those that did: with m of them per centroid by 2 / m, 5 % at the 39
# that are the fewest. Twice that is another kind of message.
LARGEST_MEAN_RATIO = 1.1
# All of them count as equally untypical. At training no message is beyond the largest distance.
LARGEST_SHARE_BEYOND = 0.01


@dataclass(frozen=True)
class Frozen:
    """k-means of an earlier run.

    Attributes:
        centroids: float32, (clusters, dimensions).
        manifest: Of its kmeans/1.
        sha256: Of its content.
    """

    centroids: np.ndarray
    manifest: Mapping[str, Any]
    sha256: str

    @property
    def largest(self) -> float:
        """Squared distance of similarity 0: the largest one when the centroids were trained."""
        return float(self.manifest["largest_squared_distance"])

    @property
    def handed_on(self) -> dict[str, Any]:
        """Manifest entries that stay what they were at training, run after run."""
        names = ("largest_squared_distance", "mean_squared_distance", "normalization")
        kept = {name: self.manifest[name] for name in names if name in self.manifest}
        return kept | {"frozen_from": self.manifest.get("frozen_from", self.sha256)}

    def drift(self, squared_distances: np.ndarray) -> dict[str, Any]:
        """How far a run's messages moved.

        Args:
            squared_distances: float64, (messages,).
        """
        return {
            "mean_squared_distance_now": float(squared_distances.mean()),
            "beyond_largest": int(np.count_nonzero(squared_distances > self.largest)),
            "share_beyond_largest": float((squared_distances > self.largest).mean()),
        }


def open_frozen(uri: str, embeddings: Mapping[str, object]) -> Frozen:
    """Open kmeans/1 of an earlier run.

    Args:
        uri: Its folder.
        embeddings: Manifest entries of the embeddings to be scored; before there are any, those that are known.

    Raises:
        StageError: Nothing is there, it is no whole kmeans/1, lacks what scoring needs, or its embeddings are others.
        StoreError: The store does not answer.
    """
    where = f"kmeans_uri: {redacted(uri)}"
    try:
        dataset = open_dataset(local_folder(uri, str(download_folder())), kmeans_schema(1))
    except StageError as error:
        raise StageError(f"kmeans_uri: {error} Wanted the kmeans folder of a finished run.") from None
    manifest = dataset.manifest
    if missing := [name for name in _WANTED if name not in manifest]:
        raise StageError(f"{where} does not say its {', '.join(missing)}. Give the kmeans folder of a finished run.")
    if manifest["order"] != KEY:
        raise StageError(f"{where} was trained with order={manifest['order']}, wanted {KEY}. Train anew.")
    for name in _SAME_EMBEDDINGS:
        if name in embeddings and manifest[name] != embeddings[name]:
            raise StageError(
                f"{where} was trained with {name} {manifest[name]!r}, but this run's embeddings have "
                f"{embeddings[name]!r}. Use the same text model and settings, or train anew without kmeans_uri."
            )
    column = dataset.table(["centroid"]).column(0).combine_chunks()
    centroids = column.flatten().to_numpy().reshape(len(column), -1)
    return Frozen(centroids, manifest, dataset.sha256)


def doubts(frozen: Frozen, drift: Mapping[str, Any]) -> list[str]:
    """Whether to train anew, a sentence or none.

    Args:
        frozen: Where the centroids come from.
        drift: Of `Frozen.drift`.
    """
    before, now = float(frozen.manifest["mean_squared_distance"]), drift["mean_squared_distance_now"]
    share = drift["share_beyond_largest"]
    if now <= LARGEST_MEAN_RATIO * before and share <= LARGEST_SHARE_BEYOND:
        return []
    return [
        f"The messages have moved away from the centroids of kmeans_uri: mean squared distance {now:.4g}, at training "
        f"{before:.4g}; {share:.1%} are farther off than any was then and have similarity 0. Train anew: leave out "
        "kmeans_uri."
    ]
