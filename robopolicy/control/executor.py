"""Which action of which chunk is executed now: batched tensor code for one robot as for thousands of simulated worlds.

Everything is aligned by time: action k of a chunk belongs to t_obs + k * control_dt, rounded to the control grid that
the first chunk lays. Sources: receding horizon and dropping of late actions, Diffusion Policy (Chi et al. 2023);
temporal ensemble, ACT (Zhao et al. 2023); frozen prefix and soft blend, real-time chunking (Black et al. 2025).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from robopolicy.control.arrays import like
from robopolicy.control.blending import blend
from robopolicy.control.execution import ExecutionConfig, Strategy
from robopolicy.model.rotation_math import RotationKind
from robopolicy.model.rotations import action_rotations
from robopolicy.types import ActionSpec


class StaleChunkError(RuntimeError):
    """The newest chunk is older than `max_chunk_age_s` (or there is none): the robot must hold."""


class ChunkExecutor:
    """Holds the plan of each episode: the actions of the control steps from now on.

    One executor serves any leading axes `*B` (none for a robot), which share one clock. Episodes never influence each
    other: each takes a chunk when its own plan needs one. `reset` forgets.

    On a device, no call waits for it unless `max_chunk_age_s` is given.
    """

    def __init__(
        self,
        chunk: int,
        control_dt: float,
        *,
        batch: int | Sequence[int] = (),
        action_spec: ActionSpec | None = None,
        strategy: Strategy = "receding",
        replan_every: int = 1,
        ensemble_decay: float = 0.01,
        gripper_hysteresis: float = 0.0,
        max_chunk_age_s: float | None = None,
        latency_s: float = 0.0,
        rotations: Mapping[str, RotationKind] | None = None,
    ) -> None:
        """Describe the execution.

        Args:
            chunk: K, actions in one chunk.
            control_dt: time between two actions [s].
            batch: the leading axes B: none for one robot, a number of worlds, or a shape.
            action_spec: names the binary gripper columns and says whether an arm at rest means zero (`delta`) or the
                last action again (`absolute`); None: no gripper column, zero is rest.
            strategy: `receding` follows the newest chunk taken; `ensemble` averages all chunks that cover a step, with
                weights exp(-ensemble_decay * i), i = 0 the oldest; `freeze` keeps the steps that pass while the policy
                thinks (latency_s) and blends the rest of the old plan into the new one.
            replan_every: steps between two chunks taken.
            ensemble_decay: m of the ensemble's weights.
            gripper_hysteresis: how far the gripper's score must cross zero to change its mind; the score is the logit
                where `add` is given logits, and else the action mapped from its two values to -1 and +1.
            max_chunk_age_s: `action` raises StaleChunkError beyond this age of the observation behind it [s].
            latency_s: time from observation to chunk that `freeze` reckons with [s]; a later chunk freezes more.
            rotations: columns that are rotations, as for `--normalization.rotations`; an absolute pose's are found by the
                action spec. Chunks are averaged along the shorter way.
        """
        frozen = math.ceil(latency_s / control_dt - 1e-9)
        if not 1 <= replan_every <= chunk - frozen:
            raise ValueError(
                f"replan_every {replan_every} with {frozen} steps of latency does not fit into a chunk of {chunk} "
                f"actions; use 1 .. {chunk - frozen}, or train a longer chunk"
            )
        if gripper_hysteresis < 0 or ensemble_decay < 0 or latency_s < 0:
            raise ValueError("gripper_hysteresis, ensemble_decay and latency_s must not be negative")
        if strategy not in ("receding", "ensemble", "freeze"):
            raise ValueError(f"unknown strategy {strategy!r}; there are receding, ensemble, freeze")
        self.batch = (batch,) if isinstance(batch, int) else tuple(batch)
        spec = action_spec or ActionSpec(arm=0, gripper=0)
        self.chunk, self.control_dt, self.strategy = chunk, control_dt, strategy
        self.replan_every, self.ensemble_decay = replan_every, ensemble_decay
        self.gripper_hysteresis, self.max_chunk_age_s = gripper_hysteresis, max_chunk_age_s
        self._rotations = action_rotations(spec, "aligned", rotations or {})
        weights = torch.exp(-ensemble_decay * torch.arange(chunk + 1, dtype=torch.float64))
        self._shares = weights / weights.cumsum(0)  # of the chunk that is the i-th to cover a step
        self._frozen, self._spec, self._action_spec = frozen, spec, action_spec
        self._gripper = np.array(spec.gripper_columns, dtype=np.int64)
        self._gripper_values = np.array(spec.gripper_values, dtype=np.float64).reshape(-1, 2)
        self.reset()

    @classmethod
    def from_config(
        cls,
        config: ExecutionConfig,
        action_spec: ActionSpec,
        chunk: int,
        control_dt: float,
        batch: int | Sequence[int] = (),
        *,
        max_chunk_age_s: float | None = None,
        latency_s: float = 0.0,
        rotations: Mapping[str, RotationKind] | None = None,
    ) -> "ChunkExecutor":
        """The executor that an experiment asks for."""
        return cls(
            chunk,
            control_dt,
            batch=batch,
            action_spec=action_spec,
            strategy=config.strategy,
            replan_every=config.replan_every,
            ensemble_decay=config.ensemble_decay,
            gripper_hysteresis=config.gripper_hysteresis,
            max_chunk_age_s=max_chunk_age_s,
            latency_s=latency_s,
            rotations=rotations,
        )

    def reset(self, done: Bool[Tensor, "*B"] | None = None) -> None:
        """Forget the plans of the episodes in `done` (*B), or everything, batch shape and time grid included."""
        if done is None:
            self._origin_s: float | None = None
            self._head = 0  # the grid step that plan[..., 0, :] belongs to
            self.held = torch.ones(self.batch, dtype=torch.bool)
            self.refused = torch.zeros(self.batch, dtype=torch.long)
            return
        if self._origin_s is None:
            return
        self._plan = self._plan.masked_fill(done[..., None, None], 0.0)
        self._count = self._count.masked_fill(done[..., None], 0)
        self._label = self._label.masked_fill(done[..., None], -1)
        self._last = torch.where(done[..., None], self._rest, self._last)
        self._observed_s = self._observed_s.masked_fill(done, -math.inf)

    def needs_chunk(self, t_s: float) -> Bool[Tensor, "*B"]:
        """Which episodes would take a chunk added at time t_s [s]."""
        if self._origin_s is None:
            return torch.ones(self.batch, dtype=torch.bool)
        step = self._step(t_s)
        ahead = step - self._head
        due = step - self._taken >= self.replan_every
        return due | (self._count[..., ahead] == 0) if ahead < self.chunk else torch.ones_like(due)

    def add(
        self,
        actions: Float[Tensor, "*B chunk width"],
        t_obs_s: float,
        *,
        now_s: float | None = None,
        gripper_logit: Float[Tensor, "*B chunk gripper"] | None = None,
    ) -> None:
        """Offer a chunk to every episode; those that need none yet, or whose chunk is not finite, keep their plan.

        Args:
            actions: (*B, K, width), columns and units of the demos.
            t_obs_s: when the observation behind it was taken [s].
            now_s: the step being prepared [s], where inference took time; actions before it are dropped, and if all
                are late the last one is meant for it. None: no time has passed.
            gripper_logit: (*B, K, G) for the gripper columns, where the policy gives them.
        """
        self._check(actions, gripper_logit)
        if self._origin_s is None:
            self._allocate(actions, t_obs_s)
        now_s = t_obs_s if now_s is None else now_s
        take = self.needs_chunk(now_s)
        self._advance(self._step(now_s))
        scores = self._scores(actions, gripper_logit)
        finite = torch.isfinite(scores).flatten(-2).all(-1)
        self.refused = self.refused + ~finite
        take = take & finite
        late = min(self._head - self._step(t_obs_s), self.chunk - 1)
        fresh = functional.pad(torch.nan_to_num(scores[..., late:, :]), (0, 0, 0, late))
        self._merge(fresh, take, late)
        self._taken = torch.where(take, self._head, self._taken)
        self._observed_s = torch.where(take, t_obs_s, self._observed_s)

    def action(self, t_s: float) -> Float[Tensor, "*B width"]:
        """The action of the control step at t_s [s], (*B, width) in the demos' units; always finite.

        Episodes without one (`held` is True for them) get rest: zero for delta actions, the last action for absolute
        ones, and the gripper as it was.

        Raises:
            StaleChunkError: no chunk was ever added, or with `max_chunk_age_s` an episode's newest one is older.
        """
        if self._origin_s is None:
            raise StaleChunkError("no chunk since the last reset; add one before asking for an action")
        if self.max_chunk_age_s is not None:
            age_s = float(t_s - self._observed_s.min())
            if age_s > self.max_chunk_age_s + 1e-9:
                raise StaleChunkError(
                    f"the newest chunk is {age_s:.3f} s old; at most {self.max_chunk_age_s} s allowed: hold"
                )
        self._advance(self._step(t_s))
        self.held = self._count[..., 0] == 0
        rest = torch.where(self._stays, self._last, self._rest)
        action = torch.where(self.held[..., None], rest, self._plan[..., 0, :])
        if self._gripper.size:
            columns = like(action, self._gripper)
            action[..., columns] = self._grip(self._plan[..., 0, columns])
        self._last = action
        return action.clone()

    def _merge(self, fresh: Tensor, take: Tensor, late: int) -> None:
        """Put a chunk shifted to now, (*B, K, width) with its last `late` steps empty, into the plans of `take`."""
        covered = torch.arange(self.chunk, device=fresh.device) < self.chunk - late
        if self.strategy == "ensemble":
            share = self._shares.to(fresh)[self._count.clamp(max=self.chunk)] * covered
            plan, count = blend(self._plan, fresh, share, self._rotations), self._count + covered
        elif self.strategy == "freeze":
            new = (1 - self._keep(late)) * covered
            plan, count = blend(self._plan, fresh, new, self._rotations), self._count.clamp(max=1) | covered
        else:
            plan, count = fresh, covered.long()
        self._plan = torch.where(take[..., None, None], plan, self._plan)
        self._count = torch.where(take[..., None], count, self._count)

    def _keep(self, late: int) -> Tensor:
        """(*B, K) weight of the old plan: 1 while frozen, then real-time chunking's soft mask over the overlap."""
        old = self._count > 0
        place = torch.arange(self.chunk, device=old.device) + late  # in the new chunk
        frozen = max(self._frozen, late)
        end = late + old.sum(-1, keepdim=True)
        soft = ((end - place).to(self._plan) / (end - frozen + 1).clamp(min=1)).clamp(0, 1)
        soft = soft * torch.expm1(soft) / math.expm1(1)
        return torch.where(place < frozen, 1.0, soft) * old

    def _grip(self, score: Tensor) -> Tensor:
        """Gripper values (*B, G) in the demos' units for scores (*B, G); an episode that is held keeps its grip."""
        first = torch.where(self._label < 0, (score > 0).long(), self._label)
        label = torch.where(score > self.gripper_hysteresis, 1, torch.where(score < -self.gripper_hysteresis, 0, first))
        self._label = torch.where(self.held[..., None], self._label, label)
        low, high = like(score, self._gripper_values).unbind(-1)
        return torch.where(self._label > 0, high, low)

    def _scores(self, actions: Tensor, gripper_logit: Tensor | None) -> Tensor:
        """The actions with each gripper column replaced by its score, positive for label 1."""
        if not self._gripper.size:
            return actions
        columns = like(actions, self._gripper)
        low, high = like(actions, self._gripper_values).unbind(-1)
        scores = actions.clone()
        signed = (2 * actions[..., columns] - (low + high)) / (high - low)
        scores[..., columns] = signed if gripper_logit is None else gripper_logit.to(actions.dtype)
        return scores

    def _step(self, t_s: float) -> int:
        """The step of the control grid nearest to t_s."""
        return math.floor((t_s - (self._origin_s or 0.0)) / self.control_dt + 0.5)

    def _advance(self, step: int) -> None:
        """Forget what lies before `step`."""
        passed = step - self._head
        if passed < 0:
            raise ValueError(f"time runs backwards: step {step} of the control grid after step {self._head}")
        if passed:
            passed = min(passed, self.chunk)
            self._plan = functional.pad(self._plan[..., passed:, :], (0, 0, 0, passed))
            self._count = functional.pad(self._count[..., passed:], (0, passed))
            self._head = step

    def _allocate(self, actions: Tensor, t_obs_s: float) -> None:
        batch, width = self.batch, actions.shape[-1]
        self._origin_s = t_obs_s
        self._plan = torch.zeros_like(actions)
        self._count = torch.zeros(*batch, self.chunk, dtype=torch.long, device=actions.device)
        self._taken = torch.zeros(batch, dtype=torch.long, device=actions.device)
        self._observed_s = torch.full(batch, -math.inf, dtype=torch.float64, device=actions.device)
        self._label = torch.full((*batch, len(self._gripper)), -1, dtype=torch.long, device=actions.device)
        self._rest = actions.new_zeros(width)
        self._stays = torch.full((width,), self._spec.kind == "absolute", device=actions.device)
        for column, value in self._spec.constant.items():
            self._rest[column] = value
        self._stays[list(self._spec.continuous_gripper)] = True
        self._last = self._rest.expand(*batch, width)
        self.refused, self.held = self.refused.to(actions.device), self.held.to(actions.device)

    def _check(self, actions: Tensor, gripper_logit: Tensor | None) -> None:
        width = self._action_spec.width if self._action_spec else actions.shape[-1]
        expected = (*self.batch, self.chunk, width)
        if actions.shape != expected:
            raise ValueError(
                f"chunk of shape {tuple(actions.shape)}; this executor takes (*batch, K, width) = {expected}"
            )
        if gripper_logit is None and self._gripper.size and self.gripper_hysteresis >= 1:
            raise ValueError(
                f"gripper_hysteresis {self.gripper_hysteresis} is in logits, and without gripper_logit the score is -1 "
                f"or +1; give logits, or a hysteresis below 1"
            )
