import pytest
from starlette.requests import Request

from edged.errors import AccessError
from service.config.load import ServeConfig
from service.http.auth import check_admin, check_inference, may_see_images


@pytest.fixture
def serve(tmp_path):
    for name in ("admin", "inference"):
        (tmp_path / name).write_text(f"{name}-secret\n")
    return ServeConfig(token_file=tmp_path / "admin", inference_token_file=tmp_path / "inference")


def request(given=None, local=False):
    headers = [] if given is None else [(b"authorization", given.encode("latin-1"))]
    return Request({"type": "http", "headers": headers, "edged.local": local})


def allowed(check, serve, **given):
    try:
        check(request(**given), serve)
    except AccessError:
        return False
    return True


@pytest.mark.parametrize(
    ("given", "admin", "inference"),
    [
        (None, False, False),
        ("", False, False),
        ("Bearer ", False, False),
        ("admin-secret", False, False),
        ("Bearer admin-secre", False, False),
        ("Bearer admin-secret2", False, False),
        ("Bearer \xe4", False, False),
        ("Bearer admin-secret", True, True),
        ("bearer  admin-secret", True, True),  # RFC 9110: the scheme has no case, and spaces may follow
        ("Basic admin-secret", False, False),
        ("Bearer inference-secret", False, True),
    ],
)
def test_tokens(serve, given, admin, inference):
    assert allowed(check_admin, serve, given=given) == admin
    assert allowed(check_inference, serve, given=given) == inference


def test_the_unix_socket_needs_none(serve):
    assert allowed(check_admin, ServeConfig(), local=True)
    assert allowed(check_inference, serve, local=True)


def test_without_a_token_anybody_may_ask_and_nobody_administer(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert allowed(check_inference, ServeConfig())
    with pytest.raises(AccessError, match=r"UNIX socket; set serve\.token_file"):
        check_admin(request(given="Bearer x"), ServeConfig())


@pytest.mark.parametrize("contents", [b"", b" \n", b"\xff\xfe"])
def test_a_file_that_holds_no_token_lets_nobody_in(serve, contents):
    serve.token_file.write_bytes(contents)
    with pytest.raises(AccessError, match=r"empty; write a secret|cannot read the token"):
        check_admin(request(given="Bearer "), serve)


def test_a_changed_token_counts_at_once(serve):
    serve.token_file.write_text("new")
    assert not allowed(check_admin, serve, given="Bearer admin-secret")
    assert allowed(check_admin, serve, given="Bearer new")


@pytest.mark.parametrize(
    ("tokens", "given", "local", "allowed"),
    [
        ((), None, False, False),  # on this machine's own address, too: a proxy may send everybody there
        ((), "Bearer ", False, False),
        ((), None, True, True),
        (("token_file", "inference_token_file"), None, False, False),
        (("token_file", "inference_token_file"), None, True, True),
        (("token_file", "inference_token_file"), "Bearer wrong", False, False),
        (("token_file", "inference_token_file"), "Bearer admin-secret", False, True),
        (("token_file", "inference_token_file"), "Bearer inference-secret", False, True),
        (("token_file",), None, False, False),  # anybody may ask a model then, but not see its images
        (("token_file",), "Bearer admin-secret", False, True),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - it makes no difference
def test_who_may_see_calibration_images(serve, monkeypatch, host, tokens, given, local, allowed):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    configured = ServeConfig(host=host, **{key: getattr(serve, key) for key in tokens})
    assert may_see_images(request(given, local), configured) is allowed
