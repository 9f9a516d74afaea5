"""The push: what it sends, which errors it survives, what it refuses, and that no token is left anywhere.

The fast tests point huggingface_hub of this process at the loopback Hub. They record the waits instead of sleeping.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_users import TOKEN, USERS
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from platforms import needs_links
from runs import make_run
from safetensors.torch import load_file, save_file

from ddpm_hf import DDPMPipelineCustom, cli
from ddpm_hf.config import TrainingConfig
from ddpm_hf.hub import retry
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.checks import check_push
from ddpm_hf.hub.push import CARD_SET_ASIDE, push_run
from ddpm_hf.hub.retry import FIRST_WAIT, TRIES
from ddpm_hf.hub.share import check_before_training, share_run
from ddpm_hf.hub.space import push_space, write_space
from ddpm_hf.tokens import hide_tokens

ROOT = Path(__file__).parents[2]
WITHOUT_PACKAGE = "import sys; sys.modules['ddpm_hf'] = None"
LONG_TOKEN = "hf_" + "aB3" * 12
SHARED = {
    "README.md", "model_index.json", "pipeline_ddpm_custom.py", "unet/config.json", "unet/unet_ddpm.py",
    "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
    "scheduler/scheduling_ddpm_linear.py", "samples/step-000004.png", "denoising.png", "denoising.webp", "loss.png",
}  # fmt: skip


@pytest.fixture
def waits(monkeypatch):
    """Record the seconds of each sleep, and do not sleep."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture(scope="module")
def made_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "digits")


@pytest.fixture
def run(made_run, tmp_path):
    return shutil.copytree(made_run, tmp_path / "digits")


def files_of(hub, name="alice/digits"):
    return {path: file.content for path, file in hub.repositories[name].commits[-1][1].items()}


def commits_of(hub, name="alice/digits"):
    return len(hub.repositories[name].commits) - 1  # the first is empty


# ---- What is pushed --------------------------------------------------------------------------------------------------


def test_one_commit_of_what_belongs_there(hub, run):
    assert push_run(run, "digits", TOKEN) == f"{hub.url}/alice/digits"
    assert commits_of(hub) == 1
    files = files_of(hub)
    assert set(files) == SHARED
    assert all(content == (run / path).read_bytes() for path, content in files.items())
    assert not any(word in b"".join(files.values()) for word in (b"private", TOKEN.encode(), str(run.parent).encode()))
    card = ModelCard(files["README.md"].decode())
    assert 'from_pretrained("alice/digits")' in card.text

    push_run(run, "alice/digits", TOKEN)
    assert commits_of(hub) == 1


