"""Downloads: redirects, refused addresses, broken streams, credentials."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genai_core.canonical import digest_bytes
from genai_core.errors import BadModel, InvalidSpec, StoreUnavailable
from genai_core.network.addresses import why_refused
from genai_core.network.download import download
from genai_core.network.download_rules import Rules
from genai_core.sources.source_address import parse_https, parse_pvc, readable_name
from genai_core.testing import certificate

HERE = Rules(checks_addresses=False)
DATA = bytes(range(251)) * 5000


class Site:
    """A TLS server whose paths answer what a test says."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.url = ""

    def redirect(self, path: str, to: str, code: int = 302) -> None:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(code)
            request.send_header("Location", to)
            request.send_header("Content-Length", "0")
            request.end_headers()

        self.answers[path] = answer

    def serve(self, path: str, data: bytes = DATA, *, tag: str = "", cut: int = 0) -> None:
        def answer(request: BaseHTTPRequestHandler) -> None:
            if tag and request.headers.get("If-None-Match") == tag:
                request.send_response(304)
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            request.send_response(200)
            if tag:
                request.send_header("ETag", tag)
            request.send_header("Content-Length", str(len(data)))
            request.end_headers()
            request.wfile.write(data[: len(data) - cut])
            request.close_connection = bool(cut)

        self.answers[path] = answer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def site(authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.seen.append((self.path, dict(self.headers)))
            if answer := found.answers.get(self.path):
                answer(self)
            else:
                self.send_error(404)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[0]))
    found.url = f"https://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    server.server_close()


def fetch(url: str, folder: Path, **options: object) -> object:
    return download(url, folder / "a", sleep=lambda _: None, **{"rules": HERE, **options})  # type: ignore[arg-type]


def test_a_file_comes_whole_and_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    site.serve("/m.zip", tag='"one"')
    found = download(f"{site.url}/m.zip", tmp_path / "a", rules=HERE)
    assert found is not None
    assert (found.sha256, found.size, found.tag) == (digest_bytes(DATA), len(DATA), '"one"')
    assert (tmp_path / "a").read_bytes() == DATA
    assert fetch(f"{site.url}/m.zip", tmp_path, tag='"one"') is None


def test_the_machine_itself_is_refused_before_anything_is_asked(site: Site, tmp_path: Path) -> None:
    site.serve("/m.zip")
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1"):
        url = site.url.replace("127.0.0.1", host)
        with pytest.raises(InvalidSpec, match="an address of the machine itself") as caught:
            fetch(f"{url}/m.zip", tmp_path, rules=Rules())
        assert caught.value.where.startswith(url)
    assert site.seen == []


def test_a_metadata_service_is_refused_without_a_connection(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"169\.254\.169\.254 is a metadata service's"):
        fetch("https://169.254.169.254/latest", tmp_path, rules=Rules())


def test_a_name_that_leads_elsewhere_later_is_refused_when_it_is_connected_to(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genai_core.network.download_rules._addresses", lambda _host: {"192.0.2.1"})
    with pytest.raises(InvalidSpec, match="an address of the machine itself"):
        fetch(f"{site.url}/m.zip", tmp_path, rules=Rules())
    assert site.seen == []


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("http://example.org/m.zip", "only https"),
        ("ftp://example.org/m.zip", "only https"),
        ("file:///etc/passwd", "only https"),
        ("https://169.254.169.254/latest", "not among the hosts"),
        ("https://elsewhere.example/m.zip", "not among the hosts"),
    ],
)
def test_a_redirect_obeys_the_same_rules(site: Site, tmp_path: Path, to: str, why: str) -> None:
    site.redirect("/m.zip", to)
    rules = Rules(hosts=["127.0.0.1"], checks_addresses=False)
    with pytest.raises(InvalidSpec, match=why):
        fetch(f"{site.url}/m.zip", tmp_path, rules=rules)
    assert len(site.seen) == 1


def test_redirects_are_followed_but_not_for_ever(site: Site, tmp_path: Path) -> None:
    site.redirect("/a", "/b", 301)
    site.redirect("/b", f"{site.url}/c", 307)
    site.serve("/c")
    assert fetch(f"{site.url}/a", tmp_path) is not None
    site.redirect("/c", "/a")
    with pytest.raises(BadModel, match="again and again"):
        fetch(f"{site.url}/a", tmp_path)


def test_paths_may_hold_any_character(site: Site, tmp_path: Path) -> None:
    site.serve("/mod%C3%A8le%20%231.tar?v=%C3%A9")
    assert fetch(f"{site.url}/modèle%20%231.tar?v=é", tmp_path) is not None
    for led in ("/modèle%20%231.tar?v=é".encode().decode("latin-1"), "/mod%C3%A8le%20%231.tar?v=é"):
        site.redirect("/a", led)
        assert fetch(f"{site.url}/a", tmp_path) is not None


@pytest.mark.parametrize("led", ["https://[::1", "https://[x]/a"])
def test_a_redirect_to_no_address_is_said(site: Site, tmp_path: Path, led: str) -> None:
    site.redirect("/a", led)
    with pytest.raises(InvalidSpec, match=r"it redirects to .*, which is no address"):
        fetch(f"{site.url}/a", tmp_path)


