"""The API of one Kubeflow Pipelines: calls end in time, lists are read to their end, a refusal is one sentence."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import kfp
import kfp_server_api
import urllib3

from free2ds_common.errors import StageError, first_line
from free2ds_common.redact import redacted

Answer = TypeVar("Answer")

# To connect, and until the answer is there.
TIMEOUT_S = (20.0, 120.0)
PAGE_SIZE = 100
# Between tries: none, this, twice this.
BACKOFF_S = 1.0
# Answers that mean: not now.
BUSY = (429, 502, 503, 504)
# Of what the backend itself says.
_LONGEST_MESSAGE = 400


class Refusal(StageError):
    """A backend that does not answer or refuses.

    Attributes:
        may_pass: Whether the same may go well in a moment.
    """

    def __init__(self, sentence: str, *, may_pass: bool) -> None:
        """Keep both."""
        super().__init__(sentence)
        self.may_pass = may_pass


@dataclass(frozen=True)
class Address:
    """Where an installation is, and who asks.

    Attributes:
        host: Of the API; empty uses KF_PIPELINES_ENDPOINT, the cluster around, or kubectl's configuration.
        ui_host: Of the UI, where it differs from the API's.
        namespace: Of a multi-user installation, and where its pods run.
        token_file: Holds a bearer token; empty for none.
    """

    host: str = ""
    ui_host: str = ""
    namespace: str = "kubeflow"
    token_file: str = ""


class Client(kfp.Client):
    """KFP's client, which finds host and credentials; a request that changes nothing is tried again."""

    def _load_config(self, *arguments: object, **options: object) -> kfp_server_api.Configuration:
        config = super()._load_config(*arguments, **options)
        # urllib3's own default tries a POST again too, which could start a run twice.
        config.retries = urllib3.Retry(
            total=3,
            connect=1,
            backoff_factor=BACKOFF_S,
            status_forcelist=BUSY,
            allowed_methods=("GET",),
            raise_on_status=False,
        )
        return config

    def get_kfp_healthz(self, sleep_duration: int = 0) -> kfp_server_api.V2beta1GetHealthzResponse:
        """Ask once; KFP's own asks five times with pauses, after a refusal too, and logs a traceback each time."""
        return self._healthz_api.healthz_service_get_healthz(_request_timeout=TIMEOUT_S)


