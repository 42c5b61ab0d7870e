import io
import pickle
from collections import OrderedDict

import pytest
import torch

from edged.errors import CheckpointError
from edged.models.inert_pickle import read_pickle
from edged.models.resnet import CifarResNet
from edged.models.state_dicts import find_state
from edged.spec import Choice


def network(value: float = 1.0):
    return {name: torch.full(tensor.shape, value) for name, tensor in CifarResNet(3).state_dict().items()}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


LAST, AVERAGED = network(1.0), network(2.0)


def taken(found):
    return float(found.entries[found.network.names["conv1.weight"]].flatten()[0])


@pytest.mark.parametrize("key", ["net", "network", "params", "weights", "model_state", "state_dict", "anything at all"])
def test_a_state_dict_is_found_under_any_key(key):
    found = find_state({key: LAST, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}})
    assert found.key == key
    assert found.network.fits
    assert not found.averaged


def test_a_state_dict_is_found_at_any_depth():
    assert find_state({"a": {"b": {"c": LAST}}}).key == "a.b.c"
    assert find_state(LAST).key == ""


@pytest.mark.parametrize(
    "tree",
    [
        {"state_dict": LAST, "state_dict_ema": AVERAGED},
        {"model": LAST, "ema": AVERAGED},
        {"model": LAST, "model_ema": {"module": AVERAGED}},
        {"model": LAST, "swa_state": AVERAGED},
        {"model": LAST, "averaged": {"n_averaged": torch.tensor(3), **prefixed("module.", AVERAGED)}},
        {**prefixed("net.", LAST), **prefixed("ema_net.", AVERAGED)},
        {"model": LAST, "modelEMA": AVERAGED},
        {"state_dict": AVERAGED, "current_model_state": LAST, "averaging_state": {"n_averaged": torch.tensor(3)}},
        {"model": LAST, "emaModel": AVERAGED},
        {"params": LAST, "polyak_params": AVERAGED},
        {"model": LAST, "ema0.999": AVERAGED},
    ],
)
def test_averaged_weights_are_taken_where_there_are_any(tree):
    for weights, value in (("auto", 2.0), ("averaged", 2.0), ("last", 1.0)):
        found = find_state(tree, Choice(weights=weights))
        assert taken(found) == value
        assert found.averaged == (value == 2.0)


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
PARAMETERS = {name: tensor for name, tensor in AVERAGED.items() if not name.endswith(STATISTICS)}


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"model": LAST, "ema": {"decay": 0.9, "shadow": PARAMETERS, "backup": {}}}, "ema.shadow"),
        ({"model": prefixed("module.", LAST), "ema": PARAMETERS}, "ema"),
        ({"ema": prefixed("module.", PARAMETERS), "model": LAST}, "ema"),
        ({**prefixed("net.", LAST), **prefixed("net_ema.", PARAMETERS)}, ""),
        ({"model": LAST, "ema": {"num_updates": 7, "shadow_params": [*PARAMETERS.values()]}}, "ema.shadow_params"),
        ({"net": prefixed("module.", LAST), "ema_params": tuple(PARAMETERS.values())}, "ema_params"),
    ],
)
def test_averages_of_parameters_alone_get_the_statistics_of_the_last_weights(tree, key):
    for weights in ("auto", "averaged"):
        found = find_state(tree, Choice(weights=weights))
        names = found.network.names
        assert (found.key, found.averaged, taken(found)) == (key, True, 2.0)
        assert {name for name in LAST if not name.endswith("num_batches_tracked")} == names.keys()
        assert all((found.entries[names[name]] == 2.0).all() for name in PARAMETERS)
        assert (found.entries[names["layer2.0.bn1.running_mean"]] == 1.0).all()
        assert found.statistics is not None
    assert taken(find_state(tree, Choice(weights="last"))) == 1.0
    assert find_state(tree, Choice(weights="last")).statistics is None


def test_a_list_of_averages_can_be_chosen_by_its_key():
    tree = {"model": LAST, "other": AVERAGED, "ema": [*PARAMETERS.values()]}
    assert find_state(tree, Choice(key="ema")).key == "ema"


