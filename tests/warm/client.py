"""The `servetwin` that a shell starts: hands itself to the server and ends as the command does.

Started without `site`, with few imports: it must take no time.
"""

import json
import os
import socket
import sys

path, *arguments = sys.argv[1:]
folder = os.getcwd()  # noqa: PTH109  pathlib takes longer to import than all the rest
command = {"arguments": arguments, "folder": folder, "environment": dict(os.environ)}
with socket.socket(socket.AF_UNIX) as server:
    server.connect(path)
    socket.send_fds(server, [b"\0"], [0, 1, 2])
    server.sendall(json.dumps(command).encode())
    server.shutdown(socket.SHUT_WR)
    with server.makefile() as answer:
        code = int(answer.read())
sys.exit(code if code >= 0 else 128 - code)  # as a shell says that a signal ended it
