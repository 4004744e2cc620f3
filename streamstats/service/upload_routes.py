"""Paths of uploads: models and samples that jobs of the kind `onnx` refer to."""

from __future__ import annotations

import asyncio

from fastapi import Request, Response

from .bodies import Body, Terms, announced
from .messages import V1, UploadView
from .parameters import UploadId, Whose, created, errors
from .paths import BINARY_BODY, Paths
from .service import Service


class UploadRoutes:
    """The paths below `/uploads`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def router(self) -> Paths:
        """The paths, described for OpenAPI."""
        routes = Paths(prefix=f"{V1}/uploads", tags=["uploads"], responses=errors(404, 413, 415, 422, 507))
        routes.get("")(self.uploads)
        routes.post("", status_code=201, responses=created(UploadView), openapi_extra=BINARY_BODY)(self.upload)
        routes.get("/{upload}")(self.inspect)
        routes.delete("/{upload}", status_code=204)(self.delete_upload)
        return routes

    def uploads(self) -> list[UploadView]:
        """The uploads."""
        return self._service.uploads.listed()

    def inspect(self, upload: UploadId) -> UploadView:
        """The size of an upload, and who uploaded it."""
        return self._service.uploads.view(upload)

    async def upload(self, request: Request, caller: Whose, response: Response) -> UploadView:
        """Upload a model or samples for an `onnx` job; the id is the SHA-256 of the content."""
        config, uploads = self._service.config, self._service.uploads
        size = announced(request, config.limits.upload)
        await asyncio.to_thread(self._service.check_room, size or 0)
        room = await asyncio.to_thread(uploads.reserve, size, config.limits.upload)
        try:
            body = await Body.received(request, uploads.folder, Terms(room, config.connections.body_seconds))
            try:
                kept = await asyncio.to_thread(uploads.keep, body, caller.name)
            finally:
                await asyncio.to_thread(body.discard)
        finally:
            await asyncio.to_thread(uploads.release, room)
        response.headers["location"] = f"{V1}/uploads/{kept.id}"
        return kept

    def delete_upload(self, upload: UploadId, caller: Whose) -> None:
        """Delete an upload, unless others uploaded it, too; jobs that were submitted with it keep their copy."""
        self._service.uploads.delete(upload, caller)
