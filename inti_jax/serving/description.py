"""Describe the service as OpenAPI 3.1 does, for programs that make clients of it."""

from typing import Any

import inti_jax
from inti_jax.serving.limits import MEBIBYTE, Limits

_TOPK = {"type": "integer", "minimum": 1, "default": 5, "description": "Number of labels."}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What is wrong, and what would be valid."}},
}
_FOUND = {
    "type": "object",
    "required": ["predictions", "video"],
    "properties": {
        "predictions": {
            "type": "array",
            "description": "The most probable labels, the best first.",
            "items": {
                "type": "object",
                "required": ["label", "probability"],
                "properties": {"label": {"type": "string"}, "probability": {"type": "number"}},
            },
        },
        "video": {
            "type": "object",
            "properties": {
                "frames": {"type": "integer"},
                "fps": {"type": "number"},
                "height": {"type": "integer"},
                "width": {"type": "integer"},
            },
        },
    },
}
# By status, when a request for predictions is answered with it.
REFUSALS = {
    400: "The body is not as it should be.",
    403: "It came from a page of another site, or has a URL and the server fetches none.",
    408: "The body did not arrive in time.",
    413: "The video has too many bytes.",
    415: "The body is neither a form nor JSON.",
    421: "The server is not known by the name that it was asked by.",
    422: "The video cannot be decoded or fetched, or has too many frames or pixels.",
    500: "The model failed.",
    503: "The server is not ready, or too many requests wait: try again.",
    504: "Decoding or waiting took too long.",
    507: "The server's disk has no room for the video.",
}


def openapi(limits: Limits) -> dict[str, Any]:
    """Return the description of a service with these limits."""
    form = {
        "type": "object",
        "required": ["video"],
        "properties": {
            "video": {
                "type": "string",
                "format": "binary",
                "description": f"A video file of at most {limits.upload_bytes / MEBIBYTE:g} MiB.",
            },
            "topk": _TOPK,
        },
    }
    url = {
        "type": "object",
        "required": ["url"],
        "properties": {"url": {"type": "string", "format": "uri"}, "topk": _TOPK},
    }
    predict = {
        "summary": "Label a video.",
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": url}},
        },
        "responses": {
            "200": _answer("The labels.", _FOUND),
            **{str(status): _answer(when, _ERROR) for status, when in REFUSALS.items()},
        },
    }
    unready = {"503": _answer("The model is not ready.", _ERROR)}
    some = {"type": "object"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "inti_jax", "version": inti_jax.__version__},
        "paths": {
            "/v1/predict": {"post": predict},
            "/v1/model": {
                "get": {
                    "summary": "Describe the model and the limits.",
                    "responses": {"200": _answer("The description.", some), **unready},
                }
            },
            "/health": {
                "get": {
                    "summary": "Tell whether requests are answered.",
                    "responses": {"200": _answer("They are.", some), **unready},
                }
            },
            "/metrics": {
                "get": {
                    "summary": "Give figures in Prometheus's format.",
                    "responses": {"200": {"description": "The figures.", "content": {"text/plain": {}}}},
                }
            },
        },
    }


def _answer(when: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": when, "content": {"application/json": {"schema": schema}}}
