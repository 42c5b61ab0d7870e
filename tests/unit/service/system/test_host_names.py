from pathlib import Path

import pytest

from service.system.host_names import is_host_name, own_names


def test_the_names_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Edge-7")
    hosts, resolver = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text(
        "127.0.0.1 localhost\n127.0.1.1\tEdge-7.example.org edge-7 # own\n192.0.2.9 other\n::1 ip6-localhost\n"
        "# 127.0.0.1 commented\nrubbish\n\n"
    )
    resolver.write_text("nameserver 192.0.2.53\nsearch Example.com. lab.example.com\noptions edns0\n")
    assert own_names(hosts, resolver) == {
        "edge-7",
        "edge-7.local",
        "edge-7.example.com",
        "edge-7.lab.example.com",
        "edge-7.example.org",
        "localhost",
        "ip6-localhost",
    }


def test_a_full_host_name_is_also_known_by_its_first_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "edge.example.org.")
    nothing = tmp_path / "nothing"
    assert own_names(nothing, nothing) == {"edge.example.org", "edge", "edge.local"}


def test_names() -> None:
    for good in ("a", "edge-7.example.org", "xn--bcher-kva.example", "under_score", "a" * 63):
        assert is_host_name(good)
    for bad in ("", ".", "a..b", "-a", "a-", "a b", "http://a", "a:80", "a" * 64, "a." * 127 + "a", "\u00e4", "a\n"):
        assert not is_host_name(bad)
