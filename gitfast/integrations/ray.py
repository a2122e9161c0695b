"""Caption with Ray where one machine ends: Ray Data for files, Ray Serve for requests (``pip install "gitfast[ray]"``).

``caption_files`` is a whole job: read files, caption them in actors, write parquet or JSON lines, resume where a job
that died has stopped. ``Captioner`` is the class inside it, for pipelines of one's own, and ``serve_app`` a deployment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import ray

from gitfast import Model, Result, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.serve import Application

DEFAULT_BATCH_SIZE = 32
# Besides the actors that caption, a job runs its reading and writing, and with a checkpoint an actor that filters.
_CPUS_TO_READ = 1
_CPUS_TO_FILTER = 1
_CPUS_TO_CAPTION_DEFAULT = 1


class Captioner:
    """Caption the images of a batch, or answer a question about each, for ``Dataset.map_batches``.

    An actor of this class takes as many threads as CPUs were assigned to it, and the CUDA engine where a GPU was.

    >>> dataset = ray.data.read_binary_files("photos/", include_paths=True)
    >>> dataset = dataset.map_batches(Captioner, fn_constructor_kwargs={"model": "base-coco"},
    ...                               batch_size=32, num_cpus=2, compute=ray.data.ActorPoolStrategy(size=4))
    """

    def __init__(
        self,
        model: str = "git-tiny",
        *,
        image_column: str = "bytes",
        path_column: str = "path",
        question: str | None = None,
        keep_images: bool = False,
        load_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Load the model.

        Args:
            model: As in ``gitfast.load``.
            image_column: Encoded images as bytes, paths, or arrays (H, W, 3) uint8.
            path_column: The row's origin, for messages; it need not exist.
            question: Asked about every image; None: caption them.
            keep_images: Keep ``image_column`` in the result.
            load_options: Keyword arguments of ``gitfast.load``.
            **options: Options of ``Model.caption``.
        """
        self.image_column, self.path_column = image_column, path_column
        self.question, self.keep_images, self.options = question, keep_images, options
        self.model = load(model, **(assigned_resources() | dict(load_options or {})))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add ``text``, ``score`` and ``error`` to a batch of rows.

        A bad image has no text and an error that names its path. Without an error, ``error`` is empty and not null,
        so that every file of a job has the same column types.

        Raises:
            ValueError: the batch has no column of images.
        """
        if self.image_column not in batch:
            raise ValueError(f"image_column: no column {self.image_column!r}; there are {', '.join(batch)}")
        images = list(batch[self.image_column])
        if self.path_column in batch:  # errors then name the file
            images = [_named(image, path) for image, path in zip(images, batch[self.path_column], strict=True)]
        results = self._results(images)
        columns = {name: values for name, values in batch.items() if self.keep_images or name != self.image_column}
        return columns | {
            "text": np.array([result.text for result in results], dtype=object),
            "score": np.array([np.nan if result.error else result.score for result in results], dtype=np.float64),
            "error": np.array(["" if result.error is None else str(result.error) for result in results], dtype=object),
        }

    def _results(self, images: list[Any]) -> list[Result]:
        if self.question is None:
            return self.model.caption(images, on_error="return", **self.options)
        return self.model.answer(images, self.question, on_error="return", **self.options)


def caption_files(
    paths: str | Sequence[str],
    output: str,
    *,
    model: str = "git-tiny",
    num_actors: int = 1,
    cpus_per_actor: int = _CPUS_TO_CAPTION_DEFAULT,
    gpus_per_actor: float = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    file_format: Literal["parquet", "json"] = "parquet",
    checkpoint: str | None = None,
    load_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Caption files, or answer a question about each, and write one row per file: path, text, score, error.

    Args:
        paths: Files or folders, on any storage that Ray Data reads.
        output: The folder of the results.
        model, load_options, **options: As in ``Captioner``, ``question=`` too.
        num_actors, cpus_per_actor, gpus_per_actor: Copies of the model, and the CPUs and GPUs of each.
        batch_size: Rows that an actor is given at once.
        file_format: Parquet, or JSON lines.
        checkpoint: A folder in which Ray notes the rows that are written. A job started again with the same folder
            reads only the files that are not yet in the output.

    Raises:
        ValueError: the actors would take every CPU of the cluster, so that nothing could be read: Ray waits for ever.
    """
    if file_format not in ("parquet", "json"):
        raise ValueError(f"file_format: expected 'parquet' or 'json', got {file_format!r}")
    check_fits(num_actors, cpus_per_actor, gpus_per_actor, checkpoint=checkpoint is not None)
    with _checkpoint(checkpoint):
        dataset = ray.data.read_binary_files(paths, include_paths=True).map_batches(
            Captioner,
            fn_constructor_kwargs={"model": model, "load_options": load_options, **options},
            batch_size=batch_size,
            num_cpus=cpus_per_actor,
            num_gpus=gpus_per_actor or None,
            compute=ray.data.ActorPoolStrategy(size=num_actors),
        )
        dataset.write_parquet(output) if file_format == "parquet" else dataset.write_json(output)


