"""``serve.http``: any client of the Open Inference Protocol, and bad ones."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
import pytest
from helpers import Signal

import skate
from skate.serve import HttpServer, deploy
from skate.serve import http as open_door

for module in ("uvicorn", "starlette", "orjson", "prometheus_client"):
    pytest.importorskip(module)

pytestmark = [
    pytest.mark.usefixtures("engine"),
    pytest.mark.differs(
        inline="one thing runs at a time: a server's thread would wait for its turn",
        ray="the door knows of deployments alone, and those are tested on ray",
    ),
]

EXAMPLE = np.zeros((1, 3), np.float32)
OCTETS = {"Content-Type": "application/octet-stream"}


class Scale:
    """Multiplies by its weight; knows a number that it cannot bear."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        if (states == 13).any():
            raise ArithmeticError("thirteen")
        return states * self.factor

    def set_weights(self, factor: float) -> None:
        self.factor = factor


class Tree:
    def evaluate(self, states: dict[str, np.ndarray]) -> dict[str, Any]:
        return {
            "sum": states["a"] + states["b"],
            "rest": (states["a"] > 0, states["b"].astype(np.float16)),
        }


class SizeOfBatch:
    def evaluate(self, states: np.ndarray) -> np.ndarray:
        return np.full(len(states), len(states))


class Gated:
    """Answers when the test lets it."""

    def __init__(self, gate: skate.ActorHandle[Signal]) -> None:
        self.gate = gate

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        skate.get(self.gate.wait.remote())
        return states


