"""Proofs of membership: the hash, the messages, and who gets past a listener; the engine's headers, compiled alone."""

from __future__ import annotations

import hashlib
import hmac
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Iterator

import pytest

import hvtrain.engine
from hvtrain.engine import roundsecret
from tests.support import proof
from tests.support.proof import ANSWER, HELLO, NONCE, Names

pytestmark = [pytest.mark.timeout(60)]
SECRET, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/support/proof_peer.cc, compiled."""
    if shutil.which("g++") is None:
        pytest.fail("g++ is needed, as it is to build the engine: apt-get install g++")
    made = tmp_path_factory.mktemp("proof") / "peer"
    native = Path(hvtrain.engine.__file__).parent / "native"
    subprocess.run(["g++", "-std=c++11", "-O1", "-Wall", "-Wextra", "-Werror", "-I", str(native), "-o", str(made),
                    str(Path(proof.__file__).with_name("proof_peer.cc"))], check=True, timeout=60)
    return made


class Listener:
    """A running ``proof_peer listen`` as rank 1, which expects rank 2."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process
        process.stdin.write(SECRET + "\n")
        process.stdin.flush()
        self.names = Names(2, 1, ("127.0.0.1", int(process.stdout.readline())))

    def connect(self) -> socket.socket:
        connection = socket.create_connection(self.names.address)
        connection.settimeout(10)
        return connection

    def said(self) -> str:
        """All that it has printed, at its end."""
        return self._process.communicate(timeout=10)[0]

    def files(self) -> int:
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def takes_its_peer(self) -> None:
        with self.connect() as peer:
            assert proof.prove(peer, SECRET, self.names)
            peer.sendall(b"a tensor")
            assert self.said().endswith("peer: a tensor\n")


