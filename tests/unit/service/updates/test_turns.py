from service.updates.turns import Turns


def test_a_turn_from_its_wait_to_its_end():
    now = 10.0
    turns = Turns(lambda: now, lambda: now + 1000)
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
    turns = Turns(lambda: 5.0, lambda: 1.0)
    turns.wait(1, since=9.0)
    assert turns.begin(1) == 0.0


def test_a_clock_that_is_set_while_an_update_waits_changes_its_wait_by_nothing():
    wall, steady = 1e9, 50.0
    turns = Turns(lambda: wall, lambda: steady)
    turns.wait(1)
    wall, steady = 2e9, 57.0
    assert turns.begin(1) == 7.0
    turns.wait(1)
    wall, steady = 0.0, 60.0
    assert turns.begin(1) == 3.0
