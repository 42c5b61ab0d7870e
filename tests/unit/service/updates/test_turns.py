from service.updates.turns import Turns


def test_a_turn_from_its_wait_to_its_end():
    now = 10.0
    turns = Turns(lambda: now)
    turns.wait(1)
    turns.wait(2, since=4.0)
    now = 15.0
    turns.wait(1)  # it waits already
    assert turns.waiting == {1: 10.0, 2: 4.0}
    assert turns.begin(2) == 11.0
    assert turns.begin(2) == 0.0  # it does not begin anew
    assert (turns.waiting, turns.working) == ({1: 10.0}, {2: 15.0})
    now = 20.0
    turns.wait(2)
    assert (turns.waiting, turns.working) == ({1: 10.0, 2: 20.0}, {})
    turns.begin(1)
    for update in (1, 2, 3):
        turns.end(update)
    assert (turns.waiting, turns.working) == ({}, {})


def test_a_clock_that_is_set_back_gives_no_negative_wait():
    turns = Turns(lambda: 5.0)
    turns.wait(1, since=9.0)
    assert turns.begin(1) == 0.0
