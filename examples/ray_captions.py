"""Caption folders with Ray Data on this machine or a cluster: python examples/ray_captions.py PICTURES OUTPUT

Started again with the same folders, it captions only what is not yet in the output.
"""

import sys

import ray

from gitfast.integrations.ray import caption_files

pictures, output = sys.argv[1:]
ray.init()
caption_files(pictures, output, model="git-tiny", num_actors=1, checkpoint=output.rstrip("/") + ".checkpoint")
