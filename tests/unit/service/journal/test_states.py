import itertools

import pytest

from service.journal.states import ENDS, NEXT, WAY, IllegalTransition, State, advance, is_end, resume


def reachable(start):
    found, todo = {start}, [start]
    while todo:
        for state in NEXT[todo.pop()] - found:
            found.add(state)
            todo.append(state)
    return found


def test_every_state_has_its_moves_and_every_state_is_reached():
    assert set(NEXT) == set(State)
    assert reachable(State.DROPPED) == set(State)


def test_the_way_leads_from_drop_to_commit():
    state = WAY[0]
    for target in WAY[1:]:
        state = advance(state, target)
    assert state is State.COMMITTED


@pytest.mark.parametrize("state", State)
def test_from_everywhere_an_end_is_reached(state):
    assert reachable(state) & ENDS


@pytest.mark.parametrize("state", sorted(ENDS - {State.COMMITTED, State.ROLLED_BACK}))
def test_ends_are_final(state):
    assert is_end(state)
    assert not NEXT[state]
    for target in State:
        with pytest.raises(IllegalTransition, match="it is a final state"):
            advance(state, target)


def test_a_committed_update_can_only_be_rolled_back_and_put_back():
    assert NEXT[State.COMMITTED] == {State.ROLLED_BACK}
    assert NEXT[State.ROLLED_BACK] == {State.COMMITTED}


@pytest.mark.parametrize("state", [State.LIVE, State.COMMITTED])
def test_a_live_update_is_never_merely_rejected(state):
    assert not NEXT[state] & {State.REJECTED, State.DEFERRED, State.FAILED, State.SUPERSEDED, State.CANCELLED}


def test_no_step_of_the_worker_can_be_skipped():
    for here, after in itertools.pairwise(WAY[3:]):
        assert NEXT[here] & set(WAY) == {after}


@pytest.mark.parametrize("state", sorted(set(State) - ENDS))
def test_a_restart_goes_on_from_no_later_state(state):
    target = resume(state)
    assert target is State.DEFERRED if state is State.DEFERRED else WAY.index(target) <= WAY.index(state)
    assert resume(target) is target


@pytest.mark.parametrize("state", sorted(ENDS))
def test_a_restart_leaves_ends_alone(state):
    with pytest.raises(IllegalTransition, match="nothing to resume"):
        resume(state)
