"""Serve captions with Ray Serve: python examples/ray_serve.py, then curl --data-binary @photo.jpg localhost:8000"""

from ray import serve

from gitfast.integrations.ray import serve_app

serve.run(serve_app("git-tiny", num_replicas=1, max_batch_size=8), blocking=True)
