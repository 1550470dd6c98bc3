#!/bin/sh
# Makes a cluster on this machine: kind, Kubeflow Pipelines by its own manifests, the images, and overlays/kind.
# Usage: up.sh KFP_MANIFESTS [NODE_IMAGE]
#   KFP_MANIFESTS  the folder manifests/kustomize of Kubeflow Pipelines 2.17
#   NODE_IMAGE     of kind's nodes; empty for its own choice
# The images are free2ds-<stage>:dev of this machine's Docker, as `make images VARIANT=cpu` builds them.
set -eu
manifests=${1:?the folder manifests/kustomize of Kubeflow Pipelines is missing: make cluster-up KFP_MANIFESTS=...}
node_image=${2:-}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
cluster=free2ds

echo "== cluster"
if ! kind get clusters | grep -qx "$cluster"; then
    kind create cluster --name "$cluster" --config "$here/cluster.yaml" --wait 300s ${node_image:+--image "$node_image"}
fi
kubectl config use-context "kind-$cluster"

echo "== Kubeflow Pipelines"
kubectl apply --server-side -k "$manifests/cluster-scoped-resources"
kubectl wait --for condition=established --timeout=120s crd --all
kubectl apply --server-side --force-conflicts -k "$manifests/env/platform-agnostic"
kubectl -n kubeflow wait --for condition=available --timeout=900s deployment --all

echo "== images"
for dockerfile in "$root"/images/*/Dockerfile; do
    stage=$(basename "$(dirname "$dockerfile")" | tr _ -)
    kind load docker-image --name "$cluster" "free2ds-$stage:dev"
done

echo "== this pipeline"
kubectl apply --server-side --force-conflicts -k "$here"
value() {
    kubectl -n kubeflow get secret mlpipeline-minio-artifact -o "jsonpath={.data.$1}" | base64 -d
}
kubectl -n kubeflow create secret generic free2ds-store --dry-run=client -o yaml \
    --from-literal=AWS_ACCESS_KEY_ID="$(value accesskey)" --from-literal=AWS_SECRET_ACCESS_KEY="$(value secretkey)" |
    kubectl apply --server-side --force-conflicts -f -
echo "== ready: sh manifests/overlays/kind/forward.sh make test-cluster ..."
