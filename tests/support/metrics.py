"""What a registry of metrics declares."""

from __future__ import annotations


def families(metrics):
    """Name -> (family, labels) of every metric, also of those that have no sample yet."""
    found = {}
    for collector in metrics.registry._collector_to_names:
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
            found[name] = (family, tuple(labels))
    return found
