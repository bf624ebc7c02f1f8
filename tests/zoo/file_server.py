"""A web server for one file, with the faults that downloads meet."""

import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTENT = bytes(range(256)) * 5000


@dataclass
class FileServer:
    """Gives out `content` at every address ending in `name`.

    Args:
        content: the file.
        tag: its ETag; None sends none.
        date: its Last-Modified; None sends none.
        ranges: whether it understands Range.
        cut: how many bytes it sends before it closes the connection, without an error.
        status: answer with this instead of the file.
        length: whether it tells the size.
        shift: how far the range it sends lies from the one that was asked for.
        seen: (path, Range, If-Range) of every request.
    """

    content: bytes
    name: str = "w.pth"
    tag: str | None = '"v1"'
    date: str | None = None
    ranges: bool = True
    cut: int | None = None
    status: int | None = None
    length: bool = True
    shift: int = 0
    seen: list[tuple[str, str | None, str | None]] = field(default_factory=list)
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
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.seen.append((request.path, wanted, condition))
        if self.status or not request.path.endswith(self.name):
            request.send_error(self.status or 404)
            return
        start = self._start(wanted, condition)
        if start is not None and start >= len(self.content):
            request.send_error(416)
            return
        request.send_response(200 if start is None else 206)
        body = self.content[start or 0 :]
        if start is not None:
            last, size = len(self.content) - 1, len(self.content)
            request.send_header("Content-Range", f"bytes {start}-{last}/{size}")
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        if self.tag:
            request.send_header("ETag", self.tag)
        if self.date:
            request.send_header("Last-Modified", self.date)
        request.end_headers()
        request.wfile.write(body[: self.cut])

    def _start(self, wanted: str | None, condition: str | None) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        if not match or not self.ranges or condition not in (self.tag, self.date):
            return None
        return int(match[1]) + self.shift
