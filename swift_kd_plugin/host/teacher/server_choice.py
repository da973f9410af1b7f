"""Whose rows of a teacher cache a run takes that only reads, and so cannot ask its servers who they are."""

import json
from dataclasses import dataclass
from pathlib import Path

from swift.utils import get_logger

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.teacher.cache_choice import AUTO, FLAG
from swift_kd_plugin.serving.transport import hide_credentials
from swift_kd_plugin.teacher.cache_identity import CacheIdentity
from swift_kd_plugin.teacher.cache_shards import read_shard
from swift_kd_plugin.teacher.teacher_cache import caches_in

logger = get_logger()
OF_SERVER = "server of "


@dataclass(frozen=True)
class ServedRows:
    """What is there of one server: its identity, and the addresses from which its shards came."""

    identity: CacheIdentity
    addresses: frozenset[str]

    @property
    def name(self) -> str:
        return f"{self.identity.teacher.removeprefix(OF_SERVER)} behind {' and '.join(sorted(self.addresses))}"


def address_of(url: str) -> str:
    """By which a server is known: without credentials, query and a slash at its end."""
    return hide_credentials(url).rstrip("/")


def rows_of_servers(folder: Path) -> list[ServedRows]:
    found = []
    for files in caches_in(folder):
        shards = [read_shard(file) for file in files]
        identity = CacheIdentity.from_json(shards[0].identity)
        if identity.teacher.startswith(OF_SERVER):
            urls = (json.loads(shard.about).get("url") for shard in shards)
            found.append(ServedRows(identity, frozenset(address_of(url) for url in urls if url)))
    return found


def choose_rows(folder: Path, config, of_model: dict, alone: bool) -> CacheIdentity:
    """The server whose rows are there: that of the same address, or of one entry alone the only one.

    Args:
        config: entry of --teacher_model_server, with `url` and `adapter`.
        of_model: fields of the identity without `teacher`.
        alone: it is the only entry.

    Raises:
        KDError: there are no such rows, or they may be of another server.
    """
    address = address_of(config.url)
    fitting = [
        one for one in rows_of_servers(folder) if one.identity == CacheIdentity(one.identity.teacher, **of_model)
    ]
    here = [one for one in fitting if address in one.addresses]
    if len(here) == 1:
        return here[0].identity
    names = ", ".join(sorted(one.name for one in fitting))
    if len(fitting) == 1 and alone:
        logger.warning(
            f"{FLAG} {folder} holds no rows from {address}: those of {names} are read, the only ones there with these "
            "settings."
        )
        return fitting[0].identity
    raise KDError(
        _why_none(folder, config, of_model) if not fitting else _why_unclear(folder, address, names, here, alone)
    )


def _why_none(folder: Path, config, of_model: dict) -> str:
    adapter = f" with the adapter {config.adapter}" if config.adapter else ""
    return (
        f"{FLAG} {folder} holds no rows of a teacher server{adapter} with its {of_model['settings']['k']} "
        f"most probable tokens; give the --kd_topk and the tokenizer of the run that filled it, or {AUTO}."
    )


def _why_unclear(folder: Path, address: str, names: str, here: list[ServedRows], alone: bool) -> str:
    if here or alone:
        return (
            f"{FLAG} {folder} holds rows of several servers ({names}), {'several' if here else 'none'} of them from "
            f"{address}; give the address from which one was filled, or a folder of one server."
        )
    return (
        f"{FLAG} {folder} holds no rows from {address} of --teacher_model_server (those there are of {names}); with "
        f"several servers each takes the rows of its address: give the one from which they came, or {AUTO}."
    )
