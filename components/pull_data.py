"""Component that looks a version of the data up."""

from typing import NamedTuple

from components.common import light


@light
def pull_data(repo: str, rev: str, path: str) -> NamedTuple("Version", [("uri", str), ("md5", str), ("commit", str)]):  # type: ignore[valid-type] # fmt: skip
    """Find a folder under DVC at a revision: its address in the remote, DVC's MD5 of it, and the commit.

    Values and not an artifact: a task that gets the same address and MD5 is cached whatever commit they came from, and
    no image is copied here.

    Args:
        repo: git address; empty for generated images, and then all values are.
        rev: commit, branch or tag.
        path: of the folder in the repository.
    """
    import logging
    from typing import NamedTuple

    from amlp.data.versions import resolve_version

    logger = logging.getLogger("components.pull_data")

    class Version(NamedTuple):
        uri: str
        md5: str
        commit: str

    if not repo:
        return Version("", "", "")
    found = resolve_version(repo=repo, rev=rev, path=path)
    logger.info(f"{path} at commit {found.commit}: {found.md5}, {found.uri}")
    return Version(found.uri, found.md5, found.commit)
