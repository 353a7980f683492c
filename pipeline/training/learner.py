"""The model with its optimizer: training steps and validation losses. It does not know where batches come from.

The loss of a step is the sum over the batches of all DDP workers, divided by their total number of target tokens. N workers
with one batch each therefore take the same step as one worker with all N batches. The random generator is reseeded at each
step: dropout depends only on (seed, step, worker), so a resumed training draws the same numbers as an uninterrupted one. Two
things are not reproducible on a GPU: dropout between stacked layers, since cuDNN seeds it once per process, and the order of
some sums.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from pipeline.config.train import TrainingConfig
from pipeline.data.special_tokens import EOS
from pipeline.model.batching import PairBatch
from pipeline.model.precision import compute_dtype
from pipeline.model.seq2seq import LossConfig, Seq2Seq

_NO_PAIR = PairBatch(*(torch.full((1, 1), EOS), torch.ones(1, dtype=torch.long)) * 2)
"""A placeholder with weight 0 for a worker that runs out of pairs before the others, which wait for its gradient."""


@dataclass(frozen=True)
class BatchTotals:
    """Totals of a step over all workers.

    Attributes:
        target_tokens: target tokens, ``</s>`` included.
        tokens: source and target tokens.
        minutes: clock of the first worker. Clocks differ, and all workers must agree on when to stop.
    """

    target_tokens: int
    tokens: int
    pairs: int
    minutes: float


@dataclass(frozen=True)
class StepResult:
    """Result of a step. The loss is this worker's sum, in nats; tensors, so that a step does not wait for the device."""

    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


