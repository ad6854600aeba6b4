"""The OpenAPI description of ``serve.http``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import skate

from .protocol import DATATYPES

_Seen = tuple[list[dict[str, Any]], list[dict[str, Any]]]

_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        "datatype": {"enum": list(DATATYPES)},
        "data": {
            "description": "Flat, or nested as the shape is.",
            "type": "array",
            "items": {},
        },
        "parameters": {"type": "object"},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "items": {"$ref": "#/components/schemas/Tensor"},
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}},
            },
        },
        "parameters": {"type": "object"},
    },
}
_ANSWER = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {
            "type": "string",
            "description": "Of the weights that answered; one more at each update.",
        },
        "id": {"type": "string"},
        "outputs": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/Tensor"},
        },
    },
}


def document(models: Mapping[str, _Seen | None]) -> dict[str, Any]:
    """The description, with an example for each model whose tensors are known."""
    paths: dict[str, Any] = {
        "/v2": _get("The server's name, version and extensions."),
        "/v2/health/live": _get("Whether the server runs.", is_open=True),
        "/v2/health/ready": _get("Whether a replica answers.", is_open=True),
        "/metrics": _get("Metrics for Prometheus."),
    }
    for name, seen in models.items():
        at = f"/v2/models/{name}"
        paths[at] = _get("The model's versions, inputs and outputs.")
        paths[f"{at}/ready"] = _get("Whether the model can be asked.")
        paths[f"{at}/infer"] = {"post": _infer(seen)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "skate",
            "version": skate.__version__,
            "description": "The Open Inference Protocol, version 2. Tensors may also "
            "follow the JSON as bytes: the binary tensor data extension.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Tensor": _TENSOR,
                "Request": _REQUEST,
                "Answer": _ANSWER,
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {"type": "string"}},
                },
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _get(summary: str, *, is_open: bool = False) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "Yes."}, "default": _ERROR},
    }
    return {"get": operation | ({"security": []} if is_open else {})}


_ERROR = {
    "description": "What is wrong.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def _infer(seen: _Seen | None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Request"}}
    if seen is not None:
        content["example"] = {"inputs": [_example(tensor) for tensor in seen[0]]}
    return {
        "summary": "The model's outputs for a batch of states.",
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {
            "200": {
                "description": "The outputs.",
                "content": {
                    "application/json": {
                        "schema": {"$ref": "#/components/schemas/Answer"}
                    }
                },
            },
            "default": _ERROR,
        },
    }


def _example(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """One state of zeros."""
    shape = [1, *tensor["shape"][1:]]
    size = 1
    for n in shape:
        size *= n
    zero: Any = False if tensor["datatype"] == "BOOL" else 0
    return {
        "name": tensor["name"],
        "shape": shape,
        "datatype": tensor["datatype"],
        "data": [zero] * min(size, 4096),
    }
