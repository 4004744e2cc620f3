"""Paths of the stores that the service owns: list, inspect, delete, and append activations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from ..config import GeometryConfig, QuantizationConfig, explain
from ..errors import UsageError
from ..layouts import Kernel
from ..quantization import Quantization
from .bodies import Body, Terms, announced
from .errors import FullError
from .headers import JudgedSamples
from .lanes import Activations
from .messages import KEY, PRINTABLE, V1, BatchView, IngestView, StoreView, WithdrawnView
from .parameters import Key, LayerName, Responses, StoreName, Whose, created, errors
from .paths import BINARY_BODY, Paths
from .places import Places
from .service import Service
from .tokens import Caller

ChannelAxis = Annotated[int, Query(ge=-64, le=64)]
QuantizationText = Annotated[
    Annotated[str, Field(max_length=2**14), PRINTABLE] | None,
    Query(
        description="JSON with the keys of a configuration: scale, scale_is, zero_point.",
    ),
]
LayerQuery = Annotated[str, Query(min_length=1, max_length=1000)]
BatchKey = Annotated[str, KEY, Query(description="The Idempotency-Key of the request.")]
Start = Annotated[int, Query(ge=0, le=2**53)]
GeometryText = Annotated[
    Annotated[str, Field(max_length=2**10), PRINTABLE] | None,
    Query(
        description="The kernel of the layer, which the statistic taps needs: JSON with the keys of `geometry` in a "
        "configuration: kernel, strides, pads, dilations, output_padding, transposed. The first activations of a layer "
        "store it; later ones must agree, or leave it out.",
    ),
]

Described = TypeVar("Described", bound=BaseModel)


class StoreRoutes:
    """The paths below `/stores`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ingests = Places(service.config.limits.ingests)
        service.metrics.watch("ingests", "Requests with activations in progress", self._ingests)
        most = service.config.limits.body
        self._terms = Terms(most, service.config.connections.body_seconds, JudgedSamples(most))

    def router(self) -> Paths:
        """The paths, described for OpenAPI."""
        routes = Paths(prefix=f"{V1}/stores", tags=["stores"], responses=errors(404, 409, 413, 415, 422, 503, 507))
        repeated: Responses = {200: {"description": "The key was used before", "model": IngestView}}
        routes.get("")(self.stores)
        routes.get("/{store}")(self.store)
        routes.delete("/{store}", status_code=204)(self.delete_store)
        routes.get("/{store}/batches")(self.batches)
        routes.delete("/{store}/batches")(self.withdraw)
        routes.delete("/{store}/layers/{layer:path}", status_code=204)(self.delete_layer)
        answers = created(IngestView) | repeated
        routes.post("/{store}/layers/{layer:path}", status_code=201, responses=answers, openapi_extra=BINARY_BODY)(
            self.ingest
        )
        return routes

    def stores(self) -> list[str]:
        """The stores that the service owns."""
        return self._service.stores.names()

    def store(self, store: StoreName) -> StoreView:
        """Whose it is, and the rows of each layer."""
        return self._service.stores.view(store)

    def delete_store(self, store: StoreName, caller: Whose) -> None:
        """Delete a store; jobs retain what they counted."""
        self._service.delete_store(store, caller)

    def delete_layer(self, store: StoreName, layer: LayerName, caller: Whose) -> None:
        """Delete a layer of a store, with the keys of its batches; jobs retain what they counted."""
        self._service.delete_layer(store, layer, caller)

    def batches(
        self, store: StoreName, layer: LayerQuery, start: Start = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> list[BatchView]:
        """What was appended to a layer, request by request, in order of rows; the next page starts at the last stop."""
        self._service.stores.path(store)
        return self._service.stores.batches.listed(store, layer, start=start, limit=limit)

    def withdraw(self, store: StoreName, layer: LayerQuery, key: BatchKey, caller: Whose) -> WithdrawnView:
        """Withdraw a batch: its rows stay in the store, but jobs that run now or later do not count them.

        Jobs that have ended keep what they counted until `POST /jobs/JOB/forget`.
        """
        return self._service.withdraw(store, layer, key, caller)

    async def ingest(
        self,
        request: Request,
        response: Response,
        store: StoreName,
        layer: LayerName,
        caller: Whose,
        idempotency_key: Key,
        channel_axis: ChannelAxis = -1,
        quantization: QuantizationText = None,
        geometry: GeometryText = None,
    ) -> IngestView:
        """Append activations: `.npy` or safetensors with one tensor, samples on axis 0. The first create the layer.

        The activations are on the disk before this answers 201. A request with the same key counts once, and is
        answered with 200.
        """
        described, kernel = _quantization(quantization), _kernel(geometry)
        about = f" {channel_axis} {quantization or ''}" + (f" {geometry}" if geometry else "")
        self._check_capacity(caller)
        with self._ingests.taken(caller.name):
            await asyncio.to_thread(self._service.check_room, announced(request, self._terms.most) or 0)
            body = await Body.received(request, self._service.incoming, self._terms)
            try:
                appended = await self._appended(
                    store,
                    lambda: Activations(
                        layer,
                        idempotency_key,
                        body.digest + about,
                        body.samples(),
                        channel_axis,
                        described,
                        kernel,
                        caller.name,
                    ),
                )
            finally:
                body.discard()
        response.status_code = 200 if appended.repeated else 201
        response.headers["location"] = f"{V1}/stores/{store}"
        return appended

    def _check_capacity(self, caller: Caller) -> None:
        if self._service.stopping.is_set():
            raise FullError("the service is shutting down; send the activations again later")
        self._ingests.check(
            f"{self._ingests.most:,} requests with activations are in progress, the limit of this service; "
            "send the activations again later"
        )
        self._ingests.check_share(
            caller.name,
            f"{self._ingests.share:,} requests with activations of the token {caller.name} are in progress, the limit "
            "for one token; send the activations again later",
        )

    async def _appended(self, store: str, read: Callable[[], Activations]) -> IngestView:
        """Append what `read` gives, which takes a thread; wait until the rows are on the disk."""
        with self._service.metrics.ingest_seconds.time():
            waiting = await asyncio.to_thread(lambda: self._service.stores.append(store, read()))
            return await asyncio.shield(asyncio.wrap_future(waiting))


def _quantization(text: str | None) -> Quantization | None:
    """The quantisation that a client describes in JSON. Raises `UsageError`."""
    found = _parsed("quantization", text, QuantizationConfig)
    return None if found is None else found.quantization()


def _kernel(text: str | None) -> Kernel | None:
    """The kernel that a client describes in JSON. Raises `UsageError`."""
    found = _parsed("geometry", text, GeometryConfig)
    return None if found is None else found.parsed()


def _parsed(name: str, text: str | None, model: type[Described]) -> Described | None:
    """What the parameter `name` says in JSON. Raises `UsageError`."""
    try:
        return None if text is None else model.model_validate_json(text)
    except ValidationError as error:
        found = error.errors()
        if found[0]["type"] == "json_invalid":
            raise UsageError(f"the parameter {name} is not JSON: {found[0]['ctx']['error']}") from error
        raise UsageError(f"{name}: {explain(found, model)}") from error
