"""The whole flow, from a LLaVA data set to the records worth training on, and the commands that run it.

Commands: run (this machine), compile (the file that a cluster runs), submit (one run), schedule (recurring runs).
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from kfp import compiler, dsl, kubernetes

from components.bert_features.component import bert_features
from components.cluster_scoring.component import cluster_scoring
from components.ingest.component import ingest
from components.joint_selection.component import joint_selection
from components.llava_attention.component import llava_attention
from components.mgm_attention.component import mgm_attention
from components.split.component import split
from free2ds_common import __version__, defaults
from free2ds_common.cli import EXIT_WRONG_SETUP
from free2ds_common.docker_run import require_images
from free2ds_common.errors import StageError
from free2ds_common.local_run import run_locally
from free2ds_common.settings import DTYPES, require_at_least, require_choice
from free2ds_common.storage import atomic_writer

GPU_NODE_SELECTOR = {"nvidia.com/gpu.present": "true"}
GPU_TOLERATIONS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
# Shards scored at the same time on a cluster; kfp.local never runs more than two.
PARALLEL_SHARDS = 8


def on_cpu(task: dsl.PipelineTask, cpu: str, memory: str) -> dsl.PipelineTask:
    """Ask for a CPU step's resources and let a lost pod be tried again.

    Args:
        task: The step.
        cpu: Cores, as Kubernetes writes them.
        memory: As Kubernetes writes it.
    """
    task.set_cpu_request(cpu)
    task.set_memory_request(memory)
    task.set_retry(num_retries=2, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="600s")
    return task


def on_gpu(
    task: dsl.PipelineTask,
    gpu_type: str,
    gpu_count: int,
    cpu: str,
    memory: str,
    node_selector: dict,
    tolerations: list,
) -> dsl.PipelineTask:
    """Ask for everything that a step with an accelerator needs: the one place where this is said.

    Args:
        task: The step.
        gpu_type: Resource name of the accelerator.
        gpu_count: How many of them.
        cpu: Cores, as Kubernetes writes them.
        memory: As Kubernetes writes it.
        node_selector: Labels of the nodes that have the accelerator.
        tolerations: Taints of those nodes that do not keep the step away.
    """
    on_cpu(task, cpu, memory)
    task.set_accelerator_type(gpu_type)
    task.set_accelerator_limit(gpu_count)
    kubernetes.add_node_selector_json(task, node_selector)
    kubernetes.add_toleration_json(task, tolerations)
    # A container's own /dev/shm is 64 MB: too small for torch to hand tensors between processes.
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="8Gi")
    return task


class ShardMaps(NamedTuple):
    """Both models' attention maps of one shard."""

    llava: dsl.Dataset
    mgm: dsl.Dataset


@dsl.pipeline(name="score-shard")
def score_shard(
    shard_uri: str,
    image_root_uri: str,
    image_root_version: str,
    llava_model: str,
    llava_revision: str,
    llava_model_type: str,
    llava_prompt: str,
    llava_vision_tower: str,
    mgm_model: str,
    mgm_revision: str,
    mgm_model_type: str,
    mgm_prompt: str,
    mgm_vision_tower: str,
    mgm_vision_tower_aux: str,
    max_new_tokens: int,
    attention_batch_size: int,
    dtype: str,
    gpu_type: str,
    gpu_count: int,
    gpu_step_cpu: str,
    gpu_step_memory: str,
    node_selector: dict,
    tolerations: list,
    code_version: str,
) -> ShardMaps:
    """One turn of the loop: both models over one shard. A pipeline of its own, because a loop's body must be one."""
    shard = dsl.importer(
        artifact_uri=shard_uri, artifact_class=dsl.Dataset, reimport=False, metadata={"display_name": "shard"}
    )
    llava = llava_attention(
        shard=shard.output,
        image_root_uri=image_root_uri,
        image_root_version=image_root_version,
        model=llava_model,
        revision=llava_revision,
        model_type=llava_model_type,
        prompt=llava_prompt,
        vision_tower=llava_vision_tower,
        max_new_tokens=max_new_tokens,
        batch_size=attention_batch_size,
        dtype=dtype,
        code_version=code_version,
    )
    mgm = mgm_attention(
        shard=shard.output,
        image_root_uri=image_root_uri,
        image_root_version=image_root_version,
        model=mgm_model,
        revision=mgm_revision,
        model_type=mgm_model_type,
        prompt=mgm_prompt,
        vision_tower=mgm_vision_tower,
        vision_tower_aux=mgm_vision_tower_aux,
        max_new_tokens=max_new_tokens,
        batch_size=attention_batch_size,
        dtype=dtype,
        code_version=code_version,
    )
    for task in (llava, mgm):
        on_gpu(task, gpu_type, gpu_count, gpu_step_cpu, gpu_step_memory, node_selector, tolerations)
    return ShardMaps(llava=llava.outputs["attention"], mgm=mgm.outputs["attention"])


