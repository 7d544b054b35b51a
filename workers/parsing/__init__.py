"""Files become text that can be searched.

    task ──▶ parser.Parser ══pipe══▶ child: sandbox ▶ sniffing ▶ one format ▶ blocks ▶ chunking
                  │                                   pdf, webpage, markdown, records, plain, office
                  ◀══════ Document, checked ═════════

Uploaded files are hostile until proven otherwise, so all that reads them runs in a child process that may not use
the network, write a file, or take more time and memory than it was given; whatever happens there becomes a Refused.
"""
