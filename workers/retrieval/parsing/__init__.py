"""Turn files into text that can be searched.

    task ──▶ parser.Parser ═sandbox═▶ parser_child: one format ▶ blocks ▶ chunking
                  │                                 pdf, webpage, markdown, plain, office
                  ◀══════ Document, checked ═════════

Uploaded files are hostile until proven otherwise, so the code that reads them runs in a confined process
(`workers.sandbox`) that gets the file as an open descriptor, and has so much time and memory. Whatever happens there
becomes a `Refused`.
"""
