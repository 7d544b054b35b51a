"""What several commands ask of a running server, and how its answers lie beside what was asked."""
