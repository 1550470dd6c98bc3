"""Stops a build whose torch is not the one that was asked for: python check_torch.py cpu|cuda."""

import sys

import torch

found = "cuda" if torch.version.cuda else "cpu"
if found != sys.argv[1]:
    sys.exit(
        f"VARIANT={sys.argv[1]} was asked for, but torch {torch.__version__} is its {found} build. "
        "images/README.md says where each variant comes from."
    )
