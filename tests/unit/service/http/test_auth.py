import asyncio

import pytest
from starlette.requests import Request

from edged.errors import AccessError
from service.config.load import ServeConfig
from service.daemon.guesses import LONGEST_S, PER_ADDRESS, GuessError
from service.daemon.tokens import Tokens
from service.http.auth import allows_inference, check_admin, check_inference, may_see_images


@pytest.fixture
def serve(tmp_path):
    for name in ("admin", "inference"):
        (tmp_path / name).write_text(f"{name}-secret\n")
    return ServeConfig(token_file=tmp_path / "admin", inference_token_file=tmp_path / "inference")


def request(given=None, local=False, address="127.0.0.1"):
    headers = [] if given is None else [(b"authorization", given.encode("latin-1"))]
    return Request({"type": "http", "headers": headers, "edged.local": local, "client": (address, 40000)})


def checked(check, serve, **given):
    return asyncio.run(check(request(**given), Tokens(lambda: serve)))


def allowed(check, serve, **given):
    try:
        checked(check, serve, **given)
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
    assert allows_inference(request(given), Tokens(lambda: serve)) == inference


def test_the_unix_socket_needs_none(serve):
    assert allowed(check_admin, ServeConfig(), local=True)
    assert allowed(check_inference, serve, local=True)


def test_without_a_token_anybody_may_ask_and_nobody_administer(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert allowed(check_inference, ServeConfig())
    with pytest.raises(AccessError, match=r"UNIX socket; set serve\.token_file"):
        checked(check_admin, ServeConfig(), given="Bearer x")


@pytest.mark.parametrize("contents", [b"", b" \n", b"\xff\xfe"])
def test_a_file_that_holds_no_token_lets_nobody_in(serve, contents):
    serve.token_file.write_bytes(contents)
    with pytest.raises(AccessError, match=r"empty; write a secret|cannot read the token"):
        checked(check_admin, serve, given="Bearer ")


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
    assert checked(may_see_images, configured, given=given, local=local) is allowed


def test_without_a_token_to_guess_nobody_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens come: they may be those of another daemon."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    refused: list[int] = []
    tokens = Tokens(ServeConfig, lambda: refused.append(1), clock=lambda: 0.0)

    async def ask() -> list[bool]:
        return [await may_see_images(request("Bearer x"), tokens) for _ in range(1000)]

    assert asyncio.run(ask()) == [False] * 1000
    assert refused == []


def test_wrong_tokens_are_refused_once_too_many_wait_and_the_right_one_never_is(serve):
    """From the same address, and whatever the token is for."""
    refused = []
    tokens = Tokens(lambda: serve, lambda: refused.append(1), clock=lambda: 0.0)

    async def outcome(check, given, address):
        try:
            return await check(request(given, address=address), tokens)
        except GuessError:
            return "too many"
        except AccessError:
            return "wrong"

    async def main():
        guesses = [
            asyncio.create_task(outcome(check, "Bearer guess", "192.0.2.1"))
            for _ in range(10)
            for check in (check_admin, check_inference, may_see_images)
        ]
        await asyncio.sleep(0)
        for check in (check_admin, check_inference, may_see_images):
            assert await outcome(check, "Bearer admin-secret", "192.0.2.1") != "too many"
        assert allows_inference(request("Bearer inference-secret", address="192.0.2.1"), tokens)
        assert await outcome(check_admin, None, "192.0.2.1") == "wrong"  # no guess, so it does not wait
        assert await outcome(check_admin, "Bearer guess", "192.0.2.2") == "wrong"
        done = [guess for guess in guesses if guess.done()]
        for guess in guesses:
            guess.cancel()
        return [guess.result() for guess in done]

    results = asyncio.run(main())
    waiting = int(LONGEST_S / PER_ADDRESS.every_s)
    assert len(results) == 30 - waiting  # the others would have waited for their turn
    assert results.count("too many") == len(refused) == 30 - waiting - PER_ADDRESS.at_once