def test_private_and_of_an_organisation(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_run(run, "lab/digits", private=True)
    assert hub.repositories["lab/digits"].private
    assert set(files_of(hub, "lab/digits")) == SHARED
    push_run(run, "lab/digits", "hf_fine")
    assert commits_of(hub, "lab/digits") == 1


def test_edits_here_and_there(hub, run, capsys):
    def edit_here(old, new):
        (run / "README.md").write_text((run / "README.md").read_text().replace(old, new))

    def edit_there(old, new):
        file = hub.repositories["alice/digits"].commits[-1][1]["README.md"]
        file.content = file.content.decode().replace(old, new).encode()

    push_run(run, "alice/digits", TOKEN)
    edit_here("## Training\n", "## Training\n\nHere.\n")
    push_run(run, "alice/digits", TOKEN)
    assert b"\n\nHere.\n" in files_of(hub)["README.md"]

    edit_there("## Data\n", "## Data\n\nThere.\n")
    (run / "loss.png").unlink()  # changes the text between the marks
    push_run(run, "alice/digits", TOKEN)
    card = files_of(hub)["README.md"].decode()
    assert (run / "README.md").read_text() == card
    assert "\n\nHere.\n" in card
    assert "\n\nThere.\n" in card
    assert "loss.png" not in card
    assert CARD_SET_ASIDE not in capsys.readouterr().out

    edit_here("Here.", "Here, too.")
    edit_there("There.", "There, too.")
    push_run(run, "alice/digits", TOKEN)
    card = files_of(hub)["README.md"].decode()
    assert "There, too." in card
    assert "Here, too." not in card
    assert "Here, too." in (run / CARD_SET_ASIDE).read_text()
    assert f"is now {CARD_SET_ASIDE}" in capsys.readouterr().out

    push_run(run, "alice/another", TOKEN)  # this repository has no card yet
    assert b"There, too." in files_of(hub, "alice/another")["README.md"]


def test_a_space_in_one_commit(hub, run, capsys):
    push = ["push", str(run), "--space", "--hub_model_id", "digits", "--hub_token", TOKEN]
    cli.main(push)
    assert capsys.readouterr().out.splitlines()[-1] == f"Pushed to {hub.url}/spaces/alice/digits."
    files = files_of(hub, "spaces/alice/digits")
    written = {path.relative_to(run / "space").as_posix(): path for path in (run / "space").rglob("*")}
    assert files == {name: path.read_bytes() for name, path in written.items() if path.is_file()}
    assert {"app.py", "requirements.txt", "README.md", "model/model_index.json", "ddpm_hf/demo/page.py"} <= set(files)
    pipelines = {name for name in files if name.startswith("ddpm_hf/pipelines/")}
    assert pipelines == {f"ddpm_hf/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("pipelines/*.py")}
    assert b"private" not in files.values()
    assert not any(word in b"".join(files.values()) for word in (TOKEN.encode(), str(run.parent).encode()))

    cli.main(push)
    assert commits_of(hub, "spaces/alice/digits") == 1
    assert list(hub.repositories) == ["spaces/alice/digits"]


def test_a_space_through_a_busy_hub(hub, run, waits):
    write_space(run)
    requests = ("whoami", "check", "create", "validate", "preupload", "lfs put", "commit")
    for request in requests:
        hub.fail(REQUESTS[request], 503, times=2)
    push_space(run, "lab/digits", TOKEN, private=True)
    assert all(fault.times == 0 for fault in hub.faults)
    assert hub.repositories["spaces/lab/digits"].private
    assert commits_of(hub, "spaces/lab/digits") == 1


def test_a_space_is_written_before_it_cannot_be_pushed(hub, run, capsys):
    with pytest.raises(SystemExit, match="no token for the Hub"):
        cli.main(["push", str(run), "--space"])
    said = capsys.readouterr().out
    assert said.startswith(f"{run / 'space'} holds a Space that needs nothing else; try it with: python ")
    shutil.rmtree(run / "space")
    cli.main(["push", str(run), "--space", "--no_upload"])
    assert (run / "space" / "app.py").exists()
    assert hub.requests == []


# ---- Errors that it survives -----------------------------------------------------------------------------------------

REQUESTS = {
    "whoami": "GET /api/whoami-v2",
    "check": "GET .*/auth-check/write",
    "create": "POST /api/repos/create",
    "card": "GET .*/resolve/main/README.md",
    "validate": "POST /api/validate-yaml",
    "preupload": "POST .*/preupload/main",
    "lfs batch": "POST .*/info/lfs/objects/batch",
    "lfs put": "PUT /lfs/",
    "lfs verify": "POST /lfs/verify",
    "commit": "POST .*/commit/main",
}


@pytest.mark.parametrize("status", [500, 503, 429, None], ids=["500", "503", "429", "reset"])
def test_every_request_may_fail_twice(hub, run, waits, status, capsys):
    """All kinds of requests of one push fail, each twice in a row."""
    for request in REQUESTS.values():
        hub.fail(request, status, times=2)
    push_run(run, "alice/digits", TOKEN)
    assert all(fault.times == 0 for fault in hub.faults)
    assert set(files_of(hub)) == SHARED
    assert commits_of(hub) == 1
    assert waits.count(FIRST_WAIT) >= 5
    assert TOKEN not in "".join(capsys.readouterr())


def test_the_hub_says_how_long_to_wait(hub, run, waits):
    hub.fail(REQUESTS["create"], 429, Retry_After="7")
    hub.fail(REQUESTS["commit"], 429, RateLimit='"api";r=0;t=55')
    hub.fail(REQUESTS["commit"], 503, Retry_After="Mon, 01 Jan 2001 00:00:00 GMT")  # in the past, so there is no wait
    push_run(run, "alice/digits", TOKEN)
    assert [wait for wait in waits if wait != FIRST_WAIT] == [7, 55, 2 * FIRST_WAIT]


def test_waits_grow_and_end(hub, run, waits):
    hub.fail(REQUESTS["commit"], 503, times=TRIES)
    with pytest.raises(OSError, match=r"^cannot push .*digits to alice/digits: .*503") as error:
        push_run(run, "alice/digits", TOKEN)
    assert "\n" not in str(error.value)
    assert waits == [FIRST_WAIT * 2**i for i in range(TRIES - 1)]
    sent = len([request for request in hub.requests if request.startswith("PUT")])
    push_run(run, "alice/digits", TOKEN)
    assert len([request for request in hub.requests if request.startswith("PUT")]) == sent  # the Hub has the weights
    assert commits_of(hub) == 1


def test_a_silent_hub_is_given_up(hub, monkeypatch):
    monkeypatch.setattr(retry, "SILENCE", 0.2)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    answer, pauses = hub.answer, [1.0]

    def pause(*arguments):
        time.sleep(pauses.pop() if pauses else 0)
        return answer(*arguments)

    monkeypatch.setattr(hub, "answer", pause)
    assert check_push("digits", TOKEN) == "alice/digits"
    assert hub.requests.count("GET /api/whoami-v2") == 2


def test_a_commit_whose_answer_is_lost_is_not_repeated(hub, run, waits, monkeypatch):
    answer = hub.answer

    def lose_the_first_answer(method, path, *arguments):
        answered = answer(method, path, *arguments)
        if "/commit/" in path and commits_of(hub) == 1 and not waits:
            return 504, {}, {}
        return answered

    monkeypatch.setattr(hub, "answer", lose_the_first_answer)
    push_run(run, "alice/digits", TOKEN)
    assert waits == [FIRST_WAIT]
    assert commits_of(hub) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
@pytest.mark.parametrize("request_kind", ["create", "card", "preupload", "commit"])
def test_what_is_final_is_not_tried_again(hub, run, waits, request_kind, status):
    push_run(run, "alice/digits", TOKEN)
    (run / "loss.png").write_bytes(b"new")
    before = len(hub.requests)
    hub.fail(REQUESTS[request_kind], status, times=9)
    if (request_kind, status) in (("create", 401), ("create", 403)):  # the repository exists, so the push continues
        push_run(run, "alice/digits", TOKEN)
        return
    with pytest.raises(OSError, match=r"^cannot push") as error:
        push_run(run, "alice/digits", TOKEN)
    assert "\n" not in str(error.value)
    assert len([r for r in hub.requests[before:] if re.search(REQUESTS[request_kind], r)]) == 1
    assert waits == []


# ---- What it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("alice/digits", None, "no token for the Hub: set HF_TOKEN"),
        ("alice/digits", "hf_of\nnobody", "--hub_token holds blanks"),
        ("alice/digits", "hf_nobody", "the Hub does not accept this token"),
        ("alice/digits", "hf_reader", "this token of alice may not write to alice/digits"),
        ("alice/digits", "hf_fine", "this token of alice may not write to alice/digits"),
        ("bob/digits", TOKEN, "alice may not write to repositories of bob, only of alice, lab, fair."),
        ("library/digits", TOKEN, "alice may only read in library"),
        ("fair/taken", TOKEN, "--hub_model_id fair/taken is taken by a repository that alice may not write to"),
        ("alice/my digits", TOKEN, "--hub_model_id alice/my digits: Repo id must use alphanumeric chars"),
        ("a/b/c", TOKEN, "--hub_model_id a/b/c: Repo id must be in the form"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_in_one_line(hub, run, repo_id, token, message, capsys):
    hub.organisations["fair"]["bob"] = "write"
    push_run(run, "fair/taken", "hf_bob")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        check_push(repo_id, token)
    assert "\n" not in str(error.value)
    assert token is None or token not in str(error.value)

    arguments = ["push", str(run), "--hub_model_id", repo_id, *(["--hub_token", token] if token else [])]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == f"ddpm-hf: error: {error.value}"
    assert commits_of(hub, "fair/taken") == 1
    assert list(hub.repositories) == ["fair/taken"]


def test_names_are_completed(hub):
    assert check_push("digits", TOKEN) == "alice/digits"
    assert check_push("lab/digits", "hf_fine") == "lab/digits"
    assert check_push("fair/new", TOKEN) == "fair/new"
    assert hub.repositories == {}


def test_no_network(hub, run, waits):
    hub.server.server_close()
    hub.fail("", None, times=999)
    with pytest.raises(OSError, match="the Hub cannot be asked about digits: ") as error:
        check_push("digits", TOKEN)
    assert "\n" not in str(error.value)
    assert len(waits) == TRIES - 1


def test_folder_without_a_pipeline(hub, tmp_path):
    with pytest.raises(SystemExit, match="holds no trained pipeline"):
        cli.main(["push", str(tmp_path)])
    assert hub.requests == []


def test_command_takes_the_name_of_the_run(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    cli.main(["push", str(make_run(tmp_path / "a", hub_model_id="lab/best")), "--hub_private_repo"])
    cli.main(["push", str(make_run(tmp_path / "b"))])
    assert capsys.readouterr().out == f"Pushed to {hub.url}/lab/best.\nPushed to {hub.url}/alice/b.\n"
    assert hub.repositories["lab/best"].private
    assert not hub.repositories["alice/b"].private


# ---- Tokens that would be published, and answers of all kinds -------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hf_secret", "alice/hf_secret", "hf_secret/digits", f"x-{LONG_TOKEN}", f"alice/{TOKEN}"]
)
def test_a_token_is_no_name(hub, run, name, capsys):
    with pytest.raises(ValueError, match=r"^--hub_model_id .*\*\*\*.*: this looks like a token") as error:
        check_push(name, TOKEN)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for switches in ((), ("--space",)):
        with pytest.raises(SystemExit) as stop:
            cli.main(["push", str(run), "--hub_model_id", name, "--hub_token", TOKEN, *switches])
        assert stop.value.code == f"ddpm-hf: error: {error.value}"
    assert not any(token in str(error.value) for token in ("secret", TOKEN, LONG_TOKEN))
    assert {
        path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "space" not in path.parts
    } == before
    for push in (False, True):  # the options record the name in both cases
        with pytest.raises(ValueError, match="this looks like a token"):
            check_before_training(TrainingConfig(output_dir="new", hub_model_id=name, push_to_hub=push))
    assert hub.requests == []
    assert "secret" not in "".join(capsys.readouterr())


def test_a_run_named_like_a_token_is_not_pushed_under_that_name(hub, run):
    run = run.rename(run.parent / TOKEN)
    with pytest.raises(SystemExit, match=r"^ddpm-hf: error: --hub_model_id hf_\*\*\*: this looks like a token") as stop:
        cli.main(["push", str(run), "--hub_token", TOKEN])
    assert TOKEN not in stop.value.code
    assert hub.requests == []


@pytest.mark.parametrize("token", [TOKEN, LONG_TOKEN])
def test_no_token_is_published(hub, run, token):
    with pytest.raises(ValueError, match=r"the message .* contains a token, which everybody could read") as error:
        push_run(run, "alice/digits", TOKEN, commit_message=f"with {token}")
    assert token not in str(error.value)
    assert hub.requests == []
    write_card(run)
    with open(run / "README.md", "a") as card:
        card.write(f"\nLog in with {token}.\n")
    with pytest.raises(ValueError, match=r"README\.md contains a token"):
        push_run(run, "alice/digits", TOKEN)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--hub_token=hf_abc and hf_def", "--hub_token=hf_*** and hf_***"),
        ("--hub-token=secret", "--hub-token=***"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("hf_oauth_eyJ.a-b.c_d!", "hf_***!"),
        ("proxy http://me:word@x.org:80/a", "proxy http://***@x.org:80/a"),
        ("api_org_abc", "api_org_***"),
        ("my_hf_model in alf_dir", "my_hf_model in alf_dir"),
        ("--hub_token holds blanks", "--hub_token holds blanks"),
    ],
)
def test_tokens_are_hidden(text, expected):
    assert hide_tokens(text) == expected
    assert hide_tokens(f"{text} of another form", "of another form") == f"{expected} hf_***"


@pytest.mark.parametrize(
    ("request_kind", "status", "kind", "message"),
    [
        ("whoami", 401, ValueError, "--hub_token: the Hub does not accept this token, or it has expired (status 401)"),
        ("whoami", 403, ValueError, "--hub_token: the Hub does not accept this token, or it has expired (status 403)"),
        ("whoami", 404, OSError, "cannot be asked about alice/digits: the Hub does not know this address"),
        ("whoami", 429, OSError, "cannot be asked about alice/digits: too many requests; try later"),
        ("whoami", 500, OSError, "cannot be asked about alice/digits: the Hub is out of order; try later"),
        ("check", 401, ValueError, "--hub_token: the Hub does not accept this token for alice/digits"),
        ("check", 403, ValueError, "is taken by a repository that alice may not write to"),
        ("check", 429, OSError, "cannot be asked about alice/digits: too many requests; try later"),
        ("check", 503, OSError, "cannot be asked about alice/digits: the Hub is out of order; try later"),
        ("commit", 403, OSError, "to alice/digits: the token may not do this"),
        ("commit", 413, OSError, "to alice/digits: a file is too large for the Hub"),
        ("preupload", 404, OSError, "to alice/digits: the Hub does not know this address"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(hub, run, waits, request_kind, status, kind, message):
    hub.fail(REQUESTS[request_kind], status, times=99)
    with pytest.raises(kind, match=re.escape(message)) as error:
        push_run(run, "alice/digits", TOKEN)
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)


@pytest.mark.parametrize("answer", [[], "alice", {}, {"name": None}])
def test_what_is_no_hub(hub, monkeypatch, answer):
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda api: answer)
    with pytest.raises(OSError, match=r"cannot be asked whose the token is: .*; expected "):
        check_push("alice/digits", TOKEN)


@needs_links
def test_links_to_elsewhere_are_not_pushed(hub, run, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (run / "unet" / "more.json").symlink_to(tmp_path / "secret.json")
    for action in (lambda: push_run(run, "alice/digits", TOKEN), lambda: write_space(run)):
        with pytest.raises(ValueError, match=r"unet/more\.json is a link to outside of "):
            action()
    (run / "unet" / "more.json").unlink()
    (run / "unet" / "more.json").write_text(f'{{"token": "{TOKEN}"}}')
    with pytest.raises(ValueError, match=r"unet/more\.json contains a token"):
        push_run(run, "alice/digits", TOKEN)
    assert hub.requests == []


# ---- Weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_pushed(hub, run, number):
    path = run / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = number
    save_file(tensors, path)
    message = rf"holds broken weights: 1 of the \d+ numbers of {re.escape(name)} are NaN or infinite\."
    with pytest.raises(SystemExit, match=message):
        cli.main(["push", str(run), "--hub_token", TOKEN])
    with pytest.raises(SystemExit, match=message):
        cli.main(["push", str(run), "--hub_token", TOKEN, "--space"])
    assert hub.requests == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, None])
def test_weights_that_are_broken_or_missing_are_not_pushed(hub, run, content):
    path = run / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is broken: |holds no weights"):
        push_run(run, "alice/digits", TOKEN)
    assert hub.requests == []


# ---- The folder of a Space -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["diary.txt"], ["README.md", "model/mine.txt"], ["app.py"], [".env"]])
def test_a_folder_of_others_is_no_space(run, names):
    for name in names:
        (run / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "space" / name).write_text("mine")
    before = (run / "README.md").exists()
    with pytest.raises(SystemExit, match=r"space was not written by ddpm-hf push --space .*; move it away"):
        cli.main(["push", str(run), "--space", "--no_upload"])
    files = {path.relative_to(run / "space").as_posix() for path in (run / "space").rglob("*") if path.is_file()}
    assert files == set(names)
    assert (run / "README.md").exists() == before


@needs_links
def test_a_space_elsewhere_is_left_alone(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run / "space").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is no folder, or"):
        write_space(run)
    (run / "space").unlink()
    (run / "space").write_text("mine")
    with pytest.raises(ValueError, match="is no folder, or"):
        write_space(run)
    (run / "space").unlink()
    shutil.rmtree(write_space(run) / "model")
    (run / "space" / "model").symlink_to(run)  # its files look like those of a Space
    with pytest.raises(ValueError, match="there are links in it"):
        write_space(run)
    assert (run / "unet" / "config.json").exists()


def test_a_space_that_is_half_written_is_replaced(run, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("shutil.copyfile", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_space(run)
    assert (write_space(run) / "app.py").exists()


def test_files_of_others_in_a_space_stay_and_are_not_pushed(hub, run):
    space = write_space(run)
    for name in ("notes.txt", ".env", "model/mine.txt", "app.py", "ddpm_hf/gone.py"):
        (space / name).write_text("mine")
    write_space(run)
    assert [(space / name).read_text() for name in ("notes.txt", ".env", "model/mine.txt")] == ["mine"] * 3
    assert "mine" not in (space / "app.py").read_text()
    assert not (space / "ddpm_hf" / "gone.py").exists()
    push_space(run, "alice/digits", TOKEN)
    assert not {"notes.txt", ".env", "model/mine.txt"} & set(files_of(hub, "spaces/alice/digits"))


# ---- From train_ddpm.py ----------------------------------------------------------------------------------------------


def assert_no_token_in(folder):
    for path in folder.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def test_training_with_a_push(hub, train, tmp_path, capsys):
    options = {"hub_token": TOKEN, "hub_model_id": "digits"}
    train("run", "--push_to_hub", **options)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"Pushed to {hub.url}/alice/digits."
    assert TOKEN not in printed.out + printed.err
    assert_no_token_in(tmp_path)
    assert {"README.md", "denoising.png", "samples/step-000004.png"} <= set(files_of(hub))

    train("run", "--push_to_hub", **options)  # trains, and shares
    assert commits_of(hub) == 1
    train("run", **options, max_train_steps=6)  # continues, without a push
    assert commits_of(hub) == 1

    train("dry", "--push_to_hub", "--dry_run", **options)
    assert TOKEN not in "".join(capsys.readouterr())


def test_training_does_not_begin_without_a_way_to_push(hub, train, tmp_path):
    with pytest.raises(SystemExit, match=r"--hub_token: this token of alice may not write to alice/run;"):
        train("run", "--push_to_hub", hub_token="hf_reader")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("request_kind", "status"), [("commit", 503), pytest.param("preupload", 403, marks=pytest.mark.slow)]
)
def test_a_failed_push_does_not_fail_the_training(hub, train, waits, tmp_path, capsys, request_kind, status):
    hub.fail(REQUESTS[request_kind], status, times=TRIES if status == 503 else 1)
    folder = train("my run", "--push_to_hub", "--hub_private_repo", hub_token=TOKEN, hub_model_id="alice/digits")
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err
    assert_no_token_in(tmp_path)
    last = printed.out.splitlines()[-1]
    assert last.startswith(f"Not shared: cannot push {folder} to alice/digits: ")
    assert last.endswith(f"share it later with: ddpm-hf push '{folder}' --hub_model_id alice/digits --hub_private_repo")
    assert (folder / "model_index.json").exists()
    cli.main([*shlex.split(last.split("ddpm-hf ")[1]), "--hub_token", TOKEN])
    assert commits_of(hub) == 1


def test_a_broken_card_is_told_and_does_no_harm(run, capsys):
    (run / "README.md").write_text("---\na: [\n---\n")
    share_run(TrainingConfig(output_dir=str(run)), finished=True)
    assert capsys.readouterr().out.startswith("Not shared: the metadata at the top of README.md is no YAML")


def test_a_token_after_a_mistyped_flag_is_not_repeated(train, capsys):
    with pytest.raises(SystemExit):
        train("run", hub_tokn=TOKEN)
    text = capsys.readouterr().err
    assert "--hub_tokn hf_*** (did you mean --hub_token?)" in text
    assert TOKEN not in text


# ---- From end to end, in other processes -----------------------------------------------------------------------------


def python(*arguments, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command, output = [sys.executable, *arguments], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.run(command, cwd=cwd, env={**clean, **environment}, text=True, **output)
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.mark.slow
def test_train_push_and_load_elsewhere(small, tmp_path):
    """An id gives the pictures of the run's folder, with our class and with stock diffusers."""
    draw = """
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(3, torch.Generator().manual_seed(0), 5, output_type="np").images
    np.save({name!r}, images)
    """
    load = {
        "ours": 'from ddpm_hf import *; pipeline = DDPMPipelineCustom.from_pretrained("alice/digits")',
        "stock": f"""{WITHOUT_PACKAGE}; from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("alice/digits", revision="main", trust_remote_code=True)""",
    }
    with LoopbackHub(USERS) as hub:
        flags = small("run", "--push_to_hub", "--hub_private_repo", hub_model_id="digits")
        text = python("train_ddpm.py", *flags, cwd=ROOT, **hub.environment(tmp_path / "cache of alice", TOKEN))
        assert text.splitlines()[-1] == f"Pushed to {hub.url}/alice/digits."
        assert TOKEN not in text
        assert_no_token_in(tmp_path)
        card = files_of(hub)["README.md"].decode()
        for name, code in load.items():
            environment = hub.environment(tmp_path / f"cache of {name}", TOKEN)
            code = f"{code}\nimport numpy as np, torch\n{textwrap.dedent(draw.format(name=name))}"
            code += "pipeline.push_to_hub('alice/digits')" * (name == "ours")
            # More threads than here would change the last bits.
            python("-c", code, cwd=tmp_path, **environment, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")

        assert files_of(hub)["README.md"].decode() == card
        assert_no_token_in(tmp_path)
    pipeline = DDPMPipelineCustom.from_pretrained(tmp_path / "run")
    pictures = pipeline(3, torch.Generator().manual_seed(0), 5, output_type="np").images
    for name in load:
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), pictures)