def check_fits(num_actors: int, cpus_per_actor: int, gpus_per_actor: float = 0, *, checkpoint: bool = False) -> None:
    """Refuse actors that leave no CPU to read with, or that fit no machine: Ray would wait without a word.

    Raises:
        ValueError: a number below 1, or more than the cluster has; the message says what there is.
    """
    for name, value in (("num_actors", num_actors), ("cpus_per_actor", cpus_per_actor)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not ray.is_initialized():
        ray.init()
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    others = _CPUS_TO_READ + (_CPUS_TO_FILTER if checkpoint else 0)
    taken = num_actors * cpus_per_actor
    if taken + others > cpus:
        raise ValueError(
            f"num_actors: {num_actors} of {cpus_per_actor} CPUs take {taken}, and reading"
            f"{' and the checkpoint take' if checkpoint else ' takes'} {others} more; the cluster has {cpus:g}"
        )
    if num_actors * gpus_per_actor > gpus:
        raise ValueError(f"gpus_per_actor: {num_actors * gpus_per_actor:g} in all; the cluster has {gpus:g}")
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if cpus_per_actor > largest:
        raise ValueError(f"cpus_per_actor: {cpus_per_actor} fit no machine; the largest has {largest:g}")


def assigned_resources() -> dict[str, Any]:
    """Turn what Ray assigned to this actor into arguments of ``gitfast.load``: threads, or the CUDA engine."""
    assigned = ray.get_runtime_context().get_assigned_resources() if ray.is_initialized() else {}
    if assigned.get("GPU"):
        return {"engine": "cuda"}
    return {"num_threads": max(1, int(assigned["CPU"]))} if assigned.get("CPU") else {}


def serve_app(
    model: str = "git-tiny",
    *,
    num_replicas: int = 1,
    cpus_per_replica: int = _CPUS_TO_CAPTION_DEFAULT,
    gpus_per_replica: float = 0,
    max_batch_size: int = 8,
    max_ongoing_requests: int = 64,
    load_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Application:
    """Make a Ray Serve application: POST an image, get its caption as JSON; ``?question=`` asks about it.

    Requests that wait are computed together, up to ``max_batch_size``. A body that is no image gets 400 with a message.

    >>> serve.run(serve_app("base-coco", num_replicas=4, cpus_per_replica=2))
    """
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    class Service:
        def __init__(self) -> None:
            self.model: Model = load(model, **(assigned_resources() | dict(load_options or {})))

        async def __call__(self, request: Request) -> Response:
            if request.method != "POST":
                return JSONResponse({"error": "POST an image"}, status_code=405)
            result = await self.results((await request.body(), request.query_params.get("question")))
            if result.error is not None:
                return JSONResponse({"error": str(result.error)}, status_code=400)
            return JSONResponse({"text": result.text, "score": result.score, "finish_reason": result.finish_reason})

        @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=0.0)
        async def results(self, requests: list[tuple[bytes, str | None]]) -> list[Result]:
            import asyncio

            return await asyncio.to_thread(answer_requests, self.model, requests, options)

    ray_options = {"num_cpus": cpus_per_replica} | ({"num_gpus": gpus_per_replica} if gpus_per_replica else {})
    deployment = serve.deployment(
        num_replicas=num_replicas, ray_actor_options=ray_options, max_ongoing_requests=max_ongoing_requests
    )
    return deployment(Service).bind()


def answer_requests(
    model: Model, requests: Sequence[tuple[bytes, str | None]], options: Mapping[str, Any]
) -> list[Result]:
    """Caption the images without a question and answer the others, each kind in one call; results keep their order."""
    results: dict[int, Result] = {}
    plain = [i for i, (_, question) in enumerate(requests) if question is None]
    asked = [i for i, (_, question) in enumerate(requests) if question is not None]
    if plain:
        found = model.caption([requests[i][0] for i in plain], on_error="return", **options)
        results.update(zip(plain, found, strict=True))
    if asked:
        images, questions = zip(*(requests[i] for i in asked), strict=True)
        found = model.answer(list(images), list(questions), on_error="return", **options)
        results.update(zip(asked, found, strict=True))
    return [results[i] for i in range(len(requests))]


@contextmanager
def _checkpoint(folder: str | None) -> Iterator[None]:
    """Let the jobs inside note the paths that are written, in ``folder``."""
    if folder is None:
        yield
        return
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    before = context.checkpoint_config
    context.checkpoint_config = CheckpointConfig(
        id_column="path", checkpoint_path=os.fspath(folder), delete_checkpoint_on_success=False
    )
    try:
        yield
    finally:
        context.checkpoint_config = before


def _named(image: Any, path: Any) -> Any:
    return {"bytes": image, "path": str(path)} if isinstance(image, bytes) else image
