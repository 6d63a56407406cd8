"""The Hugging Face Hub: a folder with a flow, its card and its hash; what uploads it; and addresses to load from.

`prepare_folder` is the local half and is tested. That a folder reaches the Hub is not: `push_to_hub` and `fetch` hand
over to huggingface_hub, and flowkit's tests only look at what they hand over.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowkit._version import __version__
from flowkit.errors import ConfigError, MissingDependencyError, StorageError
from flowkit.storage import atomic_write, save
from flowkit.strict_json import shown

if TYPE_CHECKING:
    from flowkit.flow import Flow

SCHEME = "hf://"
FILE, CARD, SUMS = "flow.safetensors", "README.md", "SHA256SUMS"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"  # no "..", nothing hidden, nothing that starts as an option does
_ADDRESS = re.compile(rf"hf://({_PART}/{_PART})(?:@({_PART}))?((?:/{_PART})*)")


def prepare_folder(
    flow: Flow,
    folder: str | os.PathLike,
    *,
    title: str = "A normalizing flow",
    text: str = "",
    license: str | None = None,
) -> Path:
    """Write a flow, a model card and the file's SHA-256 into a folder: `flow.safetensors`, `README.md`, `SHA256SUMS`.

    Args:
        flow: with registered parts only, as for `fk.save`.
        folder: made where it is missing; files of these names are replaced, others left alone.
        title: the card's heading, one line.
        text: Markdown that the card begins with: data, training, limits.
        license: an identifier of the Hub's, such as `"mit"`.

    Raises:
        StorageError: the flow or the folder cannot be written.
        ConfigError: a title of several lines, or a license that is no identifier.

    >>> import flowkit as fk
    >>> folder = prepare_folder(fk.Flow(fk.ElementwiseAffine((3,))), tempfile.mkdtemp(), title="Three numbers")
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'SHA256SUMS', 'flow.safetensors']
    """
    if not title.strip() or not title.isprintable():
        raise ConfigError(f"the card's title must be one line, got {shown(title)}")
    if license is not None and not re.fullmatch(_PART, license):
        raise ConfigError(f"license must be an identifier such as 'mit', got {shown(license)}")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder '{folder}' cannot be made: {error.strerror or error}") from error
    save(flow, folder / FILE)
    digest = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    for name, content in ((CARD, _card(flow, title, text, license, digest)), (SUMS, f"{digest}  {FILE}\n")):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return folder


def push_to_hub(
    flow: Flow, repo_id: str, *, private: bool = False, token: str | None = None, message: str = "A flow", **card: Any
) -> str:
    """Make the repository `owner/name` where it is missing, upload the folder of `prepare_folder`, return the address.

    The upload is not tested: flowkit's tests have no network. What is uploaded is what `prepare_folder` writes.

    Args:
        flow: see `prepare_folder`.
        repo_id: `"owner/name"`.
        private: of a new repository.
        token: None is the one that `hf auth login` stored.
        message: of the commit.
        card: `title`, `text`, `license`, see `prepare_folder`.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        ConfigError: a name that is none.
    """
    match = _ADDRESS.fullmatch(SCHEME + repo_id)
    if not match or match[2] or match[3]:
        raise ConfigError(f"a repository is named 'owner/name', got {shown(repo_id)}")
    api = _hub().HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        prepare_folder(flow, folder, **card)
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return f"{SCHEME}{repo_id}/{FILE}"


def is_address(file: str) -> bool:
    """Whether this is meant as an address of the Hub, not as a path.

    >>> is_address("hf://acme/moons"), is_address("moons.safetensors")
    (True, False)
    """
    return file.startswith(SCHEME)


def fetch(address: str) -> Path:
    """The local copy of `hf://owner/name[@revision]/file`, downloaded where huggingface_hub has none.

    Raises:
        StorageError: an address that is none, or a file that cannot be had.
        MissingDependencyError: huggingface_hub is not installed.
    """
    repo_id, revision, file = parse(address)
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(repo_id, file, revision=revision))
    except Exception as error:  # huggingface_hub's, its HTTP client's and the system's
        raise StorageError(f"'{address}' cannot be had: {type(error).__name__}: {shown(str(error), 300)}") from error


def parse(address: str) -> tuple[str, str | None, str]:
    """Repository, revision and file of an address.

    >>> parse("hf://acme/moons@v1/flows/big.safetensors"), parse("hf://acme/moons")
    (('acme/moons', 'v1', 'flows/big.safetensors'), ('acme/moons', None, 'flow.safetensors'))
    """
    match = _ADDRESS.fullmatch(address)
    if not match or ".." in address:
        raise StorageError(f"an address is hf://owner/name[@revision]/file, got {shown(address)}")
    return match[1], match[2], match[3].removeprefix("/") or FILE


def _card(flow: Flow, title: str, text: str, license: str | None, digest: str) -> str:
    front = ["---", "library_name: flowkit", "tags:", "- normalizing-flow", "- density-estimation"]
    front += [f"license: {license}"] * (license is not None) + ["---", ""]
    count = sum(p.numel() for p in flow.parameters())
    facts = [f"| input `{name}` | {shape} |" for name, shape in flow.input_shapes.items()]
    facts += [f"| condition `{name}` | {shape} |" for name, shape in flow.condition_shapes.items()]
    facts += [f"| latent `{name}` | {shape} |" for name, (_, shape) in flow.latents.items()]
    facts += [f"| base | {type(flow.base).__name__} |", f"| parameters | {count:,} |"]
    facts += [f"| density | {'exact' if flow.exact else 'an estimate or a bound'} |"]
    use = ["```python", "import flowkit as fk", "", f'flow = fk.load("{FILE}")', "```"]
    written = [f"Written by flowkit {__version__}. SHA-256 of `{FILE}`: `{digest}`."]
    parts = [f"# {title}", text.strip(), "\n".join(["| | |", "| --- | --- |", *facts]), "\n".join(use), *written]
    graph = "\n".join(["## Graph", "", "```text", flow.network.graph.draw("text").rstrip(), "```"])
    return "\n".join(front) + "\n".join(["\n\n".join(part for part in (*parts, graph) if part), ""])


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError(
            "the Hugging Face Hub needs huggingface_hub, which is not installed: python -m pip install 'flowkit[hub]'"
        ) from error
    return huggingface_hub
