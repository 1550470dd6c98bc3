"""Settings and ports of the resolve stage."""

from dataclasses import asdict, dataclass, field

from components.bert_features.config import BertFeaturesSettings
from components.cluster_scoring.config import ClusterScoringSettings
from components.ingest.config import IngestSettings
from components.joint_selection.config import JointSelectionSettings
from components.llava_attention.config import LlavaAttentionSettings
from components.mgm_attention.config import MgmAttentionSettings
from components.resolve.wiring import check_settings
from components.split.config import SplitSettings
from components.verdict.config import VerdictSettings
from free2ds_common.settings import Output, Settings


@dataclass(frozen=True, kw_only=True)
class ResolveSettings(Settings):
    """All that a run is asked for; each is a setting of another stage, which says what it is.

    Attributes:
        llava_options: name=value, separated by blanks: batch_size, dtype, max_new_tokens, model_type, prompt, revision,
            vision_tower; empty for the defaults.
        mgm_options: The same for MGM, and vision_tower_aux.
        text_options: The same for the text side: batch_tokens, dtype and revision of the BERT model; num_iterations and
            order of k-means.
        select_options: The same for the selection: missing_iou, sampler, stratify, temperature, text_normalization,
            top_percent.
    """

    dataset_uri: str
    image_root_uri: str
    max_reject_fraction: float = IngestSettings.max_reject_fraction
    llava_model: str = LlavaAttentionSettings.model
    llava_options: str = ""
    mgm_model: str = MgmAttentionSettings.model
    mgm_options: str = ""
    bert_model: str = BertFeaturesSettings.model
    text_options: str = ""
    num_shards: int = SplitSettings.num_shards
    records_per_shard: int = SplitSettings.records_per_shard
    num_clusters: int = ClusterScoringSettings.num_clusters
    kmeans_uri: str = ClusterScoringSettings.kmeans_uri
    alpha: float = JointSelectionSettings.alpha
    num_samples: int = JointSelectionSettings.num_samples
    ratio: float = JointSelectionSettings.ratio
    seed: int = JointSelectionSettings.seed
    select_options: str = ""
    previous_selected_uri: str = JointSelectionSettings.previous_selected_uri
    cache_uri: str = LlavaAttentionSettings.cache_uri
    # Of the loop alone; empty for a selection.
    arms: list[str] = field(default_factory=list)
    train_model: str = ""
    train_options: str = ""
    benchmark_uris: str = ""
    evaluate_options: str = ""
    resamples: int = VerdictSettings.resamples

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        check_settings(asdict(self))


@dataclass(frozen=True, kw_only=True)
class ResolveConfig(ResolveSettings):
    """Check what a run is asked for and find out which versions of it lie there now.

    Attributes:
        resolved: Output file, JSON: every location with its version.
        on_gpu: Whether the run has GPUs, handed on to who has to know before there is a model.
    """

    resolved: Output
    on_gpu: bool = False
