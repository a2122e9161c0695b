"""Prints the GPU's name as the name of a folder: where benchmarks/gpu.sh puts its results."""

from __future__ import annotations

import re

import torch

print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-"))