class Learner:
    """A model with its optimizer.

    Args:
        model: the network, on ``device``.
        distributed: train together with the other workers of the default process group.
        compress: exchange gradients in bfloat16.

    Attributes:
        average: the model that is validated and saved: ``model``, or a moving average of its weights.

    Raises:
        UserError: the device does not support the configured precision.
    """

    def __init__(
        self,
        model: Seq2Seq,
        config: TrainingConfig,
        device: torch.device,
        *,
        distributed: bool = False,
        compress: bool = False,
    ) -> None:
        self.model = model
        self.average = _frozen_copy(model) if config.ema_decay else model
        self.config = config
        self.device = device
        self.steps = 0
        self._loss_config = LossConfig(config.label_smoothing, config.coverage)
        self.dtype = compute_dtype(config.precision, device)
        # float32 must not mean TensorFloat-32; decoding, which validations use, sets the same.
        torch.backends.cudnn.allow_tf32 = self.dtype != torch.float32
        self._rank, self._workers = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        # gloo sums counts while a GPU works; with NCCL, each step would wait for the previous one.
        self._count_group = dist.new_group(backend="gloo") if distributed else None
        self._network: nn.Module = DistributedDataParallel(model, gradient_as_bucket_view=True) if distributed else model
        if compress and isinstance(self._network, DistributedDataParallel):
            # Behind a lambda, since DDP rejects the hook itself for gloo, although gloo can sum bfloat16.
            self._network.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))
        self._optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._snapshot: dict[str, Any] = {}

    def totals(self, batches: Sequence[PairBatch | None], minutes: float) -> BatchTotals:
        """Sum up the next step over all workers. ``minutes`` is this worker's clock; a batch is None once it ran out."""
        counts = torch.zeros(4, dtype=torch.float64)
        for batch in batches:
            if batch is not None:
                pairs = len(batch.target_lengths)
                target_tokens = int(batch.target_lengths.sum()) + pairs
                counts[:3] += torch.tensor([target_tokens, target_tokens + int(batch.source_lengths.sum()), pairs])
        if self._rank == 0:
            counts[3] = minutes
        target_tokens, tokens, pairs, minutes = self.sum_over_workers(counts).tolist()
        return BatchTotals(int(target_tokens), int(tokens), int(pairs), minutes)

    def step(self, batches: Sequence[PairBatch | None], totals: BatchTotals, progress: float) -> StepResult:
        """Take one optimizer step.

        Args:
            batches: this worker's batches, as many as each other worker passes; None for each one that it lacks.
            totals: totals over the batches of all workers, at least one of which is not None.
            progress: share of the training that is done, 0 to 1; the same in all workers.
        """
        entropy = np.random.SeedSequence([self.config.seed, self.steps, self._rank])
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        self._network.train()
        rate = learning_rate(self.config, self.steps, progress)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # DDP averages gradients over the workers; the factor turns the mean into a sum divided by all their tokens.
        factor = self._workers / totals.target_tokens
        last = len(batches) - 1
        losses = [self._backward(batch, factor, syncs=index == last) for index, batch in enumerate(batches)]
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.steps += 1
        return StepResult(torch.stack(losses).sum(), norm, rate)

    def _backward(self, batch: PairBatch | None, factor: float, *, syncs: bool) -> Tensor:
        """Accumulate the gradient of a batch and return its loss; ``syncs`` sums gradients over the workers."""
        inputs = (batch or _NO_PAIR).to(self.device)
        defers = isinstance(self._network, DistributedDataParallel) and not syncs
        with self._network.no_sync() if defers else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss: Tensor = self._network(
                    inputs.source, inputs.source_lengths, inputs.target, inputs.target_lengths, self._loss_config
                )
            if batch is None:
                loss = loss * 0.0
            self._scaler.scale(loss * factor).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Update the moving average; the decay starts low, so that the initial weights fade quickly."""
        if self.average is not self.model:
            decay = min(self.config.ema_decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def snapshot(self) -> None:
        """Save weights and optimizer state in CPU memory for ``roll_back``."""
        self._snapshot = _on_cpu({"average": self.average.state_dict(), **self.state_dict()})

    def roll_back(self) -> None:
        """Restore weights and optimizer state from the last snapshot; the step count stays."""
        state = _on_cpu(self._snapshot)  # a copy, since a CPU optimizer updates the tensors that it loads in place
        self.average.load_state_dict(state["average"])
        self.load_state_dict({**state, "steps": self.steps})

    def sum_over_workers(self, values: Tensor) -> Tensor:
        """Return a CPU tensor summed over all workers."""
        if self._count_group is not None:
            dist.all_reduce(values, group=self._count_group)
        return values

    @torch.inference_mode()
    def negative_log_likelihood(self, batches: Iterable[PairBatch]) -> tuple[float, int]:
        """Return the summed loss of this worker's batches in nats, and their target tokens with ``</s>``; no training."""
        self.average.eval()
        total, tokens = 0.0, 0
        for batch in batches:
            inputs = batch.to(self.device)
            total += float(self.average(inputs.source, inputs.source_lengths, inputs.target, inputs.target_lengths))
            tokens += int(batch.target_lengths.sum()) + len(batch.target_lengths)
        return total, tokens

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs besides ``average``: tensors and numbers only."""
        state = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict(), "steps": self.steps}
        return state if self.average is self.model else {**state, "weights": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a ``state_dict``; ``average`` must be loaded already. The state may come from a run with other ``ema_decay``."""
        if self.average is not self.model:
            self.model.load_state_dict(state.get("weights", self.average.state_dict()))
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty if the checkpoint was written in another precision
            self._scaler.load_state_dict(state["scaler"])
        self.steps = state["steps"]


def _frozen_copy(model: Seq2Seq) -> Seq2Seq:
    copied = copy.deepcopy(model).requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # cuDNN wants the weights contiguous
    return copied


def _on_cpu(state: Any) -> Any:
    """Return a copy of a state with all tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: _on_cpu(part) for name, part in state.items()}
    return [_on_cpu(part) for part in state] if isinstance(state, list) else state


def progress_fraction(config: TrainingConfig, epochs: float, minutes: float, steps: int) -> float:
    """Return the share of the training that is done, 0 to 1, by whichever limit is closest."""
    limits = ((epochs, config.epochs), (minutes, config.max_minutes), (steps, config.max_steps))
    return min(1.0, max(done / limit for done, limit in limits if limit is not None))


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Return the rate: linear warm-up by steps, then cosine decay by progress (Loshchilov & Hutter 2017, eq. 5).

    Warm-up takes at most a tenth of the training, so that a training shorter than ``warmup_steps`` still learns.
    """
    warmup = min(1.0, max((step + 1) / max(config.warmup_steps, 1), progress / 0.1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * warmup * (config.final_rate_share + (1 - config.final_rate_share) * cosine)
