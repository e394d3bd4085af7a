"""What goes to stderr: notes, and progress of anything that takes more than a few seconds (silent when that is no terminal)."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Update = Callable[[str, int, int], None]


def note(text: str) -> None:
    """One sentence for the user."""
    print(f"edgeqkv: {text}", file=sys.stderr)


@contextmanager
def progress_bar(title: str) -> Iterator[Update]:
    """Yields ``update(what, done, total)``; shows the share done and the time that is left."""
    with progress_bars([title]) as bars:
        yield bars[title]


@contextmanager
def progress_bars(titles: Sequence[str]) -> Iterator[dict[str, Update]]:
    """One bar for each of several things that go on at once; see :func:`progress_bar`."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:

        def updater(title: str) -> Update:
            task = shown.add_task(escape(title), total=None)

            def update(what: str, done: int, total: int) -> None:
                text = escape(f"{title}: {what}" if what else title)
                shown.update(task, description=text, completed=done, total=total or None)

            return update

        yield {title: updater(title) for title in titles}
