"""The address of a service, unless its configuration or its client names another: said here and nowhere else.

It stands apart from `config`, which takes long to import, because `--help` prints it.
"""

from __future__ import annotations

SERVICE_HOST = "127.0.0.1"
SERVICE_PORT = 8765
SERVICE_URL = f"http://{SERVICE_HOST}:{SERVICE_PORT}"
