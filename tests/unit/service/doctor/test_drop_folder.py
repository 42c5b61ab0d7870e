from service.config.load import load_config
from service.doctor.drop_folder import check_drop_folder
from tests.support.machines import machine, only


def test_what_the_daemon_does_not_take_is_a_warning_with_the_reasons(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "edged.yaml").write_text(
        "state_dir: state\nmodels: [{name: a, calibration: {dir: images}}, {name: b, calibration: {dir: images}}]\n"
    )
    config = load_config(tmp_path / "edged.yaml")
    here = machine(tmp_path)
    assert not list(check_drop_folder(here, None))
    assert only(check_drop_folder(here, config)).level == "ok"  # the daemon has not run yet
    for model in "ab":
        (config.drop_folder / model).mkdir(parents=True)
    (config.drop_folder / "a" / "good.pt").write_bytes(b"on its way")
    assert (only(check_drop_folder(here, config)).level, config.drop_folder.name) == ("ok", "drop")
    (config.drop_folder / "best.pt").write_bytes(b"whose?")
    (config.drop_folder / "resnet").mkdir()
    for name in ("README.txt", "results.csv"):
        (config.drop_folder / "b" / name).write_text("no checkpoint")
    found = only(check_drop_folder(here, config))
    assert found.level == "warn"
    assert found.detail.startswith(f"4 left in {config.drop_folder}: b/README.txt: it is no checkpoint, by its name")
    assert "best.pt: drop it into a model's folder: a, b" in found.detail
    assert found.detail.endswith("; and 1 more")
    assert "`edged status --json`" in found.fix
