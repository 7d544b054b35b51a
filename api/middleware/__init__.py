"""What happens to a request before its body is read, from the outside in.

    Trace ─▶ Authenticate ─▶ Limit ─▶ FairShare ─▶ the app

Pure ASGI: `call_next` styles read bodies and break streams. A request that is refused here costs neither memory nor
disk, however large its body is.
"""

from api.middleware.authenticate import Authenticate
from api.middleware.limit import Limit
from api.middleware.share import FairShare
from api.middleware.trace import Trace

__all__ = ["Authenticate", "FairShare", "Limit", "Trace"]
