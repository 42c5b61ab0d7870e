from pathlib import Path

import pytest

from service.config.sections import CalibrationConfig, CaptureConfig, DriftConfig, ModelConfig
from service.serving.sampling import Sampling, sampling_of
from service.storage.capture_ring import Ring

RING = Ring(Path("capture/m"), 10, 1000, 60.0)


def draws(*values):
    left = list(values)
    return lambda: left.pop(0)


def test_by_default_not_even_a_number_is_drawn():
    assert Sampling().choose(draws()) is None


def test_each_share_is_drawn_for_itself():
    sampling = Sampling(0.5, 0.1, RING)
    assert sampling.choose(draws(0.5, 0.1)) is None
    assert sampling.choose(draws(0.49, 0.1)) == {"capture": RING.to_dict(), "drift": False}
    assert sampling.choose(draws(0.5, 0.09)) == {"capture": None, "drift": True}
    assert sampling.choose(draws(0.0, 0.0)) == {"capture": RING.to_dict(), "drift": True}


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 1000), (0.25, 250)])
def test_shares_are_shares(share, expected):
    sampling = Sampling(share, 0.0, RING)
    assert sum(sampling.choose() is not None for _ in range(1000)) == pytest.approx(expected, abs=80 * (0 < share < 1))


def test_the_config_says_it():
    model = ModelConfig(
        name="m",
        calibration=CalibrationConfig(dir=Path("images")),
        capture=CaptureConfig(share=0.5, max_images=7, max_bytes=99, max_age_days=0.5),
        drift=DriftConfig(share=0.2),
    )
    ring = Ring(Path("there"), 7, 99, 43200.0)
    assert sampling_of(model, Path("there")) == Sampling(0.5, 0.2, ring)
    plain = ModelConfig(name="m", calibration=CalibrationConfig(dir=Path("images")))
    assert sampling_of(plain, Path("there")).choose(draws()) is None
    assert plain.digest() == model.digest()  # what is sampled does not change what is made of a file
