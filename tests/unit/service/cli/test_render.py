from service.cli import render


def test_columns_are_aligned_and_lines_end_where_their_text_ends():
    assert render.table(["A", "LONG"], [["xyz", 1], ["", ""]]) == "A    LONG\nxyz  1\n"


STATUS = {
    "ready": True,
    "started_at": "2026-01-01T00:00:00.000Z",
    "drop_dir": "/srv/drop",
    "models": [
        {
            "name": "m",
            "ready": True,
            "generation": 3,
            "problem": None,
            "file_name": "best.pt",
            "bits": 4,
            "activation_bits": 8,
            "runtime": "onnxruntime",
        },
        {"name": "n", "ready": False, "generation": None, "problem": "has no generation yet"},
    ],
    "updates": [
        {
            "id": 12,
            "model": "m",
            "file_name": "a.pth",
            "state": "CALIBRATED",
            "stages": {"verify": 1.0, "load": 0.5},
            "progress": {"stage": "quantize", "done": 3, "total": 21},
        }
    ],
}


def test_status_shows_what_serves_and_what_is_on_its_way():
    assert render.status(STATUS).splitlines() == [
        "edged is ready since 2026-01-01T00:00:00.000Z; drop folder /srv/drop",
        "",
        "MODEL  STATE        GENERATION  FILE     BITS              ENGINE       NOTE",
        "m      serving      3           best.pt  4, activations 8  onnxruntime",
        "n      not serving  -           -        -                 -            has no generation yet",
        "",
        "UPDATE  MODEL  FILE   STATE       GENERATION  SECONDS  NOTE",
        "12      m      a.pth  CALIBRATED  -           1.5      quantize 3/21",
    ]


def test_a_deferred_update_says_when_it_is_looked_at_again():
    update = {"id": 7, "model": "m", "state": "DEFERRED", "code": "window", "reason": "worker.window is 02:00-04:00"}
    assert render.outcome({**update, "retry_at": "2026-01-01T02:00:00.000Z"}).splitlines() == [
        "update 7 of m: DEFERRED",
        "  window: worker.window is 02:00-04:00",
        "  tried or checked again at 2026-01-01T02:00:00.000Z",
    ]


def test_the_queue_shows_what_runs_first_and_what_waits_for_what():
    rows = [
        {"state": "LOADED", "waiting_for": None, "progress": {"stage": "quantize", "done": 3, "total": 21}},
        {"state": "QUEUED", "waiting_for": "update 12 of m"},
        {"state": "DEFERRED", "waiting_for": "the device has 71.0 °C; checked again at 2026-01-01T00:01:00.000Z"},
    ]
    queue = [{"update": 12 + i, "model": "m", "file": "a.pth", "since": 1.5, **row} for i, row in enumerate(rows)]
    starting = {"stage": "start", "done": 0, "total": None, "waits_for": "a core"}
    assert render.queue([queue[0] | {"progress": starting}]).endswith("  start; waits for a core")
    assert render.status(STATUS | {"queue": queue}).splitlines()[6:] == [
        "UPDATE  MODEL  FILE   STATE     SINCE                     NOTE",
        "12      m      a.pth  LOADED    1970-01-01T00:00:01.500Z  quantize 3/21",
        "13      m      a.pth  QUEUED    1970-01-01T00:00:01.500Z  waits for update 12 of m",
        "14      m      a.pth  DEFERRED  1970-01-01T00:00:01.500Z  the device has 71.0 °C; checked again at"
        " 2026-01-01T00:01:00.000Z",
    ]


FIRST_STEPS = (
    "To put a first generation in service, drop a checkpoint (.pt, .pth, .th, .ckpt, .bin or .safetensors of a"
)


def test_a_fresh_daemon_says_where_to_drop_what():
    models = [{"name": "shelf", "ready": False}, {"name": "m", "ready": True, "generation": 3}, {"name": "x"}]
    answer = {"ready": True, "drop_dir": "/srv/drop", "models": models}
    last = render.status(answer).splitlines()[-4:]
    assert last[0].startswith(FIRST_STEPS)
    assert last[1:] == [
        "  shelf  into /srv/drop/shelf/",
        "  x      into /srv/drop/x/",
        "or run for example `edged submit FILE --model shelf --wait`; `edged inspect FILE` checks a file.",
    ]
    assert ", with its .sha256 next to it:" in render.status({**answer, "require_checksum": True})


