"""Lists of hosts, ssh's command lines and errors, the judgement of hosts: the pure parts of launching over hosts."""

from __future__ import annotations

import pytest

from hvtrain.errors import UsageError
from hvtrain.launch import hostwire, judging, probing, ssh
from hvtrain.launch.hosts import HostSlots, change, of_file, of_list, of_script
from hvtrain.launch.judging import Standard
from hvtrain.launch.ssh import Settings, Trouble


def pairs(found):
    return [(host.name, host.slots) for host in found]


@pytest.mark.parametrize("text, expected", [
    ("h1:4,h2:2", [("h1", 4), ("h2", 2)]),
    ("h1, h2 ", [("h1", 1), ("h2", 1)]),
    ("h1:2,h2,h1:2", [("h1", 4), ("h2", 1)]),
    ("[fd00::2]:4,me@[fd00::3]", [("fd00::2", 4), ("me@fd00::3", 1)]),
    ("some.user@node-1.cluster.example:8", [("some.user@node-1.cluster.example", 8)]),
    ("10.0.0.1:2,[fe80::1%eth0]:1", [("10.0.0.1", 2), ("fe80::1%eth0", 1)]),
])
def test_a_list_of_hosts(text, expected):
    assert pairs(of_list(text)) == expected
    assert pairs(of_list(text.split(","))) == expected
    assert of_list(",".join(map(str, of_list(text)))) == of_list(text), "what is shown can be typed"


@pytest.mark.parametrize("text, words", [
    ("h1:0", "leave h1 out"), ("h1:", "got ''"), ("h1:four", "got 'four'"), ("h1:-1", "'-1'"), ("", "got ''"),
    ("h1:4,,h2", "got ''"), ("fd00::2", "[fd00::2]:4"), ("h1:99999", "up to 4096"), ("-oProxyCommand=x:1", "-oProxyCommand"),
    ("h1;reboot:2", "h1;reboot"), ("[]:4", "'[]:4'"), ("h1:1:2", "h1:1:2"), ("h1:٣", "'٣'"), ("a b:1", "'a b:1'"),
])
def test_what_is_no_list_of_hosts(text, words):
    with pytest.raises(UsageError) as caught:
        of_list(text)
    assert words in str(caught.value)


def test_hostfiles_of_every_kind():
    text = "# the cluster\n\nh1 slots=4   # fast\nh2 slots=2 max_slots=8\nh3:3\nh4\nh4\n[fd00::2] slots=2\r\n"
    assert pairs(of_file(text, "hosts")) == [("h1", 4), ("h2", 2), ("h3", 3), ("h4", 2), ("fd00::2", 2)]


@pytest.mark.parametrize("text, words", [
    ("h1 slots=4\nh2 slots=0\n", "hosts:2: no worker can run"), ("h1 cpus=4", "hosts:1: expected a host and slots=N"),
    ("# nobody\n", "hosts names no host"), ("h1 slots=", "hosts:1")])
def test_mistakes_in_hostfiles_are_named_by_line(text, words):
    with pytest.raises(UsageError) as caught:
        of_file(text, "hosts")
    assert words in str(caught.value)


def test_a_script_may_name_nobody_and_hosts_without_slots():
    assert pairs(of_script("h1:2\nh2:0\n\n# h3:1\nh4\n", "script")) == [("h1", 2), ("h4", 1)]
    assert of_script("", "script") == ()
    with pytest.raises(UsageError, match="script, line 2"):
        of_script("h1:2\nWarning: slow disk\n", "script")


def test_a_host_with_other_slots_has_left_and_is_new():
    before, now = of_list("h1:4,h2:4,h3:1"), of_list("h3:1,h1:2,h4:4")
    assert change(before, before) == change((), ()) and not change(before, before).left
    assert pairs(change(before, now).left) == [("h1", 4), ("h2", 4)]
    assert pairs(change(before, now).new) == [("h1", 2), ("h4", 4)]


