"""Checks of the config file, and of the folders and images that it names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edged.errors import ConfigError, StateError
from service.config.load import Config, load_config
from service.config.locate import DEFAULT_CONFIG, find_config
from service.doctor.check import FAIL, OK, WARN, Check, Machine
from service.doctor.images import ENOUGH, FEW_IMAGES, find_images
from service.doctor.labels import problem_of_labels
from service.units import format_bytes

_DISK_WARN = 2 << 30
_DISK_FAIL = 200 << 20
_FILES_WARN = 1000


def read_config(given: str | None) -> tuple[list[Check], Config | None]:
    """Load and check the config file.

    Args:
        given: Path of the config file as given by the user; None for the default one.

    Returns:
        One finding for each mistake, or a single one for a valid file; and the config, None if there are mistakes.
    """
    path = find_config(given)
    if given is None and path == Path(DEFAULT_CONFIG) and not path.exists():
        fix = "`sudo make install` in edged's sources writes an example to edit there, or give --config FILE"
        return [Check("config", WARN, f"{path} does not exist", fix)], None
    try:
        config = load_config(path, problem_of_labels=problem_of_labels)
    except ConfigError as error:
        fix = f"correct this line; `edged check-config {path}` checks it again"
        return [Check("config", FAIL, line, fix, error.exit_code) for line in str(error).splitlines()], None
    return [Check("config", OK, f"{path}, {len(config.models)} model(s)")], config


def check_folders(machine: Machine, config: Config | None) -> Iterator[Check]:
    """Check the folders that the daemon writes to."""
    if config is not None:
        yield check_folder("state_dir", config.state_dir, machine.user())
        if config.drop_dir is not None:
            yield check_folder("drop_dir", config.drop_dir, machine.user())


def check_folder(name: str, path: Path, user: str) -> Check:
    """Check that a folder, or its nearest existing parent, is writable and has free space.

    Args:
        name: Key in the config.
        path: Path of the folder, the value of the key.
        user: Name of the user that writes to the folder.
    """
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        return Check(
            name,
            FAIL,
            f"{existing} is not a folder",
            f"`rm {existing}`, or choose another {name}",
            StateError.exit_code,
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        fix = f"`sudo chown {user} {existing}`, or choose another {name}"
        return Check(name, FAIL, f"{existing} is not writable for {user}", fix, StateError.exit_code)
    made = "" if existing == path else f"{path} will be created; "
    free, files = shutil.disk_usage(existing).free, os.statvfs(existing)
    if files.f_files and files.f_favail < _FILES_WARN:  # some filesystems have no limit, and say 0 of 0
        fix = f"remove files there: `find {existing} -xdev -type f | cut -d/ -f2-4 | sort | uniq -c | sort -n | tail`"
        return Check(name, FAIL, f"{made}room for {files.f_favail} more files", fix, StateError.exit_code)
    level = OK if free >= _DISK_WARN else WARN if free >= _DISK_FAIL else FAIL
    fix = "" if level == OK else "free some space there: `edged gc`; an update needs about twice its checkpoint"
    return Check(name, level, f"{made}{format_bytes(free)} free", fix, StateError.exit_code)


def check_calibration(_: Machine, config: Config | None) -> Iterator[Check]:
    """Check the calibration images of each model."""
    for model in config.models if config is not None else ():
        yield check_images(model.name, model.calibration.dir)


def check_images(model: str, folder: Path) -> Check:
    """Check that a calibration folder, or a list, has enough images, as `edged check-config` does."""
    found = find_images(folder)
    name, detail = f"calibration of {model}", f"{found.usable} images in {folder}"
    if found.problem is not None:
        return Check(name, FAIL, f"{folder} {found.problem}", f"`edged calib {folder}` checks them")
    if found.others is not None:
        detail = f"{detail}, {found.others}"
    if found.usable < FEW_IMAGES:
        fix = f"more images give a more accurate model: {ENOUGH}; `edged calib {folder}` checks them"
        return Check(name, WARN, detail, fix)
    if found.unusable:
        fix = f"`edged calib {folder}` checks them"
        return Check(name, WARN, f"{detail}, {len(found.unusable)} unusable: {found.unusable[0]}", fix)
    if found.pictures_of_other_types:
        fix = f"convert these pictures to JPEG or PNG, or move them away; `edged calib {folder}` checks the folder"
        return Check(name, WARN, detail, fix)
    return Check(name, OK, detail)


def check_token(_: Machine, config: Config | None) -> Iterator[Check]:
    """Check whether other machines can reach the server, and which requests need a token."""
    if config is None:
        return
    serve = config.serve
    if not serve.public:
        yield Check("serve", OK, f"{serve.host}: this machine only")
        return
    fix = "put a proxy with TLS and authentication before it, or set serve.host to 127.0.0.1"
    users = "whoever reaches it and has a token" if serve.inference_token_file else "everybody who reaches it"
    token = "with" if serve.admin_token else "without"
    yield Check("serve", WARN, f"{serve.host}: {users} may use the models; administration {token} token", fix)
