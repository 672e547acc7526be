"""The HTTP side of a process that serves no page: /metrics, and whether it is up."""

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry

from joulegram.collector import metrics
from joulegram.collector.web import models
from joulegram.collector.web.access import Access
from joulegram.collector.web.api import protect


def create_probe(registry: CollectorRegistry, access: Access) -> FastAPI:
    """The application of an intake or writer alone."""
    app = FastAPI(title="joulegram", openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/metrics", include_in_schema=False)
    def scrape(request: Request) -> Response:
        body, content_type = metrics.exposition(registry, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    @app.get("/api/v1/health")
    async def health() -> models.Health:
        """It answers, so it is up; how it does is in /metrics."""
        return models.Health(status="ready", version=metrics.running_version(), missing=[])

    protect(app, access)
    return app