@pytest.fixture
def listener(program: Path) -> Iterator[Listener]:
    with subprocess.Popen([str(program), "listen", "2", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        try:
            yield Listener(process)
        finally:
            process.kill()


def digests(program: Path, cases: list[tuple[bytes | None, bytes]]) -> list[str]:
    lines = [f"{'-' if key is None else key.hex()}\n{message.hex()}\n" for key, message in cases]
    return subprocess.run([str(program), "vectors"], input="".join(lines), capture_output=True, text=True, check=True,
                          timeout=30).stdout.splitlines()


def test_the_hash_has_the_digests_of_fips_180_4(program: Path) -> None:
    two = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
    found = digests(program, [(None, b""), (None, b"abc"), (None, two), (None, b"a" * 1_000_000)])
    assert found[:4] == ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                         "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
                         "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"]


def test_the_hmac_has_the_digests_of_rfc_4231(program: Path) -> None:
    long = b"Test Using Larger Than Block-Size Key - Hash Key First"
    larger = (b"This is a test using a larger than block-size key and a larger than block-size data. The key needs to "
              b"be hashed before being used by the HMAC algorithm.")
    found = digests(program, [
        (b"\x0b" * 20, b"Hi There"), (b"Jefe", b"what do ya want for nothing?"), (b"\xaa" * 20, b"\xdd" * 50),
        (bytes(range(1, 26)), b"\xcd" * 50), (b"\x0c" * 20, b"Test With Truncation"), (b"\xaa" * 131, long),
        (b"\xaa" * 131, larger)])
    assert found[:7] == ["b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
                         "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
                         "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
                         "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
                         "a3b6167473100ee06e0c796c2955552bfa6f7c0a6a8aef8b93f860aab0cd20c5",
                         "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
                         "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"]


def test_all_lengths_agree_with_pythons(program: Path) -> None:
    cases = [(None if n % 2 else bytes([n % 251]) * n, bytes([(7 * n) % 251]) * n) for n in range(200)]
    expected = [hashlib.sha256(text).hexdigest() if key is None else hmac.new(key, text, hashlib.sha256).hexdigest()
                for key, text in cases]
    found = digests(program, cases)
    assert found[:200] == expected
    assert found[200:] == ["1011", roundsecret.path("secret")], "the comparison, and the path of the rendezvous"


def test_the_peer_is_taken(listener: Listener) -> None:
    listener.takes_its_peer()


def wrong(names: Names) -> list[bytes]:
    other = [Names(3, 1, names.address), Names(2, 0, names.address), Names(1, 2, names.address),
             Names(2, 1, ("127.0.0.1", names.address[1] ^ 1)), Names(2, 1, ("127.0.0.2", names.address[1]))]
    return [bytes(HELLO), b"\xff" * HELLO, b"GET / HTTP/1.1\r\n\r\n" * 10, proof.hello(OTHER, names),
            *(proof.hello(SECRET, each) for each in other),
            bytes(NONCE) + proof.code(SECRET, "listener", names, bytes(NONCE))]


def test_whatever_is_no_hello_of_the_peers_is_closed_at_once(listener: Listener) -> None:
    for message in wrong(listener.names):
        with listener.connect() as stranger:
            stranger.sendall(message)
            assert proof.received(stranger, 1) == b"", "nothing is said to a stranger"
    listener.takes_its_peer()


def test_an_exchange_that_was_recorded_is_worth_nothing(listener: Listener) -> None:
    with listener.connect() as peer:  # it gets as far as its proof, which does not arrive
        said = proof.hello(SECRET, listener.names)
        peer.sendall(said)
        answered = proof.received(peer, ANSWER)
        recorded = said + proof.proof(SECRET, listener.names, said, answered)
    with listener.connect() as replay:
        replay.sendall(recorded)
        assert proof.received(replay, 1) == b""
    with listener.connect() as mixed:  # another hello, and a proof that answers an earlier nonce
        mixed.sendall(proof.hello(SECRET, listener.names) + recorded[HELLO:])
        other = proof.received(mixed, ANSWER)
        assert len(other) == ANSWER and other[:NONCE] != answered[:NONCE]
        assert proof.received(mixed, 1) == b""
    listener.takes_its_peer()


def test_what_the_listener_said_is_no_proof_of_a_connector(listener: Listener) -> None:
    with listener.connect() as mirror:
        said = proof.hello(SECRET, listener.names)
        mirror.sendall(said)
        mirror.sendall(proof.received(mirror, ANSWER)[NONCE:])
        assert proof.received(mirror, 1) == b""
    listener.takes_its_peer()


def test_strangers_who_say_nothing_only_take_places_from_each_other(listener: Listener) -> None:
    with ExitStack() as stack:
        peer = stack.enter_context(listener.connect())
        said = proof.hello(SECRET, listener.names)
        peer.sendall(said[:10])
        time.sleep(0.02)
        peer.sendall(said[10:])
        answered = proof.received(peer, ANSWER)
        before = listener.files()
        silent = [stack.enter_context(listener.connect()) for _ in range(200)]
        assert proof.received(silent[0], 1) == b"", "the oldest has to go"
        for _ in range(100):
            stranger = stack.enter_context(listener.connect())
            stranger.sendall(b"x")
        assert listener.files() <= before + 8
        peer.sendall(proof.proof(SECRET, listener.names, said, answered) + b"a tensor")
        assert listener.said().endswith("peer: a tensor\n"), "who has said hello keeps its place"


def test_a_hello_is_waited_for_once_so_that_a_recorded_one_takes_no_place(listener: Listener) -> None:
    """A hello can be sent again by whoever has seen it: eight of them took all places, and the peer found none."""
    with ExitStack() as stack:
        peer, said = stack.enter_context(listener.connect()), proof.hello(SECRET, listener.names)
        peer.sendall(said)
        answered, before = proof.received(peer, ANSWER), listener.files()
        for _ in range(50):
            replay = stack.enter_context(listener.connect())
            replay.sendall(said)
            assert proof.received(replay, 1) == b""
        until = time.monotonic() + 5  # the end of a connection is heard a moment before its descriptor is free
        while listener.files() > before and time.monotonic() < until:
            time.sleep(0.01)
        assert listener.files() <= before
        peer.sendall(proof.proof(SECRET, listener.names, said, answered) + b"a tensor")
        assert listener.said().endswith("peer: a tensor\n")


def test_the_report_says_who_came(listener: Listener) -> None:
    for message in (b"x" * HELLO, b"y" * HELLO):
        with listener.connect() as stranger:
            stranger.sendall(message)
            assert proof.received(stranger, 1) == b""
    listener.connect().close()
    with listener.connect() as peer:
        assert proof.prove(peer, SECRET, listener.names)
        assert ("of 4 that have connected none has proven to be rank 2 of this round, 2 with a wrong or a repeated proof"
                in listener.said())


@pytest.fixture
def answered(program: Path) -> Iterator[Callable[[Callable[[socket.socket, Names], None]], str]]:
    """What ``proof_peer connect`` makes of a listener that does this with its connection."""
    def run(listen: Callable[[socket.socket, Names], None]) -> str:
        with socket.create_server(("127.0.0.1", 0)) as server:
            names = Names(2, 1, server.getsockname())
            process = subprocess.Popen([str(program), "connect", "2", "1", str(names.address[1])], text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            process.stdin.write(SECRET + "\n")
            process.stdin.flush()
            connection = server.accept()[0]
            with connection:
                connection.settimeout(10)
                listen(connection, names)
            return process.communicate(timeout=10)[0].strip()

    yield run


def test_the_connector_proves_itself_only_to_a_listener_that_has(answered: Callable) -> None:
    def right(connection: socket.socket, names: Names) -> None:
        said = proof.received(connection, HELLO)
        assert said == proof.hello(SECRET, names, said[:NONCE])
        told = proof.answer(SECRET, names, said)
        for byte in told:  # slowly
            connection.sendall(bytes([byte]))
        assert proof.received(connection, 32) == proof.proof(SECRET, names, said, told)

    def replayed(connection: socket.socket, names: Names) -> None:
        proof.received(connection, HELLO)
        connection.sendall(proof.answer(SECRET, names, bytes(HELLO)))
        assert proof.received(connection, 1) == b"", "not a byte for who has not proven itself"

    def another_secret(connection: socket.socket, names: Names) -> None:
        connection.sendall(proof.answer(OTHER, names, proof.received(connection, HELLO)))
        assert proof.received(connection, 1) == b""

    def mirrored(connection: socket.socket, names: Names) -> None:
        connection.sendall(proof.received(connection, HELLO))
        assert proof.received(connection, 1) == b""

    def gone(connection: socket.socket, names: Names) -> None:
        proof.received(connection, HELLO)

    found = {each.__name__: answered(each) for each in (right, replayed, another_secret, mirrored, gone)}
    assert found == {"right": "done", "replayed": "refused", "another_secret": "refused", "mirrored": "refused",
                     "gone": "closed"}


def test_both_sides_of_the_engine_agree(program: Path, listener: Listener) -> None:
    done = subprocess.run([str(program), "connect", "2", "1", str(listener.names.address[1])], input=SECRET + "\n",
                          capture_output=True, text=True, timeout=10)
    assert done.stdout == "done\n" and listener.said().endswith("peer: \n")
