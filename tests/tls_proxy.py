"""TLS in front of servers that were built without it: certificates of our own, and a port that speaks TLS."""

import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

SSL_REQUEST = 80877103  # PostgreSQL's protocol: "may we speak TLS?"


def certificates(folder: Path, host: str = "localhost") -> Path:
    """Make an authority (ca.pem) and a server's certificate of it (server.pem, server.key); gives the folder."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("makes its certificates by the program openssl, which is not here")
    folder.mkdir()

    def made(*arguments: str) -> None:
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    made("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=an authority")
    made("req", *key[:4], "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", f"/CN={host}")
    (folder / "names").write_text(f"subjectAltName=DNS:{host}\n")
    made("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
         "-extfile", "names", "-out", "server.pem")  # fmt: skip
    return folder


@contextmanager
def speaking_tls(socket_path: Path, of: Path) -> Iterator[int]:
    """Speak TLS with these certificates at a port, plainly with the server behind; gives the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(of / "server.pem", of / "server.key")
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):  # closed at the end
                while True:
                    client, _ = listener.accept()
                    threads.append(threading.Thread(target=relayed, args=(client, context, socket_path)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for each in (accepting, *threads):
                each.join(10)


def relayed(client: socket.socket, context: ssl.SSLContext, path: Path) -> None:
    """Carry a connection both ways until one side ends it; a client that refuses the certificate ends it at once."""
    with ExitStack() as stack, suppress(OSError):
        stack.enter_context(client)
        while (kind := client.recv(1, socket.MSG_PEEK)) == b"\0":  # PostgreSQL's; TLS itself begins with 0x16
            _, code = struct.unpack("!II", client.recv(8, socket.MSG_WAITALL))
            client.sendall(b"S" if code == SSL_REQUEST else b"N")
        if not kind:
            return
        secure = stack.enter_context(context.wrap_socket(client, server_side=True))
        plain = stack.enter_context(socket.socket(socket.AF_UNIX))
        plain.connect(str(path))
        carry(secure, plain)


def carry(secure: ssl.SSLSocket, plain: Any) -> None:
    """Pass on whatever comes."""
    while True:
        ready = [secure] if secure.pending() else select.select([secure, plain], [], [])[0]
        for each in ready:
            data = each.recv(1 << 16)
            if not data:
                return
            (plain if each is secure else secure).sendall(data)
