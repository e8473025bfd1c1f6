"""`python -m genai_serving CONTAINER`: what `genai serve` starts, and a pod runs."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from genai_core.errors import BadInput, GenAIError

if TYPE_CHECKING:
    from genai_runtime.speculation.config import SpeculativeConfig
    from genai_serving.api.api_keys import ApiKeys

_MOST_TEXT = 1000


def main(argv: list[str] | None = None) -> int:
    """Serve a container; returns the exit code: 0 ended, 2 bad input, 130 interrupted, 1 else."""
    given = _arguments(argv)
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    try:
        from genai_serving.server import serve
        from genai_serving.start.options import AdminOptions, Options

        admin = None
        if given.admin_port is not None:
            admin = AdminOptions(
                given.admin_port,
                _admin_tokens(given.admin_token_file, given.admin_tokens_folder),
                given.adapter_folder,
                given.declared_adapters,
                given.fetch_socket,
            )

        return serve(
            Options(
                container=given.container,
                cache=given.cache,
                host=given.host,
                port=given.port,
                api_keys=_keys(given.api_key),
                model_name=given.model_name,
                context_length=given.context_length,
                threads=given.threads,
                sequences=given.max_concurrency,
                waiting=given.max_waiting,
                tokens=given.tokens_per_pass,
                cache_mib=given.kv_cache_mib,
                prefix_mib=given.prefix_cache_mib,
                prefix_folder=given.prefix_cache_dir,
                prefix_folder_mib=given.prefix_cache_dir_mib,
                exact=given.exact,
                system_prompts=_system_prompts(given),
                request_seconds=given.request_timeout,
                drain_seconds=given.drain_seconds,
                drain_delay_seconds=given.drain_delay_seconds,
                keys_folder=given.api_keys_folder,
                adapters=tuple(given.adapter),
                adapter_rank=given.max_adapter_rank,
                adapter_mib=given.adapter_cache_mib,
                revision=given.revision,
                golden=given.golden,
                admin=admin,
                speculation=_speculation(given),
                tls=given.tls_folder,
            ),
            say=_say,
        )
    except GenAIError as error:
        _say(f"error: {error}")
        _leave(given.termination_log, error)
        return error.exit_code
    except KeyboardInterrupt:  # while it loads; later the server ends in its own way
        _say("error: interrupted")
        return 130
    except OSError as error:
        _say(f"error: {error.filename or given.host}: {error.strerror or error}")
        return 1
    except ModuleNotFoundError as error:
        _say(f"error: {error.name}: serving needs it; pip install 'genai-operator[all]'")
        return 2


def _speculation(given: argparse.Namespace) -> SpeculativeConfig | None:
    """What --speculation and its options ask for.

    Raises:
        BadInput: They make no sense.
    """
    from genai_runtime.speculation.config import named_config

    if given.speculation is None:
        for value, option in ((given.draft, "--draft"), (given.draft_tokens, "--draft-tokens")):
            if value is not None:
                raise BadInput(
                    "it is of speculation", where=option, remedy="add --speculation METHOD"
                )
        return None
    return named_config(
        given.speculation, draft=given.draft, tokens=given.draft_tokens, where="--speculation"
    )


def _system_prompts(given: argparse.Namespace) -> tuple[str, ...]:
    """Texts, and those of files.

    Raises:
        BadInput: A file is no text, or one of them is empty.
    """
    found = list(given.system_prompt)
    for path in given.system_prompt_file:
        try:
            found.append(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise BadInput(str(why), where=f"--system-prompt-file {path}") from error
    if not all(found):
        raise BadInput("it is empty", where="--system-prompt", remedy="leave it out")
    return tuple(dict.fromkeys(found))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="genai serve", description="Serve a container.")
    parser.add_argument("container", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--speculation", "--speculative-config")
    parser.add_argument("--draft")
    parser.add_argument("--draft-tokens", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key", action="append", default=[])
    parser.add_argument("--model-name", default="")
    parser.add_argument("--context-length", type=int)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-concurrency", type=int, default=8)
    parser.add_argument("--max-waiting", type=int, default=256)
    parser.add_argument("--tokens-per-pass", type=int, default=128)
    parser.add_argument("--kv-cache-mib", type=int)
    parser.add_argument("--prefix-cache-mib", type=int)
    parser.add_argument("--prefix-cache-dir", type=Path)
    parser.add_argument("--prefix-cache-dir-mib", type=int, default=4096)
    parser.add_argument("--exact", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--system-prompt", action="append", default=[])
    parser.add_argument("--system-prompt-file", action="append", type=Path, default=[])
    parser.add_argument("--request-timeout", type=float, default=0.0)
    parser.add_argument("--drain-seconds", type=float, default=30.0)
    parser.add_argument("--drain-delay-seconds", type=float, default=0.0)
    parser.add_argument("--api-keys-folder", type=Path)
    parser.add_argument("--tls-folder", type=Path, help="with tls.crt and tls.key, read again")
    parser.add_argument("--adapter", action="append", default=[])
    parser.add_argument("--admin-port", type=int)
    parser.add_argument("--admin-token-file", type=Path)
    parser.add_argument("--admin-tokens-folder", type=Path)
    parser.add_argument("--adapter-folder", type=Path)
    parser.add_argument("--declared-adapters", type=Path)
    parser.add_argument("--fetch-socket", type=Path, help="of genai_core.store.adapter_fetch")
    parser.add_argument("--max-adapter-rank", type=int)
    parser.add_argument("--adapter-cache-mib", type=int)
    parser.add_argument("--revision", default="")
    parser.add_argument("--golden", action="store_true", help="replay before the first request")
    parser.add_argument("--termination-log", type=Path, help="where a pod says why it ended")
    return parser.parse_args(argv)


def _leave(file: Path | None, error: GenAIError) -> None:
    """Say why, for who reads a pod's termination message."""
    if file is not None:
        cut = {name: text[:_MOST_TEXT] for name, text in error.as_dict().items()}
        with suppress(OSError):
            file.write_text(json.dumps({"error": cut}), encoding="utf-8")


def _admin_tokens(file: Path | None, folder: Path | None) -> ApiKeys:
    """Of a folder that is read again and again, of a file, or of GENAI_ADMIN_TOKEN.

    Raises:
        BadInput: There is none: whoever reached the port could change what is served.
    """
    from genai_serving.api.api_keys import ApiKeys

    if folder is not None:
        return ApiKeys((), folder)
    token = os.environ.get("GENAI_ADMIN_TOKEN", "")
    if file is not None:
        token = file.read_text(encoding="utf-8").strip()
    if not token:
        raise BadInput(
            "it needs a token",
            where="--admin-port",
            remedy="set GENAI_ADMIN_TOKEN, or name a file with --admin-token-file",
        )
    return ApiKeys((token,))


def _keys(given: list[str]) -> tuple[str, ...]:
    """Of the command line and of GENAI_API_KEY, which no list of processes shows to others."""
    return tuple(key for key in (*given, os.environ.get("GENAI_API_KEY", "")) if key)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
