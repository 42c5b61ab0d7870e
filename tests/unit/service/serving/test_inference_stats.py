from service.ipc.messages import Pass, Work
from service.serving.inference_stats import InferenceStats


def noted(*requests):
    stats = InferenceStats()
    for status, work in requests:
        stats.note(status, 100, 1100, work, 7.5)
    return stats.to_dict()


def test_without_requests_all_counts_are_zero():
    found = noted()
    assert (found["last_inference"], found["inference_count"], found["execution_count"]) == (0, 0, 0)
    assert found["batch_stats"] == []
    assert set(found["inference_stats"]) == {
        *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    }
    assert all(duration == {"count": 0, "ns": 0} for duration in found["inference_stats"].values())


def test_each_part_of_a_request_adds_up():
    work = Work(2, 150, 30, 200, 400, 100, (Pass(2, 200, 400, 100),))
    found = noted((200, work), (200, work))
    stats = found["inference_stats"]
    assert (found["last_inference"], found["inference_count"], found["execution_count"]) == (7500, 4, 2)
    assert stats["success"] == {"count": 2, "ns": 2000}
    assert stats["queue"] == {"count": 2, "ns": 2 * (150 - 100 + 30)}
    assert [stats[f"compute_{part}"]["ns"] for part in ("input", "infer", "output")] == [400, 800, 200]
    assert found["batch_stats"] == [
        {
            "batch_size": 2,
            "compute_input": {"count": 2, "ns": 400},
            "compute_infer": {"count": 2, "ns": 800},
            "compute_output": {"count": 2, "ns": 200},
        }
    ]


def test_requests_of_one_batch_share_its_pass():
    batch = (Pass(3, 30, 60, 9),)
    found = noted((200, Work(1, 100, 0, 10, 60, 9, batch)), (200, Work(2, 100, 0, 20, 60, 9)))
    assert (found["inference_count"], found["execution_count"]) == (3, 1)
    assert found["inference_stats"]["compute_infer"] == {"count": 2, "ns": 120}
    assert [(batch["batch_size"], batch["compute_infer"]["ns"]) for batch in found["batch_stats"]] == [(3, 60)]


def test_failed_requests_count_for_nothing_else_but_the_pass_of_their_batch():
    failed = Work(1, 100, 0, 10, 60, 9, (Pass(2, 20, 60, 9),))
    found = noted((None, None), (400, None), (500, failed))
    stats = found["inference_stats"]
    assert stats["fail"] == {"count": 3, "ns": 3000}
    assert (found["inference_count"], found["execution_count"]) == (0, 1)
    assert not any(stats[name]["count"] for name in stats if name != "fail")
