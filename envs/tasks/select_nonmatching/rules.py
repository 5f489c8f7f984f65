"""`ctrl/SelectNonmatchingObject-v0`: take the object that was not shown in the room before.

This is DeepMind Lab's `rooms_select_nonmatching_object`, a task of the Compressive Transformer paper (Rae et al. 2019,
https://arxiv.org/abs/1911.05507, section 5.6), as a grid world. It has two rooms of 7 × `depth` cells, seen by the
agent from within. A trial, with `depth=5`:

    room A      . . C ^ C . .       C      two glass cases; one of them, drawn at random, shows the match object
                . . . . . . .       ^      the agent's start
                . . . . . . .       o o    the pad is on one of these cells, drawn at random; stepping on it brings +1
                . . . . . . .              and leads through a corridor of `delay` steps into room B
                . o . . . o .

    room B      P . . . . . P       P      two pedestals with the match and another object, on random sides; touching
                . . . . . . .              the other object (by going forward into it) brings +10, touching the match
                . . . . . . .              −10; either begins the next trial, in room A
                . . . . . . .
                . . . ^ . . .

The match object is drawn once per episode. With `resample_each_trial` it is drawn for each trial, so the memory must
also be overwritten. The other object is drawn anew for each trial. Only the view in room A tells match and other apart.

The cases stand beside the start, so the shortest path does not depend on the side of the pad. It takes depth + 4 steps
in room A and depth + 3 in room B. With the default depth a trial takes 27 steps, as in the original. An episode is cut
off (truncated) after `steps` steps in the rooms. Steps in the corridor don't count, so scores don't depend on `delay`.

Actions: 0 turn left, 1 turn right, 2 forward; in the corridor they do nothing. The agent sees 7 × 7 cells. It stands in
the middle of the last row and looks up. Nothing blocks its view; cells outside of the room are wall.
`sprites` lists the channels of a cell ("symbolic") and draws it as 8 × 8 pixels ("pixels"). In the corridor all values
are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ctrl.envs.arguments import checked_integer
from ctrl.envs.base import Actions, Observations, Outcome, Picture, Rules, take
from ctrl.envs.randomness import Bits, derive, integers_below
from ctrl.envs.scores import Scores
from ctrl.envs.tasks.select_nonmatching import sprites
from ctrl.envs.tasks.select_nonmatching.rooms import (
    CASES,
    FREE,
    HEADINGS,
    NUM_SLOTS,
    PADS,
    PEDESTALS,
    VIEW,
    Integers,
    pads_at_random,
    place_of,
    rooms,
)
from ctrl.envs.tasks.select_nonmatching.sprites import Form, Split, objects_of


class SelectState(NamedTuple):
    """State of B copies, each at its own step of its own episode."""

    keys: Bits
    """[B] the episode's key: all objects and sides are functions of it."""
    trial: Integers
    """[B] index of the trial, from 0, which is the number of objects touched so far."""
    clock: Integers
    """[B] number of steps in the rooms so far."""
    wait: Integers
    """[B] number of steps left in the corridor, 0 in a room."""
    pose: Integers
    """[B] the index of (room, y, x, heading); in the corridor, the pose at the entrance of room B."""
    mistakes: Integers
    """[B] number of times that the match object was touched."""
    reward: Integers
    """[B] reward of the last step, only for display."""


class Trial(NamedTuple):
    """Random choices of the current trial in each of B copies. Sides are 0 for left and 1 for right on the plan."""

    match: Integers
    """[B] the object in the glass case."""
    other: Integers
    """[B] the object to touch."""
    case: Integers
    """[B] the side of the match object in room A."""
    pad: Integers
    """[B] the side of the pad."""
    pedestal: Integers
    """[B] the side of the match object in room B."""


