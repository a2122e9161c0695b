"""``gitfast serve``: the HTTP service."""

from __future__ import annotations

import argparse
import os
from typing import Any

from gitfast import Limits, load
from gitfast.cli import common
from gitfast.errors import EngineError

_EXAMPLE = """\
  gitfast serve                                        the page at http://127.0.0.1:8000
  gitfast serve --model microsoft/git-base-coco --port 9000
  curl --data-binary @photo.jpg -H "Content-Type: image/jpeg" http://127.0.0.1:8000/v1/caption"""

_MB = 1_000_000
_MEGAPIXELS = 120


def _limits(megapixels: int) -> dict[str, Any]:
    """Return what one input may cost. A request may decode at most twenty times as much for a clip as for an image."""
    pixels = megapixels * _MB
    return {"max_pixels": pixels, "max_decoded_pixels": 20 * pixels, "max_video_pixels": 20 * pixels}


def add_parser(commands: Any) -> None:
    parser = common.add_command(
        commands,
        "serve",
        run,
        help="Serve a model over HTTP, with a page to try it on.",
        example=_EXAMPLE,
    )
    common.add_model_arguments(parser, "git-tiny", _limits(_MEGAPIXELS))
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--served-name", metavar="NAME", help="the model's name for clients (default: its own)")
    parser.add_argument(
        "--api-key", metavar="KEY", help="ask clients for it; better in the environment: GITFAST_API_KEY"
    )
    limits = parser.add_argument_group("limits")
    add = limits.add_argument
    add("--max-running", type=common.positive, default=16, metavar="N", help="requests at work at a time (default: 16)")
    add("--max-queue", type=_count, default=64, metavar="N", help="requests that wait; more get 503 (default: 64)")
    add("--timeout", type=_seconds, default=60.0, metavar="S", help="seconds of a request; then 504 (default: 60)")
    add("--body-timeout", type=_seconds, default=20.0, metavar="S", help="for a body to arrive; then 408 (default: 20)")
    add("--drain-seconds", type=_seconds, default=30.0, metavar="S", help="for what runs at SIGTERM (default: 30)")
    add("--max-body-mb", type=common.positive, default=64, metavar="MB", help="one request (default: 64)")
    add("--max-images", type=common.positive, default=16, metavar="N", help="in one request (default: 16)")
    add(
        "--max-megapixels",
        type=common.positive,
        default=_MEGAPIXELS,
        metavar="N",
        help=f"of one image, and 20 times as many decoded for a clip (default: {_MEGAPIXELS}); --limit wins",
    )
    add("--max-tokens", type=common.positive, default=512, metavar="N", help="of one text (default: 512)")
    add("--max-beams", type=common.positive, default=16, metavar="N", help="and choices of a prompt (default: 16)")
    add("--max-labels", type=common.positive, default=1000, metavar="N", help="of one request (default: 1000)")
    add(
        "--cache-mb",
        type=_count,
        default=256,
        metavar="MB",
        help="for encodings of images seen recently; 0: none (default: 256)",
    )
    add(
        "--allow-url-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch images by URL from this host, or host:port; may be repeated (default: no URL is ever fetched)",
    )
    parser.add_argument("--log-texts", action="store_true", help="prompts and replies go into the logs too")


def run(args: argparse.Namespace) -> int:
    try:
        from gitfast.serve.server import serve
        from gitfast.serve.settings import Settings
    except ImportError as error:
        raise EngineError(f'serve: needs {error.name}: pip install "gitfast[serve]"') from None
    settings = Settings(
        served_name=args.served_name,
        api_key=args.api_key or os.environ.get("GITFAST_API_KEY") or None,
        max_running=args.max_running,
        max_queue=args.max_queue,
        timeout=args.timeout,
        body_timeout=args.body_timeout,
        drain=args.drain_seconds,
        max_body_bytes=args.max_body_mb * _MB,
        max_images=args.max_images,
        max_new_tokens=args.max_tokens,
        max_beams=args.max_beams,
        max_labels=args.max_labels,
        url_hosts=tuple(args.allow_url_host),
        log_texts=args.log_texts,
    )
    limits = Limits(**(_limits(args.max_megapixels) | dict(args.limit)))

    def load_model() -> Any:
        return load(
            args.model,
            engine=args.engine,
            dtype=args.dtype,
            num_threads=args.threads,
            num_lanes=args.lanes,
            preprocess=args.preprocess,
            prefix_cache_bytes=args.cache_mb * _MB or None,
            limits=limits,
        )

    return serve(load_model, settings, host=args.host, port=args.port)


def _count(text: str) -> int:
    return 0 if text == "0" else common.positive(text)


def _port(text: str) -> int:
    port = _count(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"expected a port up to 65535, got {text!r}")
    return port


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}")
    return seconds
