"""A node for ComfyUI that captions the images of a batch: put this file into custom_nodes/ as it is."""

import functools
from typing import Any

import numpy as np

import gitfast


@functools.lru_cache(maxsize=2)  # a workflow runs its nodes again and again
def load(model: str, dtype: str) -> gitfast.Model:
    """Load a model once."""
    return gitfast.load(model, dtype=dtype)


class GitCaption:
    """IMAGE (B, H, W, 3), floats in [0, 1], to a list of B strings."""

    CATEGORY = "image/text"
    FUNCTION = "caption"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("captions",)
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "model": ("STRING", {"default": "base-coco"}),
                "dtype": (["bfloat16", "float32", "int8", "w8a8"],),
                "num_beams": ("INT", {"default": 1, "min": 1, "max": 16}),
                "max_new_tokens": ("INT", {"default": 50, "min": 1, "max": 500}),
                "prefix": ("STRING", {"default": ""}),
            }
        }

    def caption(
        self, images: Any, model: str, dtype: str, num_beams: int, max_new_tokens: int, prefix: str
    ) -> tuple[list[str]]:
        # A batch is a torch tensor; anything that becomes an array will do.
        pixels = np.rint(np.clip(np.asarray(images), 0, 1) * 255).astype(np.uint8)
        options = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
        results = load(model, dtype).caption(list(pixels), **options)
        return ([prefix + result.text for result in results],)


NODE_CLASS_MAPPINGS = {"GitCaption": GitCaption}
NODE_DISPLAY_NAME_MAPPINGS = {"GitCaption": "Caption (GIT)"}


if __name__ == "__main__":
    from pathlib import Path

    from PIL import Image

    folder = Path(__file__).parent / "images"
    batch = [np.asarray(Image.open(folder / f"{name}.png").convert("RGB")) for name in ("five-red-squares",) * 2]
    images = np.stack(batch).astype(np.float32) / 255
    (captions,) = GitCaption().caption(images, "git-tiny", "float32", 1, 20, "a picture of ")
    print(captions)
