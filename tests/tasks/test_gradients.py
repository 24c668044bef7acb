"""Averaged gradients of two workers are those of one worker with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.gradients import buckets
from tests.tasks.gradient_worker import Net, run, samples


@pytest.mark.slow
def test_two_workers_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run, args=(tmp_path,), nprocs=2)
    whole = Net(seed=0)
    whole(*samples(None)).backward()
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt")
        assert saved["shared"] == [{"a": 0.5, "b": 4.0}, [1, 0]]
        for name, parameter in whole.named_parameters():
            got, want = saved["grads"][name], parameter.grad
            if want is None:
                assert got is None, f"{name}: nobody used it, so no optimiser may move it"
                continue
            assert got.is_sparse == want.is_sparse
            if want.is_sparse:
                assert torch.equal(got.coalesce().indices(), want.coalesce().indices()), "exactly the rows that were touched"
            assert torch.allclose(got.to_dense(), want.to_dense(), atol=1e-6)


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=30), st.integers(16, 400))
def test_buckets_keep_order_and_bounds(shapes: list[tuple[int, bool]], limit: int) -> None:
    grads = [torch.zeros(size, dtype=torch.float64 if double else torch.float32) for size, double in shapes]
    groups = list(buckets(grads, limit))
    assert [id(grad) for group in groups for grad in group] == [id(grad) for grad in grads]
    for group in groups:
        assert len({grad.dtype for grad in group}) == 1
        assert len(group) == 1 or sum(grad.numel() * grad.element_size() for grad in group) <= limit
