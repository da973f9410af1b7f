"""`swift-kd cache`: what a --kd_teacher_cache holds, whether it is whole, and what is taken out of it."""

from pathlib import Path
from typing import Annotated

import typer

from swift_kd_plugin.cli.reporting import errors_in_one_sentence
from swift_kd_plugin.errors import KDError

cache = typer.Typer(help="What a --kd_teacher_cache holds.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="The folder of --kd_teacher_cache.")]


@cache.command()
def show(folder: Folder) -> None:
    """Prints what is there, by teacher."""
    from swift_kd_plugin.teacher.cache_contents import read_contents  # torch, which other subcommands do without

    with errors_in_one_sentence("cache show"):
        found = read_contents(folder)
        for one in found:
            typer.echo(f"{one.name}  {one.about.get('teacher', 'unknown teacher')}")
            typer.echo(f"    {one.form}; template {one.about.get('template', 'unknown')}")
            per_token = one.bytes / max(one.tokens, 1)
            typer.echo(
                f"    {one.samples:,} samples, {one.tokens:,} tokens, {one.bytes:,} bytes ({per_token:,.1f} a token), "
                f"{one.shards:,} shard{'s' * (one.shards != 1)}"
            )
        if not found:
            typer.echo(f"{folder} holds no rows of any teacher")


@cache.command()
def check(folder: Folder) -> None:
    """Reads every row and compares it with its digest."""
    from swift_kd_plugin.teacher.cache_contents import find_damage

    with errors_in_one_sentence("cache check"):
        found = list(find_damage(folder))
        damaged = [sentence for sentence in found if sentence]
        for sentence in damaged[1:]:
            typer.echo(sentence, err=True)
        if damaged:
            raise KDError(damaged[0])
        typer.echo(f"{len(found):,} shards are whole" if found else f"{folder} holds no rows of any teacher")


@cache.command()
def clear(
    folder: Folder,
    teachers: Annotated[list[str] | None, typer.Argument(help="Names that `show` prints.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The rows of all teachers.")] = False,
) -> None:
    """Removes the rows of some teachers, and what killed writers left. No run may be writing to the folder."""
    from swift_kd_plugin.teacher.cache_contents import clear as remove
    from swift_kd_plugin.teacher.teacher_cache import caches_in

    with errors_in_one_sentence("cache clear"):
        if bool(teachers) == everything:
            raise KDError("name the teachers whose rows are removed (`swift-kd cache show`), or give --all.")
        names = [files[0].parent.name for files in caches_in(folder)] if everything else teachers
        count, size = remove(folder, names)
        typer.echo(f"{count:,} files were removed, {size:,} bytes")
