"""The Open Inference Protocol, version 2: between messages and arrays.

Requests and answers are JSON, or JSON followed by the bytes of the tensors (the binary
tensor data extension, which the header ``Inference-Header-Content-Length`` announces).
Pure: nothing here knows of a server.

Source: https://github.com/kserve/open-inference-protocol, and the extension at
https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import tree

HEADER_LENGTH = "inference-header-content-length"

DATATYPES = {
    "BOOL": np.dtype("bool"),
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_MAX_AXES = 32


class ProtocolError(ValueError):
    """What is wrong with a request; ``status`` is HTTP's number for it."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Input:
    """A tensor that a request announces; its bytes may follow the JSON."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data: Any = None  # JSON, unless the bytes follow
    is_binary: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        """The tensor, from the JSON."""
        try:
            given = np.asarray(self.data)
            values = _converted(given, self.dtype)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ProtocolError(
                f"the data of input {self.name!r} are not {datatype(self.dtype)}: "
                f"{error}"
            ) from None
        # Flat, or nested as the shape is.
        if values.size != math.prod(self.shape):
            raise ProtocolError(
                f"input {self.name!r} has {values.size} values; its shape "
                f"{list(self.shape)} has {math.prod(self.shape)}."
            )
        return values.reshape(self.shape)


def _converted(given: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """``given`` as ``dtype``. Raises where a number would become another one."""
    if given.size == 0:
        return np.empty(given.shape, dtype)
    if given.dtype.kind not in "biuf":
        raise TypeError("expected numbers, in lists of equal length")
    if (given.dtype.kind == "b") != (dtype.kind == "b"):
        raise TypeError(f"they are {given.dtype}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if given.dtype.kind == "f":
            raise TypeError("they have fractions or exponents")
        if given.min() < limits.min or given.max() > limits.max:
            raise OverflowError(f"expected {limits.min} to {limits.max}")
    with np.errstate(over="raise"):
        return given.astype(dtype)


@dataclass(frozen=True)
class InferRequest:
    """What the JSON of a request says."""

    inputs: tuple[Input, ...]
    id: str | None = None
    outputs: Mapping[str, bool] | None = None  # asked for -> as bytes; None: all
    binary_outputs: bool = False  # unless `outputs` says otherwise
    parameters: Mapping[str, Any] = field(default_factory=dict)


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of ``dtype``.

    Raises:
        ProtocolError: it has none.
    """
    name = _NAMES.get(dtype)
    if name is None:
        raise ProtocolError(
            f"the protocol has no name for arrays of {dtype}; it has "
            f"{', '.join(DATATYPES)}.",
            500,
        )
    return name


def parse_request(message: Any) -> InferRequest:
    """Check the JSON of a request.

    Raises:
        ProtocolError: it is not what the protocol says.
    """
    if not isinstance(message, dict):
        raise ProtocolError("the body must be a JSON object with the key 'inputs'.")
    inputs = message.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise ProtocolError("'inputs' must be a list of at least one tensor.")
    parsed = tuple(_input(item, index) for index, item in enumerate(inputs))
    if len({tensor.name for tensor in parsed}) != len(parsed):
        raise ProtocolError("two of the inputs have the same name.")
    parameters = _object(message, "parameters", "the request")
    binary = _flag(parameters, "binary_data_output", "the request")
    identifier = message.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise ProtocolError(f"'id' must be a string, not {identifier!r}.")
    return InferRequest(
        parsed, identifier or None, _outputs(message, binary), binary, parameters
    )