def test_authorities_that_are_none_are_named(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidSpec, match="the store's caBundle: it holds no certificates"):
        fetch(f"{site.url}/a", tmp_path, authorities="-----BEGIN CERTIFICATE-----\nno\n")
    for file in ("nowhere.pem", "empty.pem"):
        (tmp_path / "empty.pem").write_text("")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / file))
        with pytest.raises(InvalidSpec, match=rf"SSL_CERT_FILE=.*{file}: it holds no certif"):
            fetch(f"{site.url}/a", tmp_path)


def test_a_token_goes_to_the_first_host_only(site: Site, tmp_path: Path) -> None:
    site.serve("/c")
    site.redirect("/a", "/c")
    fetch(f"{site.url}/a", tmp_path, token="secret")
    assert [h.get("Authorization") for _, h in site.seen] == ["Bearer secret"] * 2
    site.seen.clear()
    other = site.url.replace("127.0.0.1", "localhost")
    site.redirect("/a", f"{other}/c")
    assert fetch(f"{site.url}/a", tmp_path, token="secret") is not None
    assert [(path, h.get("Authorization")) for path, h in site.seen] == [
        ("/a", "Bearer secret"), ("/c", None),
    ]  # fmt: skip


def test_a_stream_that_breaks_is_not_taken_for_whole(site: Site, tmp_path: Path) -> None:
    site.serve("/m.zip", cut=1000)
    with pytest.raises(StoreUnavailable, match="broke off"):
        fetch(f"{site.url}/m.zip", tmp_path)
    assert len(site.seen) == 4, "it is tried again"


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (404, BadModel, "correct spec.model.source"),
        (403, BadModel, "key token in spec.model.secretRef"),
        (500, StoreUnavailable, "answers 500"),
        (429, StoreUnavailable, "answers 429"),
    ],
)
def test_answers_are_told_apart(
    site: Site, tmp_path: Path, code: int, kind: type[Exception], words: str
) -> None:
    site.answers["/m"] = lambda request: request.send_error(code)
    with pytest.raises(kind, match=words):
        fetch(f"{site.url}/m", tmp_path)


def test_too_much_is_refused_before_and_while_it_comes(site: Site, tmp_path: Path) -> None:
    site.serve("/m")
    with pytest.raises(BadModel, match="more than 1000 bytes"):
        fetch(f"{site.url}/m", tmp_path, rules=Rules(checks_addresses=False, most_bytes=1000))


def test_an_unknown_authority_is_said(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.serve("/m")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(BadModel, match="certificate is not accepted"):
        fetch(f"{site.url}/m", tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.170.23", "fe80::1%eth0", "::ffff:169.254.169.254",
        "fd00:ec2::254", "100.100.100.200", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1",
        "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1",
        "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "fd20:ce::254", "fd00:42::42", "0.1.2.3", "fec0::1",
        "2001:0:a9fe:a9fe::5601:5601", "2001:db8::5efe:a9fe:a9fe", "fe80::5efe:1.2.3.4",
    ],
)  # fmt: skip
def test_addresses_nobody_may_be_sent_to(address: str) -> None:
    assert why_refused(address)


@pytest.mark.parametrize(
    "address",
    [
        "10.96.0.10",
        "192.168.1.9",
        "52.216.1.1",
        "fd12::5",
        "2a00::1",
        "2001:4860::8888",
        "64:ff9b::a00:1",
    ],
)
def test_ordinary_addresses_are_allowed(address: str) -> None:
    assert why_refused(address) is None


def test_addresses_of_models_are_read() -> None:
    pinned = parse_https(f"https://h:8443/d/tiny.tar.gz?x=1#sha256={'a' * 64}")
    assert (pinned.url, pinned.sha256, pinned.name) == (
        "https://h:8443/d/tiny.tar.gz?x=1", "a" * 64, "tiny",
    )  # fmt: skip
    assert str(parse_https(str(pinned))) == str(pinned)
    assert parse_https("https://h/m.zip").sha256 is None
    volume = parse_pvc("pvc://models/llama/v1/")
    assert (volume.claim, volume.path, volume.file("a/b")) == (
        "models", "llama/v1", "pvc://models/llama/v1/a/b",
    )  # fmt: skip
    assert str(parse_pvc("pvc://models")) == "pvc://models"
    assert [readable_name(a) for a in ("s3://b/x/y?endpoint=http://e", "https://h/z.tgz#sha256=" + "0" * 64, "pvc://c/d")] == ["y", "z", "d"]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    "address",
    [
        "https://", "http://h/m.zip", "https://u:p@h/m.zip", "https://h/m.zip#sha256=abc",
        "https://h/m.zip#md5=abc", "https://h/a b.zip", "https://h:99999/m",
    ],
)  # fmt: skip
def test_wrong_https_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_https(address)
    assert ":p@" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["pvc://", "pvc:///x", "pvc://UP/x", "pvc://c/../d", "pvc://c/a//b"]
)
def test_wrong_volumes_are_refused(address: str) -> None:
    with pytest.raises(InvalidSpec, match=r"pvc://claim/path"):
        parse_pvc(address)
