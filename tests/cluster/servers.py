"""Servers beside the cluster that tenants may use: S3 over TLS with accounts, an STS, a web site.

All listen on the machine's end of the cluster's link, so that pods and the operator reach them.
The STS is small but real: it asks the apiserver whose token it was shown (TokenReview), and gives
the S3 account of that service account, as IRSA, MinIO and Ceph do.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from harness import programs
from harness.cluster import Cluster
from proxies import Rewrite

ROOT_KEYS = ("tls-root", "tls-root-secret")


def certificate(folder: Path, address: str) -> tuple[Path, Path]:
    """A certificate for an address, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address)])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.pem", folder / "key.pem"


class TlsS3:
    """versitygw over TLS, with accounts of its own."""

    def __init__(self, folder: Path, address: str) -> None:
        self.ca, key = certificate(folder, address)
        for name in ("data", "accounts"):
            (folder / name).mkdir()
        port = _free_port(address)
        self.endpoint = f"https://{address}:{port}"
        self._log = (folder / "s3.log").open("wb")
        access, secret = ROOT_KEYS
        self._program = str(programs.module("versitygw"))
        self._process = subprocess.Popen(
            [
                self._program, "--port", f"{address}:{port}",
                "--access", access, "--secret", secret,
                "--cert", str(self.ca), "--key", str(key),
                "--iam-dir", str(folder / "accounts"), "posix", str(folder / "data"),
            ],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((address, port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def client(self, access: str = ROOT_KEYS[0], secret: str = ROOT_KEYS[1]) -> Any:
        """boto3's client of an account."""
        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", verify=str(self.ca),
            aws_access_key_id=access, aws_secret_access_key=secret,
            # A server that refuses before it has read the body cuts the connection off at times.
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 5}),
        )  # fmt: skip

    def add_user(self, access: str) -> tuple[str, str]:
        """An account that may do what a bucket's policy says."""
        secret = f"secret-of-{access}"
        root, key = ROOT_KEYS
        subprocess.run(
            [
                self._program, "admin", "--endpoint-url", self.endpoint, "--allow-insecure",
                "--access", root, "--secret", key,
                "create-user", "--access", access, "--secret", secret, "--role", "user",
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        return access, secret

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Served:
    """A threaded HTTP server whose answers a function makes."""

    def __init__(
        self,
        address: str,
        answer: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, bytes]],
        *,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                code, data = answer(self, body)
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _handle

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://{address}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class Sts:
    """AssumeRoleWithWebIdentity: a service account's token for the keys of its S3 account."""

    def __init__(self, cluster: Cluster, address: str, audience: str) -> None:
        self._cluster = cluster
        self._audience = audience
        self.accounts: dict[str, tuple[str, str]] = {}
        """`system:serviceaccount:<namespace>:<name>` -> access key and secret."""
        self.seen: list[str] = []
        self._served = Served(address, self._answer)
        self.url = self._served.url

    def close(self) -> None:
        """Stop listening."""
        self._served.close()

    def _answer(self, _: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        asked = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        user = self._user(asked.get("WebIdentityToken", ""))
        self.seen.append(user)
        keys = self.accounts.get(user)
        if asked.get("Action") != "AssumeRoleWithWebIdentity" or keys is None:
            return 403, (
                b"<ErrorResponse><Error><Code>AccessDenied</Code>"
                b"<Message>not yours</Message></Error></ErrorResponse>"
            )
        until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return 200, (
            '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            "<AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>{keys[0]}</AccessKeyId><SecretAccessKey>{keys[1]}</SecretAccessKey>"
            f"<SessionToken></SessionToken><Expiration>{until}</Expiration>"
            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        ).encode()

    def _user(self, token: str) -> str:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        ran = subprocess.run(
            [
                "kubectl", "--kubeconfig", str(self._cluster.admin),
                "create", "-f", "-", "-o", "json",
            ],
            input=json.dumps(review), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ran.returncode:
            return ""
        status = json.loads(ran.stdout).get("status", {})
        return (
            str(status.get("user", {}).get("username", "")) if status.get("authenticated") else ""
        )


def without_conditions(upstream: str, keys: tuple[str, str]) -> Rewrite:
    """What makes a server blind for conditions: they are taken out, and the rest is signed anew."""
    signer = S3SigV4Auth(Credentials(*keys), "s3", "us-east-1")
    left_out = {"if-none-match", "if-match", "authorization", "host", "content-length"}

    def rewrite(command: str, path: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        kept = {name: value for name, value in headers.items() if name.lower() not in left_out}
        kept.pop("X-Amz-Content-SHA256", None)
        request = AWSRequest(command, f"{upstream}{path}", headers=kept, data=body)
        signer.add_auth(request)
        signed = dict(request.headers.items())
        sizes = {n: v for n, v in headers.items() if n.lower() in {"host", "content-length"}}
        return signed | sizes | {"Host": urlsplit(upstream).netloc}

    return rewrite


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
