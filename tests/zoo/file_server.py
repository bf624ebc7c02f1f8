"""A web server for one file, with the faults that downloads meet."""

import io
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


def weights(value: float = 1.0) -> bytes:
    """A weight file as torch.save writes it."""
    raw = io.BytesIO()
    torch.save({"head.weight": torch.full((300, 1000), value)}, raw)
    return raw.getvalue()


CONTENT = weights()


@dataclass
class FileServer:
    """Gives out `content` at every address ending in `name`.

    Args:
        content: the file.
        kind: its Content-Type.
        cut: how many bytes it sends before it closes the connection, without an error.
        status: answer with this status, and with no body where it is an error.
        length: the size that it tells; -1 the true one, None none.
        seen: (path, Range) of every request.
    """

    content: bytes
    name: str = "w.pth"
    kind: str = "application/octet-stream"
    cut: int | None = None
    status: int = 200
    length: int | None = -1
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    port: int = 0
    _server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.name}"

    def __enter__(self) -> "FileServer":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.seen.append((request.path, request.headers.get("Range")))
        if self.status >= 400 or not request.path.endswith(self.name):
            request.send_error(self.status if self.status >= 400 else 404)
            return
        request.send_response(self.status)
        request.send_header("Content-Type", self.kind)
        if self.length is not None:
            length = len(self.content) if self.length < 0 else self.length
            request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(self.content[: self.cut])