class Backend:
    """An installation that answers.

    Attributes:
        address: Where it is.
        client: The generated services: `client.runs`, `client.recurring_runs`, `client.pipelines`, ...
        multi_user: Whether it keeps namespaces apart.
    """

    def __init__(self, address: Address) -> None:
        """Connect.

        Raises:
            StageError: Nothing answers there, or it refuses.
        """
        self.address = address
        with warnings.catch_warnings(), self._one_sentence("the health check"):
            warnings.simplefilter("ignore")
            self.client = Client(
                host=address.host or None, namespace=address.namespace, existing_token=_token(address.token_file)
            )
            self.multi_user = bool(self.client.get_kfp_healthz().multi_user)

    @property
    def host(self) -> str:
        """The API's address, as it was found."""
        return str(self._api_client.configuration.host).rstrip("/")

    @property
    def ui_host(self) -> str:
        """The UI's address."""
        return (self.address.ui_host or self.host).rstrip("/")

    @property
    def scope(self) -> dict[str, str]:
        """The namespace, as an argument of calls that list or create; nothing where there is only one user."""
        return {"namespace": self.address.namespace} if self.multi_user else {}

    def run_link(self, run_id: str) -> str:
        """The page of a run in the UI."""
        return f"{self.ui_host}/#/runs/details/{run_id}"

    def call(self, what: str, method: Callable[..., Answer], *arguments: object, **options: object) -> Answer:
        """Ask for one thing.

        Args:
            what: What it is about, for messages: "run 1234".
            method: Of one of the client's services.
            *arguments: Its arguments.
            **options: Its keyword arguments.

        Raises:
            StageError: The backend does not answer or refuses.
        """
        with self._one_sentence(what):
            return method(*arguments, _request_timeout=TIMEOUT_S, **options)

    def every(
        self, what: str, method: Callable[..., Any], field: str, *arguments: object, **options: object
    ) -> Iterator[Any]:
        """Every entry of a list, page by page.

        Args:
            what: As in `call`.
            method: Lists them.
            field: Of the answer, which holds the entries of a page.
            *arguments: As in `call`.
            **options: As in `call`.

        Raises:
            StageError: As in `call`.
        """
        token = ""
        while True:
            page = self.call(what, method, *arguments, page_token=token, page_size=PAGE_SIZE, **options)
            yield from getattr(page, field) or []
            token = page.next_page_token
            if not token:
                return

    def text(self, what: str, path: str) -> str:
        """What a path of the API that the client does not know answers to a GET.

        Raises:
            StageError: As in `call`.
        """
        with self._one_sentence(what):
            answer = self._api_client.call_api(
                path,
                "GET",
                auth_settings=["Bearer"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=TIMEOUT_S,
            )
            return bytes(answer.data).decode("utf-8", "replace")

    def post(self, what: str, url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """What an address of the UI answers to a POST.

        Raises:
            StageError: As in `call`.
        """
        given: dict[str, str] = dict(headers)
        if cookie := self._api_client.cookie:
            given["Cookie"] = cookie
        self._api_client.update_params_for_auth(given, [], ["Bearer"])
        with self._one_sentence(what):
            pool = self._api_client.rest_client.pool_manager
            answer = pool.request("POST", url, body=body, headers=given, timeout=urllib3.Timeout(*TIMEOUT_S))
            if answer.status != 200:
                raise kfp_server_api.ApiException(status=answer.status, reason=answer.reason)
            return bytes(answer.data)

    @property
    def _api_client(self) -> kfp_server_api.ApiClient:
        return self.client.runs.run_service_get_run.__self__.api_client

    def _one_sentence(self, what: str) -> "_OneSentence":
        return _OneSentence(self.address, what)


@dataclass(frozen=True)
class _OneSentence:
    """A block whose refusals and lost connections become a StageError."""

    address: Address
    what: str

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Translate the error."""
        where = redacted(self.address.host) or "the default address"
        if isinstance(error, kfp_server_api.ApiException):
            raise refused(error, self.what, where, self.address.namespace) from None
        if isinstance(error, urllib3.exceptions.HTTPError | OSError):
            raise Refusal(
                f"--host: no Kubeflow Pipelines answers at {where} ({redacted(first_line(error))}). Give the address "
                "of its API.",
                may_pass=True,
            ) from None


def refused(error: kfp_server_api.ApiException, what: str, where: str, namespace: str) -> Refusal:
    """What an answer that is no success means, in one sentence.

    Args:
        error: The answer.
        what: What was asked for.
        where: The host.
        namespace: In which it was asked.
    """
    said = f"{error.status} {error.reason}".strip()
    message = message_of(error.body)
    detail = f"{said}: {message}" if message else said
    status = error.status or 0
    may_pass = status in BUSY or status >= 500
    sentence = f"{what}: {where} refused it ({detail})."
    if status == 401:
        sentence = f"--host: {where} does not know who asks ({said}). Log in, or give --token-file."
    elif status == 403:
        sentence = (
            f"--host: {where} does not allow {what} in namespace {namespace} ({detail}). Ask for the right, or give "
            "another --namespace."
        )
    elif status == 404:
        sentence = f"{what}: {where} has nothing of this name or id ({detail})."
    elif status == 409:
        sentence = f"{what}: {where} has one of this name already ({detail})."
    elif may_pass:
        sentence = f"{what}: {where} failed ({detail}). Try again; its own log says more."
    return Refusal(sentence, may_pass=may_pass)


def message_of(body: str | None) -> str:
    """What the body of a refusal says, in one line; pages of HTML say nothing."""
    try:
        found = json.loads(body or "{}")
    except ValueError:
        return "" if (body or "").lstrip().startswith("<") else _shortened(body or "")
    if not isinstance(found, dict):
        return _shortened(str(found))
    return _shortened(str(found.get("message") or found.get("error_message") or found.get("error") or ""))


def _shortened(text: str) -> str:
    line = redacted(" ".join(text.split())).rstrip(".")
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}…"


def named(name: str) -> str:
    """The filter of lists that only lets entries of one display name through."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _token(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"--token-file: {path} cannot be read ({first_line(error)}).") from None
