from service.reporting.facts import figures


def test_a_classifiers_figures():
    totals = {
        "held_out_images": 20,
        "agreement": 95.0,
        "fp32": {"top1": 80.0, "top5": 99.0},
        "quantized": {"top1": 79.5, "top5": 99.0},
    }
    assert list(figures(totals)) == [
        ("top-1", "79.50 % (full precision 80.00 %, drop +0.50)"),
        ("agreement", "95.00 % of 20 held-out images"),
    ]


def test_a_detectors_figures():
    totals = {
        "held_out_images": 13,
        "agreement": 97.254,
        "boxes": {"fp32": 100, "quantized": 98},
        "fp32": {"map50": 53.0, "map50_95": 34.0},
        "quantized": {"map50": 53.2, "map50_95": 33.5},
    }
    assert list(figures(totals)) == [
        ("mAP50", "53.20 % (full precision 53.00 %, drop -0.20)"),
        ("mAP50-95", "33.50 % (full precision 34.00 %, drop +0.50)"),
        ("agreement", "97.25 % of 98 boxes (full precision 100) in 13 held-out images"),
    ]


def test_without_labels_or_anything_there_is_less_to_tell():
    assert list(figures({"agreement": 100, "held_out_images": 8})) == [("agreement", "100.00 % of 8 held-out images")]
    assert list(figures({})) == []