@pytest.mark.parametrize("key", ["exp_avg", "optimizer.avg", "grad_ema", "momentum"])
@pytest.mark.parametrize("values", [PARAMETERS, [*PARAMETERS.values()]], ids=["named", "listed"])
def test_what_an_optimizer_keeps_is_no_network(key, values):
    first, _, rest = key.partition(".")
    assert find_state({"model": LAST, first: {rest: values} if rest else values}).key == "model"


@pytest.mark.parametrize(
    "values", [[*PARAMETERS.values()][:-1], [*PARAMETERS.values()][::-1]], ids=["fewer", "reversed"]
)
def test_a_list_that_does_not_fit_the_parameters_is_no_network(values):
    assert find_state({"model": LAST, "ema": values}).key == "model"


def test_parameters_of_another_network_get_no_statistics():
    other = {name: tensor for name, tensor in CifarResNet(5).state_dict().items() if not name.endswith(STATISTICS)}
    tree = {"model": LAST, "ema": other}
    with pytest.raises(CheckpointError, match=r"key 'ema'.* other ones than key 'model'.*set weights: last"):
        find_state(tree)
    assert find_state(tree, Choice(weights="last")).key == find_state(tree, Choice(key="model")).key == "model"
    assert find_state({"ema": other}).statistics is None


def test_averaged_weights_that_are_not_there_are_refused_where_they_are_asked_for():
    assert find_state({"m": LAST}, Choice(weights="last")).key == "m"
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        find_state({"m": LAST}, Choice(weights="averaged"))


def test_two_networks_that_fit_are_both_named_and_a_choice_selects_one():
    with pytest.raises(CheckpointError, match=r"key 'a'.* and key 'b'.*checkpoint: \{key: "):
        find_state({"a": LAST, "b": AVERAGED})
    assert find_state({"a": LAST, "b": AVERAGED}, Choice(key="b")).key == "b"
    both = {**prefixed("student.", LAST), **prefixed("teacher.", AVERAGED)}
    with pytest.raises(CheckpointError, match=r"prefix 'student\.'.* and .*prefix 'teacher\.'"):
        find_state(both)
    assert taken(find_state(both, Choice(prefix="teacher."))) == 2.0


def test_one_state_dict_under_two_keys_is_one():
    assert find_state({"a": LAST, "b": LAST}).key == "a"


def test_two_dicts_of_the_same_tensors_are_one():
    assert find_state({"model": LAST, "state_dict": dict(LAST)}).key == "model"


@pytest.mark.parametrize("key", ["emanet", "schema", "swagger", "avgpool_net"])
def test_a_key_that_only_resembles_a_word_for_averages_does_not_choose(key):
    with pytest.raises(CheckpointError, match="holds 2 networks"):
        find_state({"model": LAST, key: AVERAGED})
    assert find_state({key: LAST}).key == key


def test_a_state_dict_is_found_in_a_list_or_tuple():
    assert find_state([LAST]).key == "0"
    assert find_state((3, {"epoch": 1, "net": LAST})).key == "1.net"


class Fields(OrderedDict):
    """A dict as configuration libraries and trainers define it."""


def test_an_object_that_is_filled_like_a_dict_is_one():
    stream = io.BytesIO()
    pickle.dump(Fields(model=Fields(LAST.fromkeys(LAST, 0)), epoch=3), stream, protocol=2)
    tree, _, _ = read_pickle(stream.getvalue())
    inner = dict(tree.entries)["model"]
    inner.entries = list(LAST.items())
    assert find_state(tree).key == "model"
    assert find_state(inner).key == ""


def test_a_key_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(CheckpointError, match=r"no state dict under the key 'c'; there are 'a'"):
        find_state({"a": LAST}, Choice(key="c"))


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"epoch": 1}, "found 'epoch'"),
        ({}, "found nothing"),
        ([1], "holds a list"),
        (3, "holds a int"),
    ],
)
def test_a_file_without_a_state_dict_is_rejected_with_its_contents(tree, reason):
    with pytest.raises(CheckpointError, match=reason):
        find_state(tree)


def test_dicts_that_hold_each_other_end():
    tree = {"a": {}}
    tree["a"]["b"] = tree
    with pytest.raises(CheckpointError):
        find_state(tree)


def test_a_key_of_more_digits_than_python_writes_out_is_passed_over():
    assert find_state({"names": {10**5000: LAST, "a": "b"}, "model": LAST, -(10**5000): LAST}).key == "model"
