"""One optimisation step, one validation loss: what training is, without knowing where batches come from.

A step's loss is the sum over the batches of all DDP workers, divided by the number of their target tokens together: N
workers with a batch each so take the same step as one worker with all N batches in one. Nothing is drawn from a random
generator that ran on from the step before: dropout in step n of worker r follows from (seed, n, r) alone, so a training
that goes on from a checkpoint draws what it would have drawn undisturbed. Two things are out of reach on a GPU: dropout
between stacked layers is cuDNN's, which seeds itself once in a process and then runs on; and sums whose order is not fixed.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
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
"""Stands in, with weight 0, where a worker has run out of pairs before the others, who wait for its gradient."""


@dataclass(frozen=True)
class BatchTotals:
    """What the workers bring to a step together. target_tokens count ``</s>``; tokens are source and target tokens.

    minutes: the first worker's clock, since clocks differ and all workers must agree on when to stop.
    """

    target_tokens: int
    tokens: int
    pairs: int
    minutes: float


@dataclass(frozen=True)
class StepResult:
    """What a step did. loss: this worker's, summed (nat), by its objective; tensors, so as not to wait for them."""

    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


class Learner:
    """A model with its optimizer.

    Args:
        model: on ``device``. config: the optimisation. distributed: with the other workers of the default process group.
        compress: exchange gradients with them in bfloat16.

    Attributes:
        average: what is validated and kept: ``model``, or a moving average of its weights.

    Raises:
        UserError: the device does not compute in the precision asked for.
    """

    def __init__(
        self,
        model: Seq2Seq,
        config: TrainingConfig,
        device: torch.device,
        distributed: bool = False,
        compress: bool = False,
    ) -> None:
        self.model = model
        self.average = _copy_of(model) if config.ema_decay else model
        self.config = config
        self.device = device
        self.steps = 0
        self._objective = LossConfig(config.label_smoothing, config.coverage)
        self.dtype = compute_dtype(config.precision, device)
        # As decoding has it for validations: what is asked to be float32 is no TensorFloat-32.
        torch.backends.cudnn.allow_tf32 = self.dtype != torch.float32
        self._rank, self._workers = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        # Counts are summed by gloo beside a GPU's work: through NCCL, each step would wait for the one before it.
        self._counting = dist.new_group(backend="gloo") if distributed else None
        self._network: nn.Module = DistributedDataParallel(model, gradient_as_bucket_view=True) if distributed else model
        if compress and isinstance(self._network, DistributedDataParallel):
            # By its own name DDP refuses torch's hook for gloo, which sums bfloat16 as well.
            self._network.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))
        self._optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._remembered: dict[str, Any] = {}

    def totals(self, batches: Sequence[PairBatch | None], minutes: float) -> BatchTotals:
        """Add up what all workers are about to learn; a worker that has run out of batches gives None for one.

        Args:
            minutes: this worker's clock.
        """
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
        """Take one step with this worker's batches, as many as every worker has, or with the others' alone for each None.

        Args:
            totals: over the workers' batches, of which one at least must not be None.
            progress: share of the training that is done, 0 to 1; the same in all workers.
        """
        entropy = np.random.SeedSequence([self.config.seed, self.steps, self._rank])
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        self._network.train()
        rate = learning_rate(self.config, self.steps, progress)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # DDP averages gradients over the workers; the factor makes that the sum, over all their tokens.
        factor = self._workers / totals.target_tokens
        losses = [self._learn(batch, factor, is_last) for batch, is_last in _with_last(batches)]
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._take_into_average()
        self.steps += 1
        return StepResult(torch.stack(losses).sum(), norm, rate)

    def _learn(self, batch: PairBatch | None, factor: float, is_last: bool) -> Tensor:
        """Add a batch's gradient to those before it, and, after the last, those of the other workers; this one's loss."""
        real = (batch or _NO_PAIR).to(self.device)
        waits = isinstance(self._network, DistributedDataParallel) and not is_last
        with self._network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss: Tensor = self._network(
                    real.source, real.source_lengths, real.target, real.target_lengths, self._objective
                )
            if batch is None:
                loss = loss * 0.0
            self._scaler.scale(loss * factor).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def _take_into_average(self) -> None:
        """Take the weights into their average, of which little is kept at first, as it is of weights before learning."""
        if self.average is not self.model:
            decay = min(self.config.ema_decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def remember(self) -> None:
        """Keep weights and optimizer as they are, in the CPU's memory, for ``roll_back``."""
        self._remembered = _on_cpu({"average": self.average.state_dict(), **self.state_dict()})

    def roll_back(self) -> None:
        """Take weights and optimizer back to where ``remember`` saw them; steps are counted on."""
        state = _on_cpu(self._remembered)  # a copy: what a CPU's optimizer loads it goes on to change
        self.average.load_state_dict(state["average"])
        self.load_state_dict({**state, "steps": self.steps})

    def sum_over_workers(self, values: Tensor) -> Tensor:
        """Values, on the CPU, summed over all workers."""
        if self._counting is not None:
            dist.all_reduce(values, group=self._counting)
        return values

    @torch.inference_mode()
    def negative_log_likelihood(self, batches: Iterable[PairBatch]) -> tuple[float, int]:
        """Of this worker's batches, without learning from them: the sum (nat), and the target tokens with ``</s>``."""
        self.average.eval()
        total, tokens = 0.0, 0
        for batch in batches:
            real = batch.to(self.device)
            total += float(self.average(real.source, real.source_lengths, real.target, real.target_lengths))
            tokens += int(batch.target_lengths.sum()) + len(batch.target_lengths)
        return total, tokens

    def state_dict(self) -> dict[str, Any]:
        """All that going on needs besides ``average``: tensors and numbers only."""
        state = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict(), "steps": self.steps}
        return state if self.average is self.model else {**state, "weights": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``'s value, with ``average`` loaded already.

        One of a training without an average goes on with one, and the other way round.
        """
        if self.average is not self.model:
            self.model.load_state_dict(state.get("weights", self.average.state_dict()))
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # none of a training in another precision
            self._scaler.load_state_dict(state["scaler"])
        self.steps = state["steps"]


def _copy_of(model: Seq2Seq) -> Seq2Seq:
    twin = copy.deepcopy(model).requires_grad_(False)
    for module in twin.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # side by side in memory, as cuDNN wants them
    return twin


def _with_last(batches: Sequence[PairBatch | None]) -> Iterator[tuple[PairBatch | None, bool]]:
    """Each batch, and whether it is the last."""
    for number, batch in enumerate(batches, 1):
        yield batch, number == len(batches)


def _on_cpu(state: Any) -> Any:
    """A copy of what a state holds, its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: _on_cpu(part) for name, part in state.items()}
    return [_on_cpu(part) for part in state] if isinstance(state, list) else state


def progress_fraction(config: TrainingConfig, epochs: float, minutes: float, steps: int) -> float:
    """How much of a training is done, 0 to 1, by whichever of its bounds is nearest."""
    bounds = ((epochs, config.epochs), (minutes, config.max_minutes), (steps, config.max_steps))
    return min(1.0, max(done / bound for done, bound in bounds if bound is not None))


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Linear warm-up by steps, then a cosine by progress down to the final share (Loshchilov & Hutter 2017, eq. 5).

    A tenth of a training is warm-up at the most: one of fewer steps than were meant for it would learn nothing.
    """
    warm = min(1.0, max((step + 1) / max(config.warmup_steps, 1), progress / 0.1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * warm * (config.final_rate_share + (1 - config.final_rate_share) * cosine)
