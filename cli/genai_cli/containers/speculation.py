"""`--speculation` and its options -> what guesses tokens for one session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from genai_cli.containers.choice import runnable_container
from genai_cli.engine.work_folders import known_digests
from genai_core.errors import BadInput
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import Container
from genai_runtime.executor.executor import Executor
from genai_runtime.session import Session, SlotSession
from genai_runtime.speculation.config import named_config
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculator import open_speculation
from genai_runtime.steadiness import try_out_chunks

__all__ = ["Guessing"]

_OPTION = "--speculation"


@dataclass(frozen=True)
class Guessing:
    """The options of a command.

    Attributes:
        method: Of `--speculation`; None = nothing is guessed.
        draft: Of `--draft`.
        tokens: Of `--draft-tokens`.
        threads: The target's, and the draft's where its configuration names none.
    """

    method: str | None = None
    draft: str | None = None
    tokens: int | None = None
    threads: int = 0

    @contextmanager
    def opened(self, container: Container, session: Session) -> Iterator[Speculation | None]:
        """What guesses for a session of a container; None where nothing was asked for.

        Raises:
            BadInput: The options make no sense together, or answers would not be plain ones.
        """
        if self.method is None:
            for value, option in ((self.draft, "--draft"), (self.tokens, "--draft-tokens")):
                if value is not None:
                    raise BadInput(
                        "it is of speculation", where=option, remedy=f"add {_OPTION} METHOD"
                    )
            yield None
            return
        config = named_config(self.method, draft=self.draft, tokens=self.tokens, where=_OPTION)
        assert isinstance(session, SlotSession)
        target = session.executor

        def load_draft(path: Path) -> Container:
            folder = runnable_container(path)
            return containers.load(folder, digest_of=known_digests().digest)

        def open_draft(draft: Container, threads: int | None) -> Executor:
            opened = open_session(draft, threads=self.threads if threads is None else threads)
            assert isinstance(opened, SlotSession)
            return opened.executor

        speculation = open_speculation(
            config,
            target,
            steady=config.lossy or try_out_chunks(target),
            tokenizer_of=container,
            open_draft=open_draft,
            load_draft=load_draft,
            where=_OPTION,
        )
        try:
            yield speculation
        finally:
            speculation.close()
