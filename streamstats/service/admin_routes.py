"""Paths for admins: tokens, the audit log, and removing what is not kept."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path as InPath
from fastapi import Query, Response

from .messages import TOKEN_NAME, V1, AuditEntry, AuditPage, NewToken, PrunedView, SecretView, TokenView
from .parameters import Before, Whose, created, errors
from .paths import Paths
from .service import Service
from .settings import RetentionConfig
from .tokens import MOST_OVERLAP

TokenName = Annotated[str, TOKEN_NAME, InPath()]
Overlap = Annotated[
    float,
    Query(ge=0, le=MOST_OVERLAP, description="Seconds for which the old secret remains valid beside the new one."),
]
Who = Annotated[str | None, Query(max_length=64, description="Only what this token did.")]
DryRun = Annotated[bool, Query(description="Remove nothing; only tell what would be removed.")]


class AdminRoutes:
    """The paths `/tokens`, `/audit` and `/prune`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def router(self) -> Paths:
        """The paths, described for OpenAPI."""
        routes = Paths(prefix=V1, tags=["admins"], responses=errors(404, 409, 413, 415, 422, 503, 507))
        routes.get("/tokens")(self.tokens)
        routes.post("/tokens", status_code=201, responses=created(SecretView))(self.new)
        routes.get("/tokens/{name}")(self.inspect)
        routes.post("/tokens/{name}/rotate")(self.rotate)
        routes.delete("/tokens/{name}", status_code=204)(self.revoke)
        routes.get("/audit")(self.audit)
        routes.post("/prune")(self.prune)
        return routes

    def tokens(self) -> list[TokenView]:
        """The tokens, without their secrets, which the service does not know."""
        return [TokenView.model_validate(each, from_attributes=True) for each in self._service.tokens.listed()]

    def inspect(self, name: TokenName) -> TokenView:
        """A token, without its secret."""
        return TokenView.model_validate(self._service.tokens.get(name), from_attributes=True)

    def new(self, request: NewToken, caller: Whose, response: Response) -> SecretView:
        """Make a token. The answer has its secret, which cannot be asked for again."""
        secret = self._service.tokens.new(request.name, request.role, caller.name)
        response.headers["location"] = f"{V1}/tokens/{request.name}"
        return SecretView(name=request.name, token=secret)

    def rotate(self, name: TokenName, caller: Whose, overlap: Overlap = 0.0) -> SecretView:
        """Give a token a new secret; what it owns stays its own. The answer has the secret."""
        return SecretView(name=name, token=self._service.tokens.rotate(name, caller.name, overlap))

    def revoke(self, name: TokenName) -> None:
        """End a token at once. What it owns stays, for whoever gets a token of that name."""
        self._service.tokens.revoke(name)

    def audit(
        self, who: Who = None, before: Before = 2**53, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> AuditPage:
        """Who changed what, and who was refused, newest first."""
        found = self._service.audit.newest(who=who, before=before, limit=limit)
        entries = [AuditEntry.model_validate(each) for each in found]
        return AuditPage(entries=entries, next=entries[-1].number if len(entries) == limit else None)

    def prune(self, caller: Whose, config: RetentionConfig | None = None, dry_run: DryRun = False) -> list[PrunedView]:
        """Remove what `config` does not keep, by default that of the service; a dry run only tells what that is."""
        return list(self._service.retention.prune(caller.name, config, dry_run=dry_run))