# ssh ----------------------------------------------------------------------------------------------------
def test_ssh_never_asks_and_the_host_cannot_be_an_option():
    words = ssh.command("h1", "true", Settings(port=2222, identity="/k", connect=4.0))
    assert words[-3:] == ["--", "h1", "true"]
    assert {"BatchMode=yes", "ConnectTimeout=4", "ServerAliveInterval=5", "-p", "2222", "-i", "/k"} <= set(words)


def test_the_far_command_is_quoted():
    assert ssh.remote_python("/my env/python", "m", {"PYTHONPATH": "/a b"}) == "exec env 'PYTHONPATH=/a b' '/my env/python' -m m"
    assert ssh.remote_python("python", "m", {}) == "exec python -m m"


@pytest.mark.parametrize("code, said, what, passing", [
    (255, ["No ED25519 host key is known for h2 and you have requested strict checking.", "Host key verification failed."],
     "host key is unknown", False),
    (255, ["@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "Host key verification failed."], "not the one", False),
    (255, ["root@h2: Permission denied (publickey,password)."], "without a password", False),
    (255, ["ssh: Could not resolve hostname h2: Name or service not known"], "no such name", False),
    (255, ["ssh: connect to host h2 port 22: Connection refused"], "nothing listens", True),
    (255, ["ssh: connect to host h2 port 22: Connection timed out"], "no answer", True),
    (255, ["ssh: connect to host h2 port 22: No route to host"], "no way to it", True),
    (255, ["kex_exchange_identification: read: Connection reset by peer"], "closed before", True),
    (255, ["something new"], "ssh failed: something new", True),
    (127, ["bash: /v/python: No such file or directory"], "no Python at /v/python", False),
    (1, ["/v/python: Error while finding module specification (ModuleNotFoundError: No module named 'hvtrain')"],
     "hvtrain is not installed", False),
    (1, ["/v/python: No module named hvtrain.launch.hostmain"], "an older hvtrain", False),
    (1, ["ModuleNotFoundError: No module named 'psutil'"], "no module named psutil", False),
    (1, ["This account is currently not available."], "exit code 1 before it answered: This account", False),
    (1, [], "it said nothing", False),
])
def test_why_a_host_was_not_reached(code, said, what, passing):
    found = ssh.trouble("me@h2", code, said, Settings(), "/v/python")
    assert what in found.what and found.remedy and found.passing is passing


def test_remedies_can_be_typed():
    assert ssh.trouble("me@h2", 255, ["Permission denied"], Settings(port=23), "p").remedy == "ssh-copy-id -p 23 me@h2"
    assert ssh.trouble("me@h2", 255, ["Host key verification failed."], Settings(port=23), "p").remedy.startswith("ssh -p 23 me@h2")


@pytest.mark.parametrize("settings, expected", [
    (Settings(), "ssh me@h2"), (Settings(port=23), "ssh -p 23 me@h2"),
    (Settings(port=23, identity="/my keys/k"), "ssh -p 23 -i '/my keys/k' me@h2")])
def test_what_a_person_types_goes_the_way_that_the_job_goes(settings, expected):
    assert ssh.typed("me@h2", settings) == expected
    assert ssh.trouble("me@h2", 1, ["No module named hvtrain"], settings, "p").remedy.startswith(expected + " ")
    assert f"{expected} true" in ssh.trouble("me@h2", 255, ["something new"], settings, "p").remedy


def test_the_key_that_the_job_uses_is_the_one_to_be_copied():
    found = ssh.trouble("me@h2", 255, ["Permission denied"], Settings(port=23, identity="/k"), "p")
    assert found.remedy == "ssh-copy-id -p 23 -i /k me@h2"


# Lines ----------------------------------------------------------------------------------------------------
def test_our_lines_are_found_among_what_shells_print():
    stream = b"Welcome!\r\nno end of line" + hostwire.reply("abc", {"op": "report", "n": 1}) + b"#hvtrain xyz {\"op\": \"report\"}\n"
    lines, cutter = [], hostwire.Lines()
    for byte in range(len(stream)):
        lines += cutter.feed(stream[byte:byte + 1])
    assert [hostwire.read_reply("abc", line) for line in lines] == [None, None, {"op": "report", "n": 1}, None]
    assert lines[:2] == [b"Welcome!", b"no end of line"]


def test_a_line_without_an_end_takes_no_memory_for_ever():
    cutter = hostwire.Lines()
    found = [line for _ in range(20) for line in cutter.feed(b"x" * (1 << 20))]
    assert found and max(map(len, found)) <= hostwire.MOST_BYTES + (1 << 20)


@pytest.mark.parametrize("line", [b"#hvtrain abc not json", b"#hvtrain abc []", b"#hvtrain abc {}", b"#hvtrain abc {\"op\": 1}"])
def test_what_is_no_message_is_none(line):
    assert hostwire.read_reply("abc", line) is None


# Judgement --------------------------------------------------------------------------------------------------
VERSIONS = {"python": "3.11", "hvtrain": "1", "source": "s", "torch": "2.13.0", "engine": "0.28.1 abc"}
STANDARD = Standard("torch", "/job", "/job/runs", "/job/job.yaml", {"task.py": "1", "more.py": "2"}, "c", VERSIONS)
REPORT = {"machine": "m1", "python": "/v/python", "versions": VERSIONS, "code": {"task.py": "1", "more.py": "2", "own.py": "3"},
          "config": "c", "writes_run": True}
H1, H2 = HostSlots("h1", 2), HostSlots("h2", 2)


def wrong(**changed) -> list[Trouble]:
    return judging.judge(H1, {**REPORT, **changed}, STANDARD)


def test_a_host_like_the_others_is_well():
    assert not wrong() and not wrong(config=None), "the job file itself need not be there"


@pytest.mark.parametrize("changed, what, remedy", [
    ({"versions": {**VERSIONS, "hvtrain": "2"}}, "hvtrain 2 instead of 1", "same hvtrain"),
    ({"versions": {**VERSIONS, "source": "t"}}, "another source of hvtrain 1", "same hvtrain"),
    ({"versions": {**VERSIONS, "torch": "2.12.0"}}, "torch 2.12.0 instead of 2.13.0", "pip install torch==2.13.0"),
    ({"versions": {k: v for k, v in VERSIONS.items() if k != "engine"}}, "engine missing", "engine build"),
    ({"code": {"task.py": "9", "more.py": "2"}}, "task.py differs", "rsync -a /job/ h1:/job/"),
    ({"code": {}}, "task.py is missing, more.py is missing", "rsync"),
    ({"code": None}, "no directory /job", "rsync"),
    ({"config": "d"}, "another /job/job.yaml", "rsync -a /job/job.yaml h1:/job/job.yaml"),
    ({"writes_run": False}, "/job/runs cannot be written", "run.dir"),
])
def test_what_makes_a_host_unfit(changed, what, remedy):
    (found,) = wrong(**changed)
    assert what in found.what and remedy in found.remedy


@pytest.mark.parametrize("changed, remedy", [
    ({"versions": {**VERSIONS, "torch": "2"}}, "ssh -p 23 -i /k h1 '/v/python -m pip install torch==2.13.0'"),
    ({"versions": {**VERSIONS, "engine": "x"}}, "ssh -p 23 -i /k h1 '/v/python -m hvtrain.cli.main engine build'"),
    ({"code": {}}, "rsync -a -e 'ssh -p 23 -i /k' /job/ h1:/job/"),
    ({"code": None}, "rsync -a -e 'ssh -p 23 -i /k' /job/ h1:/job/"),
    ({"config": "d"}, "rsync -a -e 'ssh -p 23 -i /k' /job/job.yaml h1:/job/job.yaml")])
def test_what_mends_a_host_goes_the_way_that_the_job_goes(changed, remedy):
    (found,) = judging.judge(H1, {**REPORT, **changed}, STANDARD, Settings(port=23, identity="/k"))
    assert found.remedy.endswith(remedy)


def test_a_report_of_another_version_that_lacks_everything_is_judged():
    assert judging.judge(H1, {"op": "report"}, STANDARD)


def test_one_machine_by_two_names():
    assert judging.twins({H1: REPORT, H2: {**REPORT, "machine": "m2"}}) == {}
    found = judging.twins({H1: REPORT, H2: REPORT})
    assert list(found) == [H2] and "h1:4" in found[H2].remedy


H3, H4 = HostSlots("h3", 2), HostSlots("h4", 2)
ADDRESSES = {host: f"10.0.0.{host.name[1]}" for host in (H1, H2, H3, H4)}
OWN = [("eth0", "10.0.0.1"), ("ib0", "10.1.0.1")]


def test_a_host_that_reaches_no_address_is_in_trouble_alone():
    chosen, troubles = judging.common({H2: [None, "a"], H3: [None, None], H4: ["b", "a"]}, OWN)
    assert chosen == 1 and list(troubles) == [H3]
    assert troubles[H3].what == "it reaches none of this machine's addresses: 10.0.0.1 (eth0), 10.1.0.1 (ib0)"


def test_hosts_that_reach_no_address_together_are_all_in_trouble():
    chosen, troubles = judging.common({H2: [None, "a"], H3: ["a", None]}, OWN)
    assert chosen is None and list(troubles) == [H2, H3] and "only 10.1.0.1 of" in troubles[H2].what
    chosen, troubles = judging.common({H2: []}, [])
    assert chosen is None and troubles[H2].what.endswith("addresses: none")


def seen(*missed: tuple[HostSlots, HostSlots]) -> dict[HostSlots, dict[HostSlots, bool]]:
    """What all four say of each other if these do not reach those."""
    return {host: {other: (host, other) not in missed for other in ADDRESSES if other is not host} for host in ADDRESSES}


@pytest.mark.parametrize("missed, guilty", [
    ((), {}),
    (((H1, H3), (H2, H3), (H4, H3)), {H3: "the others do not reach it at 10.0.0.3"}),
    (((H3, H1), (H3, H2), (H3, H4)), {H3: "it does not reach h1 (10.0.0.1), h2 (10.0.0.2), h4 (10.0.0.4)"}),
    (((H3, H1),), {H3: "it does not reach h1 (10.0.0.1)"}),
    (((H1, H3), (H2, H3), (H4, H3), (H3, H2)), {H3: "the others do not reach it at 10.0.0.3"}),
])
def test_who_is_to_blame_where_hosts_do_not_reach_each_other(missed, guilty):
    assert {host: trouble.what for host, trouble in judging.apart(seen(*missed), ADDRESSES).items()} == guilty


def test_a_host_that_has_fallen_silent_is_to_blame_itself():
    reached = {host: others for host, others in seen().items() if host is not H4}
    assert {host: trouble.what for host, trouble in judging.apart(reached, ADDRESSES).items()} == {
        H4: "it does not answer any more"}


def test_the_table_has_a_line_for_each_trouble():
    text = judging.listed({H1: [Trouble("a", "do b"), Trouble("c", "d")], H2: []}, 3)
    assert text.splitlines()[0] == "1 of 3 hosts cannot take part:" and len(text.splitlines()) == 4


def test_a_launcher_that_trains_nothing_leaves_the_framework_to_the_hosts():
    ours = {"python": "3.10", "hvtrain": "1", "source": "s"}
    assert judging.standard_versions(ours, VERSIONS) == VERSIONS
    assert judging.standard_versions(VERSIONS, None) == VERSIONS


def test_addresses_that_others_could_reach():
    there = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.1", "fd00::1", "fe80::1"], "ib0": ["10.1.0.1"], "x": ["169.254.1.1"]}
    assert probing.candidates(there) == [("eth0", "10.0.0.1"), ("ib0", "10.1.0.1"), ("eth0", "fd00::1")]
    assert probing.candidates(there, "ib0") == [("ib0", "10.1.0.1")]
