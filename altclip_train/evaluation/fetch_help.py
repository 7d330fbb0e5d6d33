"""``altclip data fetch-help``: where benchmarks come from, what they must hold, and whether a folder holds it."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from altclip_train.configuration import nearest
from altclip_train.data.samples import normalize_language
from altclip_train.data.urls import place
from altclip_train.evaluation.benchmarks import Benchmark
from altclip_train.evaluation.known_benchmarks import KNOWN
from altclip_train.evaluation.protocols import GENERIC, KnownBenchmark, Protocol
from altclip_train.evaluation.readers.prompts import Entry, how_to_get
from altclip_train.evaluation.retrieval_benchmark import RetrievalBenchmark
from altclip_train.evaluation.zero_shot_benchmark import ZeroShotBenchmark

COMMAND = "python -m altclip_train.evaluate checkpoint=DIR"


def run(options: argparse.Namespace) -> None:
    """List all benchmarks, explain one, or verify a folder of it; exits with 1 when no protocol fits the folder."""
    if options.name is None:
        print(*listed(), sep="\n")
        return
    known = KNOWN.get(options.name)
    if known is None:
        hint = nearest(options.name, KNOWN) or "."
        raise ValueError(f"no benchmark is named {options.name!r}{hint} `altclip data fetch-help` lists them")
    if options.root is None:
        print(*explained(known), sep="\n")
        return
    if known.protocols[0].id == GENERIC and options.language is None:
        raise ValueError("give --language, such as --language zh")
    fits = False
    for line, fit in verified(known, options.root, options.language, options.prompts, options.pictures):
        print(line, flush=True)
        fits |= fit
    if not fits:
        raise SystemExit(1)


def listed() -> Iterator[str]:
    """A line for each benchmark."""
    width = max(map(len, KNOWN))
    for known in KNOWN.values():
        ids = ", ".join(protocol.id for protocol in known.protocols)
        yield f"{known.name:{width}}  {known.title}; protocols: {ids}"
    yield ""
    yield "altclip data fetch-help NAME explains one; altclip data fetch-help NAME DIR verifies what lies there"


def explained(known: KnownBenchmark) -> Iterator[str]:
    """All that is known of a benchmark."""
    yield f"{known.name}: {known.title}"
    for number, protocol in enumerate(known.protocols):
        default = " (default)" if number == 0 and len(known.protocols) > 1 else ""
        languages = f" [{' '.join(protocol.languages)}]" if protocol.languages else ""
        yield f"protocol {protocol.id}{default}: {protocol.description}{counts_of(protocol)}{languages}"
    yield f"from: {known.source}"
    yield f"licence: {known.licence}"
    yield from (f"reads: {layout}" for layout in known.layouts)
    yield from (f"sha256: {file.sha256}  {file.name}" for file in known.files)
    if known.warning is not None:
        yield f"warning: {known.warning}"
    yield from (f"trap: {trap}" for trap in known.traps)
    for file, ids in _prompt_files(known).items():
        yield f"class names and templates of {', '.join(ids)}: {how_to_get(file)}"
    languages = known.languages
    example = "" if languages else f" eval.{known.name}.language=zh"
    yield f"evaluate: {COMMAND} 'eval=[{known.name}]' eval.{known.name}.root=DIR{example}"


def counts_of(protocol: Protocol) -> str:
    """Its counts for a person, after a comma, or nothing."""
    return "".join(f", {count:,} {what}" for what, count in protocol.counts.items())


def verified(
    known: KnownBenchmark,
    root: str,
    languages: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    pictures: str | None = None,
) -> Iterator[tuple[str, bool]]:
    """Lines on what lies in ``root``, and whether a protocol fits it; decodes every picture."""
    folder = place(root)
    for file in known.files:
        for path in sorted(folder.rglob(file.name)) if isinstance(folder, Path) else []:
            same = hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
            yield f"{path}: {'the published file' if same else 'not the published file (sha256 differs)'}", False
    decoded: set[str] = set()
    for protocol in known.protocols:
        for language in languages or protocol.languages[:1]:
            if protocol.languages and normalize_language(language) not in protocol.languages:
                continue
            label = f"{known.name}/{language} by {protocol.id}"
            try:
                benchmark = _benchmark(known, root, language, protocol, prompts, pictures)
                _decode_all(benchmark, decoded)
            except (ValueError, FileNotFoundError) as error:
                yield f"{label}: no: {error}", False
            else:
                counts = ", ".join(f"{count:,} {what}" for what, count in benchmark.counts(language).items())
                yield f"{label}: complete, {counts}", True


def _benchmark(
    known: KnownBenchmark,
    root: str,
    language: str,
    protocol: Protocol,
    prompts: Sequence[str] | None,
    pictures: str | None,
) -> Benchmark:
    if known.kind == "zero_shot":
        return ZeroShotBenchmark(root=root, language=language, name=known.name, protocol=protocol.id, prompts=prompts)
    return RetrievalBenchmark(root=root, language=language, name=known.name, protocol=protocol.id, pictures=pictures)


def _decode_all(benchmark: Benchmark, decoded: set[str]) -> None:
    pictures = benchmark.prepare()
    if pictures.sha256 not in decoded:
        for decode in pictures:
            decode()
        decoded.add(pictures.sha256)


def _prompt_files(known: KnownBenchmark) -> Mapping[str, Sequence[str]]:
    """Protocols by a file that they need, one file of a wheel for all of it."""
    needed: dict[str, list[str]] = {}
    for protocol in known.protocols:
        files = [source.class_names.file for source in protocol.prompts.values()]
        files += [known.class_folders.file] if isinstance(known.class_folders, Entry) else []
        for file in dict.fromkeys("clip_benchmark/" if "/" in name else name for name in files):
            needed.setdefault(file, []).append(protocol.id)
    return needed