@dataclass(frozen=True)
class SelectNonmatchingObjectRules(Rules[SelectState]):
    """The dynamics of `ctrl/SelectNonmatchingObject-v0` for a batch of copies."""

    steps: int = 180
    """Number of steps in the rooms, enough for one trial: at least 2 · depth + 7."""
    depth: int = 10
    """Number of cells from the front to the back of a room, at least 2."""
    delay: int = 0
    """Number of steps in the corridor between the rooms; 32, 128 or 512 make this a test of long memory."""
    resample_each_trial: bool = False
    """True to draw a new match object for each trial."""
    split: Split = "train"
    """Set of objects: 27 of 36 ("train"), the others ("held_out"), or "all"."""
    observation: Form = "symbolic"
    """Form of observations: 7 × 7 cells of 20 channels ("symbolic"), or 56 × 56 × 3 bytes ("pixels")."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("depth", self.depth, at_least=2)
        checked_integer("steps", self.steps, at_least=self.trial_steps)
        checked_integer("delay", self.delay, at_least=0)
        if not isinstance(self.resample_each_trial, bool):
            raise ValueError(f"resample_each_trial must be True or False, got {self.resample_each_trial!r}.")
        for name, value, known in (("split", self.split, Split), ("observation", self.observation, Form)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {get_args(known)}, got {value!r}.")

    @cached_property
    def observation_space(self) -> spaces.Box[Any]:
        """[7, 7, channels] of 0 and 1, or a picture [56, 56, 3]."""
        _, height, width, layers = sprites.looks(self.observation).shape
        shape = (VIEW * height, VIEW * width, layers)
        if self.observation == "pixels":
            return spaces.Box(0, 255, shape, np.uint8)
        return spaces.Box(0.0, 1.0, shape, np.float32)

    @cached_property
    def action_space(self) -> spaces.Discrete:
        """Turn left, turn right, forward."""
        return spaces.Discrete(3)

    @property
    def trial_steps(self) -> int:
        """Number of steps in the rooms on the shortest path through one trial."""
        return 2 * self.depth + 7

    @property
    def most_pads(self) -> int:
        """Largest number of visits to the pad in an episode."""
        return self._times_at_pad(self.steps)

    @property
    def most_touched(self) -> int:
        """Largest number of objects that can be touched in an episode."""
        return self.steps // self.trial_steps

    @property
    def scores(self) -> Scores:
        """Expected returns. The random agent gains 0 on average by touching objects, so only its pads count.

        For the other two scores see `MemorylessSelect` and `PerfectSelect`.
        """
        return Scores(
            random=pads_at_random(self.depth, self.steps),
            memoryless=float(self.selective_scores.max()),
            perfect=10.0 * self.most_touched + self.most_pads,
        )

    @cached_property
    def selective_scores(self) -> npt.NDArray[np.float64]:
        """Expected returns [n] of n memoryless agents, where n is the number of objects; see `MemorylessSelect`.

        The agent at index k − 1 goes to the pad only if the match is one of its k objects. It surely touches the right
        object if the other object is none of the k. Else it is right half of the time, which is worth 0 on average.
        """
        count = len(objects_of(self.split))
        kept = np.arange(1, count + 1)
        trials = np.arange(self.most_pads) if self.resample_each_trial else np.zeros(self.most_pads)
        goes = (kept / count)[:, None] ** (1 + trials)  # [n, pads] probability of each visit to the pad
        surely_right = (count - kept) / (count - 1)
        return np.asarray(goes.sum(1) + 10 * surely_right * goes[:, : self.most_touched].sum(1))

    @property
    def memory_steps(self) -> int:
        """Number of steps on the shortest path from the last view of the cases to the turn towards an object.

        The last view is the one before the agent walks away from the cases. From there the path takes depth + 2 steps
        in room A, the corridor, and depth - 1 steps in room B. In a room of up to 4 rows the match may come into view
        once more.
        """
        return 2 * self.depth + 1 + self.delay

    @property
    def max_episode_steps(self) -> int:
        """Number of steps in the rooms and in all corridors. A pad at the last step leads into no corridor."""
        return self.steps + self.delay * self._times_at_pad(self.steps - 1)

    def _times_at_pad(self, steps: int) -> int:
        return (steps - (self.depth + 4)) // self.trial_steps + 1

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> SelectState:
        """Start episodes; a phase p starts the clock at p · steps."""
        zero = np.zeros(len(keys), dtype=np.int64)
        pose = np.full_like(zero, rooms(self.depth).starts[0])
        clock = (phase * self.steps).astype(np.int64)
        return SelectState(keys.copy(), zero, clock, zero.copy(), pose, zero.copy(), zero.copy())

    def trial(self, state: SelectState) -> Trial:
        """Draw the random choices of the current trials."""
        objects = objects_of(self.split)
        bits = derive(state.keys, state.trial + 1)
        once = np.zeros(1, dtype=np.int64)
        match = integers_below(derive(bits if self.resample_each_trial else state.keys, once), len(objects))
        other = (match + 1 + integers_below(bits, len(objects) - 1)) % len(objects)
        sides = [(bits >> np.uint64(32 + i) & np.uint64(1)).astype(np.int64) for i in range(3)]
        return Trial(objects[match], objects[other], *sides)

    def observe(self, state: SelectState) -> Observations:
        """Show the 7 × 7 cells around the agent, or nothing in the corridor."""
        return sprites.drawn(self.cells(state), self.observation)

    def cells(self, state: SelectState) -> Integers:
        """Return the kinds of the cells in view, [B, 7, 7]."""
        content = self.content(state)
        content[state.wait > 0] = sprites.BLANK
        count = len(content)
        slots = rooms(self.depth).views[state.pose] + NUM_SLOTS * np.arange(count)[:, None]
        kinds: Integers = content.reshape(-1).take(slots)
        return kinds.reshape(count, VIEW, VIEW)

    def content(self, state: SelectState) -> Integers:
        """Return the kind of cell in each slot, [B, slots]."""
        trial, rows = self.trial(state), np.arange(len(state.pose))
        content = np.empty((len(rows), NUM_SLOTS), dtype=np.int64)
        content[:, :PEDESTALS] = sprites.FLOOR, sprites.WALL, *[sprites.EMPTY_CASE] * 2, *[sprites.FLOOR] * 2
        content[rows, CASES + trial.case] = sprites.CASE + trial.match
        content[rows, PADS + trial.pad] = sprites.PAD
        content[rows, PEDESTALS + trial.pedestal] = sprites.PEDESTAL + trial.match
        content[rows, PEDESTALS + 1 - trial.pedestal] = sprites.PEDESTAL + trial.other
        return content

    def advance(self, state: SelectState, actions: Actions) -> Outcome:
        """Turn, walk, step on the pad, touch an object, or wait in the corridor."""
        tables, trial, waits = rooms(self.depth), self.trial(state), state.wait > 0
        met = np.where(waits, FREE, tables.meets[state.pose, actions])
        on_pad, touched = met == PADS + trial.pad, met >= PEDESTALS
        wrong = met == PEDESTALS + trial.pedestal
        pose = np.where(waits, state.pose, tables.moves[state.pose, actions])
        pose[on_pad], pose[touched] = tables.starts[1], tables.starts[0]
        reward = on_pad + 10 * touched - 20 * wrong
        after = SelectState(
            keys=state.keys,
            trial=state.trial + touched,
            clock=state.clock + ~waits,
            wait=np.where(on_pad, self.delay, state.wait - waits),
            pose=pose,
            mistakes=state.mistakes + wrong,
            reward=reward,
        )
        truncated = after.clock >= self.steps
        success = truncated & (after.trial > 0) & (after.mistakes == 0)
        return Outcome(after, reward.astype(np.float64), np.zeros_like(truncated), truncated, success)

    def text(self, state: SelectState, row: int) -> str:
        """Return a line such as `step 12/180  room A, at (3, 8) facing south  (match red ring, score 12)`."""
        one = take(state, slice(row, row + 1))
        room, y, x, heading = place_of(int(one.pose[0]), self.depth)
        where = f"room {'AB'[room]}, at ({x}, {y}) facing {HEADINGS[heading]}"
        trial = self.trial(one)
        match, other = (sprites.object_name(int(each[0])) for each in (trial.match, trial.other))
        if one.wait[0]:
            where = f"corridor, {one.wait[0]} more"
        elif room == 1:
            left, right = (other, match) if trial.pedestal[0] else (match, other)
            where += f", {left} on the left, {right} on the right"
        event = f"{one.reward[0]:+}, " if one.reward[0] else ""
        return f"step {one.clock[0]}/{self.steps}  {event}{where}  (match {match}, score {self._score(one)})"

    def picture(self, state: SelectState, row: int) -> Picture:
        """Draw the room from above, the agent's view, the match object and a time bar.

        The match object is shown to the viewer only. The picture's frame is yellow after the pad, green after the right
        object and red after the wrong one.
        """
        one = take(state, slice(row, row + 1))
        room, y, x, heading = place_of(int(one.pose[0]), self.depth)
        plan = self.content(one)[0][rooms(self.depth).plan[room]]
        if one.wait[0]:  # the corridor, drawn as long as a room
            plan[:] = sprites.WALL
            plan[:, x] = sprites.FLOOR
            y = round((self.depth - 1) * int(one.wait[0]) / self.delay)
        return sprites.scene(
            plan,
            agent=(y, x, heading),
            view=self.cells(one)[0],
            shown=sprites.CASE + int(self.trial(one).match[0]),
            time=one.clock[0] / self.steps,
            reward=int(one.reward[0]),
        )

    def _score(self, one: SelectState) -> int:
        """Return the sum of rewards so far in a state of one copy.

        In room B, and on the way there, the copy has reached one more pad than it has touched objects.
        """
        past_pad = one.pose[0] >= rooms(self.depth).moves.shape[0] // 2
        return int(11 * one.trial[0] - 20 * one.mistakes[0] + past_pad)
