"""What the operating system and the network give: storage, memory, secret files, the guard of URLs."""