def _input(item: Any, index: int) -> Input:
    where = f"inputs[{index}]"
    if not isinstance(item, dict):
        raise ProtocolError(f"{where} must be an object.")
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise ProtocolError(f"{where} must have a 'name', a string.")
    dtype = DATATYPES.get(str(item.get("datatype")))
    if dtype is None:
        raise ProtocolError(
            f"input {name!r} has datatype {item.get('datatype')!r}; expected one of "
            f"{', '.join(DATATYPES)}."
        )
    shape = item.get("shape")
    if (
        not isinstance(shape, list)
        or not 0 < len(shape) <= _MAX_AXES
        or not all(type(n) is int and 0 <= n < 2**31 for n in shape)
    ):
        raise ProtocolError(
            f"input {name!r} has shape {shape!r}; expected a list of sizes, the first "
            "of which counts the states."
        )
    parameters = _object(item, "parameters", f"input {name!r}")
    if "binary_data_size" not in parameters:
        if "data" not in item:
            raise ProtocolError(
                f"input {name!r} has no 'data', and no parameter 'binary_data_size' "
                "that says how many bytes of it follow the JSON."
            )
        return Input(name, dtype, tuple(shape), data=item["data"])
    tensor = Input(name, dtype, tuple(shape), is_binary=True)
    size = parameters["binary_data_size"]
    if type(size) is not int or size != tensor.nbytes:
        raise ProtocolError(
            f"input {name!r} has binary_data_size {size!r}; its shape and datatype "
            f"need {tensor.nbytes} bytes."
        )
    return tensor


def _outputs(message: Mapping[str, Any], binary: bool) -> Mapping[str, bool] | None:
    asked = message.get("outputs")
    if asked is None:
        return None
    if not isinstance(asked, list):
        raise ProtocolError("'outputs' must be a list of objects with a 'name'.")
    wanted: dict[str, bool] = {}
    for index, item in enumerate(asked):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ProtocolError(f"outputs[{index}] must be an object with a 'name'.")
        parameters = _object(item, "parameters", f"outputs[{index}]")
        if "classification" in parameters:
            raise ProtocolError(
                f"outputs[{index}] asks for a classification, which is not offered."
            )
        wanted[item["name"]] = _flag(parameters, "binary_data", "an output", binary)
    return wanted or None


def _object(item: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = item.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ProtocolError(f"{key!r} of {where} must be an object, not {found!r}.")
    return found


def _flag(
    parameters: Mapping[str, Any], name: str, where: str, default: bool = False
) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name!r} of {where} must be true or false.")
    return value


# Answers ------------------------------------------------------------------------


def named(outputs: Any) -> dict[str, np.ndarray]:
    """The arrays of what a model returned, by the names they have outside.

    One array is ``outputs``; in a tree, names and numbers are joined by dots.
    """
    leaves, structure = tree.flatten(outputs)
    names = tree.paths(structure)
    if structure is None:
        names = ["outputs"]
    return {
        name: np.ascontiguousarray(leaf)
        for name, leaf in zip(names, leaves, strict=True)
    }


def chosen(
    request: InferRequest, outputs: Mapping[str, np.ndarray]
) -> list[tuple[str, np.ndarray, bool]]:
    """Which outputs were asked for, and whether as bytes.

    Raises:
        ProtocolError: there is no such output.
    """
    if request.outputs is None:
        return [(name, out, request.binary_outputs) for name, out in outputs.items()]
    for name in request.outputs:
        if name not in outputs:
            raise ProtocolError(
                f"there is no output {name!r}; the model has {', '.join(outputs)}."
            )
    return [(name, outputs[name], binary) for name, binary in request.outputs.items()]


def describe(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Tensors as a model's metadata lists them: -1 stands for the number of states."""
    return [
        {
            "name": name,
            "datatype": datatype(array.dtype),
            "shape": [-1, *array.shape[1:]],
        }
        for name, array in arrays.items()
    ]


def build_answer(
    model_name: str,
    version: int,
    request: InferRequest,
    outputs: Sequence[tuple[str, np.ndarray, bool]],
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The JSON of an answer, and the arrays whose bytes follow it.

    Arrays in the JSON are left as flat arrays, for an encoder that knows NumPy.
    """
    tensors = []
    following = []
    for name, array, binary in outputs:
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": datatype(array.dtype),
            "shape": list(array.shape),
        }
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            following.append(array)
        else:
            tensor["data"] = array.reshape(-1)
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": model_name, "model_version": str(version)}
    if request.id is not None:
        answer["id"] = request.id
    return {**answer, "outputs": tensors}, following