def test_what_is_wrong_with_the_state_folder_comes_first():
    lines = render.status({**STATUS, "state_problems": ["state_dir /var/lib/edged is gone", "journal.db"]}).splitlines()
    assert lines[2:5] == ["state_dir /var/lib/edged is gone", "journal.db", ""]
    assert "state_dir" not in render.status({**STATUS, "state_problems": []})


def test_models_with_something_on_its_way_need_no_first_steps():
    models = [{"name": "a", "held": 1}, {"name": "b", "paused": True}, {"name": "c"}, {"name": "d", "generation": 1}]
    models += [{"name": "e", "problem": "its process exited"}, {"name": "f", "current": 2, "generation": None}]
    answer = {"ready": True, "drop_dir": "/srv/drop", "models": models, "updates": [{"id": 1, "model": "c"}]}
    assert render.fresh_models(answer) == []
    assert FIRST_STEPS not in render.status(answer)


def test_what_is_not_taken_is_listed():
    unclaimed = [{"path": "drop/best.pt", "kind": "file", "reason": "it is in no model's folder", "since": 1.0}]
    assert render.status({**STATUS, "models": [], "unclaimed": unclaimed}).splitlines()[-3:] == [
        "",
        "NOT TAKEN     REASON",
        "drop/best.pt  it is in no model's folder",
    ]


def test_an_answer_with_nothing_in_it_can_be_shown():
    assert "not ready" in render.status({})
    assert render.history({"model": "m"}) == "m: generation - is live, - is the previous one\n\nno updates yet"
    assert render.outcome({}) == "update None of None: None"


def test_history_shows_reasons():
    update = {"id": 1, "model": "m", "file_name": "a", "state": "REJECTED", "code": "gate", "reason": "lost 5 points"}
    shown = render.history({"model": "m", "current": 2, "previous": 1, "updates": [update]})
    assert shown.startswith("m: generation 2 is live, 1 is the previous one\n\n")
    assert shown.endswith("gate: lost 5 points")


def test_history_shows_refusals_among_the_published_updates_the_newest_first():
    published = [{"id": number, "model": "m", "state": "COMMITTED", "generation": number // 2} for number in (4, 2)]
    others = [
        {
            "id": 5,
            "model": "m",
            "file_name": "junk.pt",
            "state": "REJECTED",
            "code": "checkpoint",
            "reason": "is empty",
        },
        {"id": 3, "model": "m", "file_name": "b.pt", "state": "SUPERSEDED", "code": "superseded", "reason": "newer"},
        {"id": 1, "model": "m", "file_name": "a.pt", "state": "FAILED", "code": "memory", "reason": "too little"},
    ]
    answer = {"model": "m", "current": 2, "previous": 1, "generations": [1, 2], "updates": published}
    first, _, _, *rows = render.history({**answer, "unpublished": others}).splitlines()
    assert first == "m: generation 2 is live, 1 is the previous one; kept: 1, 2"
    assert [row.split()[0] for row in rows] == ["5", "4", "3", "2", "1"]
    assert rows[0].endswith("checkpoint: is empty")
    assert (rows[2].endswith("superseded: newer"), rows[4].endswith("memory: too little")) == (True, True)
    assert len(render.history(answer).splitlines()) == 5  # of an older daemon


def test_the_outcome_shows_the_stages():
    update = {"id": 1, "model": "m", "state": "COMMITTED", "generation": 2, "stages": {"quantize": 75.0}}
    assert render.outcome(update) == "update 1 of m: COMMITTED, generation 2\n  quantize   1 min 15 s"


def test_the_outcome_shows_what_was_measured():
    report = {"agreement": 97.0, "held_out_images": 13, "boxes": {"fp32": 100, "quantized": 98}}
    update = {"id": 1, "model": "m", "state": "COMMITTED", "generation": 2, "report": report}
    assert render.outcome(update).splitlines()[1:] == [
        "  agreement  97.00 % of 98 boxes (full precision 100) in 13 held-out images"
    ]


def test_a_check_shows_what_to_do():
    assert render.check({"level": "ok", "name": "a", "detail": "fine", "fix": ""}) == "ok    a: fine"
    broken = {"level": "fail", "name": "b", "detail": "broken", "fix": "mend it"}
    assert render.check(broken) == "fail  b: broken\n      -> mend it"
