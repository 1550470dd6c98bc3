"""How steps get at object stores and the hub: an optional Secret and ConfigMap of the cluster, as their environment.

Without either they use what the pod has of itself: Workload Identity, IRSA, or the node's account.
"""

from dataclasses import dataclass

from kfp import dsl, kubernetes

from free2ds_common.launch.kubernetes_names import require_object_name
from free2ds_common.settings import Settings

# Keys of the Secret; each becomes the variable of its name that boto, fsspec or the hub reads, and each may be missing.
# FSSPEC_GS is {"token": <a service account's key file>}, for gs:// outside Google's cloud.
SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "FSSPEC_GS", "HF_TOKEN")
# Keys of the ConfigMap, likewise.
CONFIG_MAP_KEYS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "HF_ENDPOINT")


@dataclass(frozen=True, kw_only=True)
class StoreAccessSettings(Settings):
    """The run parameters that name credentials; a value itself is never a parameter.

    Attributes:
        store_secret: Name of a Secret in the cluster with keys for the object store and the hub (AWS_ACCESS_KEY_ID,
            AWS_SECRET_ACCESS_KEY, HF_TOKEN, ...). It need not exist; never a key itself.
        store_config_map: Name of a ConfigMap in the cluster with the address and region of the object store
            (AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, ...). It need not exist.
    """

    store_secret: str = "free2ds-store"
    store_config_map: str = "free2ds-store"

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        # Not empty either: the backend's driver fails at an empty name, and a name of nothing does no harm.
        require_object_name("store_secret", self.store_secret)
        require_object_name("store_config_map", self.store_config_map)


@dataclass(frozen=True, kw_only=True)
class StoreAccess:
    """The names that a run gives; inside a pipeline they are its parameters.

    Attributes:
        secret: As `StoreAccessSettings.store_secret`.
        config_map: As `StoreAccessSettings.store_config_map`.
    """

    secret: str
    config_map: str

    def give(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Let a step that reads from a store or the hub use them, where they exist."""
        kubernetes.use_secret_as_env(task, self.secret, {key: key for key in SECRET_KEYS}, optional=True)
        kubernetes.use_config_map_as_env(task, self.config_map, {key: key for key in CONFIG_MAP_KEYS}, optional=True)
        return task
