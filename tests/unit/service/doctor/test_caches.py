"""Real caches, made as an update makes them, and then damaged."""

import pytest

from edged.artifacts.store import ModelStore
from edged.calibration.dataset import build_cache
from edged.spec import InputSpec
from service.config.load import load_config
from service.doctor.caches import check_caches
from tests.support.artifacts import ARCHITECTURE, write
from tests.support.machines import machine, only
from tests.support.pictures import write_folder, write_png


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "images", 2, 20)
    return tmp_path


def config_of(folder, more=""):
    path = folder / "edged.yaml"
    path.write_text(f"state_dir: state\nmodels: [{{name: m, calibration: {{dir: images}}{more}}}]\n")
    return load_config(path)


def look(folder, more=""):
    return only(check_caches(machine(folder), config_of(folder, more)))


def made(folder, side=8):
    (folder / "state").mkdir(exist_ok=True)
    return build_cache(folder / "images", folder / "state" / "calib" / "m", InputSpec(side, side))


def test_none_yet(folder):
    assert (look(folder).level, "none yet" in look(folder).detail) == ("ok", True)


def test_one_that_will_be_found_again(folder):
    made(folder)
    assert (look(folder).level, look(folder).detail) == ("ok", "40 images, 7.5 KiB, whole")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda cache: (cache / "images.u8").unlink(), "images.u8 is missing"),
        (lambda cache: (cache / "images.u8").write_bytes(b"x"), "1 bytes, which are not 40 images"),
        (lambda cache: (cache / "meta.json").write_text("{"), "meta.json cannot be understood"),
        (lambda cache: (cache / "meta.json").write_text("[]"), "meta.json cannot be understood"),
        (lambda cache: cache.rename(cache.with_name("0" * 16)), "not of its name's"),
    ],
)
def test_a_damaged_one(folder, damage, why):
    damage(made(folder).directory)
    check = look(folder)
    assert check.level == "warn"
    assert why in check.detail
    assert "`rm -r /" in check.fix


def test_one_that_is_being_written_is_left_alone(folder):
    (folder / "state/calib/m/.0123.abcd.tmp").mkdir(parents=True)
    assert "none yet" in look(folder).detail


def test_one_of_another_size_is_made_anew(folder):
    made(folder)
    check = look(folder, ", input: {size: 16}")
    assert check.level == "ok"
    assert check.detail.endswith("input.size is 16, they are of another size: the next update decodes the images again")
    assert look(folder, ", input: {size: 8}").detail.endswith("whole")


def test_one_of_fewer_images_than_there_were(folder):
    made(folder)
    next((folder / "images").rglob("*.png")).unlink()
    assert "1 of them are not in" in look(folder).detail


def test_one_of_more_images_than_are_asked_for(folder):
    made(folder)
    path = folder / "edged.yaml"
    path.write_text("state_dir: state\nmodels: [{name: m, calibration: {dir: images, images: 32}}]\n")
    assert "calibration.images is 32" in only(check_caches(machine(folder), load_config(path))).detail


def test_a_generation_of_other_images(folder):
    cache = made(folder)
    store = ModelStore(folder / "state" / "models")
    for digest, other in (("f" * 64, True), (cache.digest, False)):
        staged = folder / "state" / "staging"
        calibration = {"digest": digest, "images": 36, "held_out": 4, "skipped": 0, "folder_labels": True}
        write(staged, {}, ARCHITECTURE, InputSpec(8, 8), calibration=calibration)
        store.switch("m", store.publish("m", staged))
        assert ("was made with other images" in look(folder).detail) is other


def test_a_newer_image_is_found_by_the_next_update_itself(folder):
    made(folder)
    write_png(folder / "images" / "class_0" / "new.png", 99)
    assert look(folder).level == "ok"
