"""Turn files into searchable text.

    task ──▶ parser.Parser ═sandbox═▶ parser_child: one format ▶ blocks ▶ chunking
                  │                                 pdf, webpage, markdown, plain, office
                  ◀══════ Document, checked ═════════

Uploaded files may be hostile, so the code that reads them runs in a confined process (`workers.sandbox`) that gets the
file as an open descriptor and has limited time and memory. Every failure there becomes a `Refused`.
"""
