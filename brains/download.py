"""Downloads a file over HTTP, continues transfers that broke off, and says in one line what went wrong."""

import itertools
import re
import time

from brains.cli import UserError, note

ATTEMPTS = 4  # transfers of one address, with 1, 2 and 4 seconds between
TIMEOUT = 20  # seconds to connect, and without a byte


class _Retry(Exception):
    """A transfer that failed in a way that may pass."""


def download(url, part):
    """Stream a zip from `url` to `part`, or what it lacks. Raises UserError, or OSError if `part` cannot be written."""
    import requests  # takes as long to import as all else that dataset.py needs

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _transfer(url, part)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, _Retry) as error:
            if attempt == ATTEMPTS:
                raise UserError(f"gave up after {ATTEMPTS} attempts ({_reason(error)})") from error
            note(f"  {_reason(error)}; trying again")
            time.sleep(2 ** (attempt - 1))
        except (requests.RequestException, ValueError) as error:
            raise UserError(f"not an address that can be fetched ({_reason(error)})") from error


def _reason(error):
    if type(error).__name__ == "ChunkedEncodingError":
        return "the transfer broke off"
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else type(error).__name__
    return re.sub(r"^\w+\(.*?\): ", "", str(cause))


def _transfer(url, part):
    import requests
    from tqdm import tqdm

    start = part.stat().st_size if part.exists() else 0
    # identity: a Range counts bytes of what is sent, so nothing may compress it on the way
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing beyond `start`: the file is whole, or another one
            if response.headers.get("Content-Range", "").endswith(f"/{start}"):
                return
            part.unlink()
            raise _Retry("the server has fewer bytes than an earlier transfer left")
        if response.status_code >= 500 or response.status_code == 429:
            raise _Retry(f"HTTP status {response.status_code}")
        if response.status_code >= 400:
            raise UserError(f"HTTP status {response.status_code}")
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # a server without Range sends all from the beginning
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        chunks = response.iter_content(1 << 18)
        first = next(chunks, b"")
        if not start and not first.startswith(b"PK"):
            raise UserError("is not a zip" + (" but a web page" if b"<html" in first[:1024].lower() else ""))
        progress = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc="  download", disable=None)
        with progress, open(part, "ab" if start else "wb") as file:
            for chunk in itertools.chain([first], chunks):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise _Retry("the transfer broke off")
