"""What happens to a request before its body is read, from the outside in.

    Trace ─▶ Authenticate ─▶ Limit ─▶ FairShare ─▶ the app

Pure ASGI: `call_next` styles read bodies and break streams. A request that is refused here costs neither memory nor
disk, however large its body is.
"""

from api.http.middleware.authenticate import Authenticate
from api.http.middleware.limit import Limit
from api.http.middleware.share import FairShare
from api.http.middleware.trace import Trace

__all__ = ["Authenticate", "FairShare", "Limit", "Trace"]
