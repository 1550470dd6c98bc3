#!/bin/sh
# Runs a command while the cluster of up.sh can be reached from this machine: Kubeflow Pipelines (API and UI) at
# http://127.0.0.1:8080, its store at 127.0.0.1:9000, with the variables that make s3:// mean that store.
# Usage: forward.sh COMMAND [ARGUMENT...]
set -eu
: "${1:?a command to run}"
kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80 > /dev/null &
api=$!
kubectl -n kubeflow port-forward svc/seaweedfs 9000:9000 > /dev/null &
store=$!
trap 'kill $api $store 2> /dev/null || true' EXIT INT TERM

value() {
    kubectl -n kubeflow get secret free2ds-store -o "jsonpath={.data.$1}" | base64 -d
}
AWS_ACCESS_KEY_ID=$(value AWS_ACCESS_KEY_ID)
AWS_SECRET_ACCESS_KEY=$(value AWS_SECRET_ACCESS_KEY)
AWS_ENDPOINT_URL=http://127.0.0.1:9000
AWS_DEFAULT_REGION=us-east-1
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_ENDPOINT_URL AWS_DEFAULT_REGION
for _ in $(seq 60); do
    curl -fsS http://127.0.0.1:8080/apis/v2beta1/healthz > /dev/null 2>&1 && break
    sleep 1
done
"$@"
