"""What each of several processes does for test_distributed.py, in float64: the jobs of the command line, in turn."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.errors import ConfigError
from bnnedge.train import loop
from bnnedge.train.distributed import Group, join
from bnnedge.train.global_batch_norm import average_statistics, share_batch_norm
from bnnedge.train.start import resume_run, start_run
from bnnedge.train.state import TrainingState


def start(group: Group, out: str, settings: dict[str, Any]) -> None:
    start_run(RunConfig.from_dict(settings), Path(out), group)


def resume(group: Group, out: str, settings: dict[str, Any]) -> None:
    resume_run(Path(out), settings, group)


def interrupt(group: Group, out: str, settings: dict[str, Any]) -> None:
    """An interrupt in the second epoch, of the last process alone; the folder is then copied to ``out.copy``."""
    run_epoch = loop._run_epoch

    def with_interrupt(state: TrainingState, progress: Any) -> dict[str, Any]:
        if state.epoch == 1 and group.rank == group.size - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return run_epoch(state, progress)

    loop._run_epoch = with_interrupt
    try:
        start(group, out, settings)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the run was not interrupted")
    finally:
        loop._run_epoch = run_epoch
    group.interrupted = False
    group.main_only(lambda: shutil.copytree(out, f"{out}.copy") and None)


def errors(group: Group, out: str, settings: dict[str, Any]) -> None:
    """What one process alone cannot do, none does; and the main one's results and errors are everybody's."""

    def fail_on(rank: int) -> int:
        if group.rank == rank:
            raise ConfigError(f"process {rank} fails")
        return group.rank

    for attempt in (group.everywhere, group.main_only):
        assert attempt(lambda: fail_on(99)) == (group.rank if attempt == group.everywhere else 0)
        try:
            attempt(lambda: fail_on(0))
        except ConfigError as error:
            assert str(error) == "process 0 fails"
        else:
            raise AssertionError("no error")
    try:
        group.everywhere(lambda: fail_on(1))
    except ConfigError as error:
        assert str(error) == "process 1 fails"
    else:
        raise AssertionError("no error")


def exchange(group: Group, out: str, settings: dict[str, Any]) -> None:
    """Sums and broadcasts of tensors of several dtypes and memory formats, in place."""
    image = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    strided = (image * (group.rank + 1)).contiguous(memory_format=torch.channels_last)
    count, scalar = torch.tensor([group.rank, 7]), torch.tensor(0.5, dtype=torch.float32)
    group.sum_([strided, count, scalar])
    factor = sum(range(1, group.size + 1))
    assert torch.equal(strided, image * factor) and strided.is_contiguous(memory_format=torch.channels_last)
    assert count.tolist() == [sum(range(group.size)), 7 * group.size] and float(scalar) == 0.5 * group.size
    flag, half = torch.tensor([group.rank == 0]), torch.full((3,), float(group.rank), dtype=torch.bfloat16)
    group.broadcast_([flag, half, strided.mul_(group.rank + 1)])
    assert flag.tolist() == [True] and half.tolist() == [0, 0, 0] and torch.equal(strided, image * factor)
    state = {"bn.running_mean": torch.tensor([float(group.rank)]), "bn.weight": torch.tensor([float(group.rank)])}
    average_statistics([state], group)
    assert float(state["bn.running_mean"]) == (group.size - 1) / 2 and float(state["bn.weight"]) == group.rank


def batch_norm(group: Group, out: str, settings: dict[str, Any]) -> None:
    """Outputs, gradients and running statistics are those of one process with the whole batch."""
    for norm, shape in (
        (nn.BatchNorm2d(3), (5, 3, 4, 2)),
        (nn.BatchNorm1d(4), (7, 4)),
        (nn.BatchNorm2d(2, momentum=None), (3, 2, 1, 1)),
        (nn.BatchNorm2d(3, affine=False, eps=0.1), (5, 3, 4, 2)),
    ):
        torch.manual_seed(0)
        if norm.affine:
            nn.init.normal_(norm.weight)  # negative gains too
            nn.init.normal_(norm.bias)
        whole = nn.Sequential(norm)
        shared = nn.Sequential(type(norm)(norm.num_features, norm.eps, norm.momentum, norm.affine))
        shared.load_state_dict(whole.state_dict())
        share_batch_norm(shared, group)
        assert list(shared.state_dict()) == list(whole.state_dict())
        for _ in range(2):
            x = (torch.randn(shape) * 3 + 100).requires_grad_()
            weight = torch.randn(shape)
            expected = whole(x)
            (expected * weight).sum().backward()
            ((own, own_weight),) = group.parts(x.detach(), weight, 1)
            own.requires_grad_()
            found = shared(own)
            (found * own_weight).sum().backward()
            gradients = [p.grad for p in shared.parameters() if p.grad is not None]
            group.sum_(gradients)
            # Means of numbers near 100 and variances near 9, a few roundings of 2^-53 each.
            close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-11)
            close(found, group.parts(expected, expected, 1)[0][0])
            assert x.grad is not None
            close(own.grad, group.parts(x.grad, x.grad, 1)[0][0])
            close(gradients, [p.grad for p in whole.parameters()])
            close(dict(shared.state_dict()), dict(whole.state_dict()))
            for parameter in (*whole.parameters(), *shared.parameters()):
                parameter.grad = None
        close(shared.eval()(own), whole.eval()(own))


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    with join() as everyone:
        for job, folder, values in json.loads(sys.argv[1]):
            globals()[job](everyone, folder, values)
