"""Attacks on the service: each is refused, and what is refused changes nothing."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import STORE, Served, npy, served

import streamstats as ss
from streamstats.errors import ServiceError, UsageError
from streamstats.service.access import LINK_SECONDS, Links, host_name
from streamstats.service.client import RefusedError
from streamstats.service.tokens import TokenFile

JSON = {"Content-Type": "application/json"}

REQUEST = {"kind": "run", "source": STORE}
SECRET_PATHS = ("/api/v1", "/api/v1/jobs", "/api/v1/statistics", "/api/v1/uploads", "/api/v1/stores", "/metrics")
TRAVERSALS = (
    "../token",
    "..%2ftoken",
    "%2e%2e/token",
    "%2e%2e%2f%2e%2e%2f%2e%2e%2ftoken",
    "....//token",
    "..\\token",
    "%5c..%5ctoken",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "manifest.json%00",
    "correctors/../../../../token",
)


@pytest.fixture(scope="module")
def done(service: Served) -> str:
    with service.client() as client:
        return client.wait(client.submit({**REQUEST, "submitter": "access"}).id).id


# The token


def test_the_token_is_for_its_owner_alone(service: Served) -> None:
    mode = (service.data / "token").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert len(service.token) >= 40


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    TokenFile(tmp_path / "token")
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        TokenFile(tmp_path / "token")


@pytest.mark.parametrize(
    ("text", "said"), [("short", "too few"), (f"\ufeff{'s' * 43}\n", "characters that no token has; remove the file")]
)
def test_a_token_that_cannot_be_one_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "token").write_text(text, encoding="utf-8")
    (tmp_path / "token").chmod(0o600)
    with pytest.raises(UsageError, match=said) as caught:
        TokenFile(tmp_path / "token")
    assert text.strip() not in str(caught.value)


@pytest.mark.parametrize("path", SECRET_PATHS)
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer x", "Basic {}", "bearer{}", "Bearer {}x", "{}"])
def test_without_the_token_nothing_is_told(service: Served, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.format(service.token)}
    answer = httpx.get(service.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert service.token not in answer.text


def test_the_token_is_compared_in_constant_time() -> None:
    import ast
    import inspect

    from streamstats.service import access, tokens

    sources = [ast.parse(inspect.getsource(each)) for each in (access, tokens)]
    compared = [ast.unparse(node) for each in sources for node in ast.walk(each) if isinstance(node, ast.Compare)]
    assert not [each for each in compared if "secret" in each or "digest" in each or "signature" in each]


def test_the_token_is_in_no_log(service: Served, done: str) -> None:
    httpx.get(f"{service.url}/api/v1/jobs/{done}", headers={"Authorization": f"Bearer {service.token}"})
    assert len(service.said) > 2
    assert not [line for line in service.said if service.token in line]


# Hosts and origins


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "localhost.", "[::2]", ""]
)
def test_another_host_is_refused_so_that_names_cannot_be_rebound(service: Served, host: str) -> None:
    with service.http() as http:
        answer = http.get("/api/v1/jobs", headers={"Host": host})
    assert answer.status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:1234"])
def test_this_machine_may_be_called_by_its_names(service: Served, host: str) -> None:
    with service.http() as http:
        assert http.get("/api/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_is_refused(service: Served, headers: dict[str, str]) -> None:
    with service.http() as http:
        answer = http.post("/api/v1/jobs", json=REQUEST, headers=headers)
        assert answer.status_code == 403
        if "Origin" in headers:
            assert http.get("/api/v1/jobs", headers=headers).status_code == 403


def test_no_answer_allows_other_origins_and_all_protect_the_browser(service: Served, done: str) -> None:
    with service.http() as http:
        for path in (
            "/",
            "/static/app.js",
            "/healthz",
            f"/api/v1/jobs/{done}",
            "/api/v1/nowhere",
            f"/api/v1/jobs/{done}/report",
        ):
            headers = http.get(path, headers={"Origin": service.url}).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'unsafe" not in policy
            assert "'unsafe-eval'" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "access-control-allow-origin" not in headers
            assert "server" not in headers


def test_the_page_has_no_inline_scripts_or_styles(service: Served) -> None:
    text = httpx.get(service.url).text
    assert "<style" not in text
    assert " style=" not in text
    assert "onclick" not in text
    scripts = re.findall("<script[^>]*>", text)
    assert scripts
    assert all('src="/static/' in each for each in scripts)


@pytest.mark.parametrize(
    ("header", "name"), [("a:80", "a"), ("A", "a"), ("[::1]:80", "[::1]"), ("::1", "::1"), ("a:b", "a:b")]
)
def test_the_name_in_a_host_header(header: str, name: str) -> None:
    assert host_name(header) == name


# Files and links


@pytest.mark.parametrize("path", TRAVERSALS)
@pytest.mark.parametrize("where", ["/api/v1/jobs/{}/files/", "/api/v1/jobs/{}/layers/", "/static/"])
def test_no_path_leads_out(service: Served, done: str, where: str, path: str) -> None:
    with service.http() as http:
        request = http.build_request("GET", service.url)
        request.url = httpx.URL(service.url).copy_with(raw_path=(where.format(done) + path).encode())
        answer = http.send(request)
    assert answer.status_code in (400, 404, 405, 422), answer.text
    assert service.token not in answer.text
    assert "root:" not in answer.text


def test_a_link_is_for_one_path_and_a_minute(service: Served, done: str) -> None:
    with service.http() as http:
        link = http.post(f"/api/v1/jobs/{done}/links?path=files/manifest.json").json()["path"]
        assert httpx.get(service.url + link).status_code == 200
        for other in (link.replace("manifest.json", "correctors/fc.safetensors"), link.replace("until=", "until=9")):
            assert httpx.get(service.url + other).status_code == 401
        assert httpx.post(service.url + link).status_code == 401
        refused = http.post(f"/api/v1/jobs/{done}/links?path=../../uploads")
        assert refused.status_code == 422
        escaping = http.post(f"/api/v1/jobs/{done}/links?path=files/../../../jobs").json()["path"]
        assert httpx.get(service.url + escaping).status_code in (401, 404)


def test_a_link_ends() -> None:
    token = Links()
    path, _, query = token.signed("/a").partition("?")
    assert token.has_signed(path, query)
    old = token.signed("/a", time.time() - LINK_SECONDS - 1).partition("?")[2]
    assert not token.has_signed("/a", old)
    for query in ("", "until=&signature=", "until=x&signature=x", "until=9999999999&signature=é", "&" * 50, "until=²"):
        assert not token.has_signed("/a", query)


# What a client never chooses


@pytest.mark.parametrize(
    "change",
    [
        {"output": "/tmp/out"},
        {"cluster": {"scheduler": "tcp://127.0.0.1:1"}},
        {"scheduler": "tcp://127.0.0.1:1"},
        {"endpoint": "http://evil"},
        {"source": "../data/token"},
        {"source": "/etc"},
        {"source": "file:///etc"},
        {"source": "http://169.254.169.254/latest/meta-data"},
        {"source": "s3://bucket/x"},
        {"source": f"{STORE}::file:///etc"},
        {"source": "store:../jobs"},
        {"source": "store:"},
        {"inputs": {"model": "../../token"}},
        {"kind": "onnx", "model": "../../token", "samples": "x"},
        {"kind": "onnx", "model": "0" * 64, "samples": "0" * 64, "score": "touch /tmp/owned"},
    ],
)
def test_what_a_client_may_not_choose_is_refused(service: Served, change: dict[str, Any]) -> None:
    with service.http() as http:
        answer = http.post("/api/v1/jobs", json={**REQUEST, **change})
        assert answer.status_code == 422, answer.text
        assert service.token not in answer.text


def test_a_link_out_of_a_root_is_not_followed(service: Served) -> None:
    (service.roots / "out").symlink_to(service.data)
    with service.http() as http:
        for source in ("out/stores/x", "out"):
            assert http.post("/api/v1/jobs", json={"kind": "run", "source": source}).status_code == 422


def test_a_model_that_takes_its_tensors_from_elsewhere_is_refused(
    service: Served, client: ss.Client, tmp_path: Path
) -> None:
    import onnx
    from onnx import helper

    weight = onnx.TensorProto(name="w", dims=[2, 2], data_type=onnx.TensorProto.FLOAT)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../token")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    described = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 2]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", described[:1], described[1:], [weight]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "samples.npy").write_bytes(npy(np.zeros((4, 2), np.float32)))
    ids = {
        name: client.upload(tmp_path / file).id for name, file in (("model", "model.onnx"), ("samples", "samples.npy"))
    }
    job = client.wait(client.submit({"kind": "onnx", "bits": 4, **ids}).id)
    assert job.state == "failed"
    assert "in another file" in job.message
    assert service.token not in job.message


def test_bodies_of_json_have_a_limit(service: Served) -> None:
    with service.http() as http:
        long = b'{"kind": "run", "source": "' + b"x" * 2**21 + b'"}'
        answer = http.post("/api/v1/jobs", content=long, headers=JSON)
        assert answer.status_code == 413
        nested = http.post("/api/v1/jobs", content=b"[" * 20_000, headers=JSON)
        assert nested.status_code in (400, 422)
        many = b'{"kind": "run", "source": "x", "layers": [' + b"1," * 20_001 + b"1]}"
        answer = http.post("/api/v1/jobs", content=many, headers=JSON)
        assert answer.status_code == 413
        assert "more than 20,000 values" in answer.text
        assert http.post("/api/v1/jobs", content=many[: 20_000 * 2] + b"1]}", headers=JSON).status_code == 422


# The address


def test_it_listens_on_this_machine_alone(service: Served) -> None:
    port = int(service.url.rpartition(":")[2])
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {each[1] for each in listening if each[3] == "0A" and each[1].endswith(f":{port:04X}")}
    assert addresses == {f"0100007F:{port:04X}"}


def test_a_second_service_on_the_same_folder_is_refused(service: Served) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamstats", "serve", str(service.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "in use by process" in done.stderr
    assert "stop that service, or choose another folder as `data`" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_tls_it_speaks_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "crt"), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    tls = {"certificate": str(tmp_path / "crt"), "key": str(tmp_path / "key")}
    with served(tmp_path / "s", tls=tls, connections={"head_seconds": 1}) as service:
        assert service.url.startswith("https://")
        with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), 60) as silent:
            assert silent.recv(1) == b""  # it is not waited for until it begins to speak TLS
        with ss.Client(service.url, service.token, certificate=tmp_path / "crt") as client:
            assert client.jobs().jobs == []
        with ss.Client(service.url, service.token, patience=0) as client:
            with pytest.raises(ServiceError, match="set SSL_CERT_FILE"):
                client.jobs()
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "crt"))
        with service.client() as client:  # the remedy works
            assert client.jobs().jobs == []
        with pytest.raises(httpx.TransportError):
            httpx.get(service.url.replace("https", "http"))
        secured = httpx.get(service.url, verify=False)
        assert secured.headers["strict-transport-security"]


def test_a_client_with_a_wrong_token_says_so(service: Served) -> None:
    with ss.Client(service.url, "wrong") as client, pytest.raises(RefusedError, match="token"):
        client.jobs()
    assert os.environ.get("STREAMSTATS_TOKEN") is None
