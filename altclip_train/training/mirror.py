"""Copies of checkpoints in another place, such as an object store, and runs that are fetched from there to go on.

The order is that of a run directory: data first, the manifest last, and first away where there is one already.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

from altclip_train.data.remote import READ_ONLY, Patience, download, list_urls, read_file, remove, state_of, upload
from altclip_train.data.urls import REMOTE, RemoteUrl, without_secrets
from altclip_train.files import written_whole
from altclip_train.training.manifest import PATTERN, files_of, manifest_of, problem
from altclip_train.training.runs import CHECKPOINTS

FACTS = ("config.yaml", "run.json")  # what a run is resumed with, beside a checkpoint


class Mirror:
    """Of a run directory, at ``root`` and the name of the run. Raises ValueError for another kind of ``root``."""

    def __init__(self, run: Path, root: str, patience: Patience | None = None) -> None:
        if not REMOTE.match(root) or "?" in root or RemoteUrl(root).scheme in READ_ONLY:
            raise ValueError(
                f"callbacks.checkpoints.mirror={without_secrets(root)}: expected a url that takes files, without a "
                "query, such as s3://bucket/runs or file:///a/directory"
            )
        self.run, self.url = run, RemoteUrl(f"{root.rstrip('/')}/{run.name}")
        self.patience = patience or Patience()

    def begin(self) -> None:
        """Copy what a run is resumed with; raises here what would go wrong with every checkpoint."""
        for name in FACTS:
            upload(self.run / name, _below(self.url, name), self.patience)

    def copy(self, checkpoint: Path, keep: int | None) -> None:
        """Copy a checkpoint that is whole; only then older ones go. Raises PermissionError, Unreachable."""
        manifest = manifest_of(checkpoint)
        remove(_below(self.url, CHECKPOINTS, manifest.name), self.patience)
        for name, file in files_of(checkpoint).items():
            upload(file, _below(self.url, CHECKPOINTS, name), self.patience)
        upload(manifest, _below(self.url, CHECKPOINTS, manifest.name), self.patience)
        copied = [url for url in _manifests(self.url, self.patience) if url.name <= manifest.name]
        for older in copied[:-keep] if keep is not None else ():
            names = _names(older, read_file(older, self.patience))
            remove(older, self.patience)
            for name in names:
                remove(_below(self.url, CHECKPOINTS, name), self.patience)


def fetch_run(url: RemoteUrl, directory: Path, patience: Patience | None = None) -> Path:
    """Fetch the newest whole checkpoint of a mirror, and what it is resumed with; a run directory in ``directory``.

    What is there already is not fetched again. Raises FileNotFoundError when no checkpoint is whole, Unreachable.
    """
    patience = patience or Patience()
    run = directory / url.name
    for manifest in reversed(_manifests(url, patience)):
        checkpoint = run / CHECKPOINTS / manifest.name.removesuffix(".json")
        if problem(checkpoint) is not None:
            _fetch(url, manifest, checkpoint, patience)
        if (reason := problem(checkpoint)) is None:
            for name in (fact for fact in FACTS if not (run / fact).exists()):
                with written_whole(run / name) as file:
                    file.write_bytes(read_file(_below(url, name), patience))
            return run
        print(f"warning: {checkpoint.name} of {url} is passed over: {reason}")
    raise FileNotFoundError(
        f"resume={url}: no whole checkpoint below {url}/{CHECKPOINTS}; give the url of a run, as "
        "callbacks.checkpoints.mirror and the name of its directory"
    )


def _fetch(url: RemoteUrl, manifest: RemoteUrl, checkpoint: Path, patience: Patience) -> None:
    content = read_file(manifest, patience)
    manifest_of(checkpoint).unlink(missing_ok=True)
    try:
        for name in _names(manifest, content):
            source, target = _below(url, CHECKPOINTS, name), checkpoint.parent / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                download(source, state_of(source, patience), file.fileno(), patience)
                os.fsync(file.fileno())
    except (FileNotFoundError, ValueError) as error:  # then it does not verify
        print(f"warning: {error}")
    with written_whole(manifest_of(checkpoint)) as file:
        file.write_bytes(content)


def _manifests(url: RemoteUrl, patience: Patience) -> list[RemoteUrl]:
    """Oldest first."""
    return list_urls(_below(url, CHECKPOINTS, f"{PATTERN}.json"), patience)


def _names(manifest: RemoteUrl, content: bytes) -> list[str]:
    """Files that a manifest lists. Raises ValueError for a damaged one, and for files outside of its checkpoint."""
    try:
        names = [str(name) for name in json.loads(content)["files"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{manifest} is damaged") from None
    for name in names:
        parts = PurePosixPath(name).parts
        if parts[:1] != (manifest.name.removesuffix(".json"),) or ".." in parts:
            raise ValueError(f"{manifest} lists {name!r}, which is no file of its checkpoint")
    return names


def _below(url: RemoteUrl, *names: str) -> RemoteUrl:
    return RemoteUrl("/".join((url.url, *names)))
