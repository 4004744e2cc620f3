"""The configuration of the service: what is refused, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamstats.errors import UsageError
from streamstats.service.settings import load_service_config

EXAMPLE = Path(__file__).parents[2] / "configs" / "service.yaml"


def load(folder: Path, text: str) -> object:
    (folder / "roots").mkdir(exist_ok=True)
    path = folder / "service.yaml"
    path.write_text(f"data: {folder}/data\n{text}")
    return load_service_config(path)


def test_the_example_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calibration").mkdir()
    assert load_service_config(EXAMPLE).host == "127.0.0.1"


def test_it_listens_on_this_machine_alone_unless_told(tmp_path: Path) -> None:
    assert load(tmp_path, "").host == "127.0.0.1"  # type: ignore[attr-defined]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com"])
def test_a_wider_address_takes_tls_or_the_explicit_flag(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match="tls"):
        load(tmp_path, f"host: '{host}'\n")
    load(tmp_path, f"host: '{host}'\nallow_plain_http: true\n")
    (tmp_path / "pem").write_text("")
    load(tmp_path, f"host: '{host}'\ntls: {{certificate: {tmp_path}/pem, key: {tmp_path}/pem}}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("surprise: 1\n", "unknown key `surprise`"),
        ("limits: {jobs: 1}\n", "unknown key `limits.jobs`; expected one of running_jobs"),
        ("limits: {running_jobs: 0}\n", "limits.running_jobs"),
        ("port: 70000\n", "port"),
        ("port: '80'\n", "port"),
        ("roots: [nowhere]\n", "not a folder"),
        ("prefixes: ['http://x/']\n", "not allowed"),
        ("tls: {certificate: nowhere, key: nowhere}\n", "is not a file"),
        ("cluster: {workers: 0}\n", "cluster.workers"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(tmp_path, text)


def test_data_that_clients_could_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="move one of them"):
        load(tmp_path, f"roots: [{tmp_path}]\n")
