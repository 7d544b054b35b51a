"""Access to the operating system and the network: storage, memory, secret files, the guard of URLs."""