class Selection(NamedTuple):
    """What a run is for."""

    selected: dsl.Dataset
    scores: dsl.Dataset
    report: dsl.HTML
    summary: dsl.Metrics
    random: dsl.Dataset
    rejects: dsl.Artifact


@dsl.pipeline(name="free2ds", description="Select the records of a LLaVA data set that are worth training on.")
def free2ds(
    dataset_uri: str,
    image_root_uri: str,
    dataset_version: str = "",
    image_root_version: str = "",
    llava_model: str = defaults.LLAVA_MODEL,
    llava_revision: str = defaults.REVISION,
    llava_model_type: str = "llava",
    llava_prompt: str = defaults.PROMPT,
    llava_vision_tower: str = "",
    mgm_model: str = defaults.MGM_MODEL,
    mgm_revision: str = defaults.REVISION,
    mgm_model_type: str = "mgm",
    mgm_prompt: str = defaults.PROMPT,
    mgm_vision_tower: str = "",
    mgm_vision_tower_aux: str = "",
    bert_model: str = defaults.BERT_MODEL,
    bert_revision: str = defaults.REVISION,
    bert_batch_tokens: int = defaults.BERT_BATCH_TOKENS,
    num_shards: int = defaults.NUM_SHARDS,
    max_reject_fraction: float = defaults.MAX_REJECT_FRACTION,
    max_new_tokens: int = defaults.MAX_NEW_TOKENS,
    attention_batch_size: int = defaults.ATTENTION_BATCH_SIZE,
    dtype: str = defaults.DTYPE,
    num_clusters: int = defaults.NUM_CLUSTERS,
    num_iterations: int = defaults.NUM_ITERATIONS,
    ratio: float = defaults.RATIO,
    num_samples: int = defaults.NUM_SAMPLES,
    alpha: float = defaults.ALPHA,
    temperature: float = defaults.TEMPERATURE,
    sampler: str = defaults.SAMPLER,
    missing_iou: str = defaults.MISSING_IOU,
    text_normalization: str = defaults.TEXT_NORMALIZATION,
    top_percent: float = defaults.TOP_PERCENT,
    stratify: str = defaults.STRATIFY,
    seed: int = defaults.SEED,
    gpu_type: str = "nvidia.com/gpu",
    gpu_count: int = 1,
    gpu_step_cpu: str = "4",
    gpu_step_memory: str = "32Gi",
    cpu_step_cpu: str = "2",
    cpu_step_memory: str = "8Gi",
    node_selector: dict = GPU_NODE_SELECTOR,
    tolerations: list = GPU_TOLERATIONS,
    code_version: str = __version__,
) -> Selection:
    """Select the records of a LLaVA data set that are worth training on.

    Args:
        dataset_uri: LLaVA JSON or JSONL file, gzip too: a path or a URI such as gs://bucket/dataset.json.
        image_root_uri: The folder that the records' images are relative to; empty if no record has an image.
        dataset_version: Any text; change it when the bytes behind dataset_uri change, or a cached result is used again.
        image_root_version: Any text; change it when the pictures change.
        llava_model: Local folder, object-store URI or hub id.
        llava_revision: Branch, tag or commit of llava_model.
        llava_model_type: llava, or auto for another image-text-to-text model on this side.
        llava_prompt: method, or (with model type auto) chat for the model's own chat template.
        llava_vision_tower: Its CLIP encoder, when the model's own entry does not lead to it; empty otherwise.
        mgm_model: Local folder, object-store URI or hub id.
        mgm_revision: Branch, tag or commit of mgm_model.
        mgm_model_type: mgm, or auto for another image-text-to-text model on this side.
        mgm_prompt: method, or (with model type auto) chat for the model's own chat template.
        mgm_vision_tower: Its CLIP encoder, when the model's own entry does not lead to it; empty otherwise.
        mgm_vision_tower_aux: Its ConvNeXt encoder, likewise.
        bert_model: Local folder, object-store URI or hub id.
        bert_revision: Branch, tag or commit of bert_model.
        bert_batch_tokens: Most tokens of one forward pass of BERT, padding included; on a CPU a pass may be smaller.
        num_shards: Parts that the models score side by side, 1 to 64.
        max_reject_fraction: Largest accepted share of unusable records, in [0, 1].
        max_new_tokens: Most tokens that a model generates per record.
        attention_batch_size: Records that generate together.
        dtype: Number format of the models: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16.
        num_clusters: Centroids of the text side's k-means.
        num_iterations: Rounds of k-means.
        ratio: Share of the records to select, in (0, 1].
        num_samples: Exact number to select; 0 means "use ratio".
        alpha: Weight of the text side, in [0, 1].
        temperature: Of the softmax over the scores, above 0.
        sampler: gumbel, reference or top.
        missing_iou: What a record without an IoU gets: text, reference or exclude.
        text_normalization: reference or rank.
        top_percent: Share of an attention map's positions that are compared, in percent.
        stratify: source draws within each source in proportion; empty draws over all records.
        seed: Of k-means, of the draw and of the random control.
        gpu_type: Resource name of the accelerator that the attention and BERT steps ask for.
        gpu_count: Accelerators per step.
        gpu_step_cpu: Cores asked for by a step with an accelerator.
        gpu_step_memory: Memory asked for by a step with an accelerator.
        cpu_step_cpu: Cores asked for by every other step.
        cpu_step_memory: Memory asked for by every other step.
        node_selector: Labels of the nodes that have the accelerator.
        tolerations: Taints of those nodes that do not keep the steps away.
        code_version: Any text; change it when an image changes under the same tag.
    """
    ingested = on_cpu(
        ingest(
            dataset_uri=dataset_uri,
            dataset_version=dataset_version,
            image_root_uri=image_root_uri,
            image_root_version=image_root_version,
            max_reject_fraction=max_reject_fraction,
            code_version=code_version,
        ),
        cpu_step_cpu,
        cpu_step_memory,
    )
    records = ingested.outputs["records"]
    shards = on_cpu(
        split(records=records, num_shards=num_shards, code_version=code_version), cpu_step_cpu, cpu_step_memory
    )
    with dsl.ParallelFor(shards.outputs["Output"], parallelism=PARALLEL_SHARDS) as shard_uri:
        maps = score_shard(
            shard_uri=shard_uri,
            image_root_uri=image_root_uri,
            image_root_version=image_root_version,
            llava_model=llava_model,
            llava_revision=llava_revision,
            llava_model_type=llava_model_type,
            llava_prompt=llava_prompt,
            llava_vision_tower=llava_vision_tower,
            mgm_model=mgm_model,
            mgm_revision=mgm_revision,
            mgm_model_type=mgm_model_type,
            mgm_prompt=mgm_prompt,
            mgm_vision_tower=mgm_vision_tower,
            mgm_vision_tower_aux=mgm_vision_tower_aux,
            max_new_tokens=max_new_tokens,
            attention_batch_size=attention_batch_size,
            dtype=dtype,
            gpu_type=gpu_type,
            gpu_count=gpu_count,
            gpu_step_cpu=gpu_step_cpu,
            gpu_step_memory=gpu_step_memory,
            node_selector=node_selector,
            tolerations=tolerations,
            code_version=code_version,
        )
    features = on_gpu(
        bert_features(
            records=records,
            model=bert_model,
            revision=bert_revision,
            batch_tokens=bert_batch_tokens,
            dtype=dtype,
            code_version=code_version,
        ),
        gpu_type,
        gpu_count,
        gpu_step_cpu,
        gpu_step_memory,
        node_selector,
        tolerations,
    )
    text = on_cpu(
        cluster_scoring(
            features=features.outputs["features"],
            num_clusters=num_clusters,
            num_iterations=num_iterations,
            seed=seed,
            code_version=code_version,
        ),
        cpu_step_cpu,
        cpu_step_memory,
    )
    chosen = on_cpu(
        joint_selection(
            records=records,
            llava_attention=dsl.Collected(maps.outputs["llava"]),
            mgm_attention=dsl.Collected(maps.outputs["mgm"]),
            text_scores=text.outputs["scores"],
            kmeans=text.outputs["kmeans"],
            image_root_uri=image_root_uri,
            image_root_version=image_root_version,
            ratio=ratio,
            num_samples=num_samples,
            alpha=alpha,
            temperature=temperature,
            sampler=sampler,
            missing_iou=missing_iou,
            text_normalization=text_normalization,
            top_percent=top_percent,
            stratify=stratify,
            max_reject_fraction=max_reject_fraction,
            seed=seed,
            code_version=code_version,
        ),
        cpu_step_cpu,
        cpu_step_memory,
    )
    return Selection(
        selected=chosen.outputs["selected"],
        scores=chosen.outputs["scores"],
        report=chosen.outputs["report"],
        summary=chosen.outputs["summary"],
        random=chosen.outputs["random"],
        rejects=ingested.outputs["rejects"],
    )


