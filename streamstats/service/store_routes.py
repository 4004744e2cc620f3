"""Paths of what clients send: activations for stores that the service owns, and uploads for jobs."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from ..config import QuantizationConfig, explain
from ..errors import UsageError
from .bodies import Body
from .errors import FullError
from .messages import IngestView, StoreView, UploadView
from .parameters import BINARY_BODY, V1, Key, LayerName, StoreName, UploadId, errors
from .service import Service
from .stores import Activations


def store_routes(service: Service) -> APIRouter:
    """The paths below `/stores`."""
    routes = APIRouter()
    responses = errors(404, 409, 413, 422, 503, 507)
    under_way = 0

    @routes.get(f"{V1}/stores", tags=["stores"], responses=responses)
    def stores() -> list[str]:
        """The stores that the service owns."""
        return service.stores.names()

    @routes.get(f"{V1}/stores/{{store}}", tags=["stores"], responses=responses)
    def store(store: StoreName) -> StoreView:
        """The rows of each layer."""
        return service.stores.view(store)

    @routes.delete(f"{V1}/stores/{{store}}", status_code=204, tags=["stores"], responses=responses)
    def delete_store(store: StoreName) -> None:
        """Take a store away; jobs keep what they counted."""
        service.delete_store(store)

    @routes.post(
        f"{V1}/stores/{{store}}/layers/{{layer:path}}",
        status_code=201,
        tags=["stores"],
        responses={**responses, 200: {"description": "The same key was given before", "model": IngestView}},
        response_model=IngestView,
        openapi_extra=BINARY_BODY,
    )
    async def ingest(
        request: Request,
        response: Response,
        store: StoreName,
        layer: LayerName,
        idempotency_key: Key,
        channel_axis: Annotated[int, Query(ge=-64, le=64)] = -1,
        quantization: Annotated[
            str | None,
            Query(
                max_length=2**14,
                pattern=r"^[ -~]*$",
                description="JSON, as in a configuration: scale, scale_is, zero_point.",
            ),
        ] = None,
    ) -> IngestView:
        """Append activations, `.npy` or safetensors with one tensor, samples on axis 0; made if it is not there.

        They are on the disk when this answers 201. A request with the same key is counted once, and answered with 200.
        """
        nonlocal under_way
        given, about = _quantization(quantization), f" {channel_axis} {quantization or ''}"
        if under_way >= service.config.limits.ingests or service.stopping.is_set():
            raise FullError("too many send activations, or the service is being stopped; send it again later")
        under_way += 1
        try:
            await asyncio.to_thread(service.check_room)
            body = await Body.received(request, service.incoming, service.config.limits.body)
            try:
                waiting = await asyncio.to_thread(
                    lambda: service.stores.append(
                        store,
                        Activations(layer, idempotency_key, body.digest + about, body.samples(), channel_axis, given),
                    )
                )
                done = await asyncio.shield(asyncio.wrap_future(waiting))
            finally:
                body.discard()
        finally:
            under_way -= 1
        response.status_code = 200 if done.repeated else 201
        return done

    return routes


def _quantization(text: str | None) -> Any:
    """The quantisation that a client gives as JSON. Raises `UsageError`."""
    if text is None:
        return None
    try:
        return QuantizationConfig.model_validate_json(text).quantization()
    except ValidationError as error:
        raise UsageError(f"quantization: {explain(error.errors(), QuantizationConfig)}") from error


def upload_routes(service: Service) -> APIRouter:
    """The paths below `/uploads`."""
    routes = APIRouter()
    responses = errors(404, 413, 422, 507)

    @routes.get(f"{V1}/uploads", tags=["uploads"], responses=responses)
    def uploads() -> list[UploadView]:
        """What was uploaded."""
        return service.uploads.listed()

    @routes.post(
        f"{V1}/uploads",
        status_code=201,
        tags=["uploads"],
        responses=responses,
        openapi_extra=BINARY_BODY,
    )
    async def upload(request: Request) -> UploadView:
        """Upload a model or samples for an `onnx` job; the id is the SHA-256 of the content."""
        await asyncio.to_thread(service.check_room)
        body = await Body.received(request, service.uploads.folder, service.config.limits.upload)
        try:
            return await asyncio.to_thread(service.uploads.keep, body)
        finally:
            await asyncio.to_thread(body.discard)

    @routes.delete(f"{V1}/uploads/{{upload}}", status_code=204, tags=["uploads"], responses=responses)
    def delete_upload(upload: UploadId) -> None:
        """Jobs that were submitted with it have it still."""
        service.uploads.delete(upload)

    return routes