class Counts:
    """Recurrent: says how many states of its client it has seen."""

    def initial_memory(self, n: int) -> np.ndarray:
        return np.zeros(n, np.int64)

    def evaluate(
        self, states: np.ndarray, memory: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return memory + 1, memory + 1


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with deploy(Scale) as deployment:
        options: Any = {"example": EXAMPLE, "max_body_bytes": 100_000}
        with open_door(deployment, port=0, **options) as opened:
            yield opened


class Answer:
    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.text = answer.read()

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def ask(
    server: HttpServer,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    token: str | None = "",
) -> Answer:
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    token = server.token if token == "" else token
    given = {"Authorization": f"Bearer {token}"} if token else {}
    method = "GET" if body is None else "POST"
    try:
        connection.request(method, path, body, given | (headers or {}))
        return Answer(connection.getresponse())
    finally:
        connection.close()


def infer(
    server: HttpServer, states: Any, path: str = "/v2/models/model/infer", **more: Any
) -> Answer:
    states = np.asarray(states, np.float32)
    tensor = {
        "name": "states",
        "datatype": "FP32",
        "shape": list(states.shape),
        "data": states.tolist(),
    }
    return ask(server, path, json.dumps({"inputs": [tensor], **more}).encode())


# Good requests -----------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_own_client_works_unchanged(server: HttpServer, binary: bool) -> None:
    client_module = pytest.importorskip("tritonclient.http")
    client = client_module.InferenceServerClient(server.url.removeprefix("http://"))

    def token() -> dict[str, str]:  # a new one each time: the client writes into it
        return {"Authorization": f"Bearer {server.token}"}

    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("model", headers=token())
        assert client.get_server_metadata(headers=token())["name"] == "skate"
        metadata = client.get_model_metadata("model", headers=token())
        assert metadata["inputs"] == [
            {"name": "states", "datatype": "FP32", "shape": [-1, 3]}
        ]
        assert metadata["outputs"][0]["name"] == "outputs"

        states = np.arange(6, dtype=np.float32).reshape(2, 3)
        tensor = client_module.InferInput("states", [2, 3], "FP32")
        tensor.set_data_from_numpy(states, binary_data=binary)
        wanted = client_module.InferRequestedOutput("outputs", binary_data=binary)
        result = client.infer(
            "model", [tensor], outputs=[wanted], request_id="7", headers=token()
        )
        np.testing.assert_array_equal(result.as_numpy("outputs"), states * 2)
        assert result.get_response()["id"] == "7"
    finally:
        client.close()
        hub = pytest.importorskip("gevent").get_hub()  # it keeps descriptors open
        hub.destroy(destroy_loop=True)


def test_trees_have_names_and_types_of_their_own() -> None:
    with deploy(Tree) as deployment, open_door(deployment, port=0) as server:
        inputs = [
            {"name": n, "datatype": "FP64", "shape": [2], "data": [1.5, -1]}
            for n in "ab"
        ]
        body = json.dumps({"inputs": inputs}).encode()
        answer = ask(server, "/v2/models/model/infer", body)
        found = {o["name"]: (o["datatype"], o["data"]) for o in answer.json["outputs"]}
        assert found == {
            "sum": ("FP64", [3, -2]),
            "rest.0": ("BOOL", [True, False]),
            "rest.1": ("FP16", [1.5, -1]),
        }
        listed = ask(server, "/v2/models/model").json["outputs"]
        assert [o["name"] for o in listed] == ["sum", "rest.0", "rest.1"]


def test_an_answer_carries_the_version_of_the_weights() -> None:
    with deploy(Scale) as deployment, open_door(deployment, port=0) as server:
        assert infer(server, [[1, 2, 3]]).json["model_version"] == "0"
        deployment.update(5.0)
        answer = infer(server, [[1, 2, 3]]).json
        assert answer["model_version"] == "1"
        assert answer["outputs"][0]["data"] == [5, 10, 15]
        at = "/v2/models/model/versions/{}/infer"
        assert infer(server, [[1, 2, 3]], at.format(1)).status == 200
        assert infer(server, [[1, 2, 3]], at.format(0)).status == 404
        assert ask(server, "/v2/models/model/versions/0").status == 404


def test_requests_from_outside_and_inside_share_a_batch() -> None:
    with (
        deploy(SizeOfBatch, max_batch_size=2, batch_wait_s=3600) as deployment,
        open_door(deployment, port=0) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        outside = pool.submit(infer, server, [[1, 2, 3]])
        inside = deployment.submit(np.zeros((1, 3), np.float32))
        assert inside.result(timeout=60) == [2]
        assert outside.result().json["outputs"][0]["data"] == [2]


def test_a_deployment_of_several_models_has_a_url_for_each() -> None:
    with (
        deploy(Scale, model_ids=["red", "blue"]) as deployment,
        open_door(deployment, port=0) as server,
    ):
        deployment.update(7.0, model_id="blue")
        one = [[1.0]]
        red = infer(server, one, "/v2/models/red/infer").json
        blue = infer(server, one, "/v2/models/blue/infer").json
        assert (red["model_name"], red["outputs"][0]["data"]) == ("red", [2])
        assert (blue["model_version"], blue["outputs"][0]["data"]) == ("1", [7])


def test_sequences_keep_their_memory() -> None:
    with deploy(Counts) as deployment, open_door(deployment, port=0) as server:

        def seen(client: int, **parameters: Any) -> Answer:
            parameters["sequence_id"] = client
            return infer(server, [[0]], parameters=parameters)

        for client in (1, 2):
            begun = seen(client, sequence_start=True)
            assert begun.json["outputs"][0]["data"] == [1]
        assert seen(1, sequence_end=True).json["outputs"][0]["data"] == [2]
        assert seen(2).json["outputs"][0]["data"] == [2]
        assert seen(1).status == 409  # it has ended
        assert infer(server, [[0]]).status == 400  # whose state is it?


# What a person and a monitor see ------------------------------------------------


def test_the_description_and_the_metrics_are_what_they_say(server: HttpServer) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    infer(server, [[1, 2, 3]] * 3)
    text = ask(server, "/metrics").text.decode()
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["skate_serve_states_total"] == 4  # and the example
    assert values["skate_serve_batch_size_count"] == 2
    described = ask(server, "/openapi.json").json
    example = described["paths"]["/v2/models/model/infer"]["post"]["requestBody"][
        "content"
    ]["application/json"]["example"]
    body = json.dumps(example).encode()
    assert ask(server, "/v2/models/model/infer", body).status == 200
    page = ask(server, "/docs", token=None)
    assert page.status == 200
    assert b"<form" in page.text


# Bad requests -------------------------------------------------------------------


def test_nobody_comes_in_without_the_token(server: HttpServer) -> None:
    for token in (None, "wrong", f"{server.token}x"):
        for path in ("/v2", "/metrics", "/openapi.json", "/v2/models/model"):
            refused = ask(server, path, token=token)
            assert refused.status == 401
            assert "token" in refused.json["error"]
    assert ask(server, "/v2/health/live", token=None).status == 200
    elsewhere = ask(server, "/v2", headers={"Host": "evil.example"})
    assert elsewhere.status == 400  # a page of another site that names this address


def tensor(**changes: Any) -> bytes:
    states = {"name": "s", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    states |= changes
    kept = {key: value for key, value in states.items() if value is not None}
    return json.dumps({"inputs": [kept]}).encode()


BAD = {
    "no JSON": (b"{", 400, "not JSON"),
    "no object": (b"[]", 400, "JSON object"),
    "no inputs": (b"{}", 400, "'inputs'"),
    "no name": (tensor(name=None), 400, "'name'"),
    "unknown datatype": (tensor(datatype="FP99"), 400, "expected one of BOOL"),
    "no shape": (tensor(shape=None), 400, "expected a list of sizes"),
    "negative shape": (tensor(shape=[-1, 3]), 400, "expected a list of sizes"),
    "huge shape": (tensor(shape=[1, 2**40]), 400, "expected a list of sizes"),
    "other number of values": (tensor(data=[1, 2]), 400, "2 values; its shape"),
    "no data": (tensor(data=None), 400, "no 'data'"),
    "text": (tensor(data=["a", "b", "c"]), 400, "expected numbers"),
    "ragged": (tensor(data=[[1, 2], [3]]), 400, "are not FP32"),
    "fractions": (tensor(datatype="INT8", data=[1, 2, 0.5]), 400, "fractions"),
    "too large": (tensor(datatype="INT8", data=[1, 2, 300]), 400, "-128 to 127"),
    "no state": (tensor(shape=[0, 3], data=[]), 400, "counts the states"),
    "too many states": (tensor(shape=[65, 1], data=[0] * 65), 400, "1 to 64"),
    "other dtype": (tensor(datatype="FP64"), 400, "takes states of float32"),
    "other rank": (tensor(shape=[1, 1, 3]), 400, "takes states of float32"),
    "too long": (b" " * 100_001, 413, "max_body_bytes"),
}


def test_a_bad_request_is_told_what_is_wrong(server: HttpServer) -> None:
    for case, (body, status, says) in BAD.items():
        answer = ask(server, "/v2/models/model/infer", body)
        assert (answer.status, case) == (status, case)
        assert says in answer.json["error"]
        assert infer(server, [[1, 2, 3]]).status == 200


def binary(size: Any, data: bytes, length: int | None = None) -> tuple[bytes, str]:
    states = {"name": "s", "datatype": "FP32", "shape": [1, 3]}
    states["parameters"] = {"binary_data_size": size}
    head = json.dumps({"inputs": [states]}).encode()
    return head + data, str(len(head) if length is None else length)


LIES = {
    "size and shape differ": (binary(13, bytes(13)), "need 12 bytes"),
    "the size is no number": (binary("12", bytes(12)), "need 12 bytes"),
    "data end early": (binary(12, bytes(11)), "1 bytes before the end"),
    "data go on": (binary(12, bytes(13)), "longer than"),
    "the JSON ends early": (binary(12, bytes(12), 20), "not JSON"),
    "the JSON is not that long": (binary(12, bytes(12), 9999), "before the end"),
    "the JSON is endless": (binary(12, bytes(12), 10**12), "more than any body"),
    "the length is no number": ((b"{}", "-5"), "not a number"),
}


def test_a_lying_binary_header_is_found_out(server: HttpServer) -> None:
    for case, ((body, length), says) in LIES.items():
        headers = OCTETS | {"Inference-Header-Content-Length": length}
        answer = ask(server, "/v2/models/model/infer", body, headers)
        assert (answer.status, case) == (400, case)
        assert says in answer.json["error"]


def test_no_mutated_binary_body_breaks_the_server(server: HttpServer) -> None:
    good, length = binary(12, np.ones((1, 3), np.float32).tobytes())
    draw = np.random.default_rng(0)
    for _ in range(300):
        body = bytearray(good)
        for at in draw.integers(len(body), size=draw.integers(1, 6)):
            body[at] = draw.integers(256)
        cut = int(draw.integers(1, len(body) + 1))
        told = str(draw.choice([length, str(cut), str(draw.integers(400))]))
        headers = OCTETS | {"Inference-Header-Content-Length": told}
        answer = ask(server, "/v2/models/model/infer", bytes(body[:cut]), headers)
        assert answer.status < 500, (bytes(body[:cut]), told, answer.text)
        assert answer.status == 200 or answer.json["error"]
    assert infer(server, [[1, 2, 3]]).status == 200


# Schemathesis and what it imports are not clean of warnings.
@pytest.mark.filterwarnings("default")
def test_no_request_of_the_description_breaks_the_server(server: HttpServer) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    headers = {"Authorization": f"Bearer {server.token}"}
    schema = schemathesis.openapi.from_url(
        f"{server.url}/openapi.json", headers=headers
    )
    operations = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(max_examples=25, deadline=None, database=None)
        @hypothesis.given(case=operation.as_strategy())
        def ask_all(case: Any) -> None:
            answer = case.call(headers=headers)
            assert answer.status_code < 500, answer.text

        ask_all()
        operations += 1
    assert operations == 7


def test_unknown_models_outputs_and_encodings_are_refused(server: HttpServer) -> None:
    assert "there are model" in ask(server, "/v2/models/mdoel").json["error"]
    assert infer(server, [[1, 2, 3]], "/v2/models/mdoel/infer").status == 404
    wrong = infer(server, [[1, 2, 3]], outputs=[{"name": "value"}])
    assert wrong.status == 400
    assert "the model has outputs" in wrong.json["error"]
    zipped = ask(
        server, "/v2/models/model/infer", tensor(), {"Content-Encoding": "gzip"}
    )
    assert zipped.status == 415


def test_what_the_model_raises_is_told_and_costs_nobody_else(
    server: HttpServer,
) -> None:
    failed = infer(server, [[13, 0, 0]])
    assert failed.status == 500
    assert failed.json["error"] == "the model raised ArithmeticError: thirteen"
    assert infer(server, [[1, 2, 3]]).status == 200


def send(server: HttpServer, text: bytes) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(text)
    return connection


def test_slow_and_vanishing_clients_cost_nobody_else() -> None:
    with (
        deploy(Scale) as deployment,
        open_door(deployment, port=0, read_timeout_s=0.2) as server,
    ):
        head = (
            b"POST /v2/models/model/infer HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Bearer " + str(server.token).encode() + b"\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        slow, gone = send(server, head), send(server, head)
        gone.close()
        assert infer(server, [[1, 2, 3]]).status == 200
        with slow, slow.makefile("rb") as answer:
            assert b"408" in answer.readline()
            assert b"within 0.2 s" in answer.read()  # and the connection is closed


def test_more_than_may_be_under_way_is_told_to_come_again() -> None:
    gate = Signal.remote()
    with (
        deploy(Gated, gate) as deployment,
        open_door(deployment, port=0, max_requests=3) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        asked = [pool.submit(infer, server, [[1]]) for _ in range(4)]
        refused = next(as_completed(asked)).result()
        assert refused.status == 429
        assert "max_requests" in refused.json["error"]
        skate.get(gate.set.remote())
        assert sorted(a.result().status for a in asked) == [200, 200, 200, 429]


def test_a_full_queue_is_told_to_come_again() -> None:
    with (
        deploy(Scale, max_batch_size=8, batch_wait_s=3600, max_queued=1) as deployment,
        open_door(deployment, port=0) as server,
    ):
        waits = deployment.submit(np.zeros((1, 3), np.float32))
        refused = infer(server, [[1, 2, 3]] * 2)
        assert refused.status == 429
        assert "max_queued" in refused.json["error"]
        assert waits.cancel()


def test_close_lets_requests_end_and_frees_the_port() -> None:
    gate = Signal.remote()
    with deploy(Gated, gate) as deployment:
        server = open_door(deployment, port=0)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(infer, server, [[1]])
            skate.get(gate.wait_for_waiting.remote(1))
            closing = threading.Thread(target=server.close)
            closing.start()
            skate.get(gate.set.remote())
            closing.join()
            assert asked.result().status == 200
        port = int(server.url.rpartition(":")[2])
        again = open_door(deployment, port=port)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            open_door(deployment, port=port)
        again.close()
        again.close()


def test_bad_numbers_are_refused_at_once() -> None:
    with deploy(Scale) as deployment:
        for wrong in ({"max_body_bytes": 0}, {"max_requests": 0}):
            with pytest.raises(ValueError, match="at least 1"):
                open_door(deployment, port=0, **wrong)
        with pytest.raises(ValueError, match="read_timeout_s"):
            open_door(deployment, port=0, read_timeout_s=0)
