"""`nightmill up`: the processes of one installation on this machine, started, watched and stopped."""
