"""What a registry of metrics declares."""

from __future__ import annotations


def families(metrics):
    """Return (family, labels) by the name of each metric, those without a sample included."""
    found = {}
    for collector in metrics.registry._collector_to_names:
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
            found[name] = (family, tuple(labels))
    return found
