"""The commands: one module a noun, one function a verb. `cli.main` lists them."""
