"""The five laws of a memory core (one meaning, reset first, no leaks, state is data, gradients go where they should).

Each law is a function of a `Trial`. `ctrl.checks.result` says what it returns and raises. `ctrl.checks.checking` checks
all laws of a core.

The files, in the order in which to read them:

- `stream`: inputs and resets of B envs, and the ways to run a core over them
- `trial`: copies of a core, and the streams that they are run over
- `one_meaning`: law 1
- `reset_first`: law 2
- `no_leaks`: law 3
- `state_is_data`: law 4
- `gradients`: law 5
"""

from __future__ import annotations

from functools import partial

from ctrl.checks.laws.gradients import (
    a_step_has_the_gradients_of_a_window,
    no_gradient_leaves_its_episode,
    the_reconstruction_loss_reaches_the_compressors,
    the_task_loss_reaches_the_rest,
    the_two_lists_are_disjoint_and_complete,
    training_freezes_nothing,
)
from ctrl.checks.laws.no_leaks import no_output_sees_another_env, no_output_sees_the_future
from ctrl.checks.laws.one_meaning import (
    acting_follows_the_weights,
    acting_gives_back_the_state,
    any_split_means_the_same,
    each_env_is_as_if_alone,
    unroll_equals_folded_steps,
)
from ctrl.checks.laws.reset_first import (
    a_reset_is_a_fresh_start,
    a_state_of_nan_is_harmless_at_a_reset,
    nothing_reaches_over_a_reset,
    what_is_not_finite_stays_before_a_reset,
)
from ctrl.checks.laws.state_is_data import (
    it_can_be_run,
    nothing_is_hidden_in_the_module,
    state_is_data_of_a_fixed_shape,
    the_state_carries_no_graph,
    what_is_given_is_not_changed,
)
from ctrl.checks.laws.stream import STEPPING, WAYS
from ctrl.checks.laws.trial import Trial
from ctrl.checks.result import Law

LAWS: tuple[Law[Trial], ...] = (
    Law(
        "law 4 (state is data): a NamedTuple, batch first, of fixed shape and dtype",
        state_is_data_of_a_fixed_shape,
        essential=True,
    ),
    Law("contract: it can be run", it_can_be_run, essential=True),
    *(
        Law(f"law 1 (one meaning): unroll equals {name}", partial(unroll_equals_folded_steps, way))
        for way, name in zip(STEPPING, ("folded steps", "folded steps with a graph", "acting"), strict=True)
    ),
    Law("law 1 (one meaning): any split means the same", any_split_means_the_same),
    Law("law 1 (one meaning): acting gives back the state at any step", acting_gives_back_the_state),
    Law("law 1 (one meaning): each env is as if alone", each_env_is_as_if_alone),
    Law("law 1 (one meaning): acting follows the weights", acting_follows_the_weights),
    *(
        Law(f"law 2 (reset first): nothing reaches over a reset, {way}", partial(nothing_reaches_over_a_reset, way))
        for way in WAYS
    ),
    *(
        Law(
            f"law 2 (reset first): what is not finite stays before a reset, {way}",
            partial(what_is_not_finite_stays_before_a_reset, way),
        )
        for way in WAYS
    ),
    Law("law 2 (reset first): a state of NaN is harmless at a reset", a_state_of_nan_is_harmless_at_a_reset),
    Law("law 2 (reset first): a reset is a fresh start", a_reset_is_a_fresh_start),
    Law("law 3 (no leaks): no output sees the future", no_output_sees_the_future),
    Law("law 3 (no leaks): no output sees another env", no_output_sees_another_env),
    Law("law 4 (state is data): it carries no graph", the_state_carries_no_graph),
    Law("law 4 (state is data): nothing is hidden in the module", nothing_is_hidden_in_the_module),
    Law("law 4 (state is data): what is given is not changed", what_is_given_is_not_changed),
    Law("law 5 (gradients): the two lists are disjoint and complete", the_two_lists_are_disjoint_and_complete),
    Law("law 5 (gradients): the task loss reaches the rest", the_task_loss_reaches_the_rest),
    Law(
        "law 5 (gradients): the reconstruction loss reaches the compressors",
        the_reconstruction_loss_reaches_the_compressors,
    ),
    Law("law 5 (gradients): none leaves its episode", no_gradient_leaves_its_episode),
    Law("law 5 (gradients): training freezes nothing", training_freezes_nothing),
    Law("law 5 (gradients): a step has those of a window", a_step_has_the_gradients_of_a_window),
)
"""All laws, in the order in which they are checked."""
