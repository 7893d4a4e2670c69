"""A local server of the standard library, as a plugin's author would write one."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException

from rdzv.testing.local_server import LocalServer


class WebServer(LocalServer):
    """Serves its data folder; its program is a Python."""

    kind = "rdzv-web"
    binary_variable = "RDZV_WEB_BINARY_PATH"
    packaged = (("pytest", "no-such-*"), ("json", "tool.py"))
    programs = ("python-that-nobody-has", "python3")
    advice = "Install Python."

    def command(self):
        (self.data_dir / "pid").touch()
        where = ("--bind", "127.0.0.1", "--directory", self.data_dir)
        return [self.binary, "-u", "-m", "http.server", self.port, *where]

    def is_ready(self):
        # Another server on the port would answer too.
        return "Serving HTTP" in self.log and self.ask("/pid") == 200

    def ask(self, path: str, timeout: float = 10.0) -> int | None:
        connection = HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()
