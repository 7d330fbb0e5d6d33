"""Passwords and signatures of urls are used and never kept: neither by a run, nor by what it logs or leaves."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from altclip_train.data.urls import SECRET, RemoteUrl, shown
from altclip_train.report.record import command
from tests.servers import serve
from tests.workspace import Workspace

CANARY = "CANARY"


def kept(directory: Path) -> list[str]:
    """Files that hold the canary, or whose names do."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if CANARY in path.name or CANARY.encode() in path.read_bytes()]


@pytest.mark.parametrize("mode", ["indexed", "streaming"])
def test_a_run_on_signed_urls_keeps_no_secret_and_resumes_with_other_signatures(
    workspace: Workspace, mode: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    shard = Path(workspace.damaged_texts([3], 40))
    outputs = workspace.new_directory()
    with serve(**{"0.tar": shard.read_bytes()}) as files:
        host = files.url.removeprefix("http://")

        def signed(signature: str) -> list[str]:
            url = f"http://user:{CANARY}@{host}/0.tar?X-Amz-Signature={CANARY}{signature}&a=it's"
            sources = f'data.parallel_texts=[{{urls: "{url}", languages: [en, zh]}}]'
            command = ["stage=teacher", "data.val_texts=[]", "data.max_bad_fraction=0.5", f"data.mode={mode}"]
            command.append("callbacks.report.every_n_seconds=0")
            return [*command, sources, f"data.cache_dir={outputs / 'cache'}", f"outputs={outputs}"]

        run = workspace.train(*signed("1"), "trainer.max_steps=4")
        workspace.train(*signed("2"), "trainer.max_steps=6", f"resume={run.directory}", directory=run.directory)
        signatures = {query.partition("&")[0] for query in files.queries}
        assert {f"X-Amz-Signature={CANARY}{n}" for n in (1, 2)} <= signatures
    assert kept(run.directory) == []
    assert kept(outputs) == []
    if mode == "indexed":  # a stream need not have met the damaged sample yet
        assert (run.directory / "bad_samples.jsonl").read_text().count(f"http://{host}/0.tar") == 1
    assert f"http://{host}/0.tar" in (run.directory / "report.html").read_text()
    config = yaml.safe_load((run.directory / "config.yaml").read_text())
    assert config["data"]["parallel_texts"][0]["urls"] == f"http://{host}/0.tar"
    output = capsys.readouterr()
    assert CANARY not in output.out + output.err + caplog.text


def test_an_error_about_a_signed_url_shows_no_secret(workspace: Workspace):
    with serve() as files:
        source = f"data.parallel_texts=[{{urls: '{files.url}/none.tar?sig={CANARY}', languages: [en, zh]}}]"
        with pytest.raises(Exception, match=r"there is no file .*/none\.tar") as error:
            workspace.train("stage=teacher", source)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"urls": ["s3://u:p@b/{0..9}.tar?a=b c'd"], "weight": 2.0}, {"urls": ["s3://b/{0..9}.tar"], "weight": 2.0}),
        ("pipe:curl -s 'https://h/a.tar?sig=x' | cat", "pipe:curl -s 'https://h/a.tar' | cat"),
        ("is it so?", "is it so?"),
        ([None, True, 3], [None, True, 3]),
        ({"api_key": "CANARY", "tokenizer": "a"}, {"api_key": SECRET, "tokenizer": "a"}),
    ],
)
def test_values_are_shown_without_passwords_and_queries(value: object, expected: object):
    assert shown(value) == expected


def test_a_query_with_quotes_and_spaces_is_not_shown():
    assert str(RemoteUrl('https://u:p@h/0.tar?sig=it\'s a "secret"#x')) == "https://h/0.tar"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.cache_dir='s3://u:CANARY@b/c?sig=CANARY'", "data.cache_dir='s3://b/c'"),
        ("data.x=[{urls: 'https://h/0.tar?a=it\\'s CANARY'}]", f"data.x={SECRET}"),
        ("+logger.wandb.settings.api_key=CANARY", f"+logger.wandb.settings.api_key={SECRET}"),
        ("+logger.wandb.settings={api_key: CANARY, mode: x}", f"+logger.wandb.settings={{api_key: {SECRET}, mode: x}}"),
        ("~callbacks.report", "~callbacks.report"),
    ],
)
def test_the_command_of_a_report_holds_no_secret(override: str, expected: str):
    assert shlex.split(command(["stage=teacher", override])) == ["python", "train.py", "stage=teacher", expected]
