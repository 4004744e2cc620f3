"""Links below a root: whoever can write there has the service read nothing that lies elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from served import Served, small_store, wait_until
from stores import build_store

import streamstats as ss
from streamstats.service.client import RefusedError

SECRET = b"-----BEGIN PRIVATE KEY----- not for clients"


def leaking(service: Served, name: str) -> Path:
    """A store whose only chunk is a link to a secret of the same size."""
    secret = service.folder / "secret.key"
    secret.write_bytes(SECRET)
    values = np.ones((1, len(SECRET)), np.uint8)
    store = build_store(service.roots / name, {"x": values}, compressors=None, filters=None)
    (store / "x/c/0/0").unlink()
    (store / "x/c/0/0").symlink_to(secret)
    return store


@pytest.mark.parametrize("follow", [None, {"idle": 0.5}])
def test_a_chunk_that_is_a_link_is_refused_and_the_remedy_told(
    service: Served, client: ss.Client, follow: dict[str, float] | None
) -> None:
    leaking(service, f"leaking-{bool(follow)}.zarr")
    job = client.submit({"kind": "run", "source": f"leaking-{bool(follow)}.zarr", "follow": follow})
    ended = client.wait(job.id)
    assert ended.state == "failed"
    assert "layer x: chunk c/0/0 (rows 0:1) is not read: it is a link, or lies behind one" in ended.message
    assert "replace the link with what it leads to" in ended.message
    with service.http() as http:
        shown = [http.get(f"/api/v1/jobs/{job.id}{path}") for path in ("", "/layers", "/layers/x", "/report")]
        assert [each.status_code for each in shown] == [200, 404, 404, 404]


def test_a_store_that_is_a_link_is_neither_listed_nor_read(service: Served, client: ss.Client) -> None:
    small_store(service.folder / "outside.zarr")
    (service.roots / "linked.zarr").symlink_to(service.folder / "outside.zarr")
    small_store(service.roots / "real.zarr")
    (service.roots / "inside.zarr").symlink_to("real.zarr")
    with service.http() as http:
        listed = http.get("/api/v1").json()
    assert "real.zarr" in str(listed)
    assert "linked.zarr" not in str(listed)
    assert "inside.zarr" not in str(listed)
    for source in ("linked.zarr", "inside.zarr", str(service.roots / "linked.zarr"), "linked.zarr/block1"):
        with pytest.raises(RefusedError, match="is a link, or lies behind one"):
            client.submit({"kind": "run", "source": source})


def test_a_store_that_becomes_a_link_while_it_is_followed_is_refused(service: Served, client: ss.Client) -> None:
    store = small_store(service.roots / "exchanged.zarr")
    outside = small_store(service.folder / "elsewhere.zarr")
    job = client.submit({"kind": "run", "source": "exchanged.zarr", "follow": {"idle": 60}})
    wait_until(lambda: client.job(job.id).rows == 64)
    store.rename(service.roots / "kept.zarr")
    store.symlink_to(outside)
    ended = client.wait(job.id)
    assert ended.state == "failed"
    assert "is a link, or lies behind one" in ended.message