def compiled_pipeline() -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline spec and the platform spec that a backend reads."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "free2ds.yaml"
        compiler.Compiler().compile(free2ds, str(package))
        spec, platform = yaml.safe_load_all(package.read_text(encoding="utf-8"))
    return spec, platform


def released_images(registry: str, tag: str, digests: Mapping[str, str] | None) -> Callable[[str], str]:
    """How an image of the source tree is named where it was pushed.

    Args:
        registry: Where the images are, without a trailing slash; empty leaves the names alone.
        tag: The tag they were pushed with; unused when there are digests.
        digests: sha256:... by image name ("free2ds-ingest").

    Raises:
        StageError: Only half of the information was given.
    """
    if not registry:
        if tag or digests:
            raise StageError("--tag and --digests: no --registry given. Say where the images were pushed.")
        return lambda image: image
    if not tag and digests is None:
        raise StageError(f"--registry {registry}: neither --tag nor --digests given. Say which images to use.")

    def name(image: str) -> str:
        stage_image = image.partition(":")[0]
        if digests is None:
            return f"{registry.rstrip('/')}/{stage_image}:{tag}"
        digest = digests.get(stage_image, "")
        if not isinstance(digest, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise StageError(f"--digests: {stage_image} has {digest!r}, wanted sha256: and 64 hex digits.")
        return f"{registry.rstrip('/')}/{stage_image}@{digest}"

    return name


def images_of(spec: Mapping[str, Any]) -> list[str]:
    """The images of a compiled pipeline, one per stage."""
    executors = spec["deploymentSpec"]["executors"].values()
    return sorted(executor["container"]["image"] for executor in executors if "container" in executor)


def write_package(path: Path, spec: dict[str, Any], platform: dict[str, Any]) -> None:
    """Write a compiled pipeline the way the KFP compiler does: two YAML documents."""
    with atomic_writer(path, "w") as handle:
        yaml.safe_dump_all([spec, platform], handle, sort_keys=True)


def release(arguments: argparse.Namespace, *, cache_ingest: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The compiled pipeline with the images that the command line names.

    Args:
        arguments: With registry, tag and digests.
        cache_ingest: Whether a run may use an earlier reading of the same data set.

    Raises:
        StageError: The images are not named completely, or the digest file cannot be read.
    """
    digests = read_mapping("--digests", arguments.digests) if arguments.digests else None
    name = released_images(arguments.registry, arguments.tag, digests)
    spec, platform = compiled_pipeline()
    for executor in spec["deploymentSpec"]["executors"].values():
        if "container" in executor:
            executor["container"]["image"] = name(executor["container"]["image"])
    if not cache_ingest:
        spec["root"]["dag"]["tasks"]["ingest"]["cachingOptions"] = {}
    return spec, platform


def compile_command(arguments: argparse.Namespace) -> int:
    """Write the file that a cluster runs."""
    spec, platform = release(arguments)
    write_package(Path(arguments.output), spec, platform)
    print(f"{arguments.output}: upload it in the Kubeflow Pipelines UI, or use: python pipeline.py submit")
    return 0


# --- parameters --------------------------------------------------------------------------------------------------

# How the KFP compiler names a parameter's type, its Python type, and the words for it.
KINDS: dict[str, tuple[type, str]] = {
    "String": (str, "text"),
    "Integer": (int, "a whole number"),
    "Float": (float, "a number"),
    "Dict": (dict, "a JSON object"),
    "List": (list, "a JSON list"),
}


def read_mapping(option: str, path: str) -> dict[str, Any]:
    """A JSON or YAML file that holds names and values.

    Raises:
        StageError: The file is missing or holds something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StageError(f"{option}: {path} cannot be read ({error.strerror}). Give a JSON or YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise StageError(f"{option}: {path} is neither JSON nor YAML. Give a file of names and values.") from None
    if not isinstance(content, dict):
        raise StageError(f"{option}: {path} holds no names and values. Write it as name: value, one a line.")
    return content


def check_settings(values: Mapping[str, Any]) -> None:
    """Refuse now what a stage would refuse only when its turn comes, on a cluster perhaps hours later.

    Args:
        values: The parameters that are not left at their defaults.

    Raises:
        StageError: A setting is out of range.
    """
    # Here, not at the top: compiling needs none of the stages' packages.
    from components.joint_selection import stage as selection
    from components.split.stage import check_num_shards

    every = {name: definition.default for name, definition in free2ds.component_spec.inputs.items()} | dict(values)
    names = [field.name for field in dataclasses.fields(selection.JointSelectionConfig)]
    selection.JointSelectionConfig(**{name: every.get(name) for name in names}).check()
    check_num_shards(every["num_shards"])
    at_least_one = ("attention_batch_size", "bert_batch_tokens", "max_new_tokens", "num_clusters", "num_iterations")
    for name in (*at_least_one, "gpu_count"):
        require_at_least(name, every[name], 1)
    require_choice("dtype", every["dtype"], DTYPES)


def typed_value(name: str, value: Any, kind: str) -> Any:
    """A parameter's value in its own type.

    Args:
        name: The parameter, for the message.
        value: Text from the command line, or a value from a file.
        kind: One of KINDS.

    Raises:
        StageError: The value is not of that type.
    """
    wanted, words = KINDS[kind]
    try:
        if isinstance(value, str):
            value = wanted(value) if wanted in (str, int, float) else json.loads(value)
    except ValueError:
        raise StageError(f"{name}: got {value!r}, wanted {words}.") from None
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise StageError(f"{name}: got {value!r}, wanted {words}.")
    return value


def read_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parameters that the command line gives, typed and in range.

    Args:
        arguments: With params_file and param.

    Raises:
        StageError: A parameter is unknown, missing, of another type or out of range.
    """
    known = free2ds.component_spec.inputs
    given = read_mapping("--params-file", arguments.params_file) if arguments.params_file else {}
    for text in arguments.param:
        name, equals, value = text.partition("=")
        if not equals:
            raise StageError(f"--param: got {text!r}, wanted name=value.")
        given[name] = value
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = (
                f"Did you mean {close[0]}?" if close else f"python pipeline.py {arguments.command} --help lists them."
            )
            raise StageError(f"{name}: there is no parameter of this name. {hint}")
    values = {name: typed_value(name, value, known[name].type) for name, value in given.items()}
    for name, definition in known.items():
        if not definition.optional and name not in values:
            raise StageError(f"{name}: is missing. Add --param {name}=... ({definition.description})")
    check_settings(values)
    return values


def local_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with this machine's paths made absolute: the stages run in another folder.

    Args:
        values: Parameters by name.
    """
    absolute = dict(values)
    for name, value in values.items():
        if not isinstance(value, str) or not value or "://" in value:
            continue
        path = os.path.abspath(os.path.expanduser(value))
        # A hub id looks like a relative path: only what exists is one.
        if name.endswith("_uri") or (("_model" in name or "_tower" in name) and os.path.exists(path)):
            absolute[name] = path
    return absolute


def run_command(arguments: argparse.Namespace) -> int:
    """Run the whole pipeline on this machine."""
    values = local_arguments(read_parameters(arguments))
    in_images = arguments.runner == "docker"
    if not in_images and (arguments.registry or arguments.network):
        raise StageError("--registry and --network: only --runner docker uses images. Add it, or leave them out.")
    spec, platform = release(arguments)
    if in_images:
        require_images(images_of(spec), local_only=not arguments.registry)
    return run_locally(
        spec,
        platform,
        values,
        values.get("num_shards", defaults.NUM_SHARDS),
        Path(arguments.output_dir).resolve(),
        keep_work=arguments.keep_work,
        in_images=in_images,
        network=arguments.network,
    )


def connect(host: str, namespace: str) -> Any:
    """A client of a Kubeflow Pipelines backend.

    Args:
        host: Its address; empty uses KF_PIPELINES_ENDPOINT, the cluster this runs in, or the kubectl configuration.
        namespace: Of a multi-user installation.

    Raises:
        StageError: Nothing answers there.
    """
    import kfp
    import urllib3

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return kfp.Client(host=host or None, namespace=namespace)
        except (urllib3.exceptions.HTTPError, TimeoutError, OSError) as error:
            where = host or "the default address"
            raise StageError(f"--host: no Kubeflow Pipelines answers at {where} ({error}).") from None


def upload(
    arguments: argparse.Namespace, start: Callable[[Any, str, dict[str, Any]], str], *, cache_ingest: bool
) -> int:
    """Compile, connect and start something on a cluster.

    Args:
        arguments: With the images, the parameters and the host.
        start: Called with the client, the compiled file and the parameters; returns what to print.
        cache_ingest: As in `release`.

    Raises:
        StageError: Wrong parameters, or the backend does not answer or refuses.
    """
    import kfp_server_api

    values = read_parameters(arguments)
    spec, platform = release(arguments, cache_ingest=cache_ingest)
    client = connect(arguments.host, arguments.namespace)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "free2ds.yaml"
        write_package(package, spec, platform)
        try:
            print(start(client, str(package), values))
        except kfp_server_api.ApiException as error:
            raise StageError(f"--host: the backend refused ({error.status} {error.reason}): {error.body}") from None
    return 0


def submit_command(arguments: argparse.Namespace) -> int:
    """Start one run on a cluster."""

    def start(client: Any, package: str, values: dict[str, Any]) -> str:
        run = client.create_run_from_pipeline_package(
            package, arguments=values, run_name=arguments.run_name or None, experiment_name=arguments.experiment
        )
        return f"started run {run.run_id} in experiment {arguments.experiment}"

    return upload(arguments, start, cache_ingest=True)


# A number, a range or *, each with a step or not, and lists of them; ? and names as in MON-FRI.
CRON_FIELD = re.compile(r"(\?|(\*|\w+(-\w+)?)(/\d+)?)(,(\*|\w+(-\w+)?)(/\d+)?)*")


def check_cron(cron: str) -> None:
    """Refuse a schedule that the backend would misread.

    Args:
        cron: Six fields: second, minute, hour, day of month, month, day of week.

    Raises:
        StageError: Another number of fields (a crontab's five are accepted by the backend and misread), a field that is
            none, or a start every second.
    """
    fields = cron.split()
    example = "such as '0 0 3 * * 1' for Mondays at 03:00"
    if len(fields) != 6:
        raise StageError(f"--cron: got {cron!r} with {len(fields)} fields, wanted six, seconds first, {example}.")
    for field in fields:
        if not CRON_FIELD.fullmatch(field):
            raise StageError(f"--cron: {field!r} in {cron!r} is no cron field; wanted six, {example}.")
    if not (fields[0].isdigit() and int(fields[0]) < 60):
        raise StageError(f"--cron: the first field of {cron!r} is the second, wanted a number from 0 to 59, {example}.")


def schedule_command(arguments: argparse.Namespace) -> int:
    """Start a run again and again."""
    check_cron(arguments.cron)
    if not 1 <= arguments.max_concurrency <= 10:
        raise StageError(f"--max-concurrency: got {arguments.max_concurrency}, wanted 1 to 10.")

    def start(client: Any, package: str, values: dict[str, Any]) -> str:
        recurring = client.create_recurring_run(
            experiment_id=client.create_experiment(arguments.experiment).experiment_id,
            job_name=arguments.run_name or "free2ds",
            cron_expression=arguments.cron,
            max_concurrency=arguments.max_concurrency,
            no_catchup=True,
            params=values,
            pipeline_package_path=package,
        )
        return f"scheduled {recurring.recurring_run_id} ({arguments.cron}) in experiment {arguments.experiment}"

    # The parameters of a recurring run stay the same, so with the cache it would never look at the data set again.
    return upload(arguments, start, cache_ingest=False)


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    inputs = free2ds.component_spec.inputs.items()
    listing = "parameters:\n" + "\n".join(
        f"  {name}: {value.description} ({f'default {json.dumps(value.default)}' if value.optional else 'required'})"
        for name, value in inputs
    )
    parameters = argparse.ArgumentParser(add_help=False)
    parameters.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated"
    )
    parameters.add_argument("--params-file", default="", help="JSON or YAML file of parameters; --param wins over it")
    images = argparse.ArgumentParser(add_help=False)
    images.add_argument("--registry", default="", help="where the images were pushed; empty keeps free2ds-<stage>:dev")
    images.add_argument("--tag", default="", help="the tag they were pushed with")
    images.add_argument(
        "--digests", default="", help="JSON or YAML file of image name and sha256:..., instead of --tag"
    )
    cluster = argparse.ArgumentParser(add_help=False)
    cluster.add_argument("--host", default="", help="address of Kubeflow Pipelines; empty finds it as kubectl would")
    cluster.add_argument("--namespace", default="kubeflow", help="of a multi-user installation")
    cluster.add_argument("--experiment", default="free2ds", help="groups runs in the UI")
    cluster.add_argument("--run-name", default="", help="how the UI calls the run")

    parser = argparse.ArgumentParser(prog="python pipeline.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, work: Callable[[argparse.Namespace], int], *parents: argparse.ArgumentParser) -> Any:
        added = commands.add_parser(
            name,
            parents=parents,
            help=work.__doc__,
            description=work.__doc__,
            epilog=listing if parameters in parents else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(work=work)
        return added

    run = command("run", run_command, parameters, images)
    run.add_argument("--output-dir", required=True, help="gets selected.json, scores/, rejects.jsonl, report.html, ...")
    run.add_argument(
        "--runner",
        choices=["subprocess", "docker"],
        default="subprocess",
        help="each stage as a process or in its image",
    )
    run.add_argument("--network", default="", help="Docker network of the stages (--runner docker)")
    run.add_argument("--keep-work", action="store_true", help="keep what the stages hand to each other")
    command("compile", compile_command, images).add_argument("--output", default="free2ds.yaml", help="the file")
    command("submit", submit_command, parameters, images, cluster)
    schedule = command("schedule", schedule_command, parameters, images, cluster)
    schedule.add_argument("--cron", required=True, help="six fields, seconds first: '0 0 3 * * 1' is Mondays at 03:00")
    schedule.add_argument("--max-concurrency", type=int, default=1, help="runs at the same time, 1 to 10")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The command line; None takes the process's own.

    Returns:
        0; 2 after one sentence when the set-up is wrong; 1 when a stage crashed; 130 when interrupted.
    """
    arguments = command_line().parse_args(argv)
    try:
        return arguments.work(arguments)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WRONG_SETUP
    except KeyboardInterrupt:
        print("interrupted; every stage was stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
