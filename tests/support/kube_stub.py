"""As much of the Kubernetes API as the commands ask for, over HTTP, its pods and nodes made by the client's models."""

import json

from kubernetes import client

from tests.support.http_stub import Call, KubernetesStub, Reply

_MODELS = client.ApiClient()
NAMESPACE = "kubeflow"


class KubeStub(KubernetesStub):
    """A cluster.

    Attributes:
        workflows: Argo's, by run id.
        pods: By run id.
        nodes: All of them.
        launcher: The launcher's settings.
        secrets: Names of Secrets.
        claims: Names of PersistentVolumeClaims.
        autoscaler: "cluster-autoscaler" or "karpenter", if there is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.workflows: dict[str, list[dict]] = {}
        self.pods: dict[str, list[client.V1Pod]] = {}
        self.nodes: list[client.V1Node] = []
        self.launcher: dict[str, str] = {}
        self.secrets: set[str] = set()
        self.claims: set[str] = set()
        self.autoscaler = ""
        where = f"/namespaces/{NAMESPACE}"
        self.route(f"GET /apis/argoproj.io/v1alpha1{where}/workflows", self._list("workflows"))
        self.route(f"GET /api/v1{where}/pods", self._list("pods"))
        self.route("GET /api/v1/nodes", lambda call: _items(self.nodes))
        self.route(
            f"GET /api/v1{where}/configmaps/kfp-launcher",
            lambda call: Reply(body=json.dumps({"data": self.launcher}).encode()),
        )
        self.route(f"GET /api/v1{where}/secrets/(.*)", lambda call, name: _there(name in self.secrets))
        self.route(f"GET /api/v1{where}/persistentvolumeclaims/(.*)", lambda call, name: _there(name in self.claims))
        self.route(
            "GET /api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status",
            lambda call: _there(self.autoscaler == "cluster-autoscaler"),
        )
        self.route("GET /apis/karpenter.sh/v1/nodepools", lambda call: _there(self.autoscaler == "karpenter"))

    def _list(self, kind: str):
        def answer(call: Call) -> Reply:
            name, _, run_id = call.query["labelSelector"].partition("=")
            assert name == "pipeline/runid"
            return _items(getattr(self, kind).get(run_id, []))

        return answer


def _there(found: bool) -> Reply:
    return Reply() if found else Reply(404)


def _items(entries) -> Reply:
    return Reply(body=json.dumps({"items": _MODELS.sanitize_for_serialization(entries)}).encode())


def pod(name: str, node_name: str, conditions=(), waiting=None, ended=None) -> client.V1Pod:
    """A pod of a run.

    Args:
        name: Its name.
        node_name: The full name of Argo's node.
        conditions: V1PodCondition.
        waiting: V1ContainerStateWaiting of its main container.
        ended: V1ContainerStateTerminated of it.
    """
    state = client.V1ContainerState(waiting=waiting, terminated=ended)
    main = client.V1ContainerStatus(name="main", image="i", image_id="", ready=False, restart_count=0, state=state)
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name=name, annotations={"workflows.argoproj.io/node-name": node_name}),
        status=client.V1PodStatus(conditions=list(conditions), container_statuses=[main] if waiting or ended else None),
    )


def node(
    labels: dict[str, str], taints=(), name="node-1", platform="linux/amd64", images=(), **allocatable: str
) -> client.V1Node:
    """A node; a double underscore in a resource's name stands for a slash, a single one for a point.

    Args:
        labels: Its labels.
        taints: V1Taint.
        name: Its name.
        platform: Operating system and architecture.
        images: Names of those that are there.
        allocatable: What it may give away.
    """
    resources = {name.replace("__", "/").replace("_", "."): count for name, count in allocatable.items()}
    system, architecture = platform.split("/")
    info = {name: "" for name in client.V1NodeSystemInfo.attribute_map}
    return client.V1Node(
        metadata=client.V1ObjectMeta(name=name, labels=labels),
        spec=client.V1NodeSpec(taints=list(taints)),
        status=client.V1NodeStatus(
            allocatable=resources,
            images=[client.V1ContainerImage(names=[image]) for image in images],
            node_info=client.V1NodeSystemInfo(**{**info, "operating_system": system, "architecture": architecture}),
        ),
    )
