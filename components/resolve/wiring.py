"""Which run parameter becomes which setting of which stage: what resolve checks, and what the texts of options hold."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from components.bert_features.config import BertFeaturesSettings
from components.cluster_scoring.config import ClusterScoringSettings
from components.evaluate.config import EvaluateSettings
from components.finetune.config import FinetuneSettings
from components.ingest.config import IngestSettings
from components.joint_selection.config import JointSelectionSettings
from components.llava_attention.config import LlavaAttentionSettings
from components.mgm_attention.config import MgmAttentionSettings
from components.split.config import SplitSettings
from components.verdict.config import VerdictSettings
from free2ds_common.errors import SettingError
from free2ds_common.options import split_options, typed_options
from free2ds_common.settings import Settings


@dataclass(frozen=True)
class StageWiring:
    """Where a stage's settings come from.

    Attributes:
        settings: The stage's settings.
        text: The run parameter that holds its options; empty if it has none.
        prefix: Begins the names that its options have on the command line.
        renamed: Settings whose run parameter has another name.
        left_out: Settings that the graph decides by itself.
    """

    settings: type[Settings]
    text: str = ""
    prefix: str = ""
    renamed: Mapping[str, str] | None = None
    left_out: Collection[str] = ("require_gpu",)

    @property
    def sources(self) -> dict[str, str]:
        """Setting to run parameter, options apart."""
        renamed = self.renamed or {}
        names = [field.name for field in fields(self.settings)]
        apart = {*self.settings.OPTIONS, *self.left_out}
        return {name: renamed.get(name, name) for name in names if name not in apart}


WIRING = {
    "ingest": StageWiring(IngestSettings),
    "split": StageWiring(SplitSettings),
    "llava_attention": StageWiring(LlavaAttentionSettings, "llava_options", "llava_", {"model": "llava_model"}),
    "mgm_attention": StageWiring(MgmAttentionSettings, "mgm_options", "mgm_", {"model": "mgm_model"}),
    "bert_features": StageWiring(BertFeaturesSettings, "text_options", "bert_", {"model": "bert_model"}),
    "cluster_scoring": StageWiring(ClusterScoringSettings, "text_options"),
    "joint_selection": StageWiring(JointSelectionSettings, "select_options"),
}
# What comes after a selection in the loop; an arm brings its own seed.
LOOP = {
    "finetune": StageWiring(
        FinetuneSettings, "train_options", renamed={"model": "train_model"}, left_out=("require_gpu", "seed")
    ),
    "evaluate": StageWiring(
        EvaluateSettings,
        "evaluate_options",
        renamed={"model": "train_model", "benchmarks": "benchmark_uris"},
        left_out=("require_gpu", "revision", "benchmark_versions", "max_reject_fraction", "baseline_uri", "label"),
    ),
    "verdict": StageWiring(VerdictSettings),
}
# Names on the command line that set an option of several stages.
_SHARED = {"dtype": "dtype", "max_new_tokens": "max_new_tokens", "attention_batch_size": "batch_size"}


def options_of(text: str) -> set[str]:
    """The names that a text of options may hold.

    Args:
        text: The run parameter, such as text_options.
    """
    return {name for wiring in (WIRING | LOOP).values() if wiring.text == text for name in wiring.settings.OPTIONS}


def aliases() -> dict[str, list[tuple[str, str]]]:
    """Names of options on the command line to the texts and the names in them: llava_prompt, sampler, dtype, ..."""
    found: dict[str, list[tuple[str, str]]] = {}
    for wiring in WIRING.values():
        for name in wiring.settings.OPTIONS:
            found[f"{wiring.prefix}{name}"] = [(wiring.text, name)]
    for alias, name in _SHARED.items():
        users = [wiring.text for wiring in WIRING.values() if name in wiring.settings.OPTIONS]
        found[alias] = [(text, name) for text in users]
    return found


def texts() -> list[str]:
    """The run parameters that are texts of options."""
    return sorted({wiring.text for wiring in WIRING.values() if wiring.text})


def given_options(stage: str, values: Mapping[str, Any]) -> dict[str, str]:
    """The options that a run gives a stage.

    Args:
        stage: Its name.
        values: The run parameters.

    Raises:
        SettingError: A text of options is not as it must be.
    """
    wiring = (WIRING | LOOP)[stage]
    if not wiring.text:
        return {}
    options = split_options(wiring.text, values[wiring.text], options_of(wiring.text))
    return {name: value for name, value in options.items() if name in wiring.settings.OPTIONS}


def is_loop(values: Mapping[str, Any]) -> bool:
    """Whether a run goes on after its selection: that of a selection alone leaves all this empty."""
    return any(values[name] for name in ("arms", "train_model", "benchmark_uris"))


def stage_settings(values: Mapping[str, Any]) -> Iterator[tuple[str, Settings]]:
    """Every stage's settings; those of the loop where there is one.

    Args:
        values: The run parameters.

    Raises:
        SettingError: A text of options is not as it must be.
    """
    for stage, wiring in (WIRING | LOOP if is_loop(values) else WIRING).items():
        given = typed_options(wiring.text, wiring.settings, given_options(stage, values))
        yield (
            stage,
            wiring.settings(**given, **{name: values[source] for name, source in wiring.sources.items()}),
        )


def check_settings(values: Mapping[str, Any]) -> None:
    """Let every stage check what it would be given.

    Args:
        values: The run parameters.

    Raises:
        SettingError: A stage does not accept a setting; named as the run parameter that it comes from.
    """
    for stage, settings in stage_settings(values):
        wiring = (WIRING | LOOP)[stage]
        try:
            settings.check()
        except SettingError as error:
            if error.setting in settings.OPTIONS:
                raise SettingError(wiring.text, f"{error.setting}: {error.problem}") from None
            raise SettingError(wiring.sources.get(error.setting, error.setting), error.problem) from None
