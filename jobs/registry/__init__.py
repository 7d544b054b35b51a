"""The models that projects have made by fine-tuning, and who may ask for them."""
