"""Checks of a recognized checkpoint against its job, before the long work. Runs in the worker's stage "verify"."""

from __future__ import annotations

import logging

from edged.calibration.folder import ImageFolder, select
from edged.calibration.places import find_images
from edged.calibration.yolo_labels import read_labels
from edged.errors import ArchitectureError, CalibrationError, GateError
from edged.evaluation.class_names import name_difference
from edged.models.architecture import Architecture
from edged.pipeline.evaluation import labels_fit, misnamed, missing_labels
from edged.spec import InputSpec
from service.worker.interface import FOLDERS, Incumbent, Interface
from service.worker.job import Job

log = logging.getLogger(__name__)

_REMEDY = "clients rely on it, set gates.same_interface: false to let it change"


def check_network(job: Job, architecture: Architecture) -> None:
    """Check what follows from the network alone: whether it is one of the kind that is wanted.

    Args:
        job: The job.
        architecture: Architecture that was recognized in the file.

    Raises:
        ArchitectureError: The configuration is for a detector, and the file holds a classifier; or its labels name
            another number of classes.
        GateError: The generation in service has another task, or another number of classes or channels.
    """
    if job.incumbent is not None:  # with the same input: whether that fits is the next question
        _refuse_difference(job.incumbent, Interface.of(architecture.to_dict(), job.incumbent.interface.size, None))
    if job.detection_given and architecture.task == "classification":
        raise ArchitectureError(
            f"it is a {architecture.name}, a classifier, and the section detection of the model is for detectors;"
            " drop a detector or remove the section"
        )
    if job.class_names is not None and len(job.class_names) != architecture.num_classes:
        raise ArchitectureError(
            f"it has {architecture.num_classes} classes, and labels of the model has {len(job.class_names)} names; drop"
            " another checkpoint, or correct labels and use `edged retry`"
        )


def check_fit(job: Job, architecture: Architecture, spec: InputSpec, names: tuple[str, ...] | None) -> None:
    """Check what follows from the network, its input, its class names and the calibration images.

    Args:
        job: The job.
        architecture: Architecture that was recognized in the file.
        spec: Preparation of its images.
        names: Names of the classes that the file holds; None if it holds none.

    Raises:
        GateError: The clients of the generation in service would notice a different interface.
        CalibrationError: The images are missing, or a gate needs labels that they do not have.
    """
    images = find_images(job.calibration_dir)
    _check_interface(job, architecture, spec, names, images)
    _check_labels(job, architecture, names, images)


def _check_interface(
    job: Job, architecture: Architecture, spec: InputSpec, names: tuple[str, ...] | None, images: ImageFolder
) -> None:
    if job.incumbent is None:
        return
    named_by = job.incumbent.interface.named_by
    if named_by == FOLDERS:
        names = images.classes if len(images.classes) == architecture.num_classes else None
    interface = Interface.of(architecture.to_dict(), spec.size, names, named_by)
    _refuse_difference(job.incumbent, interface)
    if (renaming := interface.renaming(job.incumbent.interface, _owner(job.incumbent))) is None:
        return
    if names == job.class_names:  # answers have the names of the config before and after
        return
    if named_by != FOLDERS:
        raise GateError(f"it {renaming}; {_REMEDY}")
    # The names are those of the image folders, which can be mended while the file waits.
    raise CalibrationError(f"the folders in {job.calibration_dir} name the classes: it {renaming}; {_REMEDY}")


def _refuse_difference(incumbent: Incumbent, interface: Interface) -> None:
    difference = interface.difference(incumbent.interface, _owner(incumbent))
    if difference is not None:
        raise GateError(f"it {difference}; {_REMEDY}")


def _owner(incumbent: Incumbent) -> str:
    return f"generation {incumbent.generation} in service"


def _check_order(job: Job, names: tuple[str, ...] | None, images: ImageFolder) -> None:
    """Compare the order of the names in a classifier's file with that of the folders, which are its labels."""
    if names is None or sorted(names) != sorted(images.classes) or names == images.classes:
        return
    order = f"the file and the class folders differ in names: {name_difference(names, images.classes)}"
    if job.gates.need_labels is not None:
        raise CalibrationError(f"gates.{job.gates.need_labels} needs labels, and {job.calibration_dir}: {order}")
    log.warning("%s: %s; its accuracy is measured with wrong labels", job.calibration_dir, order)


def _check_labels(job: Job, architecture: Architecture, names: tuple[str, ...] | None, images: ImageFolder) -> None:
    if architecture.task == "classification":
        _check_order(job, names, images)
        fit = len(images.classes) == architecture.num_classes
        found = f"{len(images.classes)} class folders for {architecture.num_classes} classes" if images.classes else ""
    else:
        labels = read_labels(images.root, select(images, job.images))
        labels = None if labels is None else labels.of_model(architecture.num_classes)
        renamed = misnamed(images.names, architecture)
        if renamed and labels is not None and job.gates.need_labels is not None:
            raise CalibrationError(f"gates.{job.gates.need_labels} needs labels, and {job.calibration_dir}: {renamed}")
        for note in [*(labels.notes() if labels is not None else ()), *([renamed] if renamed else [])]:
            log.warning("%s: %s", job.calibration_dir, note)
        fit = labels is not None and labels_fit(labels, architecture)
        misfit = labels.misfit(architecture.num_classes) if labels is not None else None
        found = "" if labels is None else misfit or "labels without a box"
    if fit:
        return
    if job.gates.need_labels is not None:
        raise missing_labels(job.gates.need_labels, len(images.classes), architecture, job.calibration_dir)
    if found:
        log.warning("%s has %s: accuracy is not measured", job.calibration_dir, found)
