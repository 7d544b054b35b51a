"""Files become text that can be searched.

    task ──▶ parser.Parser ═sandbox═▶ child: sniffing ▶ one format ▶ blocks ▶ chunking
                  │                                  pdf, webpage, markdown, records, plain, office
                  ◀══════ Document, checked ═════════

Uploaded files are hostile until proven otherwise, so all that reads them runs in a confined process (`workers.sandbox`)
that gets the file as an open descriptor, and has so much time and memory; whatever happens there becomes a Refused.
"""
