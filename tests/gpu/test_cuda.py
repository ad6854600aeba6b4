"""What needs a CUDA device. ``make gpu`` runs it where there is one."""

from __future__ import annotations

import numpy as np
import pytest

import skate
from skate import train

pytestmark = pytest.mark.gpu


def test_gradients_are_copied_on_a_side_stream() -> None:
    torch = pytest.importorskip("torch")
    from skate.train.cuda import SideCopier, TorchDevice

    memory = np.zeros(1 << 20, np.float32)
    with SideCopier(TorchDevice()) as copier:
        copier.lock(memory)
        x = torch.ones(1 << 20, device="cuda")
        for _ in range(10):
            x = x * 2
        copier.copy(x, memory)
        copier.wait()
        assert (memory == 1024).all()


def loop(server: train.ParameterServer) -> None:
    import torch

    from skate.train.served_model import ServedModel

    model = torch.nn.Linear(4, 1, bias=False).cuda()
    served = ServedModel(server.join(), model)
    for _ in range(3):
        model(torch.ones(8, 4, device="cuda")).sum().backward()
        served.step()
    train.context().report({"w": model.weight.detach().cpu().tolist()})


def test_a_model_on_cuda_learns_from_a_server() -> None:
    torch = pytest.importorskip("torch")
    skate.init("embedded", num_cpus=2)
    server = train.ParameterServer(
        {"weight": torch.zeros(1, 4)}, optimizer=train.SGD(0.25)
    )
    result = train.run(loop, 1, config=server)
    assert result.metrics["w"] == [[-6.0] * 4]
