"""Fit a line on two ranks: each has half of the data, all have the same model."""

import torch

from skate import train
from skate.train.torch import DistributedOptimizer


def loop(epochs: int) -> None:
    context = train.context()
    torch.manual_seed(context.rank)  # other data on each rank
    x = torch.randn(256, 1)
    y = 3 * x - 1
    model = torch.nn.Linear(1, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DistributedOptimizer(sgd, model)
    for epoch in range(epochs):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()  # with the mean gradient of both ranks
        context.report({"epoch": epoch, "loss": loss.item()})
    context.report({"slope": model.weight.item(), "offset": model.bias.item()})


def main() -> None:
    result = train.run(loop, num_workers=2, config=50)
    line = result.metrics
    print(f"y = {line['slope']:.2f} x {line['offset']:+.2f}")


if __name__ == "__main__":
    main()
