# The same images as images/build.py builds, for BuildKit: docker buildx bake -f images/docker-bake.hcl
variable "REGISTRY" { default = "" }
variable "TAG" { default = "dev" }
variable "VARIANT" { default = "cuda" }
variable "FAISS" { default = "faiss-cpu" }
variable "BASE_IMAGE" { default = "python:3.11-slim-bookworm" }
variable "EXTRA_INDEX" { default = "" }
variable "SOURCE" { default = "unknown" }
variable "REVISION" { default = "unknown" }
variable "VERSION" { default = "unknown" }

group "default" { targets = ["stage"] }

target "stage" {
  matrix = {
    stage = [
      "bert_features", "cluster_scoring", "ingest", "joint_selection", "llava_attention", "mgm_attention", "split",
    ]
  }
  name       = replace(stage, "_", "-")
  context    = "."
  dockerfile = "images/${stage}/Dockerfile"
  args = {
    BASE_IMAGE  = BASE_IMAGE
    VARIANT     = VARIANT
    FAISS       = FAISS
    EXTRA_INDEX = EXTRA_INDEX
    SOURCE      = SOURCE
    REVISION    = REVISION
    VERSION     = VERSION
  }
  tags = ["${REGISTRY == "" ? "" : "${REGISTRY}/"}free2ds-${replace(stage, "_", "-")}:${TAG}"]
}
