"""Documents that came with requests, remembered for when they come again."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256

from vllm_promptcache.frontend.documents import RequestDocument

MAX_REMEMBERED = 64
MAX_REMEMBERED_BYTES = 64 * 1024 * 1024

# A document's text and whose it is.
Key = str


class DocumentMemory:
    """Documents with schemas of their own, by their text and the salt of their requests: the ones used last
    stay. They count by what they hold in memory, of which a small text can ask much."""

    def __init__(self) -> None:
        self._documents: OrderedDict[Key, tuple[int, RequestDocument]] = OrderedDict()
        self.num_bytes = 0

    def key(self, text: str, salt: str | None) -> Key:
        """What a document is remembered by: how soon one is answered tells nobody what others have sent."""
        digest = sha256(text.encode("utf-8", "surrogatepass"))
        if salt is not None:
            digest.update(b"\0" + sha256(salt.encode("utf-8", "surrogatepass")).digest())
        return digest.hexdigest()

    def get(self, key: Key) -> RequestDocument | None:
        """The document of this key, if it is remembered."""
        found = self._documents.get(key)
        if found is None:
            return None
        self._documents.move_to_end(key)
        return found[1]

    def put(self, key: Key, document: RequestDocument) -> None:
        """Remember a document, and forget the ones not used for longest beyond the limits."""
        if key in self._documents:
            return
        num_bytes = document.num_bytes
        if num_bytes > MAX_REMEMBERED_BYTES:
            return
        self._documents[key] = num_bytes, document
        self.num_bytes += num_bytes
        while len(self._documents) > MAX_REMEMBERED or self.num_bytes > MAX_REMEMBERED_BYTES:
            _, (freed, _) = self._documents.popitem(last=False)
            self.num_bytes -= freed
