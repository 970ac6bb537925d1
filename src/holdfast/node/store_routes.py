"""The internal paths of `holdfast store`: a list by GET, one command by POST, its values in the query."""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from holdfast.base.errors import Busy, Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.node.store_commands import StoreCommands
from holdfast.node.store_list import StoreLister
from holdfast.node.stores import ACTIONS, STORES_PATH, refusal_of
from holdfast.s3.face import AdminAnswer, AdminRequest, Route

_STATUS: tuple[tuple[type[HoldfastError], int], ...] = (
    (InvalidInput, 400),
    (Fenced, 409),
    (Busy, 503),
    (Unavailable, 503),
)


def store_routes(lister: StoreLister, commands: StoreCommands) -> Mapping[str, Route]:
    """What is answered at which path."""

    async def answer_list(request: AdminRequest) -> AdminAnswer:
        return AdminAnswer(200, msgspec.json.encode(await lister.list()))

    def answer_to(action: str) -> Callable[[AdminRequest], Awaitable[AdminAnswer]]:
        async def answer(request: AdminRequest) -> AdminAnswer:
            try:
                return AdminAnswer(200, msgspec.json.encode(await commands.do(action, request.query)))
            except HoldfastError as error:
                return refused(error)

        return answer

    post = frozenset({"POST"})
    return {STORES_PATH: Route(answer_list, signed=True)} | {
        f"{STORES_PATH}/{action}": Route(answer_to(action), signed=True, methods=post) for action in ACTIONS
    }


def refused(error: HoldfastError) -> AdminAnswer:
    """An error as the answer of an internal path, with its kind."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return AdminAnswer(status, msgspec.json.encode(refusal_of(error)))
