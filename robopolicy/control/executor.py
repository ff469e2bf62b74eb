"""Decides which action of which chunk is executed at each control step; batched, for one robot or many simulated worlds.

Chunks are aligned by time: action k of a chunk belongs to t_obs + k * control_dt, rounded to the control grid, which starts
at the first chunk's observation. Actions whose time has passed are dropped, as in Diffusion Policy (Chi et al. 2023). An
episode's first chunk is an exception: the robot has been at rest since the observation, so the chunk is executed from its
first action on. A strategy of `robopolicy.control.execution` decides how a new chunk is merged into the plan.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from robopolicy.arrays import Bool, Float, cast, copied, like, namespace, rows_at, shifted
from robopolicy.components import build
from robopolicy.control.execution import ExecutionOptions, Plans, Strategy, execution_from
from robopolicy.model.rotation_math import RotationKind, action_rotations
from robopolicy.types import ActionSpec, Array, Prefix


class StaleChunkError(RuntimeError):
    """The newest chunk is older than `max_chunk_age_s` (or there is none): the robot must hold."""


class ChunkExecutor:
    """Holds the plan of each episode: the actions of the current and the following control steps.

    One executor serves a batch of episodes with any leading axes `*B` (none for one robot); they share one clock. Episodes
    never influence each other: each accepts a chunk when its own plan needs one. `reset` clears plans.

    Chunks may be tensors, whose plans are kept on the same device, or NumPy arrays, whose plans are float64. The kind may
    change only after a `reset` of all episodes. With tensors on a GPU, no call waits for the GPU unless `max_chunk_age_s`
    is given.
    """

    def __init__(
        self,
        chunk: int,
        control_dt: float,
        execution: ExecutionOptions | None = None,
        *,
        batch: int | Sequence[int] = (),
        action_spec: ActionSpec | None = None,
        max_chunk_age_s: float | None = None,
        rotations: Mapping[str, RotationKind] | None = None,
    ) -> None:
        """Prepare the strategy; there is no plan yet.

        Args:
            chunk: K, actions in one chunk.
            control_dt: time between two actions [s].
            execution: options of the strategy; None: `receding` with its defaults.
            batch: the leading axes B: none for one robot, a number of worlds, or a shape.
            action_spec: gives the binary gripper columns, and whether an arm at rest is commanded by zeros (`delta`) or by
                repeating the last action (`absolute`); None: no gripper columns, and zeros for rest.
            max_chunk_age_s: largest age of the observation of an episode's newest chunk [s]; beyond it, `action` raises
                StaleChunkError. None: no limit.
            rotations: columns that are rotations, as for `--normalization.rotations`; those of an absolute pose are already
                known from the action spec. Rotations are averaged along the shorter arc.

        Raises:
            ValueError: `replan_every` and the strategy's frozen steps don't fit into a chunk.
        """
        execution = execution or execution_from({})
        self._strategy: Strategy = build(execution, chunk, control_dt)
        self._continues: bool = getattr(self._strategy, "continues", False)
        self._best_of = execution.best_of
        frozen = self._strategy.frozen
        if not 1 <= execution.replan_every <= chunk - frozen:
            raise ValueError(
                f"replan_every {execution.replan_every} with {frozen} steps of latency does not fit into a chunk of "
                f"{chunk} actions; use 1 .. {chunk - frozen}, or train a longer chunk"
            )
        self.batch = (batch,) if isinstance(batch, int) else tuple(batch)
        spec = action_spec or ActionSpec(arm=0, gripper=0)
        self.chunk, self.control_dt, self.replan_every = chunk, control_dt, execution.replan_every
        self.gripper_hysteresis, self.max_chunk_age_s = execution.gripper_hysteresis, max_chunk_age_s
        self._rotations = action_rotations(spec, "aligned", rotations or {})
        self._spec, self._action_spec = spec, action_spec
        self._gripper = np.array(spec.gripper_columns, dtype=np.int64)
        self._gripper_values = np.array(spec.gripper_values, dtype=np.float64).reshape(-1, 2)
        self._steps = np.arange(chunk)
        self.reset()

    def reset(self, done: Bool[Array, "*B"] | None = None) -> None:
        """Clear the plans of the episodes where `done` (*B) is True; without `done`, clear everything, time grid included."""
        if done is None:
            self._origin_s: float | None = None
            self._head = 0  # the grid step that plan[..., 0, :] belongs to
            self._handed: dict[int, Array] = {}
            """Grid step of an observation -> value of `_merges` when the policy received the plan for that observation."""
            self.held: Array = np.ones(self.batch, bool)
            """(*B) bool: the last call of `action` returned rest, because no action was planned."""
            self.refused: Array = np.zeros(self.batch, np.int64)
            """(*B) number of chunks refused, since everything was reset, because they were not finite."""
            return
        if self._origin_s is None:
            return
        xp = namespace(self._plan)
        self._plan = xp.where(done[..., None, None], 0.0, self._plan)
        self._count = xp.where(done[..., None], 0, self._count)
        self._label = xp.where(done[..., None], -1, self._label)
        self._last = xp.where(done[..., None], self._rest, self._last)
        self._observed_s = xp.where(done, -math.inf, self._observed_s)

    def needs_chunk(self, t_s: float) -> Bool[Array, "*B"]:
        """(*B) True for the episodes that would accept a chunk added at time t_s [s]."""
        if self._origin_s is None:
            return np.ones(self.batch, bool)
        step = self._step(t_s)
        ahead = step - self._head
        due = step - self._taken >= self.replan_every
        return due | (self._count[..., ahead] == 0) if ahead < self.chunk else due | True

    def prefix(self, t_s: float) -> Prefix | None:
        """The plan from the control step at t_s [s] on, for the policy's next observation.

        None before the first chunk, or if neither the strategy nor `best_of` uses the plan.
        """
        if self._origin_s is None or not (self._continues or self._best_of > 1):
            return None
        step = self._step(t_s)
        passed = min(max(step - self._head, 0), self.chunk)
        count, rows = shifted(self._count[..., None], passed), shifted(self._plan, passed)
        xp = namespace(rows)
        if self._gripper.size:
            columns, (low, high) = self._gripper_of(rows)
            rows[..., columns] = xp.where(rows[..., columns] > 0, high, low)
        if self._continues:
            self._handed = {then: merges for then, merges in self._handed.items() if step - then < self.chunk}
            self._handed[step] = self._merges
        rows = xp.where(count == 0, xp.nan, rows)
        return Prefix(rows, self._strategy.frozen if self._continues else 0, self._best_of)

    def add(
        self,
        actions: Float[Array, "*B chunk width"],
        t_obs_s: float,
        *,
        now_s: float | None = None,
        gripper_logit: Float[Array, "*B chunk gripper"] | None = None,
    ) -> None:
        """Offer a chunk to every episode. Episodes that need no chunk yet, or whose chunk is not finite, keep their plan.

        If the strategy continues plans, episodes whose plan has changed since the call of `prefix` for this observation also
        keep their plan, unless it has no action for the current step.

        Args:
            actions: (*B, K, width), columns and units of the demos.
            t_obs_s: time of the chunk's observation [s].
            now_s: time of the control step being prepared [s], if inference took time; None: `t_obs_s`. Actions for earlier
                steps are dropped; steps before the episode's first action don't count. If all actions are late, the last one
                is used for this step.
            gripper_logit: (*B, K, G) logits of the gripper columns, if the policy outputs them.
        """
        self._check(actions, gripper_logit)
        if isinstance(actions, np.ndarray):
            actions = actions.astype(np.float64)
        if self._origin_s is None:
            self._allocate(actions, t_obs_s)
        now_s = t_obs_s if now_s is None else now_s
        take = self.needs_chunk(now_s)
        self._advance(self._step(now_s))
        xp, scores = namespace(actions), self._scores(actions, gripper_logit)
        finite = xp.isfinite(scores).all(-1).all(-1)
        self.refused = self.refused + ~finite
        take = take & finite
        observed = self._step(t_obs_s)
        if observed in self._handed:
            take = take & ((self._handed[observed] == self._merges) | (self._count[..., 0] == 0))
        first = take & (self._observed_s == -math.inf)
        self._began = xp.where(first, self._head, self._began)
        # Steps before the episode's first action don't count, since the robot was at rest. Negative: the observation was
        # taken after the step being prepared had begun.
        late = (self._head - self._began.clip(observed)).clip(1 - self.chunk, self.chunk - 1)
        self._merge(xp.nan_to_num(scores), take, late)
        self._merges = self._merges + take
        self._taken = xp.where(take, self._head, self._taken)
        self._observed_s = xp.where(take, t_obs_s, self._observed_s)

    def action(self, t_s: float) -> Float[Array, "*B width"]:
        """The action of the control step at t_s [s], (*B, width) in the demos' units; always finite.

        Episodes without a planned action (`held` is True for them) get rest: zeros for delta actions, the last action for
        absolute ones, and the gripper's last value.

        Raises:
            StaleChunkError: no chunk was added since everything was reset, or the newest chunk of an episode is older than
                `max_chunk_age_s`.
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
        xp = namespace(self._plan)
        self.held = self._count[..., 0] == 0
        rest = xp.where(self._stays, self._last, self._rest)
        action = xp.where(self.held[..., None], rest, self._plan[..., 0, :])
        if self._gripper.size:
            columns, values = self._gripper_of(action)
            action[..., columns] = self._grip(self._plan[..., 0, columns], *values)
        self._last = action
        return copied(action)

    def _merge(self, scores: Array, take: Array, late: Array) -> None:
        """Merge a chunk (*B, K, width), whose action `late` (*B) belongs to the current step, where `take` (*B) is True."""
        xp, place = namespace(scores), like(scores, self._steps) + late[..., None]
        covered = (place >= 0) & (place < self.chunk)
        fresh = xp.where(covered[..., None], rows_at(scores, place.clip(0, self.chunk - 1)), 0.0)
        plan, count = self._strategy.merge(Plans(self._plan, self._count, fresh, covered, late, self._rotations))
        old = (place < 0) | ~take[..., None]
        self._plan = xp.where(old[..., None], self._plan, plan)
        self._count = xp.where(old, self._count, count)

    def _grip(self, score: Array, low: Array, high: Array) -> Array:
        """Gripper values (*B, G) in the demos' units for scores (*B, G); held episodes keep their gripper state."""
        xp = namespace(score)
        first = xp.where(self._label < 0, (score > 0) * 1, self._label)
        label = xp.where(score > self.gripper_hysteresis, 1, xp.where(score < -self.gripper_hysteresis, 0, first))
        self._label = xp.where(self.held[..., None], self._label, label)
        return xp.where(self._label > 0, high, low)

    def _scores(self, actions: Array, gripper_logit: Array | None) -> Array:
        """The actions with each gripper column replaced by its score, positive for label 1."""
        if not self._gripper.size:
            return actions
        columns, (low, high) = self._gripper_of(actions)
        scores = copied(actions)
        signed = (2 * actions[..., columns] - (low + high)) / (high - low)
        scores[..., columns] = signed if gripper_logit is None else cast(gripper_logit, actions)
        return scores

    def _gripper_of(self, rows: Array) -> tuple[Array, tuple[Array, Array]]:
        """Indices of the binary gripper columns, and their two values, as arrays like `rows`."""
        values = like(rows, self._gripper_values)
        return like(rows, self._gripper), (values[:, 0], values[:, 1])

    def _step(self, t_s: float) -> int:
        """The step of the control grid nearest to t_s."""
        return math.floor((t_s - (self._origin_s or 0.0)) / self.control_dt + 0.5)

    def _advance(self, step: int) -> None:
        """Drop the planned steps before `step`."""
        passed = step - self._head
        if passed < 0:
            raise ValueError(f"time runs backwards: step {step} of the control grid after step {self._head}")
        if passed:
            passed = min(passed, self.chunk)
            self._plan = shifted(self._plan, passed)
            self._count = shifted(self._count[..., None], passed)[..., 0]
            self._head = step

    def _allocate(self, actions: Array, t_obs_s: float) -> None:
        """Create empty plans of the first chunk's shape and device; its observation time is the origin of the control grid."""
        xp, spec = namespace(actions), self._spec
        rest, stays = np.zeros(actions.shape[-1]), np.full(actions.shape[-1], spec.kind == "absolute")
        for column, value in spec.constant.items():
            rest[column] = value
        stays[list(spec.continuous_gripper)] = True
        stays[list(spec.base)] = False
        self._rest, self._stays = like(actions, rest), like(actions, stays)
        self._origin_s = t_obs_s
        self._plan = xp.zeros_like(actions)
        self._count = xp.zeros_like(actions[..., 0], dtype=xp.int64)
        self._last = self._rest + self._plan[..., 0, :]
        self._label = xp.zeros_like(actions[..., 0, like(actions, self._gripper)], dtype=xp.int64) - 1
        self._taken = self._merges = self._began = self._count[..., 0]
        """(*B) grid step of the last merge, number of merges, and grid step of the episode's first action."""
        self._observed_s = xp.full_like(self._taken, -math.inf, dtype=xp.float64)
        self.refused = like(actions, self.refused)

    def _check(self, actions: Array, gripper_logit: Array | None) -> None:
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
