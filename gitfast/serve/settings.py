"""The limits of a server on its clients, and its waiting times."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of one server. Times are in seconds. Limits of one image or clip are the model's: ``gitfast.Limits``.

    Attributes:
        served_name: The model's name in requests and replies; None: its own, without the folder it lies in.
        api_key: The key that clients must send as ``Authorization: Bearer``; None: nothing.
        max_running: Requests at work at the same time, one thread each; they share the engine's steps.
        max_queue: Requests that wait for one of those threads. A request beyond them is refused with 503.
        timeout: Time from admission to the end of a request; then 504.
        body_timeout: Time for the arrival of a request's body; then 408.
        drain: Time after SIGTERM for the requests that were admitted.
        max_body_bytes: Bytes of one request's body.
        max_buffered_bytes: Bytes of the bodies of all requests in progress.
        max_images: Images or clips of one request.
        max_texts: Questions, or texts to score, of one request.
        max_labels: Labels of one request.
        max_text_chars: Characters of all questions, labels, texts and prompts of one request.
        max_new_tokens: The most that a request may ask for.
        max_beams: Beams, and sequences returned for each prompt.
        max_rows: Sequences of one request in all: images times questions times beams.
        url_hosts: Hosts, or host:port, whose images may be fetched; empty: no URL is ever fetched.
        url_timeout: Time for one fetch, redirects included.
        log_texts: Write prompts and replies to the logs.
    """

    served_name: str | None = None
    api_key: str | None = None
    max_running: int = 16
    max_queue: int = 64
    timeout: float = 60.0
    body_timeout: float = 20.0
    drain: float = 30.0
    max_body_bytes: int = 64_000_000
    max_buffered_bytes: int = 1_000_000_000
    max_images: int = 16
    max_texts: int = 64
    max_labels: int = 1000
    max_text_chars: int = 200_000
    max_new_tokens: int = 512
    max_beams: int = 16
    max_rows: int = 256
    url_hosts: tuple[str, ...] = ()
    url_timeout: float = 10.0
    log_texts: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name in ("max_queue", "drain") else None
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if value < 0 or (value == 0 and lowest is None):
                raise ValueError(f"{field.name}: expected a {'positive' if lowest is None else ''} number, got {value}")
        if self.api_key == "":
            raise ValueError("api_key: expected a text, got an empty one")
