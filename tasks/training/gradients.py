"""Averaging of gradients over the workers of a training run, exactly as if one worker had seen the whole batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

BUCKET_BYTES = 25 << 20
"""Dense gradients travel in pieces of about this size: few messages, and a bounded copy."""


class GradientAverager:
    """A `TrainingModule.sync_gradients` over the default process group; every worker calls it with the same parameters.

    A parameter without a gradient on one worker counts as zero there when another worker has one, and stays without
    when nobody has: an optimiser then skips it just as it would for one worker. Sparse gradients of embeddings stay
    sparse and keep exactly the rows that some worker touched.
    """

    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        if not wanted:
            return
        present, sparse = self._agree(wanted)
        dense = [parameter for index, parameter in enumerate(wanted) if present[index] and not sparse[index]]
        for parameter in dense:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in buckets([parameter.grad for parameter in dense if parameter.grad is not None]):
            _average_dense(bucket)
        for index, parameter in enumerate(wanted):
            if present[index] and sparse[index]:
                _average_sparse(parameter)

    def _agree(self, parameters: Sequence[nn.Parameter]) -> tuple[list[bool], list[bool]]:
        """Which parameters have a gradient anywhere, and which of those are sparse."""
        grads = [parameter.grad for parameter in parameters]
        flags = torch.tensor(
            [[grad is not None for grad in grads], [grad is not None and grad.is_sparse for grad in grads]],
            dtype=torch.uint8,
            device=parameters[0].device,
        )
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        present, sparse = flags.bool().tolist()
        return present, sparse


def buckets(grads: Sequence[Tensor], limit: int = BUCKET_BYTES) -> Iterator[list[Tensor]]:
    """Group tensors in order; a group has one type and at most `limit` bytes, or one larger tensor."""
    group: list[Tensor] = []
    size = 0
    for grad in grads:
        length = grad.numel() * grad.element_size()
        if group and (size + length > limit or grad.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(grad)
        size += length
    if group:
        yield group


def average_scalars(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value over the workers; every worker hands in the same names."""
    names = sorted(values)
    packed = torch.tensor([values[name] for name in names], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(packed)
    return dict(zip(names, (packed / torch.distributed.get_world_size()).tolist(), strict=True))


def largest(values: Sequence[int], device: torch.device) -> list[int]:
    """The largest of each value over the workers."""
    packed = torch.tensor(values, dtype=torch.int64, device=device)
    torch.distributed.all_reduce(packed, op=torch.distributed.ReduceOp.MAX)
    return packed.tolist()


def same_start(module: nn.Module) -> None:
    """Give every worker the parameters and buffers of worker 0."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            torch.distributed.broadcast(tensor.data, src=0)


def _average_dense(bucket: list[Tensor]) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in bucket])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for grad, mean in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
        grad.copy_(mean.view_as(grad))


def _average_sparse(parameter: nn.Parameter) -> None:
    """Gather every worker's rows; rows that several touched are summed when they are coalesced."""
    grad = parameter.grad
    if grad is None:
        rows = torch.zeros(0, dtype=torch.int64, device=parameter.device)
        values = torch.zeros((0, *parameter.shape[1:]), dtype=parameter.dtype, device=parameter.device)
    else:
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
    world = torch.distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    torch.distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(count.item()) for count in counts]
    # Collectives move equal shapes: every worker pads to the longest, and the padding is cut off again.
    padded_rows = torch.zeros(max(lengths), dtype=rows.dtype, device=rows.device)
    padded_values = torch.zeros((max(lengths), *parameter.shape[1:]), dtype=values.dtype, device=values.device)
    padded_rows[: len(rows)] = rows
    padded_values[: len(rows)] = values
    all_rows = [torch.empty_like(padded_rows) for _ in range(world)]
    all_values = [torch.empty_like(padded_values) for _ in range(world)]
    torch.distributed.all_gather(all_rows, padded_rows)
    torch.distributed.all_gather(all_values, padded_values)
    joined_rows = torch.cat([part[:length] for part, length in zip(all_rows, lengths, strict=True)])
    joined_values = torch.cat([part[:length] for part, length in zip(all_values, lengths, strict=True)])
    parameter.grad = torch.sparse_coo_tensor(joined_rows[None], joined_values / world, parameter.shape).coalesce()
