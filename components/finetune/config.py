"""Settings and ports of the finetune stage."""

from dataclasses import dataclass
from typing import ClassVar

from free2ds_common.errors import SettingError
from free2ds_common.settings import (
    AUTO,
    CacheSettings,
    Input,
    ModelSettings,
    Output,
    PictureSettings,
    RejectSettings,
    SeedSettings,
    require_at_least,
    require_choice,
    require_fraction,
)

LLAVA = "llava"
# Of the models of that type, in the Hugging Face layout.
LLAVA_ARCHITECTURE = "LlavaForConditionalGeneration"
PAD, STORED = "pad", "stored"
# Of transformers' LLaVA and its like; CLIP's layers have a q_proj too and stay as they are.
LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
# float16 would need its gradients scaled.
TRAINED_DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(ModelSettings, PictureSettings, CacheSettings, RejectSettings, SeedSettings):
    """Settings of the stage; the defaults are the recipe of LLaVA-1.5 with LoRA.

    Attributes:
        model: Folder, object-store URI or hub id of the model to start from, in the Hugging Face layout.
        model_type: llava, or auto for another image-text-to-text model of transformers.
        dtype: Number format of the arithmetic: auto (bfloat16 on a GPU, else float32), float32 or bfloat16.
        pictures: pad (to a square, as LLaVA's training does), stored (as the model's processor says), or auto: pad for
            model type llava.
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale times their rank.
        lora_dropout: Share of their inputs that is dropped, in [0, 1).
        lora_targets: Regular expression of the names of the layers that get an adapter.
        projector: Name of the module between picture encoder and decoder, which is trained in full.
        learning_rate: Of the adapters, at its highest.
        projector_learning_rate: Of the projector.
        warmup_fraction: Share of the steps in which the rates rise, in [0, 1); then they fall as a cosine to 0.
        num_epochs: How often each record is learnt from.
        max_steps: Stop after so many steps, and fall to 0 by then; 0: no limit.
        batch_size: Records per step, over all GPUs.
        micro_batch_size: Records that pass a GPU together; 0: 8 on a GPU, 4 on a CPU, never more than a step's share.
        max_length: Longest conversation in tokens, the picture's included; what is beyond is cut off.
        gradient_checkpointing: Compute activations twice instead of keeping them.
        checkpoint_steps: Steps between two checkpoints.
        num_processes: Processes of a node, each with a GPU of its own; 0: as many as there are GPUs here.
        nodes: Machines. More than one: the step itself trains nothing and follows a TrainJob of Kubeflow Trainer, whose
            nodes share pictures, model and cache_uri by object stores alone.
        runtime: Name of the TrainingRuntime, or ClusterTrainingRuntime, that such a TrainJob is made from.
        node_resources: What each of its nodes is given, as name=quantity with commas between.
        picture_workers: Processes that load pictures, for each GPU; 0: 4 on a GPU, on a CPU none but the trainer's.
        cache_uri: Folder or URI below which checkpoints are kept, in finetune/; a run with the same inputs and settings
            goes on from the last one. Empty: a run that ends early is lost.
        seed: Seed of the adapters, the order of the records and the dropout.
    """

    SEED_BITS: ClassVar[int] = 31
    OPTIONS: ClassVar[tuple[str, ...]] = (
        *("batch_size", "checkpoint_steps", "dtype", "gradient_checkpointing", "learning_rate", "lora_alpha"),
        *("lora_dropout", "lora_rank", "lora_targets", "max_length", "max_steps", "micro_batch_size", "model_type"),
        *("node_resources", "nodes", "num_epochs", "num_processes", "picture_workers", "pictures", "projector"),
        *("projector_learning_rate", "revision", "runtime", "warmup_fraction"),
    )

    model: str = "llava-hf/llava-1.5-7b-hf"
    model_type: str = LLAVA
    pictures: str = AUTO
    lora_rank: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    lora_targets: str = LORA_TARGETS
    projector: str = "multi_modal_projector"
    learning_rate: float = 2e-4
    projector_learning_rate: float = 2e-5
    warmup_fraction: float = 0.03
    num_epochs: int = 1
    max_steps: int = 0
    batch_size: int = 128
    micro_batch_size: int = 0
    max_length: int = 2048
    gradient_checkpointing: bool = True
    checkpoint_steps: int = 50
    num_processes: int = 0
    nodes: int = 1
    runtime: str = "torch-distributed"
    node_resources: str = "nvidia.com/gpu=1"
    picture_workers: int = 0

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_choice("model_type", self.model_type, (LLAVA, AUTO))
        require_choice("dtype", self.dtype, TRAINED_DTYPES)
        require_choice("pictures", self.pictures, (AUTO, PAD, STORED))
        for name in ("lora_rank", "lora_alpha", "num_epochs", "batch_size", "max_length", "checkpoint_steps", "nodes"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("max_steps", "micro_batch_size", "num_processes", "picture_workers"):
            require_at_least(name, getattr(self, name), 0)
        for name in ("learning_rate", "projector_learning_rate"):
            require_at_least(name, getattr(self, name), 0)
        for name in ("lora_dropout", "warmup_fraction"):
            require_fraction(name, getattr(self, name))
            if getattr(self, name) == 1:
                raise SettingError(name, "got 1, wanted a number in [0, 1).")
        if not self.projector:
            raise SettingError("projector", "is empty, wanted the name of a module.")
        self._check_nodes()

    def _check_nodes(self) -> None:
        """What several machines need.

        Raises:
            SettingError: It is not there.
        """
        given = self.given_per_node
        if self.nodes == 1:
            return
        # Without pictures there is no image_root_uri.
        places = {"cache_uri": self.cache_uri or "nothing", "image_root_uri": self.image_root_uri}
        for name, place in places.items():
            if place and ("://" not in place or place.startswith("file:")):
                raise SettingError(name, f"got {place}, wanted an object store: {self.nodes} nodes share nothing else.")
        if not self.runtime:
            raise SettingError("runtime", "is empty, wanted the name of a TrainingRuntime.")
        if self.require_gpu:
            raise SettingError(
                "nodes",
                f"got {self.nodes} and an accelerator for the step itself, which trains nothing then. Set "
                f"train_gpu_count to 0; each node gets {', '.join(given) or 'nothing'} (node_resources).",
            )

    @property
    def given_per_node(self) -> dict[str, str]:
        """Resource to quantity, of each of several nodes.

        Raises:
            SettingError: `node_resources` is written otherwise.
        """
        given: dict[str, str] = {}
        for entry in filter(None, self.node_resources.split(",")):
            name, equals, quantity = (part.strip() for part in entry.partition("="))
            if not name or not equals or not quantity or name in given:
                raise SettingError(
                    "node_resources", f"got {entry!r}, wanted name=quantity once each, such as nvidia.com/gpu=8,cpu=16."
                )
            given[name] = quantity
        return given

    @property
    def pads_pictures(self) -> bool:
        """Whether pictures are made squares before the processor sees them."""
        return self.pictures == PAD or (self.pictures == AUTO and self.model_type == LLAVA)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FinetuneSettings):
    """Train a model with LoRA on the records of a selection.

    Attributes:
        selected: Input, the records to learn from: a JSON list as joint_selection writes it, or a records/2 folder.
        tuned_model: Output folder, the model with its adapters merged into it, in the Hugging Face layout.
        adapter: Output folder, the adapters and the projector as peft stores them, and training.json.
        report: Output file, a page with the curve of the loss.
    """

    selected: Input
    tuned_model: Output
    adapter: Output
    report: Output
